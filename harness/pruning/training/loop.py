"""What training methods and recoveries share: random seeds, batches, a schedule, the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.models.architectures.lookup import task_for
from harness.pruning.layerwise import first_bad_layer

__all__ = ["check_loss", "cosine", "model_loss", "optimiser", "random_batches", "seeded", "set_learning_rate"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers (dropout, initial values) that depend on the seed alone; the caller's state is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def random_batches(windows: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Batches of windows in random order; every window comes once before any comes again."""
    order = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < size:
            queue += torch.randperm(len(windows), generator=order).tolist()
        batch, queue = queue[:size], queue[size:]
        yield windows[batch]


def cosine(step: int, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def optimiser(parameters: Iterable[Tensor], lr: float, decay: float = 0.0, **more: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=lr, weight_decay=decay, **more)


def set_learning_rate(optim: torch.optim.Optimizer, lr: float) -> None:
    for group in optim.param_groups:
        group["lr"] = lr


def model_loss(model: Any, ids: Tensor) -> Tensor:
    """The loss of a model on a batch of its task's data."""
    task, inputs = task_for(model), {"input_ids": ids}
    return task.loss(task.logits(model, inputs), inputs)


def check_loss(loss: float, step: int, model: Any = None, ids: Tensor | None = None) -> None:
    """End a training whose loss is not finite; given the model and its last batch, name the first bad layer."""
    if math.isfinite(loss):
        return
    where = first_bad_layer(model, ids) if model is not None and ids is not None else ""
    raise HarnessError(
        f"training diverged at step {step}: the loss is {loss}{where}",
        "try a smaller learning rate, or --dtype fp32; if it is so from the first step on, the weights are bad",
    )
