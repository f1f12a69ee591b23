"""Where weights come from: cards, folders, GGUF files, the tiny model, the cache."""
