"""Text: tokens go in, and the logits of each next token come out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.api import Inputs, Shape, Workload
from harness.errors import Unsupported
from harness.models.anatomy.core import Anatomy, Op

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["next_token_loss"]

PROBE_TOKENS = 48
REMEDY = "give prefill:BxS or decode:BxC"


class Text:
    """Language modelling. See `harness.api.Task`."""

    name = "text"
    kinds: tuple[str, ...] = ("prefill", "decode")
    default = Workload("prefill", 1, 128)

    def batches(self, source: Callable[..., Tensor], count: int, **size: int) -> list[Inputs]:
        return [{"input_ids": window[None]} for window in source(count, size["length"])]

    def forward(self, model: Any, inputs: Inputs) -> None:
        model(inputs["input_ids"].to(model.device), use_cache=False, logits_to_keep=1)

    def logits(self, model: Any, inputs: Inputs) -> Tensor:
        return model(inputs["input_ids"].to(model.device), use_cache=False).logits

    def loss(self, logits: Tensor, inputs: Inputs) -> Tensor:
        return next_token_loss(logits, inputs["input_ids"].to(logits.device))

    def probe(self, model: Any) -> Inputs:
        """Fixed tokens spread over the vocabulary."""
        import torch

        tokens = torch.arange(1, PROBE_TOKENS + 1, dtype=torch.long) * 7919 % model.config.vocab_size
        return {"input_ids": tokens[None]}

    def runner(self, model: Any, workload: Workload) -> Callable[[], None]:
        """One call is one prompt (`prefill`) or one token at a context (`decode`)."""
        import torch
        from transformers import DynamicCache

        self.check(workload)
        tokens = torch.ones(workload.batch, workload.size, dtype=torch.long, device=model.device)

        def prefill() -> None:
            with torch.inference_mode():
                model(tokens, use_cache=True, logits_to_keep=1)

        if workload.kind == "prefill":
            return prefill
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

    def check(self, workload: Workload) -> None:
        if workload.kind not in self.kinds:
            raise Unsupported(f"text has no {workload.kind} workload", REMEDY)

    def flops(self, anatomy: Anatomy, shape: Shape, workload: Workload) -> int:
        """The head sees the last position only, as in serving."""
        self.check(workload)
        remaining = anatomy.tensor_shapes(shape)
        return sum(_flops(op, remaining[op.weight], workload) for op in anatomy.ops if op.weight in remaining)

    def counted_flops(self, model: Any, workload: Workload) -> int:
        """The same by torch's counter; the model may lie on the meta device."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config)
        device = next(model.parameters()).device
        ids = torch.zeros(workload.batch, workload.size, dtype=torch.long, device=device)
        with torch.no_grad():
            if workload.kind == "decode":
                model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids = ids[:, :1]
            with FlopCounterMode(display=False) as counter:
                model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return counter.get_total_flops()

    def count(self, inputs: Inputs) -> int:
        return inputs["input_ids"].numel()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean negative log likelihood of each next token."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def _flops(op: Op, dims: tuple[int, ...], workload: Workload) -> int:
    positions = workload.items if op.positions is None else workload.batch * op.positions
    if op.kind == "attention":  # queries with keys, then weights with values
        return 2 * 2 * positions * _context(op, workload) * dims[0]
    return 2 * positions * math.prod(dims)


def _context(op: Op, workload: Workload) -> int:
    """The positions that a query is multiplied with: all of a prompt; at decode those that the layer's cache holds."""
    if workload.kind == "prefill":
        return workload.size
    return min(workload.size + 1, op.window) if op.window else workload.size + 1
