"""What a model is judged by: texts, calibration, perplexity, footprint."""
