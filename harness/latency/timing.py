"""Interleaved timing: every round visits dense, pruned, dense again, so that drift hits all three alike.

A visit stands for its fastest pass, a model for the faster half of its visits: others on the machine only add.
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
FLOOR_LIMIT = 0.10  # a dense model that differs from itself by more measures nothing; also when to look twice


@dataclass(frozen=True)
class TimingProtocol:
    """How much is measured; part of every measure key.

    `fresh` opens a process per visit, where the device runs in ours: what differs between processes (where memory
    lies, above all) then stands in the interval. Otherwise both models stay resident.
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
    """Processes of their own only where models run in ours, and opening one is not most of the work."""
    found = PROTOCOLS[preset]
    if device.in_process and not copies_weights(registry().device(device.name, runtime)):
        return found
    return replace(found, fresh=False)


class Session(Protocol):
    """One model, ready to be timed."""

    def measure(self, plan: TimingPlan) -> Samples: ...
    def close(self) -> None: ...


Opener = Callable[[], Session]


@dataclass
class Here:
    """A model of this process on a device."""

    device: Device
    handle: Any

    def measure(self, plan: TimingPlan) -> Samples:
        return self.device.measure(self.handle, plan)

    def close(self) -> None:
        self.device.close(self.handle)


def here(device: Device, model: Any, workload: Workload) -> Opener:
    return lambda: Here(device, device.prepare(model, workload))


@dataclass
class Rounds:
    """Raw samples: one visit per model and round."""

    dense: list[Samples]
    pruned: list[Samples]
    again: list[Samples]
    processes: int = 1

    def visits(self) -> list[Samples]:
        return self.dense + self.pruned + self.again

    def clocks(self) -> list[str]:
        """The clocks that every visit has, and that are fine enough to have moved."""
        known = {name: [getattr(visit, f"{name}_ns") for visit in self.visits()] for name in CLOCKS}
        return [name for name in CLOCKS if all(samples and min(samples) > 0 for samples in known[name])]

    def ranked(self, wanted: str) -> str:
        """The clock that is wanted, if every visit has it."""
        return wanted if wanted in self.clocks() else "wall"


def interleave(
    dense: Opener,
    pruned: Opener,
    protocol: TimingProtocol,
    ranked: str,
    told: Callable[[int, int], None] = lambda *_: None,
    undecided: Callable[[Rounds], bool] = lambda _: False,
) -> Rounds:
    """The rounds of a protocol; as many again where they decide nothing, or the ranked clock's noise is too high."""
    found = Rounds([], [], [], processes=0 if protocol.fresh else 1)
    resident: list[Session] = []
    openers = (dense, pruned, dense)
    try:
        if not protocol.fresh:
            resident += [dense()]
            resident += [pruned()]
        total = protocol.rounds
        while len(found.dense) < total:
            visits = []
            for which, opener in enumerate(openers):
                if protocol.fresh:
                    visits.append(_once(opener, protocol.plan))
                    found.processes += 1
                else:
                    visits.append(resident[which % 2].measure(protocol.plan))
            for kept, visit in zip((found.dense, found.pruned, found.again), visits, strict=True):
                kept.append(visit)
            told(len(found.dense), total)
            first = len(found.dense) == total == protocol.rounds
            if first and (_floor(found, ranked) > FLOOR_LIMIT or undecided(found)):
                total *= 2
    finally:
        for session in resident:
            session.close()
    return found


def _once(opener: Opener, plan: TimingPlan) -> Samples:
    session = opener()
    try:
        return session.measure(plan)
    finally:
        session.close()


def _floor(rounds: Rounds, ranked: str) -> float:
    name = rounds.ranked(ranked)
    return timing_stats.noise_floor(fastest(rounds.dense, name), fastest(rounds.again, name)) or 0.0


def fastest(visits: list[Samples], clock: str) -> list[float]:
    return [min(getattr(visit, f"{clock}_ns")) for visit in visits]


def medians(samples: list[Samples], clock: str) -> list[float]:
    return [statistics.median(getattr(visit, f"{clock}_ns")) for visit in samples]


def clock(rounds: Rounds, name: str) -> Clock:
    """One clock's figures."""
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
    """The record of one workload: the ranked clock in front, the others beside it."""
    clocks = {name: clock(rounds, name) for name in rounds.clocks()}
    ranked = rounds.ranked(ranked)
    front = clocks.pop(ranked)
    return Latency(
        **front.model_dump(),
        clock=ranked,
        other_clock=clocks,
        rounds=len(rounds.dense),
        warmup=protocol.warmup,
        processes=rounds.processes,
        provenance=provenance,
        told={side: dict(told) for side, visits in _sides(rounds).items() if (told := visits[0].told)},
    )


def _sides(rounds: Rounds) -> dict[str, list[Samples]]:
    return {"dense": rounds.dense + rounds.again, "pruned": rounds.pruned}


def memory(rounds: Rounds, what: str) -> MemoryPair | None:
    """What the device itself says each model took while it ran; None where it does not say."""
    sides = {}
    for side, visits in _sides(rounds).items():
        told = [visit.memory for visit in visits if visit.memory]
        if len(told) < len(visits):
            return None
        average = int(statistics.fmean(m["average"] for m in told))
        sides[side] = Memory(average=average, peak=max(m["peak"] for m in told))
    return MemoryPair(**sides, what=what)


def energy(rounds: Rounds, clock: str) -> Energy | None:
    """Joules per pass, or the device's reason for none; None where it says nothing."""
    sides = {}
    for side, visits in _sides(rounds).items():
        read = [(v.energy_j, len(getattr(v, f"{clock}_ns"))) for v in visits if v.energy_j is not None]
        if not any(joules for joules, _ in read):
            why = UNMOVED if read else next((v.energy_note for v in visits if v.energy_note), "")
            return Energy(reason=why) if why else None
        sides[side] = sum(joules for joules, _ in read) / sum(passes for _, passes in read)
    notes = dict.fromkeys(v.energy_note for v in rounds.visits() if v.energy_j is not None and v.energy_note)
    return Energy(**sides, what=", ".join(["joules per pass", *notes]))


def raw(rounds: Rounds) -> dict[str, Any]:
    """All samples with the state of the device around each visit, for the side file."""
    return {name: [asdict(visit) for visit in getattr(rounds, name)] for name in ("dense", "pruned", "again")}
