"""One cell: from a request to its record."""
