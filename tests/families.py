"""Tiny random models of every supported family, with the quirks that make families differ."""

from __future__ import annotations

from functools import cache

import torch

from harness.models.architectures import modeling
from harness.models.architectures.decoder_families import FAMILIES
from harness.models.architectures.lookup import anatomy_of

BASE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
QUIRKS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"head_dim": 16, "attention_bias": True},
    "gemma": {"head_dim": 16, "num_key_value_heads": 2},
}
ALL = sorted(FAMILIES)


@cache
def tiny(family: str, tied: bool = False):
    """A model with weights large enough that no unit is without effect, and its anatomy."""
    words = {**BASE, **QUIRKS[family], "model_type": family, "tie_word_embeddings": tied}
    _, model_class = modeling.classes(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(modeling.config(words)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model, anatomy_of(modeling.config_dict(model))


def logits(model, length: int = 13):
    tokens = (torch.arange(2 * length) * 7 % model.config.vocab_size).view(2, length)
    with torch.inference_mode():
        return model(tokens, use_cache=False).logits


def difference(found, expected) -> float:
    """Largest difference as a share of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())
