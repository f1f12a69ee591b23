"""Programs that time a model on another machine: the words to call them with, and what they print."""
