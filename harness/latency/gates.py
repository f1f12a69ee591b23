"""Gates: what must hold around the visits before a clock may be trusted. Each names the clock it guards.

A device reports what it can read, under these names; a gate whose readings are missing is not there.

    time_ns, own_ns      monotonic time, CPU time of the timing process
    busy_ns, steal_ns    time that all cores worked, time that the hypervisor took
    pressure_us          time that some task waited for a core (Linux PSI, "some")
    cores, threads       how many there are, how many the model uses
    throttle             names of what held the clock down
    other_processes      processes of others on the same accelerator
    fallback             nodes that ran elsewhere than asked
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from harness.latency.timing import FLOOR_LIMIT
from harness.records.schema import Gate, Latency

State = Mapping[str, Any]
Window = tuple[State, State]
ALL = "all"
SUSTAINED = {"sw_power_cap"}  # a GPU at its power limit runs as it will run in service


@dataclass(frozen=True)
class Rule:
    name: str
    guards: str
    needs: tuple[str, ...]
    judge: Callable[[list[Window]], tuple[bool, str]]


def _grown(windows: list[Window], name: str) -> float:
    befores, afters = zip(*windows, strict=True)
    read = itemgetter(name)
    return sum(map(read, afters)) - sum(map(read, befores))


def _share(name: str, per: float, limit: float, what: str) -> Callable[[list[Window]], tuple[bool, str]]:
    """A counter's growth as a share of the time that passed."""

    def judge(windows: list[Window]) -> tuple[bool, str]:
        share = _grown(windows, name) * per / max(_grown(windows, "time_ns"), 1)
        return share < limit, f"{what} {share:.1%} of the time (limit {limit:.0%})"

    return judge


def _foreign(windows: list[Window]) -> tuple[bool, str]:
    cores = windows[0][0]["cores"]
    others = _grown(windows, "busy_ns") - _grown(windows, "own_ns")
    share = max(0.0, others / max(_grown(windows, "time_ns") * cores, 1))
    return share < 0.10, f"others used {share:.1%} of {cores} cores (limit 10%)"


def _running(windows: list[Window]) -> tuple[bool, str]:
    threads = windows[0][0]["threads"]
    share = _grown(windows, "own_ns") / max(_grown(windows, "time_ns") * threads, 1)
    least = 0.9 if threads == 1 else 0.6  # several threads wait for each other
    return share >= least, f"ran {share:.1%} of the time on {threads} threads (at least {least:.0%})"


def _none(name: str, what: str) -> Callable[[list[Window]], tuple[bool, str]]:
    def judge(windows: list[Window]) -> tuple[bool, str]:
        seen = sorted({str(item) for window in windows for state in window for item in state[name]})
        return set(seen) <= SUSTAINED, f"{what}: {', '.join(seen) or 'none'}"

    return judge


def _alone(windows: list[Window]) -> tuple[bool, str]:
    most = max(state["other_processes"] for window in windows for state in window)
    return most == 0, f"{most} other processes on the device"


RULES = (
    Rule("pressure", "wall", ("time_ns", "pressure_us"), _share("pressure_us", 1e3, 0.05, "tasks waited for a core")),
    Rule("steal", "wall", ("time_ns", "steal_ns"), _share("steal_ns", 1.0, 0.01, "the hypervisor took")),
    Rule("others", "wall", ("time_ns", "busy_ns", "own_ns", "cores"), _foreign),
    Rule("running", "wall", ("time_ns", "own_ns", "threads"), _running),
    Rule("throttling", "device, wall", ("throttle",), _none("throttle", "held down by")),
    Rule("alone", "device, wall", ("other_processes",), _alone),
    Rule("fallback", ALL, ("fallback",), _none("fallback", "ran elsewhere")),
)


def judge(windows: Iterable[Window], latency: Latency, workload: str) -> list[Gate]:
    """All gates that the readings around the visits allow, and each clock's noise floor."""
    seen = [((before, after), before.keys() & after.keys()) for before, after in windows]
    found = []
    for rule in RULES:
        needs = set(rule.needs)
        if known := [window for window, names in seen if needs <= names]:
            ok, detail = rule.judge(known)
            found.append(Gate(name=rule.name, guards=rule.guards, ok=ok, detail=f"{workload}: {detail}"))
    for name, clock in {latency.clock: latency, **latency.other_clock}.items():
        if clock.noise_floor is not None:
            ok = clock.noise_floor <= FLOOR_LIMIT
            detail = f"{workload}: dense against itself {clock.noise_floor:.1%} (limit {FLOOR_LIMIT:.0%})"
            found.append(Gate(name="noise floor", guards=name, ok=ok, detail=detail))
    return found


def guards(gate: Gate, clock: str) -> bool:
    return gate.guards == ALL or clock in gate.guards.split(", ")


def failed(gates: Iterable[Gate], clock: str) -> list[Gate]:
    """What forbids trusting this clock."""
    return [gate for gate in gates if guards(gate, clock) and not gate.ok]
