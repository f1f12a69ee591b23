"""Records of runs, the keys of their stages, the store that holds them, and the environment that they describe."""
