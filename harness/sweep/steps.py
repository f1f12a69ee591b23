"""What an engine is given to do, in plain words both ways, so that it may be done anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.api import DeviceInfo
from harness.cell import planning
from harness.cell.lifecycle import STEPS, Cell, Reporter
from harness.cell.request import Request
from harness.errors import HarnessError, UsageError
from harness.plugins import registry
from harness.records.store import Store
from harness.resolve import prepare_for

Words = dict[str, Any]


def request_words(request: Request) -> Words:
    return asdict(request)


def steps_of(request: Request) -> tuple[str, ...]:
    """A latency is met by measuring, so that such a model is made where it is timed."""
    return STEPS if request.ratio is not None else STEPS[1:]


def cell(words: Words, root: str, command: str = "", inspect: bool = True) -> Cell:
    lists = {name: tuple(words[name]) for name in ("workloads", "evaluators")}
    probed = DeviceInfo(**words["probed"]) if words["probed"] else None
    request = Request(**{**words, **lists, "probed": probed})
    prepare_for(request.device, request.dtype)
    return Cell(planning.make(request, inspect=inspect), Store(Path(root)), Reporter(), command)


def look(asked: Sequence[Words], root: str) -> list[Words]:
    """Of each cell its id and what became of it, or why it cannot be begun; nothing is made or measured."""
    found = []
    for words in asked:
        try:
            one = cell(words, root)
            record = one.settled()
        except HarnessError as error:
            found.append({"id": "", "status": "waits", "reason": error.line, "usage": isinstance(error, UsageError)})
            continue
        told = {"status": record.status, "reason": record.reason} if record else {"status": "planned", "reason": ""}
        found.append({"id": one.id, **told})
    return found


def step(words: Words, until: str, root: str, command: str = "", started: str = "") -> Words:
    """One step of a cell; `status` is empty as long as more are to follow. `started` is when its first step did."""
    try:
        one = cell(words, root, command)
        one.started = started or one.started
        record = one.go("" if until == STEPS[-1] else until)
    except HarnessError as error:  # of the environment: it is not the cell's fault, and another node may do
        return {"id": "", "status": "waits", "reason": error.line, "started": started}
    told = {"status": record.status, "reason": record.reason} if record else {"status": "", "reason": ""}
    return {"id": one.id, "started": one.started, **told}


def table(words: Words, root: str, measure: bool = True) -> Words | None:
    """The cost table that a cell's method looks at; None if there is none and it is not to be measured."""
    one = cell(words, root)
    one.store.prepare()
    if one.obstacle is None:
        one.find_table(measure)
    told = one.obstacle.line if one.obstacle else ""
    return {"obstacle": told} if told or one.artefacts.attempt.cost_table else None


def uniform_latency(words: Words, ratio: float, root: str, measure: bool = True) -> Words | None:
    """What the evenly narrowed model takes of dense on the device, measured once: the budget of all methods."""
    from harness.pruning.allocate import uniform
    from harness.records import keys

    plan, store = cell(words, root).plan, Store(Path(root))
    parts = {**plan.measure_parts("", plan.spec.workloads[0]), "uniform": ratio}
    parts["against"] = {**plan.model_key(), "revision": ""}  # latency needs shapes, not weights
    key = keys.key("uniform", parts)
    with store.lock(f"uniform-{key}"):
        if (known := store.stage("uniform", key)) is None and measure:
            from harness.latency.prober import Bed

            device = registry().device(plan.device.name, plan.spec.runtime)
            bed = Bed(device, plan.anatomy, plan.spec.dtype, plan.workloads[0], plan.clock, "x")
            try:
                looks = [bed.measure(uniform(plan.anatomy, ratio)) for _ in range(3)]
            finally:
                bed.close()
            share = sorted(look.value for look in looks)[1]
            known = {"share": share, "noise": max(look.noise for look in looks)}
            store.save_stage("uniform", key, parts, known)
    if known is None:
        return None
    return {"latency": f"{min(known['share'], 1.0):.3f}x", "noise": known["noise"]}  # no faster: dense will do


def fail(words: Words, root: str, status: str, reason: str, command: str = "") -> Words:
    """The row of a cell whose process did not come back."""
    one = cell(words, root, command, inspect=False)
    record = one.fail(status, reason)
    return {"id": one.id, "status": record.status, "reason": record.reason}


def probe(device: str, runtime: str | None) -> Words:
    """What a device says of itself on the machine that it hangs on."""
    known = registry()
    return asdict(known.device(device, runtime or known.get("device", device).runtimes[0]).probe())


WORK: dict[str, Callable[..., Any]] = {
    "look": look,
    "step": step,
    "table": table,
    "alike": uniform_latency,
    "fail": fail,
    "probe": probe,
}


def light(work: str, given: Mapping[str, Any]) -> bool:
    """Whether it makes and measures nothing, and so needs no process of its own."""
    return work == "look" or given.get("measure") is False


def do(job: Mapping[str, Any]) -> Any:
    return WORK[job["work"]](**job["with"])
