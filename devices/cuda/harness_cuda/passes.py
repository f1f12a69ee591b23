"""Prepares what is timed: a model on the GPU, a pass that can be repeated exactly, and its memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from harness.api import Workload
from harness.errors import Unsupported


def on_device(model: Any, device: torch.device) -> Any:
    """The model itself if all of it is on the device already, else a copy on the device."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    if all(tensor.device == device for tensor in parameters + buffers):
        return model
    # Tensors go straight to the device: a deep copy alone would hold the weights twice on the host. The memo also
    # keeps tied weights tied.
    memo: dict[int, Any] = {id(b): b.detach().to(device) for b in buffers}
    for p in parameters:
        memo[id(p)] = torch.nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def weight_bytes(model: Any) -> int:
    """Bytes of parameters and buffers. Tied ones count once; a view counts with its own size."""
    tensors = (*model.parameters(), *model.buffers())
    return sum({(tensor.data_ptr(), tensor.shape): tensor.nbytes for tensor in tensors}.values())


def allocate_workspaces(model: Any) -> None:
    """Run a few tokens, so that workspaces for the whole process are not counted as the first model's memory."""
    with torch.inference_mode():
        model(torch.ones(1, 8, dtype=torch.long, device=model.device), use_cache=False, logits_to_keep=1)


class PinnedCache(StaticCache):
    """A StaticCache that can be put back to one position, which is a plain number.

    While it is not pinned, it behaves like transformers' own. That one returns its length as a tensor, so that a causal
    mask is computed in every step, and with a mask attention does not use the fast kernels of eager decoding. Once
    pinned, every pass starts at the same position and the cache is exactly as long as the pass needs. All of it is
    visible, so that no mask is needed.
    """

    start: int | None = None  # None while not pinned

    @property
    def is_compileable(self) -> bool:  # if true, transformers always makes the mask of a decoding step
        return self.start is None and super().is_compileable

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return super().get_seq_length(layer_idx) if self.start is None else self.start

    def pin(self, start: int, device: torch.device) -> None:
        """Make `rewind` put every layer to `start` from now on. Layers without attention have no position."""
        self.start = start
        layers = [layer for layer in self.layers if isinstance(layer, StaticLayer) and layer.is_initialized]
        # All positions are views of one tensor, so that a rewind takes one kernel instead of one per layer.
        self.positions = torch.full((len(layers),), start, dtype=torch.long, device=device)
        for index, layer in enumerate(layers):
            layer.cumulative_length = self.positions[index]

    def rewind(self) -> None:
        assert self.start is not None
        self.positions.fill_(self.start)
        for layer in self.layers:
            if hasattr(layer, "cumulative_length_int"):  # sliding layers have a second counter
                layer.cumulative_length_int = self.start


class StaticPass:
    """A pass whose tensors all keep their addresses, as a CUDA graph needs it.

    Call `rewind` before each `step`, outside the timed window. `logits` are those of the last step or, after a
    capture, of the last replay.
    """

    def __init__(self, model: Any, workload: Workload) -> None:
        if workload.kind not in ("prefill", "decode"):
            raise Unsupported(f"there is no {workload.kind} workload of a decoder", "give prefill:BxS or decode:BxC")
        start, count = (workload.size, 1) if workload.kind == "decode" else (0, workload.size)
        self.model, self.logits = model, None
        with torch.inference_mode():
            tokens = torch.ones(workload.batch, workload.size, dtype=torch.long, device=model.device)
            positions = torch.arange(start + count, device=model.device)[None]
            self.cache = PinnedCache(config=model.config, max_cache_len=start + count)
            if start and any(self.cache.is_sliding):
                raise Unsupported("a sliding cache cannot step back one token to time it again", "give prefill:BxS")
            self.tokens, self.positions = tokens, positions[:, : workload.size]
            self._forward()  # fills the context; for prefill, it only creates the tensors of the cache
            self.tokens, self.positions = tokens[:, :count], positions[:, start:]
            self.cache.pin(start, model.device)
        self.rewind()

    def _forward(self) -> Any:
        # Positions are given, because those that the cache returns are a new tensor in every pass.
        output = self.model(
            self.tokens,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits

    def rewind(self) -> None:
        with torch.inference_mode():  # tensors created in this mode can be written in this mode only
            self.cache.rewind()

    def step(self) -> None:
        with torch.inference_mode():
            self.logits = self._forward()


def measure_memory(
    backend: Any, model: Any, base: int | None, run: Callable[[], None], capture: bool
) -> dict[str, int] | None:
    """Call `run` once and return the bytes of the model, its caches and its activations: all above `base`.

    The average of the activations is taken over the moments at which a module ends. A `capture` keeps all activations,
    so that their average is the peak. The figures are those of torch's allocator, without other models in the process
    and without what CUDA itself takes (context, kernels, the nodes of a graph).
    """
    readings: list[int] = []
    hook = None
    if base is not None and not capture:
        hook = register_module_forward_hook(lambda *_: readings.append(backend.allocated_bytes()))
    try:
        backend.reset_peak()
        run()
    finally:
        if hook is not None:
            hook.remove()
    if base is None:
        return None
    offset = weight_bytes(model) - base
    peak = backend.peak_bytes()
    average = sum(readings) // len(readings) if readings else peak
    return {"average": offset + average, "peak": offset + peak}
