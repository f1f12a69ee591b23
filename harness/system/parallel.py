"""A parallel map over forked processes, which share this process's memory."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from harness.system.host import cores

A = TypeVar("A")
B = TypeVar("B")
_tasks: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []  # the running task is last; forks inherit it


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection in the block. With millions of small objects it would take most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parallel_map(work: Callable[[A], B], items: Sequence[A], least: int = 50) -> list[B]:
    """Apply `work` to every item, in order. Fewer than `least` items, or all without fork, are done in this process."""
    count = cores()
    if len(items) < least or count < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return [work(item) for item in items]
    _tasks.append((work, items))
    try:
        with multiprocessing.get_context("fork").Pool(count) as pool:
            return pool.map(_work_on, range(len(items)), chunksize=max(1, len(items) // (8 * count)))
    finally:
        _tasks.pop()


def _work_on(index: int) -> Any:
    work, items = _tasks[-1]
    return work(items[index])
