"""Tests of harness/latency."""
