"""How long a model takes on a device."""
