"""Gates of a measurement: conditions that must hold during the visits, or a clock is not trusted.

Each gate names the clocks it guards.

A device reports the readings that it has, under these names. A gate whose readings are missing is left out.

    time_ns, own_ns      monotonic time; CPU time of the timing process
    busy_ns, steal_ns    time that all cores were busy; time that the hypervisor took
    pressure_us          time that some task waited for a core (Linux PSI, "some")
    cores, threads       how many cores there are; how many threads the model uses
    throttle             the reasons for which the device lowered its clock; heat is one of them
    other_processes      processes of others on the same accelerator
    fallback             nodes that did not run where the runtime was told to run them
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


Check = Callable[[list[Window]], tuple[bool, str]]  # whether the windows pass, with a text that says why


@dataclass(frozen=True)
class Rule:
    name: str
    guards: str
    needs: tuple[str, ...]  # readings
    check: Check


def _growth(windows: list[Window], name: str) -> float:
    """How much a counter grew during all windows together."""
    states_before, states_after = zip(*windows, strict=True)
    counter = itemgetter(name)
    return sum(map(counter, states_after)) - sum(map(counter, states_before))


def _share_below(limit: float, counter: str, unit_ns: float, what: str) -> Check:
    """Whether a counter, which counts in this unit, grew by less than a share of the elapsed time."""

    def check(windows: list[Window]) -> tuple[bool, str]:
        share = _growth(windows, counter) * unit_ns / max(_growth(windows, "time_ns"), 1)
        return share < limit, f"{what} {share:.1%} of the time (limit {limit:.0%})"

    return check


def _others_idle(windows: list[Window]) -> tuple[bool, str]:
    cores = windows[0][0]["cores"]
    others = _growth(windows, "busy_ns") - _growth(windows, "own_ns")
    share = max(0.0, others / max(_growth(windows, "time_ns") * cores, 1))
    return share < 0.10, f"others used {share:.1%} of {cores} cores (limit 10%)"


def _was_running(windows: list[Window]) -> tuple[bool, str]:
    threads = windows[0][0]["threads"]
    share = _growth(windows, "own_ns") / max(_growth(windows, "time_ns") * threads, 1)
    least = 0.9 if threads == 1 else 0.6  # several threads wait for each other
    return share >= least, f"ran {share:.1%} of the time on {threads} threads (at least {least:.0%})"


def _none_of(reading: str, what: str) -> Check:
    """Whether a reading, which is a list of names, names nothing but what is SUSTAINED."""

    def check(windows: list[Window]) -> tuple[bool, str]:
        names = sorted({str(name) for window in windows for state in window for name in state[reading]})
        return set(names) <= SUSTAINED, f"{what}: {', '.join(names) or 'none'}"

    return check


def _device_is_ours(windows: list[Window]) -> tuple[bool, str]:
    most = max(state["other_processes"] for window in windows for state in window)
    return most == 0, f"{most} other processes on the device"


RULES = (
    Rule(
        "pressure",
        "wall",
        ("time_ns", "pressure_us"),
        _share_below(0.05, "pressure_us", 1e3, "tasks waited for a core"),
    ),
    Rule("steal", "wall", ("time_ns", "steal_ns"), _share_below(0.01, "steal_ns", 1.0, "the hypervisor took")),
    Rule("others", "wall", ("time_ns", "busy_ns", "own_ns", "cores"), _others_idle),
    Rule("running", "wall", ("time_ns", "own_ns", "threads"), _was_running),
    Rule("throttling", "device, wall", ("throttle",), _none_of("throttle", "held down by")),
    Rule("alone", "device, wall", ("other_processes",), _device_is_ours),
    Rule("fallback", ALL, ("fallback",), _none_of("fallback", "ran elsewhere")),
)


def evaluate_gates(windows: Iterable[Window], latency: Latency, workload: str) -> list[Gate]:
    """Evaluate the gates whose readings exist, and the noise floor of each clock.

    A window is the state of the device before and after a visit.
    """
    readings = [((before, after), before.keys() & after.keys()) for before, after in windows]
    gates = []
    for rule in RULES:
        needs = set(rule.needs)
        usable = [window for window, names in readings if needs <= names]
        if usable:
            ok, detail = rule.check(usable)
            gates.append(Gate(name=rule.name, guards=rule.guards, ok=ok, detail=f"{workload}: {detail}"))
    for name, clock in {latency.clock: latency, **latency.other_clock}.items():
        if clock.noise_floor is not None:
            ok = clock.noise_floor <= FLOOR_LIMIT
            detail = f"{workload}: dense against itself {clock.noise_floor:.1%} (limit {FLOOR_LIMIT:.0%})"
            gates.append(Gate(name="noise floor", guards=name, ok=ok, detail=detail))
    return gates


def guards(gate: Gate, clock: str) -> bool:
    """Whether a gate guards a clock."""
    return gate.guards == ALL or clock in gate.guards.split(", ")


def failed_gates(gates: Iterable[Gate], clock: str) -> list[Gate]:
    """The gates for which this clock must not be trusted."""
    return [gate for gate in gates if guards(gate, clock) and not gate.ok]
