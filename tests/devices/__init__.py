"""Tests of harness/devices."""
