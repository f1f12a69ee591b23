"""Texts, calibration windows, and the evaluators that ship with harness."""
