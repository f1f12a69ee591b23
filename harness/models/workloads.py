"""A workload as something to call: the same forward pass wherever eager torch runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.api import Workload
from harness.models.architectures.lookup import task_for

__all__ = ["runner"]


def runner(model: Any, workload: Workload) -> Callable[[], None]:
    """One timed pass of a model, as its task defines it."""
    return task_for(model).runner(model, workload)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
