"""Interleaved timing: every round visits dense, pruned, dense again, so that drift hits all three alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from harness import stats
from harness.api import Device, Samples, TimingPlan, Workload
from harness.records import Clock, Latency, Timing

VERSION = "interleaved-1"


@dataclass(frozen=True)
class Protocol:
    """How much is measured; part of every measure key."""

    rounds: int
    warmup: int
    iterations: int

    def parts(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @property
    def plan(self) -> TimingPlan:
        return TimingPlan(self.warmup, self.iterations)


PROTOCOLS = {"quick": Protocol(rounds=5, warmup=1, iterations=3), "paper": Protocol(rounds=10, warmup=3, iterations=10)}


@dataclass
class Rounds:
    """Raw samples: one visit per model and round."""

    dense: list[Samples]
    pruned: list[Samples]
    again: list[Samples]


def interleave(
    device: Device,
    dense: Any,
    pruned: Any,
    workload: Workload,
    plan: TimingPlan,
    rounds: int,
    told: Callable[[int], None] = lambda _: None,
) -> Rounds:
    handles = [device.prepare(dense, workload), device.prepare(pruned, workload)]
    found = Rounds([], [], [])
    try:
        for at in range(rounds):
            found.dense.append(device.measure(handles[0], plan))
            found.pruned.append(device.measure(handles[1], plan))
            found.again.append(device.measure(handles[0], plan))
            told(at + 1)
    finally:
        for handle in handles:
            device.close(handle)
    return found


def clock(rounds: Rounds, name: str) -> Clock:
    """One clock's figures, the ratio paired by round."""

    def visits(samples: list[Samples]) -> list[list[int]]:
        return [list(getattr(s, f"{name}_ns")) for s in samples]

    def medians(samples: list[list[int]]) -> list[float]:
        return [statistics.median(visit) for visit in samples]

    dense, pruned, again = visits(rounds.dense), visits(rounds.pruned), visits(rounds.again)
    both = [statistics.geometric_mean(pair) for pair in zip(medians(dense), medians(again), strict=True)]
    speedup, bounds = stats.ratio(both, medians(pruned))
    return Clock(
        dense=timing(dense + again, both),
        pruned=timing(pruned, medians(pruned)),
        speedup=speedup,
        speedup_ci95=bounds,
        noise_floor=stats.noise_floor(medians(dense), medians(again)),
    )


def timing(visits: list[list[int]], medians: list[float]) -> Timing:
    pooled = [ns for visit in visits for ns in visit]
    return Timing(
        median_ns=statistics.median(pooled),
        p90_ns=stats.quantile(pooled, 0.9),
        ci95_ns=stats.interval(medians),
        n=len(pooled),
    )


def latency(rounds: Rounds, ranked: str, plan: TimingPlan, provenance: Any) -> Latency:
    """The record of one workload: the ranked clock in front, the others beside it."""
    names = ["wall"] + (["cpu"] if all(s.cpu_ns for s in rounds.dense + rounds.pruned + rounds.again) else [])
    clocks = {name: clock(rounds, name) for name in names}
    if ranked not in clocks:
        ranked = "wall"
    front = clocks.pop(ranked)
    return Latency(
        **front.model_dump(),
        clock=ranked,
        other_clock=clocks,
        rounds=len(rounds.dense),
        warmup=plan.warmup,
        processes=1,
        provenance=provenance,
    )


def raw(rounds: Rounds) -> dict[str, Any]:
    """All samples with the state of the device around each visit, for the side file."""
    return {name: [asdict(visit) for visit in getattr(rounds, name)] for name in ("dense", "pruned", "again")}
