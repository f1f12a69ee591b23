"""Timing programs on remote machines: their commands, and parsers of their output."""
