"""Interleaved timing: every round visits dense, pruned and dense again, so that drift affects all three equally.

A visit counts with its fastest pass, and a model with the faster half of its visits: whatever else runs on the machine
only adds to a time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from harness import stats
from harness.api import Device, DeviceSpec, Samples, TimingPlan, Workload
from harness.devices.attributes import copies_weights
from harness.latency import timing_stats
from harness.plugins import registry
from harness.records.schema import Clock, Energy, Latency, Memory, MemoryPair, Timing

VERSION = "interleaved-4"
CLOCKS = ("device", "cpu", "wall")
UNMOVED = "the energy counter did not move while the passes ran: time more of them (--preset paper)"
FLOOR_LIMIT = 0.10  # above this noise floor the rounds are repeated, and then a gate fails


@dataclass(frozen=True)
class TimingProtocol:
    """How much is measured; part of every measure key.

    With `fresh`, every visit has a process of its own, so that the interval includes what differs between processes,
    above all where memory lies. Otherwise both models stay open.
    """

    rounds: int
    warmup: int
    iterations: int
    seconds: float
    fresh: bool = False

    def parts(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @property
    def plan(self) -> TimingPlan:
        return TimingPlan(self.warmup, self.iterations, self.seconds)


PROTOCOLS = {
    "quick": TimingProtocol(rounds=6, warmup=1, iterations=3, seconds=0.05, fresh=True),
    "paper": TimingProtocol(rounds=10, warmup=3, iterations=10, seconds=1.0, fresh=True),
}


def protocol(preset: str, device: DeviceSpec, runtime: str) -> TimingProtocol:
    """The protocol of a preset on a device.

    Fresh processes are only for devices that run models in this process and open them without copying the weights.
    """
    usual = PROTOCOLS[preset]
    if device.in_process and not copies_weights(registry().device(device.name, runtime)):
        return usual
    return replace(usual, fresh=False)


class Session(Protocol):
    """One model that is open and can be timed."""

    def measure(self, plan: TimingPlan) -> Samples: ...
    def close(self) -> None: ...


Opener = Callable[[], Session]


@dataclass
class LocalSession:
    """A model that this process has opened on a device."""

    device: Device
    handle: Any

    def measure(self, plan: TimingPlan) -> Samples:
        return self.device.measure(self.handle, plan)

    def close(self) -> None:
        self.device.close(self.handle)


def local_opener(device: Device, model: Any, workload: Workload) -> Opener:
    """Opens a model of this process on a device."""
    return lambda: LocalSession(device, device.prepare(model, workload))


@dataclass
class Rounds:
    """Raw samples of all visits, in the order of the rounds."""

    dense: list[Samples]
    pruned: list[Samples]
    again: list[Samples]  # of the dense model, after the pruned one
    processes: int = 1

    def visits(self) -> list[Samples]:
        return self.dense + self.pruned + self.again

    def clocks(self) -> list[str]:
        """The clocks that every visit has and that are fine enough to measure a pass."""
        times = {name: [getattr(visit, f"{name}_ns") for visit in self.visits()] for name in CLOCKS}
        return [name for name in CLOCKS if all(samples and min(samples) > 0 for samples in times[name])]

    def ranked(self, wanted: str) -> str:
        """The wanted clock if every visit has it, else the wall clock."""
        return wanted if wanted in self.clocks() else "wall"


def interleave(
    dense: Opener,
    pruned: Opener,
    protocol: TimingProtocol,
    ranked: str,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    undecided: Callable[[Rounds], bool] = lambda _: False,
) -> Rounds:
    """Run the rounds of a protocol.

    Once, their number is doubled: if the noise floor of the `ranked` clock is too high, or if the rounds leave a
    question open, which `undecided` says. `on_progress` is called
    after every round with the number of rounds and the total.
    """
    rounds = Rounds([], [], [], processes=0 if protocol.fresh else 1)
    resident: list[Session] = []
    openers = (dense, pruned, dense)
    try:
        if not protocol.fresh:
            resident += [dense()]
            resident += [pruned()]
        total = protocol.rounds
        while len(rounds.dense) < total:
            visits = []
            for i, opener in enumerate(openers):
                if protocol.fresh:
                    visits.append(_visit_once(opener, protocol.plan))
                    rounds.processes += 1
                else:
                    visits.append(resident[i % 2].measure(protocol.plan))
            for samples, visit in zip((rounds.dense, rounds.pruned, rounds.again), visits, strict=True):
                samples.append(visit)
            on_progress(len(rounds.dense), total)
            may_double = len(rounds.dense) == total == protocol.rounds
            if may_double and (_noise_floor(rounds, ranked) > FLOOR_LIMIT or undecided(rounds)):
                total *= 2
    finally:
        for session in resident:
            session.close()
    return rounds


def _visit_once(opener: Opener, plan: TimingPlan) -> Samples:
    session = opener()
    try:
        return session.measure(plan)
    finally:
        session.close()


def _noise_floor(rounds: Rounds, ranked: str) -> float:
    name = rounds.ranked(ranked)
    return timing_stats.noise_floor(fastest(rounds.dense, name), fastest(rounds.again, name)) or 0.0


def fastest(visits: list[Samples], clock: str) -> list[float]:
    """The fastest pass of each visit."""
    return [min(getattr(visit, f"{clock}_ns")) for visit in visits]


def medians(visits: list[Samples], clock: str) -> list[float]:
    """The median pass of each visit."""
    return [statistics.median(getattr(visit, f"{clock}_ns")) for visit in visits]


def clock(rounds: Rounds, name: str) -> Clock:
    """The times and the speed-up by one clock."""
    dense, pruned, again = (fastest(visits, name) for visits in (rounds.dense, rounds.pruned, rounds.again))
    speedup, bounds = timing_stats.ratio(list(zip(dense, again, strict=True)), [(time,) for time in pruned])
    pairs = zip(medians(rounds.dense, name), medians(rounds.again, name), strict=True)
    return Clock(
        dense=timing(rounds.dense + rounds.again, name, [statistics.geometric_mean(pair) for pair in pairs]),
        pruned=timing(rounds.pruned, name, medians(rounds.pruned, name)),
        speedup=speedup,
        speedup_ci95=bounds,
        noise_floor=timing_stats.noise_floor(dense, again),
    )


def timing(visits: list[Samples], clock: str, by_round: list[float]) -> Timing:
    """Figures of one model: quantiles of all passes, and an interval from one time per round."""
    pooled = [ns for visit in visits for ns in getattr(visit, f"{clock}_ns")]
    return Timing(
        median_ns=statistics.median(pooled),
        p90_ns=timing_stats.quantile(pooled, 0.9),
        p90_bound_ns=timing_stats.quantile_bound(pooled, 0.9),
        p99_bound_ns=timing_stats.quantile_bound(pooled, 0.99),
        ci95_ns=stats.interval(by_round),
        n=len(pooled),
    )


def latency(rounds: Rounds, ranked: str, protocol: TimingProtocol, provenance: Any) -> Latency:
    """What a record says about one workload: the figures of the ranked clock, then those of the others."""
    clocks = {name: clock(rounds, name) for name in rounds.clocks()}
    ranked = rounds.ranked(ranked)
    ranked_clock = clocks.pop(ranked)
    details = {name: dict(visits[0].told) for name, visits in _visits_by_model(rounds).items() if visits[0].told}
    return Latency(
        **ranked_clock.model_dump(),
        clock=ranked,
        other_clock=clocks,
        rounds=len(rounds.dense),
        warmup=protocol.warmup,
        processes=rounds.processes,
        provenance=provenance,
        told=details,
    )


def _visits_by_model(rounds: Rounds) -> dict[str, list[Samples]]:
    return {"dense": rounds.dense + rounds.again, "pruned": rounds.pruned}


def memory(rounds: Rounds, what: str) -> MemoryPair | None:
    """The memory that the device reported for each model while it ran; None if it reported none."""
    memories = {}
    for name, visits in _visits_by_model(rounds).items():
        readings = [visit.memory for visit in visits if visit.memory]
        if len(readings) < len(visits):
            return None
        average = int(statistics.fmean(reading["average"] for reading in readings))
        memories[name] = Memory(average=average, peak=max(reading["peak"] for reading in readings))
    return MemoryPair(**memories, what=what)


def energy(rounds: Rounds, clock: str) -> Energy | None:
    """Joules per pass of each model, or the device's reason why there are none; None if it gave no reason either."""
    joules_per_pass = {}
    for name, visits in _visits_by_model(rounds).items():
        readings = [(v.energy_j, len(getattr(v, f"{clock}_ns"))) for v in visits if v.energy_j is not None]
        if not any(joules for joules, _ in readings):
            reason = UNMOVED if readings else next((v.energy_note for v in visits if v.energy_note), "")
            return Energy(reason=reason) if reason else None
        joules_per_pass[name] = sum(joules for joules, _ in readings) / sum(passes for _, passes in readings)
    notes = dict.fromkeys(v.energy_note for v in rounds.visits() if v.energy_j is not None and v.energy_note)
    return Energy(**joules_per_pass, what=", ".join(["joules per pass", *notes]))


def raw_samples(rounds: Rounds) -> dict[str, Any]:
    """All samples, with the state of the device before and after each visit, for the side file."""
    return {name: [asdict(visit) for visit in getattr(rounds, name)] for name in ("dense", "pruned", "again")}
