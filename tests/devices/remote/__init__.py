"""Tests of harness/devices/remote."""
