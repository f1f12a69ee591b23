"""Measures a device's cost table: a coarse grid of widths, then the edges of steps, then whole models; validates it.

Each class of sites is measured alone. What is timed is a model whose layers have only that sub-layer, at one width,
minus the model without layers. It has enough layers that their weights do not fit a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from harness.api import Device, Shape, TimingPlan, Workload
from harness.devices.attributes import torch_device
from harness.errors import HarnessError
from harness.latency.cost_table import fit
from harness.latency.cost_table.shape_timer import BETWEEN, ShapeTimer, Visits
from harness.latency.cost_table.table import CostTable, Curve, anatomy_hash, classes
from harness.latency.random_models import RandomWeights
from harness.models.anatomy.core import Anatomy
from harness.models.counting import BYTES

OUT_OF_CACHE = 64 << 20  # bytes of weights that a model needs at least
MEASURE_ALL = 32  # a class with at most so many units is measured at every width
GOLDEN = (0.382, 0.618)  # golden sections of a gap between widths; no regular grid of steps is aligned with them
GRAIN = 16  # inner widths are multiples of this: odd ones are slower by a few per cent, which is no step of the device
EXACT = 1e-6  # smaller noise means a simulated device


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    coarse: int  # widths of a class with many units
    edges: int  # further widths, where times do not lie on a line between two widths
    seconds: float  # no further width is measured after this time
    rounds: int
    fitting: int  # whole shapes that the table is fitted to
    unseen: int  # whole shapes that validate it


EFFORTS = {
    "quick": Effort(coarse=8, edges=400, seconds=20, rounds=3, fitting=12, unseen=30),
    "paper": Effort(coarse=64, edges=4000, seconds=1800, rounds=5, fitting=40, unseen=60),
}
PLAN = TimingPlan(warmup=0, iterations=2, seconds=0.02)


@dataclass
class ProfileTarget:
    """What a cost table is measured for."""

    model: str
    anatomy: Anatomy
    device: dict[str, Any]
    runtime: str
    dtype: str
    workload: Workload
    preset: str


def layers_beyond_cache(anatomy: Anatomy, name: str, dtype: str) -> int:
    """How many layers a model needs so that its weights come from memory, as those of the whole model do."""
    sites = classes(anatomy)[name]
    size = anatomy.site_params(sites[0], sites[0].units) * BYTES[dtype]
    return min(len(sites), max(2, -(-OUT_OF_CACHE // size)))


def single_class_shape(anatomy: Anatomy, name: str, units: int, dtype: str) -> Shape:
    """The shape of a model that has only sites of one class, each with this many units."""
    chosen = classes(anatomy)[name][: layers_beyond_cache(anatomy, name, dtype)]
    return {**anatomy.empty(), **{site.name: units for site in chosen}}


def grid(units: int, coarse: int) -> list[int]:
    """Widths to measure first: all of them if they are few, else multiples of 64, the tile size of kernels."""
    if units <= MEASURE_ALL:
        return list(range(1, units + 1))
    step = max(64, round(units / coarse / 64) * 64) if units >= 256 else max(1, units // coarse)
    return sorted({1, step // 4, step // 2, *range(step, units, step), units} - {0})


class Profile:
    """Measures one cost table."""

    def __init__(
        self,
        target: ProfileTarget,
        device: Device,
        visits: Visits,
        save: Callable[[Visits], None],
        on_progress: Callable[[str, int, int], None],
        effort: Effort | None = None,
    ) -> None:
        """Continue from `visits`, which `save` stores. `on_progress` gets a stage, what is done of it, and its size."""
        self.target, self.device = target, device
        self.save, self.on_progress = save, on_progress
        self.effort = effort or EFFORTS[target.preset]
        self.anatomy, self.dtype = target.anatomy, target.dtype
        self.stage, self.total = "", 0  # prefix of its shapes' names, and how many visits it takes
        self.started = time.process_time()
        self.earlier_seconds = visits.seconds
        self.edges_deadline = 0.0  # on the monotonic clock; 0 before the search for edges
        self.pool = RandomWeights(self.anatomy, self.dtype, torch_device(device))
        self.classes = classes(self.anatomy)
        self.bench = ShapeTimer(
            device, self.pool, target.workload, target.device["clock"], PLAN, self._reference(), visits, self._visited
        )

    def _reference(self) -> Shape:
        """The shape that has only the class with most parameters, uncut."""
        largest = max(self.classes, key=lambda name: self.anatomy.site_params(self.classes[name][0], 10**6))
        return single_class_shape(self.anatomy, largest, self.classes[largest][0].units, self.dtype)

    def _visited(self) -> None:
        """After some visits: store them and report the progress."""
        self.bench.visits.seconds = self._seconds()
        self.save(self.bench.visits)
        if self.stage == "widths" and self.edges_deadline:
            seconds = round(self.effort.seconds)
            elapsed = round(seconds - self.edges_deadline + time.monotonic())
            self.on_progress("edges, seconds", min(seconds, elapsed), seconds)
            return
        done = sum(len(rows) for name, rows in self.bench.visits.shapes.items() if name.startswith(self.stage))
        self.on_progress(self.stage, min(done, self.total), self.total)

    def _seconds(self) -> float:
        """CPU time of this process and of earlier ones that measured this table."""
        return self.earlier_seconds + time.process_time() - self.started

    def _run(self, stage: str, shapes: dict[str, Shape], rounds: int) -> None:
        self.stage, self.total = stage, len(shapes) * rounds
        self.bench.run(shapes, rounds)

    def run(self, validate: bool = True) -> CostTable:
        """Measure and fit the table; validate it if `validate` is true."""
        with closing(self.bench):
            table = self._measure_table()
            return self._validate(table) if validate else table

    def validate(self, table: CostTable) -> CostTable:
        """Validate a table that was measured before."""
        with closing(self.bench):
            return self._validate(table)

    def _validate(self, table: CostTable) -> CostTable:
        fit.validate_table(table, self.anatomy, self.effort.unseen, self.bench, self._run)
        return self._with_effort(table)

    def _with_effort(self, table: CostTable) -> CostTable:
        """Write into the table how many shapes were measured, and for how long."""
        table.probes = len(self.bench.visits.shapes)
        table.seconds = round(self._seconds(), 1)
        return table

    def _measure_table(self) -> CostTable:
        points = {
            self._point(name, units): single_class_shape(self.anatomy, name, units, self.dtype)
            for name, sites in self.classes.items()
            for units in grid(sites[0].units, self.effort.coarse)
        }
        self._run("widths", {"widths none": self.anatomy.empty(), **points}, self.effort.rounds)
        self._check_signal()
        self._measure_edges()
        table = self._table()
        fit.fit(table, self.anatomy, self.effort.fitting, self.bench, self._run)
        return self._with_effort(table)

    def _point(self, name: str, units: int) -> str:
        return f"widths {name} @ {units}"

    def cost(self, name: str, units: int) -> float:
        """Nanoseconds of one site of a class at this many units."""
        if not units:
            return 0.0
        total = self.bench.time(self._point(name, units)) - self.bench.time("widths none")
        return max(0.0, total / layers_beyond_cache(self.anatomy, name, self.dtype))

    def widths(self, name: str) -> list[int]:
        """The widths of a class that were measured."""
        prefix = self._point(name, 0).removesuffix("0")
        return sorted(int(key.removeprefix(prefix)) for key in self.bench.visits.shapes if key.startswith(prefix))

    def _check_signal(self) -> None:
        """Refuse a device on which small shapes are not measurably faster than large ones."""
        times = [self.bench.time(key) for key in self.bench.visits.shapes]
        gain, noise = 1 - min(times) / max(times), self.bench.noise()
        if gain < max(0.05, 3 * noise):
            raise HarnessError(
                f"the smallest shape is only {gain:.1%} faster than the largest (noise {noise:.1%}): "
                "this device shows no signal for this workload",
                "give a larger workload, or see what else it is doing: harness doctor",
            )

    # --- edges ---

    def _measure_edges(self) -> None:
        """Find steps between measured widths: measure a point inside a gap, and split the gap if it is off the line.

        Each gap is tried at two points. Gaps across which the time of the model changes most come first. Visits that
        exist cost nothing, so a profile that was killed runs this again from the start.
        """
        budget = self.effort.edges
        gaps = []
        for name in self.classes:
            widths = [0, *self.widths(name)]
            gaps += [(name, low, high) for low, high in pairwise(widths)]
        self.edges_deadline = time.monotonic() + self.effort.seconds
        while gaps and budget > 0 and time.monotonic() < self.edges_deadline:
            gaps = sorted((gap for gap in gaps if self._may_hide_step(*gap)), key=self._weight, reverse=True)
            batch = gaps[: min(BETWEEN, budget)]
            # The second point only where the first lies on the line.
            self._measure({(name, units) for name, low, high in batch for units in _inner(low, high, GOLDEN[:1])})
            straight = [gap for gap in batch if not self._is_bent(*gap, GOLDEN[0])]
            self._measure({(name, units) for name, low, high in straight for units in _inner(low, high, GOLDEN[1:])})
            budget -= len(batch) + len(straight)
            gaps = gaps[len(batch) :]
            for name, low, high in batch:
                for share in GOLDEN[: 1 + ((name, low, high) in straight)]:
                    if self._is_bent(name, low, high, share):
                        middle = _inner(low, high, (share,))[0]
                        gaps += [(name, low, middle), (name, middle, high)]
                        break

    def _weight(self, gap: tuple[str, int, int]) -> float:
        """How much the time of the model changes across a gap."""
        name, low, high = gap
        return abs(self.cost(name, high) - self.cost(name, low)) * len(self.classes[name])

    def _measure(self, points: set[tuple[str, int]]) -> None:
        shapes = {
            self._point(name, units): single_class_shape(self.anatomy, name, units, self.dtype)
            for name, units in points
        }
        self._run("widths", dict(sorted(shapes.items())), self.effort.rounds)

    def _may_hide_step(self, name: str, low: int, high: int) -> bool:
        """Whether a step between two widths could be distinguished from noise."""
        step = abs(self.cost(name, high) - self.cost(name, low))
        tolerance = self._tolerance(self.cost(name, high))
        return high - low > 1 and low > 0 and (step > 2 * tolerance or self.bench.noise() < EXACT)

    def _is_bent(self, name: str, low: int, high: int, share: float) -> bool:
        """Whether a point between two widths lies off the line between them."""
        units = _inner(low, high, (share,))[0]
        left, right = self.cost(name, low), self.cost(name, high)
        line = left + (right - left) * (units - low) / (high - low)
        return abs(self.cost(name, units) - line) > self._tolerance(max(left, right))

    def _tolerance(self, cost: float) -> float:
        """The difference from this cost that noise explains."""
        return max(3 * self.bench.noise() / self.effort.rounds**0.5, EXACT) * cost

    # --- the table ---

    def _table(self) -> CostTable:
        target = self.target
        curves = {}
        for name in self.classes:
            widths = self.widths(name)
            ns = [self.cost(name, units) for units in widths]
            curves[name] = Curve(units=[0, *widths], ns=[0.0, *ns], noise=self.bench.noise())
        return CostTable(
            model=target.model,
            anatomy=anatomy_hash(self.anatomy),
            params=self.anatomy.params(),
            device=target.device,
            runtime=target.runtime,
            dtype=target.dtype,
            workload=str(target.workload),
            preset=target.preset,
            fixed_ns=self.bench.time("widths none"),
            curves=curves,
        )


def _inner(low: int, high: int, shares: tuple[float, ...]) -> list[int]:
    """Widths between two others, at these shares of the gap; multiples of GRAIN if the gap is wide."""
    grain = GRAIN if high - low >= 4 * GRAIN else 1
    return [min(max(low + 1, grain * round((low + share * (high - low)) / grain)), high - 1) for share in shares]
