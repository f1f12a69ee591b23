"""Brings a method to a latency: estimate from shapes alone, measure a model of that shape, correct, measure again.

What is measured are random weights of the shape in question, so that no method runs, and none trains, for a probe
that only its shape decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.anatomy import Anatomy
from harness.api import Device, Samples, Shape, TimingPlan, Workload
from harness.errors import OverBudget
from harness.latency import timing
from harness.latency.pool import Pool

PROBING = timing.TimingProtocol(rounds=3, warmup=1, iterations=3, seconds=0.05)
MARGIN = (0.006, 0.02)  # aimed so far below a limit: the noise, within these bounds; none where there is no noise
PROBES, EXACT_PROBES = 8, 64  # on a device, and where a measurement is exact and costs nothing
FINEST = 1 / 4096


@dataclass(frozen=True)
class Measured:
    """A shape on the device: in the budget's unit, with how far dense strays from itself."""

    value: float
    noise: float


@dataclass(frozen=True)
class Probe:
    """One try. `setting` is what the method was asked for."""

    setting: float
    estimated: float
    measured: float
    noise: float
    params: int
    ran: bool  # whether the method itself had to run for it


@dataclass
class Match:
    setting: float
    predicted: float
    probes: list[Probe]

    def words(self) -> dict[str, Any]:
        return {"setting": self.setting, "predicted": self.predicted, "probes": [asdict(p) for p in self.probes]}


@dataclass
class Kept:
    """The dense model stays open from probe to probe."""

    session: timing.Session

    def measure(self, plan: TimingPlan) -> Samples:
        return self.session.measure(plan)

    def close(self) -> None:
        return None


class Bed:
    """A device with the dense shape on it, where other shapes are laid beside it. Values are shares of dense, or ms."""

    def __init__(self, device: Device, anatomy: Anatomy, dtype: str, workload: Workload, clock: str, unit: str) -> None:
        self.device, self.workload, self.clock, self.unit = device, workload, clock, unit
        self.pool = Pool(anatomy, dtype, getattr(device, "place", "cpu"))
        self.dense = Kept(timing.here(device, self.pool.model({}), workload)())

    def measure(self, shape: Shape) -> Measured:
        beside = timing.here(self.device, self.pool.model(shape), self.workload)
        rounds = timing.interleave(lambda: self.dense, beside, PROBING, self.clock)
        found = timing.latency(rounds, self.clock, PROBING, "device")
        value = found.pruned.median_ns / 1e6 if self.unit == "ms" else 1 / found.speedup
        return Measured(value, found.noise_floor or 0.0)

    def close(self) -> None:
        self.dense.session.close()

    def scale(self) -> float:
        """What a share of dense is multiplied with to be in the budget's unit."""
        return self.measure({}).value if self.unit == "ms" else 1.0


@dataclass
class Method:
    """What a method leaves at a setting between 0 (nothing goes) and 1.

    guess    without running it: its own promise, or that of an even allocation
    real     what it really leaves; runs the method where it promises nothing
    promises whether guess and real are the same
    runs     how often it may be run
    """

    guess: Callable[[float], Shape]
    real: Callable[[float], Shape]
    promises: bool = True
    runs: int = PROBES


class Matcher:
    """A search for the smallest setting whose shape is fast enough."""

    def __init__(
        self,
        anatomy: Anatomy,
        method: Method,
        estimate: Callable[[Shape], float],
        measure: Callable[[Shape], Measured],
        limit: float,
        told: Callable[[Probe], None] = lambda _: None,
    ) -> None:
        self.anatomy, self.method, self.estimate, self.measure = anatomy, method, estimate, measure
        self.limit, self.told = limit, told
        self.probes: list[Probe] = []
        self.bias = 1.0  # measured over estimated, as far as is known
        self.known: dict[float, float] = {}
        self.seen: dict[frozenset[tuple[str, int]], Probe] = {}
        self.over, self.under = -1.0, 2.0  # settings measured too slow, and fast enough
        self.settings = self._settings()
        if not self.settings:
            raise OverBudget("this method serves no ratio at all")

    def _settings(self) -> list[float]:
        """Settings of a coarse grid that the method can serve."""
        found = []
        for step in range(200):
            try:
                self.guess(step / 200)
            except OverBudget:
                break
            found.append(step / 200)
        return found

    def guess(self, setting: float) -> float:
        if setting not in self.known:
            self.known[setting] = self.estimate(self.method.guess(setting))
        return self.known[setting]

    def pick(self, aim: float) -> float:
        """The smallest setting between the known limits whose estimate is within the aim."""
        fine = [s for s in self.settings if self.guess(s) * self.bias <= aim and s > self.over]
        if not fine:
            return self.settings[-1] if self.under > 1 else (self.over + self.under) / 2
        high = fine[0]
        low = max([s for s in self.settings if s < high], default=high)
        while high - low > FINEST:
            middle = (low + high) / 2
            if self.guess(middle) * self.bias <= aim:
                high = middle
            else:
                low = middle
        return high if self.over < high <= self.under else (max(self.over, 0.0) + min(self.under, 1.0)) / 2

    def run(self) -> Match:
        if not self.method.promises and self.method.runs < PROBES:
            self._calibrate()
        best: Probe | None = None
        aim, left = self.limit, self.method.runs
        for _ in range(10 * EXACT_PROBES):
            setting = self.pick(aim)
            settled = best is not None and abs(setting - best.setting) < FINEST
            if left <= 0 or settled or self.under - self.over < FINEST:
                break
            probe, new = self._probe(setting)
            noise = margin(probe.noise)
            aim = self.limit * (1 - noise)
            left -= new or not self.method.promises
            if new and not noise and self.method.promises and len(self.probes) == 1:
                left = EXACT_PROBES
            if probe.measured <= self.limit and (best is None or setting < best.setting or noise):
                best = probe
            if probe.measured <= self.limit * (1 - 0.6 * noise):
                self.under = min(self.under, setting)
                if noise and probe.measured >= self.limit * (1 - 1.6 * noise):
                    break  # closer than what another measurement could tell
            else:
                self.over = max(self.over, setting)
                if setting >= self.settings[-1]:
                    break
        if best is None:
            raise self._out_of_reach()
        return Match(best.setting, best.estimated, self.probes)

    def _calibrate(self) -> None:
        """A method that trains is not run to learn about the device: an even shape stands in."""
        for _ in range(2):
            setting = self.pick(self.limit * (1 - MARGIN[1]))
            self._measured(setting, self.method.guess(setting), ran=False)

    def _probe(self, setting: float) -> tuple[Probe, bool]:
        """What the method leaves at a setting, and whether it was measured for it: coarse methods repeat themselves."""
        shape = self.method.real(setting)
        key = frozenset(self.anatomy.complete(shape).items())
        if new := key not in self.seen:
            self.seen[key] = self._measured(setting, shape, ran=not self.method.promises)
        return replace(self.seen[key], setting=setting), new

    def _measured(self, setting: float, shape: Shape, ran: bool) -> Probe:
        found = self.measure(shape)
        estimated = self.guess(setting) * self.bias
        probe = Probe(setting, estimated, found.value, found.noise, self.anatomy.params(shape), ran)
        self.bias = found.value / self.guess(setting)
        self.probes.append(probe)
        self.told(probe)
        return probe

    def _out_of_reach(self) -> OverBudget:
        fastest = min(probe.measured for probe in self.probes)
        floor = self.measure({site.name: 0 for site in self.anatomy.blocks()}).value
        if floor > self.limit:
            return OverBudget(
                f"{self.limit:.4g} is faster than the empty model, which takes {floor:.3g}: no cut gets there",
                "give a larger budget or a smaller model",
            )
        return OverBudget(
            f"{self.limit:.4g} is out of this method's reach: the fastest it was seen to leave takes {fastest:.4g}"
            f" (the empty model {floor:.3g})",
            "give a larger budget, or a method or settings that can remove more",
        )


def margin(noise: float) -> float:
    return min(MARGIN[1], max(MARGIN[0], noise)) if noise > 1e-9 else 0.0


def native(
    anatomy: Anatomy,
    ask: Callable[[float], Shape],
    estimate: Callable[[Shape], float],
    measure: Callable[[Shape], Measured],
    limit: float,
    runs: int,
) -> Match:
    """A method that takes latencies: ask for the limit, measure what it leaves, ask for what its cost model got wrong.

    A budget left unused is the method's own steps where the model was right; only its errors are asked away.
    """
    probes: list[Probe] = []
    asked = limit
    for _ in range(runs):
        shape = ask(asked)
        found, estimated = measure(shape), estimate(shape)
        probes.append(Probe(asked, estimated, found.value, found.noise, anatomy.params(shape), ran=True))
        better = limit * (1 - margin(found.noise)) * estimated / found.value
        if found.value > limit:
            better = min(better, asked * 0.97)  # steps swallow small corrections
        elif better <= asked * 1.01:
            break
        asked = better
    within = [probe for probe in probes if probe.measured <= limit]
    if not within:
        raise OverBudget(
            f"{limit:.4g} was asked, the closest this method came is {min(p.measured for p in probes):.4g}",
            "give a larger budget",
        )
    best = max(within, key=lambda probe: probe.measured)
    return Match(best.setting, best.estimated, probes)
