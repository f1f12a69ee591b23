"""The jobs that engines run. Arguments and results are plain JSON values, so that a job can run in any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from harness.api import DeviceInfo
from harness.cell import planning
from harness.cell.lifecycle import STEPS, Cell, Reporter
from harness.cell.request import Request
from harness.errors import HarnessError
from harness.plugins import registry
from harness.records.schema import Record
from harness.records.store import Store
from harness.resolve import prepare_process

RequestFields = dict[str, Any]
"""The fields of a `Request` as plain JSON values."""


class CellState(TypedDict):
    """What is known of a cell after a job: its id, and its status with the reason.

    An empty status means that more steps follow. `started` is the time when the cell's first step began.
    """

    id: str
    status: str
    reason: str
    started: NotRequired[str]


class Obstacle(TypedDict):
    """Why a cell with a usable cost table still cannot run; empty if nothing stands in its way."""

    obstacle: str


class UniformLatency(TypedDict):
    """A latency budget (such as `0.713x`), and the noise with which it was measured."""

    latency: str
    noise: float


def request_fields(request: Request) -> RequestFields:
    return asdict(request)


def steps_of(request: Request) -> tuple[str, ...]:
    """The steps of a cell. A latency budget needs measurements, so its model is made in the step that times it."""
    return STEPS if request.ratio is not None else STEPS[1:]


def open_cell(fields: RequestFields, root: str, command: str = "", inspect: bool = True) -> Cell:
    """The planned cell of a request, in a process that is prepared for its device and dtype."""
    lists = {name: tuple(fields[name]) for name in ("workloads", "evaluators")}
    probed = DeviceInfo(**fields["probed"]) if fields["probed"] else None
    request = Request(**{**fields, **lists, "probed": probed})
    prepare_process(request.device, request.dtype)
    return Cell(planning.make_plan(request, inspect=inspect), Store(Path(root)), Reporter(), command)


def check_cells(requests: Sequence[RequestFields], root: str) -> list[CellState]:
    """The state of each cell without running anything: planned, settled by a record, or waiting with a reason."""
    states = []
    for fields in requests:
        try:
            cell = open_cell(fields, root)
            states.append(_state(cell, cell.settled_record(), "planned"))
        except HarnessError as error:
            states.append(waiting(error))
    return states


def step(fields: RequestFields, until: str, root: str, command: str = "", started: str = "") -> CellState:
    """Run one step of a cell. `started` is the time when the cell's first step began, or empty in the first step."""
    try:
        cell = open_cell(fields, root, command)
        cell.started = started or cell.started
        record = cell.run_until("" if until == STEPS[-1] else until)
    except HarnessError as error:  # a fault of this machine, not of the cell: another node may succeed
        return {**waiting(error), "started": started}
    return {**_state(cell, record, ""), "started": cell.started}


def _state(cell: Cell, record: Record | None, status: str) -> CellState:
    """The state of a cell by its record, or this status if it has none yet."""
    if record is None:
        return {"id": cell.id, "status": status, "reason": ""}
    return {"id": cell.id, "status": record.status, "reason": record.reason}


def waiting(error: HarnessError) -> CellState:
    """The state of a cell that cannot start or continue here."""
    return {"id": "", "status": "waits", "reason": error.line}


def cost_table(fields: RequestFields, root: str, measure: bool = True) -> Obstacle | None:
    """Find or measure the cost table that a cell's method reads; None if there is none and it must not be measured."""
    cell = open_cell(fields, root)
    cell.store.prepare()
    if cell.obstacle is None:
        cell.find_table(measure)
    obstacle = cell.obstacle.line if cell.obstacle else ""
    return {"obstacle": obstacle} if obstacle or cell.artefacts.attempt.cost_table else None


def uniform_latency(fields: RequestFields, ratio: float, root: str, measure: bool = True) -> UniformLatency | None:
    """The latency of the uniformly pruned model relative to dense, measured once per device.

    It is the budget of every method that is compared at this ratio.
    """
    from harness.pruning.allocate import uniform
    from harness.records import keys

    plan, store = open_cell(fields, root).plan, Store(Path(root))
    parts = {**plan.measure_parts("", plan.spec.workloads[0]), "uniform": ratio}
    parts["against"] = {**plan.model_key(), "revision": ""}  # latency needs shapes, not weights
    key = keys.key("uniform", parts)
    with store.lock(f"uniform-{key}"):
        stage = store.stage("uniform", key)
        if stage is None and measure:
            from harness.latency.prober import Prober

            device = registry().device(plan.device.name, plan.spec.runtime)
            bed = Prober(device, plan.anatomy, plan.spec.dtype, plan.workloads[0], plan.clock, "x")
            try:
                probes = [bed.measure(uniform(plan.anatomy, ratio)) for _ in range(3)]
            finally:
                bed.close()
            median = sorted(probe.value for probe in probes)[1]
            stage = {"share": median, "noise": max(probe.noise for probe in probes)}
            store.save_stage("uniform", key, parts, stage)
    if stage is None:
        return None
    share = min(stage["share"], 1.0)  # if the pruned model is no faster, the budget is the dense model's latency
    return {"latency": f"{share:.3f}x", "noise": stage["noise"]}


def fail(fields: RequestFields, root: str, status: str, reason: str, command: str = "") -> CellState:
    """Write the record of a cell whose process died."""
    cell = open_cell(fields, root, command, inspect=False)
    return _state(cell, cell.record_failure(status, reason), "")


def probe(device: str, runtime: str | None) -> dict[str, Any]:
    """The fields of the `DeviceInfo` that a device on this machine reports."""
    runtime = runtime or registry().get("device", device).runtimes[0]
    return asdict(registry().device(device, runtime).probe())


JOBS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (check_cells, step, cost_table, uniform_latency, fail, probe)
}


def is_light(job: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a job neither changes nor measures a model, and so needs no process of its own."""
    return job == "check_cells" or arguments.get("measure") is False


def run_job(job: Mapping[str, Any]) -> Any:
    return JOBS[job["job"]](**job["arguments"])
