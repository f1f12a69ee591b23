"""Tests of harness/leaderboard."""
