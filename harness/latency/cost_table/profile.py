"""Fills a device's cost table: a coarse grid of widths, then the edges of its steps, then whole models; and judges it.

Each class of sites is measured alone: a model of some layers that have only that sub-layer, at one width, minus the
model of none. Enough copies stand in a row that their weights do not fit a cache.
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
from harness.latency.cost_table.shape_timer import BETWEEN, Bench, Visits
from harness.latency.cost_table.table import CostTable, Curve, anatomy_mark, classes
from harness.latency.random_models import Pool
from harness.models.anatomy.core import Anatomy
from harness.models.counting import BYTES

OUT_OF_CACHE = 64 << 20  # bytes of weights in a row
FEW = 32  # so many units are all measured
GOLDEN = (0.382, 0.618)  # points that no grid of steps is aligned with
GRAIN = 16  # but these: kernels take odd widths worse, by a few per cent that are no step of the device
EXACT = 1e-6  # noise below this is none: a simulated device


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    coarse: int  # widths of a class with many units
    edges: int  # further widths, where the coarse grid does not explain itself; no new one after so many seconds
    seconds: float
    rounds: int
    fitting: int  # whole shapes that the fit sees
    unseen: int  # whole shapes that judge it


EFFORTS = {
    "quick": Effort(coarse=8, edges=400, seconds=20, rounds=3, fitting=12, unseen=30),
    "paper": Effort(coarse=64, edges=4000, seconds=1800, rounds=5, fitting=40, unseen=60),
}
PLAN = TimingPlan(warmup=0, iterations=2, seconds=0.02)


@dataclass
class Target:
    """What a table is for."""

    model: str
    anatomy: Anatomy
    device: dict[str, Any]
    runtime: str
    dtype: str
    workload: Workload
    preset: str


def copies(anatomy: Anatomy, name: str, dtype: str) -> int:
    """So many sub-layers in a row that their weights come from memory, as they do in the whole model."""
    sites = classes(anatomy)[name]
    size = anatomy.site_params(sites[0], sites[0].units) * BYTES[dtype]
    return min(len(sites), max(2, -(-OUT_OF_CACHE // size)))


def alone(anatomy: Anatomy, name: str, units: int, dtype: str) -> Shape:
    chosen = classes(anatomy)[name][: copies(anatomy, name, dtype)]
    return {**anatomy.empty(), **{site.name: units for site in chosen}}


def grid(units: int, coarse: int) -> list[int]:
    """All widths of a few units, else multiples of 64 (kernels work in tiles of them) and the end."""
    if units <= FEW:
        return list(range(1, units + 1))
    step = max(64, round(units / coarse / 64) * 64) if units >= 256 else max(1, units // coarse)
    return sorted({1, step // 4, step // 2, *range(step, units, step), units} - {0})


class Profile:
    """One run that fills one table."""

    def __init__(
        self,
        target: Target,
        device: Device,
        visits: Visits,
        save: Callable[[Visits], None],
        told: Callable[[str, int, int], None],
        effort: Effort | None = None,
    ) -> None:
        self.target, self.device, self.save, self.told = target, device, save, told
        self.effort = effort or EFFORTS[target.preset]
        self.anatomy, self.dtype = target.anatomy, target.dtype
        self.stage, self.total = "", 0
        self.started, self.before, self.until = time.process_time(), visits.seconds, 0.0
        self.pool = Pool(self.anatomy, self.dtype, torch_device(device))
        self.classes = classes(self.anatomy)
        self.bench = Bench(
            device, self.pool, target.workload, target.device["clock"], PLAN, self._reference(), visits, self._tell
        )

    def _reference(self) -> Shape:
        """The class with most parameters, whole."""
        largest = max(self.classes, key=lambda name: self.anatomy.site_params(self.classes[name][0], 10**6))
        return alone(self.anatomy, largest, self.classes[largest][0].units, self.dtype)

    def _tell(self) -> None:
        self.bench.visits.seconds = self.before + time.process_time() - self.started
        self.save(self.bench.visits)
        if self.stage == "widths" and self.until:
            seconds = round(self.effort.seconds)
            self.told("edges, seconds", min(seconds, round(seconds - self.until + time.monotonic())), seconds)
            return
        done = sum(len(rows) for name, rows in self.bench.visits.shapes.items() if name.startswith(self.stage))
        self.told(self.stage, min(done, self.total), self.total)

    def _run(self, stage: str, shapes: dict[str, Shape], rounds: int) -> None:
        self.stage, self.total = stage, len(shapes) * rounds
        self.bench.run(shapes, rounds)

    def run(self, judge: bool = True) -> CostTable:
        """A table, judged where that is asked."""
        with closing(self.bench):
            table = self._filled()
            return self._judged(table) if judge else table

    def judge(self, table: CostTable) -> CostTable:
        """One that was filled before."""
        with closing(self.bench):
            return self._judged(table)

    def _judged(self, table: CostTable) -> CostTable:
        fit.judge(table, self.anatomy, self.effort.unseen, self.bench, self._run)
        return self._counted(table)

    def _counted(self, table: CostTable) -> CostTable:
        table.probes = len(self.bench.visits.shapes)
        table.seconds = round(self.before + time.process_time() - self.started, 1)
        return table

    def _filled(self) -> CostTable:
        points = {
            self._point(name, units): alone(self.anatomy, name, units, self.dtype)
            for name, sites in self.classes.items()
            for units in grid(sites[0].units, self.effort.coarse)
        }
        self._run("widths", {"widths none": self.anatomy.empty(), **points}, self.effort.rounds)
        self._check_signal()
        self._edges()
        table = self._table()
        fit.fit(table, self.anatomy, self.effort.fitting, self.bench, self._run)
        return self._counted(table)

    def _point(self, name: str, units: int) -> str:
        return f"widths {name} @ {units}"

    def cost(self, name: str, units: int) -> float:
        """One site of a class at so many units."""
        if not units:
            return 0.0
        whole = self.bench.time(self._point(name, units)) - self.bench.time("widths none")
        return max(0.0, whole / copies(self.anatomy, name, self.dtype))

    def widths(self, name: str) -> list[int]:
        start = self._point(name, 0)[:-1]
        return sorted(int(key[len(start) :]) for key in self.bench.visits.shapes if key.startswith(start))

    def _check_signal(self) -> None:
        """A device on which nothing is faster than everything has nothing to say."""
        times = [self.bench.time(key) for key in self.bench.visits.shapes]
        gain, noise = 1 - min(times) / max(times), self.bench.noise()
        if gain < max(0.05, 3 * noise):
            raise HarnessError(
                f"the smallest shape is only {gain:.1%} faster than the largest (noise {noise:.1%}): "
                "this device shows no signal for this workload",
                "give a larger workload, or look at what else it is doing: harness doctor",
            )

    # --- edges ---

    def _edges(self) -> None:
        """Between two widths, look at two points no grid is aligned with; where one is off the line, look on.

        Gaps with most time in them come first. What was measured before costs nothing, so this runs anew on resuming.
        """
        left = self.effort.edges
        gaps = []
        for name in self.classes:
            widths = [0, *self.widths(name)]
            gaps += [(name, low, high) for low, high in pairwise(widths)]
        self.until = time.monotonic() + self.effort.seconds
        while gaps and left > 0 and time.monotonic() < self.until:
            gaps = sorted((gap for gap in gaps if self._hides(*gap)), key=self._weight, reverse=True)
            batch = gaps[: min(BETWEEN, left)]
            self._measure({(name, units) for name, low, high in batch for units in _inner(low, high, GOLDEN[:1])})
            straight = [gap for gap in batch if not self._bent(*gap, GOLDEN[0])]
            self._measure({(name, units) for name, low, high in straight for units in _inner(low, high, GOLDEN[1:])})
            left -= len(batch) + len(straight)
            gaps = gaps[len(batch) :]
            for name, low, high in batch:
                for share in GOLDEN[: 1 + ((name, low, high) in straight)]:
                    if self._bent(name, low, high, share):
                        middle = _inner(low, high, (share,))[0]
                        gaps += [(name, low, middle), (name, middle, high)]
                        break

    def _weight(self, gap: tuple[str, int, int]) -> float:
        name, low, high = gap
        return abs(self.cost(name, high) - self.cost(name, low)) * len(self.classes[name])

    def _measure(self, points: set[tuple[str, int]]) -> None:
        shapes = {self._point(name, units): alone(self.anatomy, name, units, self.dtype) for name, units in points}
        self._run("widths", dict(sorted(shapes.items())), self.effort.rounds)

    def _hides(self, name: str, low: int, high: int) -> bool:
        """Whether something between two widths could be told from noise."""
        step = abs(self.cost(name, high) - self.cost(name, low))
        tolerance = self._tolerance(self.cost(name, high))
        return high - low > 1 and low > 0 and (step > 2 * tolerance or self.bench.noise() < EXACT)

    def _bent(self, name: str, low: int, high: int, share: float) -> bool:
        """Whether a point between two widths lies off their line."""
        units = _inner(low, high, (share,))[0]
        left, right = self.cost(name, low), self.cost(name, high)
        line = left + (right - left) * (units - low) / (high - low)
        return abs(self.cost(name, units) - line) > self._tolerance(max(left, right))

    def _tolerance(self, cost: float) -> float:
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
            anatomy=anatomy_mark(self.anatomy),
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
    """Whole widths between two others, at these shares of the gap; in a wide one multiples of the grain."""
    grain = GRAIN if high - low >= 4 * GRAIN else 1
    return [min(max(low + 1, grain * round((low + share * (high - low)) / grain)), high - 1) for share in shares]
