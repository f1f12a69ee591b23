"""What may follow a cut, the same for every method."""
