"""Processes, files of others and this machine: what everything else stands on."""
