"""What pruners share: allocation, importance, gates, distance, walks from layer to layer."""
