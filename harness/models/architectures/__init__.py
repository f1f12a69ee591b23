"""How networks are put together: one file per kind."""
