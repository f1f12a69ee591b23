"""How far a decoder is from its dense self on text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from harness import Unsupported, process
from harness.anatomy import Anatomy
from harness.gating import gated
from harness.training import stop_if_lost

ROWS = 4  # windows that go through together where nothing asks for gradients
SHORT = 512  # tokens up to which a CPU's plain attention, with its gradients, is faster than the fused one


class Distance:
    """KL to the dense model, or the task's own loss, on rows of the calibration windows under gates.

    What the dense model holds before its head is remembered, its logits would be too much; one more product with the
    head gives them back. Every `stride`-th token counts, another one at every step.
    """

    def __init__(self, model: Any, anatomy: Anatomy, windows: Tensor, kind: str, stride: int, compute: str) -> None:
        self.model, self.anatomy, self.windows = model, anatomy, windows.to(model.device)
        self.kind, self.stride = kind, stride
        self.cast = caster(model, compute)
        self.half = self.cast is not nullcontext
        self.head = model.get_output_embeddings()
        self.dense = torch.tensor([])
        if kind == "kl":
            with torch.no_grad(), self.cast():
                self.dense = torch.cat([self._hidden(part) for part in self.windows.split(ROWS)])

    def __call__(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int = 0) -> Tensor:
        """The mean over the tokens that count, in nats."""
        at, part = slice(step % self.stride, None, self.stride), self.windows[list(rows)]
        with gated(self.model, self.anatomy, gates), self.cast():
            hidden = self._hidden(part)
            if self.kind == "task":
                hidden, wanted = hidden[:, :-1][:, at], part[:, 1:][:, at]
                return torch.nn.functional.cross_entropy(self.head(hidden).float().flatten(0, 1), wanted.flatten())
            ours = torch.log_softmax(self.head(hidden[:, at]).float(), -1)
        with torch.no_grad(), self.cast():
            dense = torch.log_softmax(self.head(self.dense[list(rows)][:, at]).float(), -1)
        return (dense.exp() * (dense - ours)).sum(-1).mean()

    def checked(self, rows: Sequence[int], gates: Mapping[str, Tensor], step: int) -> Tensor:
        """The same, or an end with a reason if it is not a number."""
        loss = self(rows, gates, step)
        stop_if_lost(float(loss.detach()), step, self.model, self.windows[list(rows)])
        return loss

    def held_out(self, rows: Sequence[int], gates: Mapping[str, Tensor]) -> float:
        """Over many rows, all their tokens' share by the stride, without gradients."""
        parts = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
        with torch.no_grad():
            return sum(float(self.checked(part, gates, 0)) * len(part) for part in parts) / len(rows)

    def _hidden(self, part: Tensor) -> Tensor:
        return self.model.base_model(part, use_cache=False).last_hidden_state.to(self.model.dtype)


@contextmanager
def plain_attention(model: Any, length: int) -> Iterator[None]:
    """While it lasts, the attention that is fastest for many short windows."""
    asked = model.config._attn_implementation
    if model.device.type == "cpu" and length <= SHORT:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(asked)


def caster(model: Any, compute: str) -> Callable[[], AbstractContextManager]:
    """The search's passes may run in bf16 whatever the model's weights are: where the machine is made for it."""
    if compute == "auto":
        compute = "bf16" if fast_bf16(model.device.type) else "fp32"
    if compute == "fp32" or model.dtype != torch.float32:
        return nullcontext
    if model.device.type == "cpu" and not process.tamed():
        raise Unsupported(
            "bf16 would end this process: the CPU announces AMX and does not allow it",
            "set compute=fp32, or ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment",
        )
    # weights may change while it lasts: none is remembered in bf16
    return lambda: torch.autocast(model.device.type, torch.bfloat16, cache_enabled=False)


def fast_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(known.get("avx512_bf16")) and process.tamed()
