"""Times many shapes of one model on one device, each against a reference that is visited again and again.

A machine's speed drifts by more than shapes differ. Every visit is stored with its place between visits of the
reference, so that what is compared is its ratio to the reference around it: a running median, since one visit of the
reference is as noisy as any other. Visits are kept as they come: a killed profile goes on where it was.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.api import Device, Shape, TimingPlan, Workload
from harness.devices.attributes import copies_weights
from harness.latency.random_models import Pool

BETWEEN = 4  # visits from one reference to the next
OPEN = 80  # models held open at a time
OPEN_BYTES = 4 << 30  # what they may hold: weights are views into one pool, caches and compiled forms are not

AROUND = 2  # references on either side that a running median takes in


@dataclass
class Visits:
    """All that was measured: the references in order; per shape its times, each with its place among them."""

    references: list[float] = field(default_factory=list)
    shapes: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0  # CPU seconds of the processes before this one

    def words(self) -> dict[str, Any]:
        return {"references": self.references, "shapes": self.shapes, "seconds": self.seconds}

    @staticmethod
    def read(words: Any) -> Visits:
        """Those that `words` wrote; none, where a file holds anything else."""
        try:
            shapes = {str(n): [(float(ns), float(place)) for ns, place in rows] for n, rows in words["shapes"].items()}
            found = Visits([float(ns) for ns in words["references"]], shapes, float(words["seconds"]))
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return Visits()
        return found if found._usable() else Visits()

    def _usable(self) -> bool:
        """Whether all times are times, and each shape's were taken between two references."""
        rows = [row for rows in self.shapes.values() for row in rows]
        times = [*self.references, *(ns for ns, _ in rows)]
        last = len(self.references) - 1
        return self.seconds >= 0 and all(ns > 0 for ns in times) and all(0 <= place <= last for _, place in rows)

    def count(self, name: str) -> int:
        return len(self.shapes.get(name, []))

    def ratios(self, name: str) -> list[float]:
        """A shape's times over the reference's, as it ran around them."""
        smooth = [
            statistics.median(self.references[max(0, i - AROUND) : i + AROUND + 1]) for i in range(len(self.references))
        ]
        found = []
        for ns, place in self.shapes[name]:
            low = min(int(place), len(smooth) - 2)
            found.append(ns / (smooth[low] + (place - low) * (smooth[low + 1] - smooth[low])))
        return found

    @property
    def level(self) -> float:
        """The reference's time, over the whole run."""
        return statistics.median(self.references)


class Bench:
    def __init__(
        self,
        device: Device,
        pool: Pool,
        workload: Workload,
        clock: str,
        plan: TimingPlan,
        reference: Shape,
        visits: Visits,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self.pool, self.workload, self.clock, self.plan = device, pool, workload, clock, plan
        self.visits, self.told = visits, told
        self.handle = self.open(reference)

    def close(self) -> None:
        self.device.close(self.handle)

    def visit(self, handle: Any) -> float:
        samples = self.device.measure(handle, self.plan)
        return min(getattr(samples, f"{self.clock}_ns") or samples.wall_ns)

    def open(self, shape: Shape) -> Any:
        """A model on the device, run once: what follows is not its first pass."""
        handle = self.device.prepare(self.pool.model(shape), self.workload)
        self.device.measure(handle, TimingPlan(warmup=0, iterations=1))
        return handle

    def run(self, shapes: Mapping[str, Shape], rounds: int) -> None:
        """Bring every shape to this many visits: all shapes once a round, in an order drawn anew."""
        batch: dict[str, Shape] = {}
        most = getattr(self.device, "most_open", OPEN)
        for name in [name for name in shapes if self.visits.count(name) < rounds]:
            if len(batch) == most or (batch and sum(map(self.held, [*batch.values(), shapes[name]])) > OPEN_BYTES):
                self._rounds(batch, rounds)
                batch = {}
            batch[name] = shapes[name]
        self._rounds(batch, rounds)

    def held(self, shape: Shape) -> int:
        """Bytes that an open model may hold beside the pool: keys, values, activations; weights if it copies them."""
        anatomy, workload = self.pool.anatomy, self.workload
        left = anatomy.tensor_shapes(shape)
        size, tokens = self.pool.numbers.element_size(), workload.batch * (workload.size + 1)
        cached = sum(dims[0] for name, dims in left.items() if name.endswith(("k_proj.weight", "v_proj.weight")))
        widest = max((dims[0] for name, dims in left.items() if ".layers." in name), default=0)
        weights = anatomy.params(shape) if copies_weights(self.device) else 0
        return size * (tokens * (cached + 4 * widest) + weights)

    def _rounds(self, shapes: Mapping[str, Shape], rounds: int) -> None:
        handles: dict[str, Any] = {}
        try:
            for at in range(rounds):
                due = [name for name in shapes if self.visits.count(name) <= at]
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
        references, start = self.visits.references, len(self.visits.references)
        references.append(self.visit(self.handle))
        found = {name: self.visit(handles[name]) for name in names}
        references.append(self.visit(self.handle))
        for i, name in enumerate(names):
            self.visits.shapes.setdefault(name, []).append((found[name], start + (i + 1) / (len(names) + 1)))
        self.told()

    # --- what the visits say ---

    def time(self, name: str) -> float:
        """A shape's time at the reference's usual speed."""
        return statistics.median(self.visits.ratios(name)) * self.visits.level

    def noise(self) -> float:
        """Relative spread of one visit around its shape's own middle, as a standard deviation."""
        around = []
        for name in self.visits.shapes:
            ratios = self.visits.ratios(name)
            if len(ratios) > 1:
                middle = statistics.fmean(ratios)
                around += [(ratio / middle - 1) ** 2 * len(ratios) / (len(ratios) - 1) for ratio in ratios]
        return statistics.fmean(around) ** 0.5 if around else 0.0
