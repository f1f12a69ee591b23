"""Times many shapes of one model on one device, each against a reference that is visited again and again.

A machine's speed drifts by more than shapes differ. Every visit is stored with the time of the reference around it, so
that what is compared is their ratio. Visits are kept as they come: a killed profile goes on where it was.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from harness.api import Device, Shape, TimingPlan, Workload
from harness.latency.pool import Pool

BETWEEN = 4  # visits from one reference to the next
OPEN = 80  # models held open at a time: views into one pool, but their compiled forms are not
OPEN_PARAMS = 400_000_000  # the same, where each of them holds weights of its own

Visit = tuple[float, float]  # nanoseconds of the shape, and of the reference around it


class Bench:
    def __init__(
        self,
        device: Device,
        pool: Pool,
        workload: Workload,
        clock: str,
        plan: TimingPlan,
        reference: Shape,
        visits: dict[str, list[Visit]],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self.pool, self.workload, self.clock, self.plan = device, pool, workload, clock, plan
        self.visits, self.told = visits, told
        self.handle = self.open(reference)

    def close(self) -> None:
        self.device.close(self.handle)

    def visit(self, handle: Any) -> float:
        samples = self.device.measure(handle, self.plan)
        return statistics.median(getattr(samples, f"{self.clock}_ns") or samples.wall_ns)

    def open(self, shape: Shape) -> Any:
        """A model on the device, run once: what follows is not its first pass."""
        handle = self.device.prepare(self.pool.model(shape), self.workload)
        self.device.measure(handle, TimingPlan(warmup=0, iterations=1))
        return handle

    def run(self, shapes: Mapping[str, Shape], rounds: int) -> None:
        """Bring every shape to this many visits: all shapes once a round, in an order drawn anew."""
        batch: dict[str, Shape] = {}
        for name in [name for name in shapes if len(self.visits.get(name, [])) < rounds]:
            if len(batch) == OPEN or (batch and self._params([*batch.values(), shapes[name]]) > OPEN_PARAMS):
                self._rounds(batch, rounds)
                batch = {}
            batch[name] = shapes[name]
        self._rounds(batch, rounds)

    def _params(self, shapes: list[Shape]) -> int:
        if not getattr(self.device, "copies_weights", False):
            return 0
        return sum(self.pool.anatomy.params(shape) for shape in shapes)

    def _rounds(self, shapes: Mapping[str, Shape], rounds: int) -> None:
        handles: dict[str, Any] = {}
        try:
            for at in range(rounds):
                due = [name for name in shapes if len(self.visits.get(name, [])) <= at]
                random.Random(f"{at} {len(due)}").shuffle(due)
                for name in due:
                    if name not in handles:
                        handles[name] = self.open(shapes[name])
                for start in range(0, len(due), BETWEEN):
                    self._between_references(due[start : start + BETWEEN], handles)
        finally:
            for handle in handles.values():
                self.device.close(handle)

    def _between_references(self, names: list[str], handles: dict[str, Any]) -> None:
        before = self.visit(self.handle)
        found = {name: self.visit(handles[name]) for name in names}
        after = self.visit(self.handle)
        for i, name in enumerate(names):
            place = (i + 1) / (len(names) + 1)
            self.visits.setdefault(name, []).append((found[name], before * (1 - place) + after * place))
        self.told()

    # --- what the visits say ---

    @property
    def level(self) -> float:
        """The reference's time, over the whole run."""
        return statistics.median(reference for visits in self.visits.values() for _, reference in visits)

    def time(self, name: str) -> float:
        """A shape's time at the reference's usual speed."""
        return statistics.median(ns / reference for ns, reference in self.visits[name]) * self.level

    def noise(self) -> float:
        """Relative spread of one visit around its shape's own middle, as a standard deviation."""
        around = []
        for visits in self.visits.values():
            ratios = [ns / reference for ns, reference in visits]
            if len(ratios) > 1:
                middle = statistics.fmean(ratios)
                around += [(ratio / middle - 1) ** 2 * len(ratios) / (len(ratios) - 1) for ratio in ratios]
        return statistics.fmean(around) ** 0.5 if around else 0.0
