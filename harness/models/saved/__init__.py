"""Saved models: what their folders hold, how they are written, read and proved."""
