"""What is run and timed: a model where it should lie, a pass that can be repeated exactly, its memory."""

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


def placed(model: Any, device: torch.device) -> Any:
    """The model itself where all of it lies on the device already, else a copy there."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    if all(tensor.device == device for tensor in parameters + buffers):
        return model
    # Tensors go straight to the device: a deep copy alone would hold the weights twice on the host. The memo has tied
    # weights stay tied.
    moved: dict[int, Any] = {id(b): b.detach().to(device) for b in buffers}
    for p in parameters:
        moved[id(p)] = torch.nn.Parameter(p.detach().to(device), requires_grad=p.requires_grad)
    return copy.deepcopy(model, moved)


def weight_bytes(model: Any) -> int:
    """Bytes of parameters and buffers, tied ones once. A view counts as itself, not as what it is a view of."""
    tensors = (*model.parameters(), *model.buffers())
    return sum({(tensor.data_ptr(), tensor.shape): tensor.nbytes for tensor in tensors}.values())


def prime(model: Any) -> None:
    """A few tokens, so that workspaces that live as long as the process are not charged to the first model."""
    with torch.inference_mode():
        model(torch.ones(1, 8, dtype=torch.long, device=model.device), use_cache=False, logits_to_keep=1)


class PinnedCache(StaticCache):
    """A StaticCache that can be put back to one position, which Python knows.

    While unpinned it is transformers' own. That one tells its length as a tensor, so that the causal mask is computed
    in every step, and with a mask attention leaves the fast kernels that eager decoding uses. Here every pass starts
    at the same position and the cache is as long as the pass needs, so that all of it is seen and no mask is due.
    """

    start: int | None = None  # None while unpinned

    @property
    def is_compileable(self) -> bool:  # transformers' sign for "make the mask of a decoding step in any case"
        return self.start is None and super().is_compileable

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return super().get_seq_length(layer_idx) if self.start is None else self.start

    def pin(self, start: int, device: torch.device) -> None:
        """From now on `rewind` puts every layer at `start`. Layers without attention have no position."""
        self.start = start
        layers = [layer for layer in self.layers if isinstance(layer, StaticLayer) and layer.is_initialized]
        # Views of one tensor: a rewind is one kernel, not one a layer.
        self.positions = torch.full((len(layers),), start, dtype=torch.long, device=device)
        for at, layer in enumerate(layers):
            layer.cumulative_length = self.positions[at]

    def rewind(self) -> None:
        assert self.start is not None
        self.positions.fill_(self.start)
        for layer in self.layers:
            if hasattr(layer, "cumulative_length_int"):  # sliding layers keep a second count
                layer.cumulative_length_int = self.start


class StaticPass:
    """A pass whose every tensor stays where it is: what a CUDA graph needs, and what it is compared with.

    `rewind` belongs before each `step` and outside of the timed window. `logits` are those of the last step, and of
    the last replay after a capture.
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
                raise Unsupported("a sliding cache cannot step back one token to be timed again", "give prefill:BxS")
            self.tokens, self.positions = tokens, positions[:, : workload.size]
            self._forward()  # fills the context, or is a first prefill, which makes the cache's tensors
            self.tokens, self.positions = tokens[:, :count], positions[:, start:]
            self.cache.pin(start, model.device)
        self.rewind()

    def _forward(self) -> Any:
        # Positions are given: what would be read from the cache is a tensor made anew in every pass.
        found = self.model(
            self.tokens,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return found.logits

    def rewind(self) -> None:
        with torch.inference_mode():  # tensors made in this mode may only be written in it
            self.cache.rewind()

    def step(self) -> None:
        with torch.inference_mode():
            self.logits = self._forward()


def footprint(place: Any, model: Any, base: int | None, run: Callable[[], None], held: bool) -> dict[str, int] | None:
    """Does `run` once and tells the bytes of the model, its caches and the run: all that is allocated above `base`.

    Activations come and go: their average is over the moments at which a module ends; where `run` has them `held`, as
    a capture does, it is the peak. torch's allocator counts, and other models in the process are left out; so is what
    CUDA itself takes (context, kernels, the nodes of a graph).
    """
    seen: list[int] = []
    hook = None if base is None or held else register_module_forward_hook(lambda *_: seen.append(place.allocated()))
    try:
        place.forget_peak()
        run()
    finally:
        if hook is not None:
            hook.remove()
    if base is None:
        return None
    rest = weight_bytes(model) - base
    peak = place.peak()
    return {"average": rest + (sum(seen) // len(seen) if seen else peak), "peak": rest + peak}
