"""Tests of harness/conformance."""
