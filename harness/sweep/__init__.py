"""Suites of cells, and the engines that run them."""
