"""Measures how long a model takes on a device."""
