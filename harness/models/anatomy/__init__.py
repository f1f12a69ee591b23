"""Sites, units and tensors of a model."""
