"""The same work for many things, on all cores where that pays: in forks, which share what is in memory."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from harness.system.host import cores

A = TypeVar("A")
B = TypeVar("B")
_task: list[Any] = []


@contextmanager
def uncollected() -> Iterator[None]:
    """For a short life with millions of small words: collecting garbage among them would be most of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def spread(work: Callable[[A], B], items: Sequence[A], least: int = 50) -> list[B]:
    """`work` of every item, in order. Few are done here; so are all where a system cannot fork."""
    count = cores()
    if len(items) < least or count < 2 or "fork" not in multiprocessing.get_all_start_methods():
        return [work(item) for item in items]
    _task.append((work, items))
    try:
        with multiprocessing.get_context("fork").Pool(count) as pool:
            return pool.map(_one, range(len(items)), chunksize=max(1, len(items) // (8 * count)))
    finally:
        _task.pop()


def _one(at: int) -> Any:
    work, items = _task[-1]
    return work(items[at])
