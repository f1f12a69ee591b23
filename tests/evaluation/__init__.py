"""Tests of harness/evaluation."""
