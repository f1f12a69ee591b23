"""A workload as something to call: the same forward pass wherever eager torch runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.api import Workload
from harness.errors import Unsupported


def runner(model: Any, workload: Workload) -> Callable[[], None]:
    """One call is one prompt (`prefill`) or one token at a context (`decode`)."""
    import torch
    from transformers import DynamicCache

    tokens = torch.ones(workload.batch, workload.size, dtype=torch.long, device=model.device)

    def prefill() -> None:
        with torch.inference_mode():
            model(tokens, use_cache=True, logits_to_keep=1)

    if workload.kind == "prefill":
        return prefill
    if workload.kind != "decode":
        raise Unsupported(f"there is no {workload.kind} workload of a decoder", "give prefill:BxS or decode:BxC")
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        raise Unsupported("a sliding cache cannot step back one token to be timed again", "give prefill:BxS")

    def decode() -> None:
        with torch.inference_mode():
            model(tokens[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-1)

    return decode


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for torch while a model is timed; the rest of the run keeps its own."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
