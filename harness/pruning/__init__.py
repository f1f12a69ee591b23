"""What pruners share: allocation, importance, gates, distance, passes layer by layer."""
