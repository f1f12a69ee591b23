"""The distance of a gated model from the dense one on calibration samples, with gradients to the gates.

Methods that search by gradients need to know no more of a network than this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError, Unsupported
from harness.models.anatomy.core import Anatomy
from harness.pruning.gates import gated
from harness.pruning.layerwise import first_bad_layer
from harness.system import process

__all__ = ["ROWS", "Distance", "autocast_context", "plain_attention"]

ROWS = 4  # windows per pass without gradients
SHORT = 512  # tokens up to which eager attention with gradients is faster on a CPU than the fused one


class Distance:
    """KL divergence from the dense model, or the task's own loss, on rows of the calibration windows under gates.

    The dense model's hidden states before the head are stored, since its logits would take too much memory; the head
    computes them again. Only every `stride`-th token counts, starting at another one in every step.
    """

    def __init__(self, model: Any, anatomy: Anatomy, windows: Tensor, kind: str, stride: int, compute: str) -> None:
        self.model, self.anatomy, self.windows = model, anatomy, windows.to(model.device)
        self.kind, self.stride = kind, stride
        self.cast = autocast_context(model, compute)
        self.uses_bf16 = self.cast is not nullcontext
        self.head = model.get_output_embeddings()
        self.dense = torch.tensor([])
        if kind == "kl":
            with torch.no_grad(), self.cast():
                self.dense = torch.cat([self._hidden(part) for part in self.windows.split(ROWS)])

    def __call__(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int = 0) -> Tensor:
        """The mean over the counted tokens, in nats."""
        at, part = slice(step % self.stride, None, self.stride), self.windows[list(rows)]
        with gated(self.model, self.anatomy, gates), self.cast():
            hidden = self._hidden(part)
            if self.kind == "task":
                hidden, following = hidden[:, :-1][:, at], part[:, 1:][:, at]
                return torch.nn.functional.cross_entropy(self.head(hidden).float().flatten(0, 1), following.flatten())
            gated_log = torch.log_softmax(self.head(hidden[:, at]).float(), -1)
        with torch.no_grad(), self.cast():
            dense_log = torch.log_softmax(self.head(self.dense[list(rows)][:, at]).float(), -1)
        return (dense_log.exp() * (dense_log - gated_log)).sum(-1).mean()

    def finite_loss(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int) -> Tensor:
        """The same; an error with its reason if the loss is not finite. Step 0 means the held-out rows."""
        loss = self(rows, gates, step)
        if not math.isfinite(float(loss.detach())):
            when = f"at step {step}" if step else "on the held-out samples"
            raise HarnessError(
                f"the loss is {float(loss.detach())} {when}{first_bad_layer(self.model, self.windows[list(rows)])}",
                "load the model in fp32 (--dtype fp32), set compute=fp32, or lower inner_lr if weights learn; "
                "if it is so from the first step on, the weights are bad",
            )
        return loss

    def tokens(self, batch: int) -> int:
        """How many tokens count in a step over so many windows."""
        return self.windows.shape[1] * batch // self.stride

    def mean_loss(self, rows: Sequence[int], gates: Mapping[str, Tensor]) -> float:
        """The mean over many rows, without gradients."""
        parts = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
        with torch.no_grad():
            return sum(float(self.finite_loss(part, gates, 0)) * len(part) for part in parts) / len(rows)

    def _hidden(self, part: Tensor) -> Tensor:
        return self.model.base_model(part, use_cache=False).last_hidden_state.to(self.model.dtype)


@contextmanager
def plain_attention(model: Any, length: int) -> Iterator[None]:
    """Use the attention that is fastest for many short windows, meanwhile."""
    before = model.config._attn_implementation
    if model.device.type == "cpu" and length <= SHORT:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def autocast_context(model: Any, compute: str) -> Callable[[], AbstractContextManager]:
    """A context for passes in bf16 or in the model's precision. "auto" is bf16 where the machine is fast at it."""
    if compute == "auto":
        compute = "bf16" if fast_bf16(model.device.type) else "fp32"
    if compute == "fp32" or model.dtype != torch.float32:
        return nullcontext
    if model.device.type == "cpu" and not process.bf16_is_safe():
        raise Unsupported(
            "bf16 would end this process: the CPU announces AMX instructions and does not allow them",
            "set compute=fp32, or ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment",
        )
    # weights may change meanwhile, so no bf16 copies are cached
    return lambda: torch.autocast(model.device.type, torch.bfloat16, cache_enabled=False)


def fast_bf16(device: str) -> bool:
    """Whether this machine computes in bf16 faster than in fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(capabilities.get("avx512_bf16")) and process.bf16_is_safe()
