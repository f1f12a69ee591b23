"""Processes, locks, files from outside, and this machine: the ground of all other rooms."""
