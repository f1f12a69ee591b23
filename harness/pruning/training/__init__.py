"""Training after or during pruning: the step loop, adapters, LoRA."""
