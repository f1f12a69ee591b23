"""What methods and recoveries that train have in common: chance, batches, a schedule, adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.pruning.layerwise import first_bad_layer, language_loss


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Chance that depends on the seed alone (dropout, initial values), and leaves the caller's as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def drawn(windows: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """So many batches of windows, every window once before any comes again."""
    order = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < size:
            waiting += torch.randperm(len(windows), generator=order).tolist()
        now, waiting = waiting[:size], waiting[size:]
        yield windows[now]


def cosine(step: int, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def optimiser(parameters: Iterable[Tensor], lr: float, decay: float = 0.0, **more: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=lr, weight_decay=decay, **more)


def at_rate(optim: torch.optim.Optimizer, lr: float) -> None:
    for group in optim.param_groups:
        group["lr"] = lr


def model_loss(model: Any, ids: Tensor) -> Tensor:
    ids = ids.to(model.device)
    return language_loss(model(ids, use_cache=False).logits, ids)


def stop_if_lost(loss: float, step: int, model: Any = None, ids: Tensor | None = None) -> None:
    """A loss that is not finite ends a training; with the model and its last batch the first bad layer is named."""
    if math.isfinite(loss):
        return
    where = first_bad_layer(model, ids) if model is not None and ids is not None else ""
    raise HarnessError(
        f"training lost its way at step {step}: the loss is {loss}{where}",
        "try a smaller learning rate, or --dtype fp32; if it is so from the first step on, the weights are bad",
    )
