"""Devices that ship with harness, and what they run models with."""
