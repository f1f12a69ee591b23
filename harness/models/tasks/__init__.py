"""What goes into a network and what comes out: one file per kind of data."""
