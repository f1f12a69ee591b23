"""Other machines: how files and commands get there, and what runs there."""
