"""One model at work for minutes: phones and boards are fast at first, and hold their clocks down once they are warm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from harness.api import Samples, TimingPlan
from harness.latency.timing import Opener
from harness.records.schema import Sustained

VISITS = 20  # looks at the temperature on the way
SHORTEST_S = 1.0


def measure(
    opener: Opener,
    seconds: float,
    clock: str,
    keep: Callable[[dict[str, Any]], str],
    told: Callable[[int, int], None] = lambda *_: None,
) -> Sustained:
    """Visit after visit, with no pause but what the device needs between two; `keep` stores their raw samples."""
    plan = TimingPlan(warmup=0, iterations=1, seconds=max(SHORTEST_S, seconds / VISITS))
    visits: list[Samples] = []
    session = opener()
    try:
        start = time.monotonic()
        while not visits or time.monotonic() - start < seconds:
            visits.append(session.measure(plan))
            told(min(VISITS, int(VISITS * (time.monotonic() - start) / seconds)), VISITS)
        lasted = time.monotonic() - start
    finally:
        session.close()
    return of(visits, lasted, clock, keep({"visits": [asdict(visit) for visit in visits]}))


def of(visits: list[Samples], seconds: float, clock: str, samples: str) -> Sustained:
    """Its first visit beside the last fifth of them."""
    medians = [statistics.median(getattr(visit, f"{clock}_ns") or visit.wall_ns) for visit in visits]
    return Sustained(
        seconds=seconds,
        first_ns=medians[0],
        last_ns=statistics.median(medians[-max(1, len(medians) // 5) :]),
        temperatures_c=_temperatures(visits[0].before, visits[-1].after),
        throttle=sorted({str(name) for visit in visits for name in visit.after.get("throttle", ())}),
        samples=samples,
    )


def _temperatures(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    first, last = before.get("temperatures_c", {}), after.get("temperatures_c", {})
    return {name: (float(first[name]), float(last[name])) for name in first if name in last}
