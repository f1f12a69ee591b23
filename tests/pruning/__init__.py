"""Tests of harness/pruning."""
