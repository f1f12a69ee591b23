"""Tests of harness/cell."""
