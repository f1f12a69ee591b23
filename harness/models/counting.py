"""Parameters, FLOPs and bytes, of a shape (no weights, no torch) or of a model."""

from __future__ import annotations

import math
from typing import Any

from harness.api import Shape, Workload
from harness.errors import Unsupported
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.decoder import sliding_window

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def ratios(anatomy: Anatomy, shape: Shape, masked: int = 0) -> tuple[float, float]:
    """Share removed of the prunable and of all parameters; what is masked counts as removed."""
    prunable, whole = anatomy.params(prunable=True), anatomy.params()
    blocks = prunable - anatomy.params(shape, prunable=True) + masked
    return blocks / prunable, (whole - anatomy.params(shape) + masked) / whole


def flops(anatomy: Anatomy, shape: Shape, workload: Workload) -> int:
    """Multiply-adds times two of one forward pass, as `torch.utils.flop_counter` counts them.

    The head sees the last position only, as in serving.
    """
    if workload.kind not in ("prefill", "decode"):
        raise Unsupported(f"a decoder has no {workload.kind} workload", "give prefill:BxS or decode:BxC")
    shape = anatomy.complete(shape)
    left = anatomy.tensor_shapes(shape)
    linear = sum(
        2 * workload.items * math.prod(dims) for name, dims in left.items() if ".layers." in name and len(dims) == 2
    )
    attention = sum(
        2 * 2 * workload.items * _seen(anatomy, int(name.split(".")[2]), workload) * dims[0]
        for name, dims in left.items()
        if name.endswith("q_proj.weight")
    )
    hidden = shape.get("hidden", anatomy.config["hidden_size"])
    return linear + attention + 2 * workload.batch * hidden * int(anatomy.config["vocab_size"])


def _seen(anatomy: Anatomy, layer: int, workload: Workload) -> int:
    """Positions a query is multiplied with: all of a prompt, at decode what the layer's cache holds."""
    if workload.kind == "prefill":
        return workload.size
    window = sliding_window(anatomy.config, layer)
    return min(workload.size + 1, window) if window else workload.size + 1


def counted_flops(model: Any, workload: Workload) -> int:
    """The same by running the counter over a model, which may sit on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config)
    ids = torch.zeros(workload.batch, workload.size, dtype=torch.long, device=device)
    with torch.no_grad():
        if workload.kind == "decode":
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = ids[:, :1]
        with FlopCounterMode(display=False) as counter:
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return counter.get_total_flops()


def count(model: Any) -> tuple[int, int]:
    """Parameters stored and non-zero, shared ones once."""
    stored = nonzero = 0
    for parameter in model.parameters():
        stored += parameter.numel()
        nonzero += int(parameter.count_nonzero())
    return stored, nonzero


def stored_bytes(params: int, dtype: str) -> int:
    return params * BYTES[dtype]
