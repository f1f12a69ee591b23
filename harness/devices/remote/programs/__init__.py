"""Timing programs on other machines: commands and parsers of their output."""
