"""Times many shapes of one model on one device, relative to a reference shape that is timed again and again.

A machine's speed drifts by more than shapes differ. So a visit to a shape counts as its ratio to the reference at that
moment. Every visit is stored with its position between two visits to the reference. The reference's time there is a
running median, since a single visit to it is as noisy as any other. Visits are stored as they come, so that a profile
that was killed continues.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.api import Device, Shape, TimingPlan, Workload
from harness.devices.attributes import copies_weights
from harness.latency.random_models import RandomWeights

BETWEEN = 4  # visits to shapes between two visits to the reference
MAX_OPEN = 80  # models that are open at a time
MAX_OPEN_BYTES = 4 << 30  # what they may hold beside their weights, which are views into one pool
MEDIAN_RADIUS = 2  # visits to the reference before and after one that its running median includes


@dataclass
class Visits:
    """All times that were measured, in nanoseconds."""

    references: list[float] = field(default_factory=list)  # of the reference, in order
    shapes: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # (time, position between references)
    seconds: float = 0.0  # CPU time of this process and of earlier ones that measured

    def to_dict(self) -> dict[str, Any]:
        return {"references": self.references, "shapes": self.shapes, "seconds": self.seconds}

    @staticmethod
    def read(payload: Any) -> Visits:
        """The visits in a payload that `to_dict` wrote; no visits if the payload is anything else."""
        try:
            shapes = {
                str(name): [(float(ns), float(position)) for ns, position in rows]
                for name, rows in payload["shapes"].items()
            }
            visits = Visits([float(ns) for ns in payload["references"]], shapes, float(payload["seconds"]))
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return Visits()
        return visits if visits._are_usable() else Visits()

    def _are_usable(self) -> bool:
        """Whether all times are positive and every position lies between two visits to the reference."""
        rows = [row for rows in self.shapes.values() for row in rows]
        times = [*self.references, *(ns for ns, _ in rows)]
        last = len(self.references) - 1
        return self.seconds >= 0 and all(ns > 0 for ns in times) and all(0 <= position <= last for _, position in rows)

    def count(self, name: str) -> int:
        return len(self.shapes.get(name, []))

    def ratios(self, name: str) -> list[float]:
        """A shape's times, each divided by the reference's time at that moment."""
        medians = [
            statistics.median(self.references[max(0, i - MEDIAN_RADIUS) : i + MEDIAN_RADIUS + 1])
            for i in range(len(self.references))
        ]
        ratios = []
        for ns, position in self.shapes[name]:
            before = min(int(position), len(medians) - 2)
            reference = medians[before] + (position - before) * (medians[before + 1] - medians[before])
            ratios.append(ns / reference)
        return ratios

    @property
    def level(self) -> float:
        """The reference's median time over the whole run."""
        return statistics.median(self.references)


class ShapeTimer:
    """Times shapes on a device with random weights. Models stay open while they are visited again."""

    def __init__(
        self,
        device: Device,
        pool: RandomWeights,
        workload: Workload,
        clock: str,
        plan: TimingPlan,
        reference: Shape,
        visits: Visits,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self.pool = device, pool
        self.workload, self.clock, self.plan = workload, clock, plan
        self.visits = visits
        self.on_progress = on_progress
        self.reference = self.open(reference)

    def close(self) -> None:
        self.device.close(self.reference)

    def visit(self, handle: Any) -> float:
        """The fastest pass of one visit, in nanoseconds."""
        samples = self.device.measure(handle, self.plan)
        return min(getattr(samples, f"{self.clock}_ns") or samples.wall_ns)

    def open(self, shape: Shape) -> Any:
        """Open a model on the device and run it once, so that no visit times its first pass."""
        handle = self.device.prepare(self.pool.model(shape), self.workload)
        self.device.measure(handle, TimingPlan(warmup=0, iterations=1))
        return handle

    def run(self, shapes: Mapping[str, Shape], rounds: int) -> None:
        """Visit shapes until each has this many visits. A round visits every shape once, in random order."""
        batch: dict[str, Shape] = {}
        max_open = getattr(self.device, "most_open", MAX_OPEN)
        for name in [name for name in shapes if self.visits.count(name) < rounds]:
            held = sum(map(self.held, [*batch.values(), shapes[name]]))
            if len(batch) == max_open or (batch and held > MAX_OPEN_BYTES):
                self._run_batch(batch, rounds)
                batch = {}
            batch[name] = shapes[name]
        self._run_batch(batch, rounds)

    def held(self, shape: Shape) -> int:
        """Bytes that an open model may hold: caches and activations; weights too if the device copies them."""
        anatomy, workload = self.pool.anatomy, self.workload
        size, tokens = self.pool.numbers.element_size(), workload.batch * (workload.size + 1)
        cached, widest = anatomy.outputs(shape)
        weights = anatomy.params(shape) if copies_weights(self.device) else 0
        return size * (tokens * (cached + 4 * widest) + weights)

    def _run_batch(self, shapes: Mapping[str, Shape], rounds: int) -> None:
        """All rounds of shapes that are open at the same time."""
        handles: dict[str, Any] = {}
        try:
            for done in range(rounds):
                due = [name for name in shapes if self.visits.count(name) <= done]
                random.Random(f"{done} {len(due)}").shuffle(due)
                for name in due:
                    if name not in handles:
                        handles[name] = self.open(shapes[name])
                for start in range(0, len(due), BETWEEN):
                    self._between_references(due[start : start + BETWEEN], handles)
        finally:
            for handle in handles.values():
                self.device.close(handle)

    def _between_references(self, names: list[str], handles: dict[str, Any]) -> None:
        """Visit these shapes once each, between two visits to the reference."""
        references, start = self.visits.references, len(self.visits.references)
        references.append(self.visit(self.reference))
        times = {name: self.visit(handles[name]) for name in names}
        references.append(self.visit(self.reference))
        for i, name in enumerate(names):
            self.visits.shapes.setdefault(name, []).append((times[name], start + (i + 1) / (len(names) + 1)))
        self.on_progress()

    # --- results ---

    def time(self, name: str) -> float:
        """A shape's median time in nanoseconds, at the device's median speed."""
        return statistics.median(self.visits.ratios(name)) * self.visits.level

    def noise(self) -> float:
        """Relative standard deviation of a single visit around the mean of its shape."""
        variances = []
        for name in self.visits.shapes:
            ratios = self.visits.ratios(name)
            if len(ratios) > 1:
                mean = statistics.fmean(ratios)
                variances += [(ratio / mean - 1) ** 2 * len(ratios) / (len(ratios) - 1) for ratio in ratios]
        return statistics.fmean(variances) ** 0.5 if variances else 0.0
