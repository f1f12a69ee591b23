"""Brings a method to a latency: estimate from shapes alone, measure a model of that shape, correct, measure again.

What is measured are random weights of the shape in question, so that no method runs, and none trains, for a probe
that only its shape decides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.api import Shape
from harness.errors import OverBudget, Unsupported
from harness.latency.prober import Measured
from harness.models.anatomy.core import Anatomy

MARGIN = (0.006, 0.02)  # aimed so far below a limit: the noise, within these bounds; none where there is no noise
PROBES, EXACT_PROBES = 8, 64  # on a device, and where a measurement is exact and costs nothing
FINEST = 1 / 4096


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
class Method:
    """What a method leaves at a setting between 0 (nothing goes) and 1.

    guess    without running it: its own promise, or that of an even allocation
    real     what it really leaves; runs the method where it promises nothing
    promises whether guess and real are the same
    runs     how often it may be run, by what is known of it so far
    """

    guess: Callable[[float], Shape]
    real: Callable[[float], Shape]
    promises: bool = True
    runs: Callable[[], int] = lambda: PROBES


class Matcher:
    """A search for the smallest setting whose shape is fast enough.

    `scale` is what dense takes in the budget's unit; `earlier` are probes of a search for a higher limit, and
    the finished models that missed it.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        method: Method,
        estimate: Callable[[Shape], float],
        measure: Callable[[Shape], Measured],
        limit: float,
        unit: str = "x",
        scale: float = 1.0,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.anatomy, self.method, self.estimate, self.measure = anatomy, method, estimate, measure
        self.limit, self.unit = limit, unit
        self.probes: list[Probe] = []
        self.known: dict[float, float] = {}
        self.seen: dict[frozenset[tuple[str, int]], Probe] = {}
        self.over, self.under = -1.0, 2.0  # settings measured too slow, and fast enough
        self.settings = self._settings()
        self.points = [(estimate({}), scale)]  # estimates, and what was measured there
        self.anchors: list[tuple[float, float]] = []  # those of what the method really left
        for probe in earlier:
            if "final" in probe:  # measured longer than any probe
                self.over = max(self.over, probe["setting"])
            else:
                self._learn(probe["setting"], probe["measured"], probe["ran"])

    def _settings(self) -> list[float]:
        """Settings of a coarse grid that the method can serve, and that leave a model."""
        found: list[float] = []
        least = self.anatomy.params(self.anatomy.empty())
        for step in range(200):
            try:
                shape = self.method.guess(step / 200)
            except Unsupported:
                if not found:
                    raise
                break
            if self.anatomy.params(shape) == least:
                break
            self.known[step / 200] = self.estimate(shape)
            found.append(step / 200)
        return found

    def guess(self, setting: float) -> float:
        if setting not in self.known:
            self.known[setting] = self.estimate(self.method.guess(setting))
        return self.known[setting]

    def expected(self, setting: float) -> float:
        """What would be measured: from the nearest measurement, along the slope between the two farthest apart.

        Part of a device's time does not shrink with the model, so that a factor alone would creep towards the limit.
        """
        estimate = self.guess(setting)
        near = min(reversed(self.anchors or self.points), key=lambda point: abs(point[0] - estimate))
        low, high = min(self.points), max(self.points)
        slope = near[1] / near[0]
        if high[0] - low[0] > 0.02 * high[0]:
            slope = max(0.0, (high[1] - low[1]) / (high[0] - low[0]))
        return near[1] + slope * (estimate - near[0])

    def pick(self, aim: float) -> float:
        """The smallest setting between the known limits that is expected within the aim."""
        fine = [s for s in self.settings if s > self.over and self.expected(s) <= aim]
        if not fine:
            return self.settings[-1] if self.under > 1 else (self.over + self.under) / 2
        high = fine[0]
        low = max([s for s in self.settings if s < high], default=high)
        while high - low > FINEST:
            middle = (low + high) / 2
            if self.expected(middle) <= aim:
                high = middle
            else:
                low = middle
        return high if self.over < high <= self.under else (max(self.over, 0.0) + min(self.under, 1.0)) / 2

    def run(self) -> Match:
        if not self.method.promises and self.method.runs() < PROBES and len(self.points) == 1:
            self._calibrate()
        best: Probe | None = None
        aim, spent, missed, more = self.limit, 0, 0, 0
        for _ in range(10 * EXACT_PROBES):
            # twice too slow and never fast enough: see what the end of the method's range takes
            setting = self.settings[-1] if missed == 2 and self.under > 1 else self.pick(aim)
            settled = best is not None and abs(setting - best.setting) < FINEST
            if spent >= self.method.runs() + more or settled or self.under - self.over < FINEST:
                break
            probe, new = self._probe(setting)
            noise = margin(probe.noise) or (0.0 if self.method.promises else MARGIN[0])
            aim = self.limit * (1 - noise)
            spent += new or not self.method.promises
            if new and not noise and self.method.promises and len(self.probes) == 1:
                more = EXACT_PROBES
            if probe.measured <= self.limit and (best is None or setting < best.setting or noise):
                best = probe
            if probe.measured <= self.limit * (1 - 0.6 * noise):
                self.under = min(self.under, setting)
                if noise and probe.measured >= self.limit * (1 - noise - max(0.6 * noise, doubt(probe.noise))):
                    break  # closer than what another measurement could tell
            else:
                self.over, missed = max(self.over, setting), missed + 1
                if setting >= self.settings[-1]:
                    break
        best = best or self._closest()
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
        estimated, found = self.expected(setting), self.measure(shape)
        probe = Probe(setting, estimated, found.value, found.noise, self.anatomy.params(shape), ran)
        self._learn(setting, found.value, ran)
        self.probes.append(probe)
        return probe

    def _learn(self, setting: float, measured: float, ran: bool) -> None:
        self.points.append((self.guess(setting), measured))
        if ran or self.method.promises:
            self.anchors.append(self.points[-1])

    def _closest(self) -> Probe:
        """Nothing was fast enough: impossible, if the end of the range is not; else what came closest in its runs."""
        own = [probe for probe in self.probes if probe.ran or self.method.promises]
        closest = min(own, key=lambda probe: probe.measured)
        floor, unit = self.measure(self.anatomy.empty()).value, self.unit
        remedy = "give a larger budget or a smaller model"
        if floor > self.limit:
            cause = f"{self.limit:.4g}{unit} is faster than the empty model, which takes {floor:.3g}{unit}"
        elif self.over >= self.settings[-1]:
            cause = (
                f"{self.limit:.4g}{unit} is out of this method's reach: at most it leaves what takes "
                f"{closest.measured:.4g}{unit}, the empty model {floor:.3g}{unit}"
            )
            remedy = "give a larger budget, or a method or settings that can remove more"
        else:
            return closest
        raise over_budget(cause, remedy, self.probes)


def over_budget(cause: str, remedy: str, probes: Sequence[Probe]) -> OverBudget:
    error = OverBudget(cause, remedy)
    error.probes = tuple(asdict(probe) for probe in probes)
    return error


def margin(noise: float) -> float:
    return min(MARGIN[1], max(MARGIN[0], noise)) if noise > 1e-9 else 0.0


def doubt(noise: float) -> float:
    """How far a measurement may be off: dense strays from itself by about twice as much as the mean of some rounds."""
    return noise / 2


def native(
    anatomy: Anatomy,
    ask: Callable[[float], Shape],
    estimate: Callable[[Shape], float],
    measure: Callable[[Shape], Measured],
    limit: float,
    runs: int,
) -> Match:
    """A method that takes latencies: ask for the limit, measure what it leaves, ask for what its cost model got wrong.

    A budget left unused is the method's own steps where the model was right; only its errors are asked away: those of
    the last shape where measurements are exact, the mean over all shapes where each of them is noisy.
    """
    probes: list[Probe] = []
    asked = limit
    for _ in range(runs):
        shape = ask(asked)
        found, estimated = measure(shape), estimate(shape)
        probes.append(Probe(asked, estimated, found.value, found.noise, anatomy.params(shape), ran=True))
        noise = margin(found.noise)
        errors = [probe.estimated / probe.measured for probe in (probes if noise else probes[-1:])]
        better = limit * (1 - noise) * statistics.geometric_mean(errors)
        if found.value > limit:
            better = min(better, asked * 0.97)  # steps swallow small corrections
        elif better <= asked * (1 + max(0.01, doubt(found.noise))):
            break
        asked = better
    within = [probe for probe in probes if probe.measured <= limit]
    if not within:
        closest = min(probe.measured for probe in probes)
        raise over_budget(
            f"{limit:.4g} was asked, the closest it came is {closest:.4g}", "give a larger budget", probes
        )
    best = max(within, key=lambda probe: probe.measured)
    return Match(best.setting, best.estimated, probes)
