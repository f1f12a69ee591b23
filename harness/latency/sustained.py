"""Runs one model for minutes: phones and boards are fast at first and lower their clocks once they are warm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from harness.api import Samples, TimingPlan
from harness.latency.timing import Opener
from harness.records.schema import Sustained

VISITS = 20  # about how many visits the time is divided into; temperatures are read around each
MIN_VISIT_S = 1.0


def measure(
    opener: Opener,
    seconds: float,
    clock: str,
    save: Callable[[dict[str, Any]], str],
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Sustained:
    """Visit the model without a pause for so many seconds. `save` stores raw samples and returns the file's name."""
    plan = TimingPlan(warmup=0, iterations=1, seconds=max(MIN_VISIT_S, seconds / VISITS))
    visits: list[Samples] = []
    session = opener()
    try:
        start = time.monotonic()
        while not visits or time.monotonic() - start < seconds:
            visits.append(session.measure(plan))
            on_progress(min(VISITS, int(VISITS * (time.monotonic() - start) / seconds)), VISITS)
        elapsed = time.monotonic() - start
    finally:
        session.close()
    return from_visits(visits, elapsed, clock, save({"visits": [asdict(visit) for visit in visits]}))


def from_visits(visits: list[Samples], seconds: float, clock: str, samples: str) -> Sustained:
    """Compare the first visit with the last fifth of them. `samples` names the file with all visits."""
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
