"""Tests of harness/system."""
