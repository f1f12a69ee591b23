"""Searches for the setting of a method that meets a latency budget: estimate, measure, correct, measure again.

The latency of a shape is measured with random weights. So a method need not run, or train, to find out how fast its
model would be, if its shape is known without running it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.api import Shape
from harness.errors import OverBudget, Unsupported
from harness.latency.prober import Measurement
from harness.models.anatomy.core import Anatomy

MARGIN = (0.006, 0.02)  # bounds of the margin below the limit, which is the relative noise; 0 without noise
PROBES = 8  # shapes that a search may try on a device, without calibration and repeats of noisy shapes
EXACT_PROBES = 64  # more of them on a simulated device, whose measurements are exact and cost nothing
FINEST = 1 / 4096  # settings closer than this are the same


@dataclass(frozen=True)
class Probe:
    """A measurement of the shape that a method leaves at a setting."""

    setting: float  # what the method was given: a ratio or a latency
    estimated: float
    measured: float
    noise: float
    params: int
    ran: bool  # whether the method itself had to run for it


@dataclass
class SearchResult:
    """The result of a search."""

    setting: float
    predicted: float
    probes: list[Probe]

    def to_dict(self) -> dict[str, Any]:
        return {"setting": self.setting, "predicted": self.predicted, "probes": [asdict(p) for p in self.probes]}


@dataclass
class Method:
    """The shapes that a method leaves at settings from 0, which removes nothing, to 1.

    Attributes:
        guess: The expected shape, without running the method: what it promises, or a uniform allocation.
        real: The shape that it leaves; runs the method if it promises none.
        promises: Whether the two are the same.
        runs: How often the method may be run, as far as is known now.
    """

    guess: Callable[[float], Shape]
    real: Callable[[float], Shape]
    promises: bool = True
    runs: Callable[[], int] = lambda: PROBES


class BudgetSearch:
    """A search for the smallest setting whose shape is fast enough.

    `scale` is the dense model's latency in the budget's unit. `earlier` are the probes of a search for a higher limit,
    and the finished models that exceeded it.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        method: Method,
        estimate: Callable[[Shape], float],
        measure: Callable[[Shape], Measurement],
        limit: float,
        unit: str = "x",
        scale: float = 1.0,
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.anatomy, self.method, self.estimate, self.measure = anatomy, method, estimate, measure
        self.limit, self.unit = limit, unit
        self.probes: list[Probe] = []
        self.estimates: dict[float, float] = {}  # by setting
        self.by_shape: dict[frozenset[tuple[str, int]], Probe] = {}
        self.too_slow = -1.0  # the largest setting that was measured to be too slow
        self.fast_enough = 2.0  # the smallest setting that was measured to be fast enough
        self.settings = self._settings()
        self.points = [(estimate({}), scale)]  # (estimate, measurement) of shapes
        self.own_points: list[tuple[float, float]] = []  # those of shapes that the method really leaves
        for probe in earlier:
            if "final" in probe:  # a finished model, which was measured longer than a probe
                self.too_slow = max(self.too_slow, probe["setting"])
            else:
                self._add_point(probe["setting"], probe["measured"], probe["ran"])

    def _settings(self) -> list[float]:
        """The settings of a coarse grid that the method supports and that leave at least one layer."""
        settings: list[float] = []
        empty_params = self.anatomy.params(self.anatomy.empty())
        for step in range(200):
            try:
                shape = self.method.guess(step / 200)
            except Unsupported:
                if not settings:
                    raise
                break
            if self.anatomy.params(shape) == empty_params:
                break
            self.estimates[step / 200] = self.estimate(shape)
            settings.append(step / 200)
        return settings

    def guess(self, setting: float) -> float:
        """The estimate for the expected shape at a setting."""
        if setting not in self.estimates:
            self.estimates[setting] = self.estimate(self.method.guess(setting))
        return self.estimates[setting]

    def expected(self, setting: float) -> float:
        """What a measurement would give: from the nearest one, along the slope between the two farthest apart.

        Part of a device's time does not shrink with the model. With a factor in place of the slope, the search would
        approach the limit in many small steps.
        """
        estimate = self.guess(setting)
        nearest = min(reversed(self.own_points or self.points), key=lambda point: abs(point[0] - estimate))
        low, high = min(self.points), max(self.points)
        slope = nearest[1] / nearest[0]
        if high[0] - low[0] > 0.02 * high[0]:
            slope = max(0.0, (high[1] - low[1]) / (high[0] - low[0]))
        return nearest[1] + slope * (estimate - nearest[0])

    def pick(self, target: float) -> float:
        """The smallest setting that is expected to take no longer than the target, within what was measured."""
        candidates = [s for s in self.settings if s > self.too_slow and self.expected(s) <= target]
        if not candidates:
            return self.settings[-1] if self.fast_enough > 1 else (self.too_slow + self.fast_enough) / 2
        # Refine the grid by bisection.
        high = candidates[0]
        low = max([s for s in self.settings if s < high], default=high)
        while high - low > FINEST:
            middle = (low + high) / 2
            if self.expected(middle) <= target:
                high = middle
            else:
                low = middle
        if self.too_slow < high <= self.fast_enough:
            return high
        return (max(self.too_slow, 0.0) + min(self.fast_enough, 1.0)) / 2

    def run(self) -> SearchResult:
        """Search until the best setting cannot be improved, or all runs are used."""
        if not self.method.promises and self.method.runs() < PROBES and len(self.points) == 1:
            self._calibrate()
        best: Probe | None = None
        target = self.limit
        runs = misses = extra_runs = 0
        for _ in range(10 * EXACT_PROBES):
            # After two misses and no success, measure the end of the method's range.
            setting = self.settings[-1] if misses == 2 and self.fast_enough > 1 else self.pick(target)
            converged = best is not None and abs(setting - best.setting) < FINEST
            converged = converged or self.fast_enough - self.too_slow < FINEST
            if runs >= self.method.runs() + extra_runs or converged:
                break
            probe, is_new = self._probe(setting)
            noise = margin(probe.noise) or (0.0 if self.method.promises else MARGIN[0])
            target = self.limit * (1 - noise)
            runs += is_new or not self.method.promises
            if is_new and not noise and self.method.promises and len(self.probes) == 1:
                extra_runs = EXACT_PROBES
            if probe.measured <= self.limit and (best is None or setting < best.setting or noise):
                best = probe
            if probe.measured <= self.limit * (1 - 0.6 * noise):
                self.fast_enough = min(self.fast_enough, setting)
                if noise and probe.measured >= self.limit * (1 - noise - max(0.6 * noise, uncertainty(probe.noise))):
                    break  # so close to the target that another measurement could not tell the difference
            else:
                self.too_slow = max(self.too_slow, setting)
                misses += 1
                if setting >= self.settings[-1]:
                    break
        best = best or self._closest()
        return SearchResult(best.setting, best.estimated, self.probes)

    def _calibrate(self) -> None:
        """Measure uniform shapes first, so that a method that trains is not run to learn about the device."""
        for _ in range(2):
            setting = self.pick(self.limit * (1 - MARGIN[1]))
            self._measure(setting, self.method.guess(setting), ran=False)

    def _probe(self, setting: float) -> tuple[Probe, bool]:
        """The probe of the shape at a setting, and whether it is new: coarse methods leave one shape at many."""
        shape = self.method.real(setting)
        key = frozenset(self.anatomy.complete(shape).items())
        is_new = key not in self.by_shape
        if is_new:
            self.by_shape[key] = self._measure(setting, shape, ran=not self.method.promises)
        return replace(self.by_shape[key], setting=setting), is_new

    def _measure(self, setting: float, shape: Shape, ran: bool) -> Probe:
        estimated = self.expected(setting)
        measurement = self.measure(shape)
        probe = Probe(setting, estimated, measurement.value, measurement.noise, self.anatomy.params(shape), ran)
        self._add_point(setting, measurement.value, ran)
        self.probes.append(probe)
        return probe

    def _add_point(self, setting: float, measured: float, ran: bool) -> None:
        self.points.append((self.guess(setting), measured))
        if ran or self.method.promises:
            self.own_points.append(self.points[-1])

    def _closest(self) -> Probe:
        """The probe that came closest, where none was fast enough. Raises OverBudget if no setting can be."""
        own = [probe for probe in self.probes if probe.ran or self.method.promises]
        closest = min(own, key=lambda probe: probe.measured)
        floor, unit = self.measure(self.anatomy.empty()).value, self.unit
        remedy = "give a larger budget or a smaller model"
        if floor > self.limit:
            cause = f"{self.limit:.4g}{unit} is faster than the empty model, which takes {floor:.3g}{unit}"
        elif self.too_slow >= self.settings[-1]:
            cause = (
                f"{self.limit:.4g}{unit} is out of this method's reach: the fastest model that it leaves takes "
                f"{closest.measured:.4g}{unit}, the empty model {floor:.3g}{unit}"
            )
            remedy = "give a larger budget, or a method or settings that can remove more"
        else:
            return closest
        raise over_budget(cause, remedy, self.probes)


def over_budget(cause: str, remedy: str, probes: Sequence[Probe]) -> OverBudget:
    """An error that carries the probes, for the record."""
    error = OverBudget(cause, remedy)
    error.probes = tuple(asdict(probe) for probe in probes)
    return error


def margin(noise: float) -> float:
    """How far below the limit to aim, as a share of it."""
    return min(MARGIN[1], max(MARGIN[0], noise)) if noise > 1e-9 else 0.0


def uncertainty(noise: float) -> float:
    """The relative error of a measurement: about half the noise floor, since it is a mean over several rounds."""
    return noise / 2


def search_by_latency(
    anatomy: Anatomy,
    ask: Callable[[float], Shape],
    estimate: Callable[[Shape], float],
    measure: Callable[[Shape], Measurement],
    limit: float,
    runs: int,
) -> SearchResult:
    """The search for a method that takes latencies itself: give it a limit, measure its shape, correct the limit.

    The limit is corrected by what the cost model got wrong, not by what the method left unused because its steps are
    coarse. The error is that of the last shape where measurements are exact, and the mean over all shapes otherwise.
    """
    probes: list[Probe] = []
    setting = limit
    for _ in range(runs):
        shape = ask(setting)
        measurement, estimated = measure(shape), estimate(shape)
        params = anatomy.params(shape)
        probes.append(Probe(setting, estimated, measurement.value, measurement.noise, params, ran=True))
        noise = margin(measurement.noise)
        errors = [probe.estimated / probe.measured for probe in (probes if noise else probes[-1:])]
        corrected = limit * (1 - noise) * statistics.geometric_mean(errors)
        if measurement.value > limit:
            corrected = min(corrected, setting * 0.97)  # a smaller correction may stay within one step of the method
        elif corrected <= setting * (1 + max(0.01, uncertainty(measurement.noise))):
            break
        setting = corrected
    within = [probe for probe in probes if probe.measured <= limit]
    if not within:
        closest = min(probe.measured for probe in probes)
        raise over_budget(
            f"no model was within {limit:.4g}; the closest took {closest:.4g}", "give a larger budget", probes
        )
    best = max(within, key=lambda probe: probe.measured)
    return SearchResult(best.setting, best.estimated, probes)
