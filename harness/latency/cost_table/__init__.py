"""Cost tables: measured, stored, fitted, checked and read."""
