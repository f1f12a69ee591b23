"""Sweeps: plan the cells of a suite, measure what they share, and let an engine run them.

Finished cells are kept. A cell that cannot start here waits, with the reason.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from harness.api import DeviceInfo
from harness.cell import planning
from harness.cell.plan import Attempt, Plan
from harness.cell.request import Request
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.models import counting
from harness.plugins import UnknownName
from harness.records.keys import canonical
from harness.records.schema import RunSpec
from harness.records.store import Store
from harness.sweep import steps
from harness.sweep.steps import CellState, RequestFields, request_fields
from harness.sweep.suite import CellRequest

PLUGIN_KINDS = ("pruner", "device", "evaluator", "recovery")  # another machine may have a plug-in that this one lacks


@dataclass
class SweepCell:
    """A cell of a sweep: what the suite asks for, its plan, and what became of it."""

    label: str
    request: Request
    uniform_ratio: float | None = None
    status: str = "planned"
    reason: str = ""
    id: str = ""
    plan: Plan | None = None

    @property
    def fields(self) -> RequestFields:
        return request_fields(self.request)

    @property
    def cut(self) -> str:
        """A text that is equal for cells with the same cut. The first of them makes the cut, the others reuse it."""
        assert self.plan is not None
        return canonical([self.plan.cut_parts(Attempt()), self.request.latency])

    @property
    def torch_device(self) -> str:
        """The torch device on which the models are made and scored."""
        assert self.plan is not None
        return self.plan.torch_device

    @property
    def memory(self) -> int:
        """Bytes of its two models, dense and pruned. The method may need more."""
        if self.plan is None or self.plan.obstacle is not None:
            return 0
        return 2 * counting.stored_bytes(self.plan.anatomy.params(), self.plan.spec.dtype)


Probe = Callable[[str, "str | None"], "DeviceInfo | None"]
OnProgress = Callable[[SweepCell, str], None]
"""Called with a cell and its current step; the step is empty when the cell has ended."""


def ignore_progress(cell: SweepCell, step: str) -> None: ...


class Engine(Protocol):
    """Runs the jobs of a sweep, on this machine or on others."""

    def probe(self, device: str, runtime: str | None) -> DeviceInfo | None:
        """What a device reports where it is attached; None if that is this machine, where planning probes it."""

    def run(self, job: str, **arguments: Any) -> Any:
        """The result of one of `steps.JOBS`."""

    def run_cells(
        self, cells: Sequence[SweepCell], root: str, command: str
    ) -> Iterator[tuple[SweepCell, str, CellState]]:
        """Run all steps of all cells; yield a cell, its step and its state whenever they change."""

    def close(self) -> None:
        """End all processes of this engine."""


class DryRunEngine:
    """Answers from the store; never makes or measures anything."""

    def probe(self, device: str, runtime: str | None) -> None: ...

    def run(self, job: str, **arguments: Any) -> Any:
        return steps.JOBS[job](**arguments) if steps.is_light(job, arguments) else None

    def run_cells(
        self, cells: Sequence[SweepCell], root: str, command: str
    ) -> Iterator[tuple[SweepCell, str, CellState]]:
        yield from ()

    def close(self) -> None: ...


def plan_cells(requests: Sequence[CellRequest], probe: Probe = lambda *_: None) -> list[SweepCell]:
    """Plan each cell without running anything.

    A cell waits if it needs a plug-in, text or device that is missing here. Any other error stops the whole sweep.
    """
    cells: list[SweepCell] = []
    infos: dict[tuple[str, str | None], DeviceInfo | None] = {}
    for wanted in requests:
        device = (wanted.request.device, wanted.request.runtime)
        if device not in infos:
            infos[device] = probe(*device)
        request = replace(wanted.request, probed=infos[device])
        cell = SweepCell(wanted.label, request, wanted.uniform_ratio)
        if cell.uniform_ratio is not None:  # its latency is not yet known
            request = replace(request, latency="0.5x")
        try:
            cell.plan = planning.make_plan(request, fetch=False)
        except HarnessError as error:
            missing_plugin = isinstance(error, UnknownName) and error.kind in PLUGIN_KINDS
            if not missing_plugin and not isinstance(error, EnvironmentFault):
                raise UsageError(f"{cell.label}: {error.cause}", error.remedy) from None
            cell.status, cell.reason = "waits", error.line
        cells.append(cell)
    return cells


def estimate(cells: Sequence[SweepCell], store: Store, by_flops: Callable[[Plan], float]) -> tuple[float, int]:
    """The estimated seconds for these cells, and for how many of them earlier records of similar cells were used."""
    durations: dict[str, list[float]] = {}
    for record in store.records():
        if record.status == "failed":  # it may have failed at its first step
            continue
        seconds = (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
        durations.setdefault(_similarity(record.spec), []).append(seconds)
    total, from_records = 0.0, 0
    for cell in cells:
        if cell.plan is None or cell.plan.obstacle is not None:
            continue
        if similar := durations.get(_similarity(cell.plan.spec)):
            total += statistics.median(similar)
            from_records += 1
        else:
            total += by_flops(cell.plan)
    return total, from_records


def _similarity(spec: RunSpec) -> str:
    """A text that is equal for cells that should take equally long: those that differ in budget or seed alone."""
    settings = spec.model_dump(exclude={"revision", "seed", "budget"})
    return canonical({**settings, "budget": spec.budget.kind})


class Sweep:
    """One run of a suite. After an interruption at any point, running the same suite continues it."""

    def __init__(self, name: str, cells: list[SweepCell], store: Store, engine: Engine, command: str = "") -> None:
        self.name, self.cells = name, cells
        self.store, self.root = store, str(store.root)
        self.engine, self.command = engine, command

    def run(self, on_progress: OnProgress) -> Counter[str]:
        """Run all cells, and count them by status."""
        self.store.prepare()
        self._save()
        self.prepare(on_progress)
        self._save()
        for cell, step, state in self.engine.run_cells(self._planned(), self.root, self.command):
            cell.id = state["id"] or cell.id
            cell.status, cell.reason = state["status"] or "running", state["reason"]
            on_progress(cell, step)
        self._save()
        return Counter(cell.status for cell in self.cells)

    def prepare(self, on_progress: OnProgress = ignore_progress) -> None:
        """Measure what several cells share, and look up which cells are already settled."""
        self._measure_tables(on_progress)
        self._measure_budgets(on_progress)
        cells = [cell for cell in self._planned() if cell.uniform_ratio is None or cell.request.latency]
        requests = [cell.fields for cell in cells]
        states = self.engine.run("check_cells", requests=requests, root=self.root) if cells else []
        for cell, state in zip(cells, states, strict=True):
            cell.id = state["id"]
            cell.status, cell.reason = state["status"], state["reason"]
            if cell.status != "planned":
                on_progress(cell, "")

    def _planned(self) -> list[SweepCell]:
        return [cell for cell in self.cells if cell.status == "planned"]

    def _by_device(self, cells: Iterable[SweepCell]) -> Iterable[list[SweepCell]]:
        """Groups of cells whose latency is measured for the same model and workload, in the same way."""
        groups: dict[tuple[Any, ...], list[SweepCell]] = {}
        for cell in cells:
            assert cell.plan is not None
            spec = cell.plan.spec
            group = (spec.model, spec.device, spec.runtime, spec.dtype, spec.workloads[0])
            groups.setdefault(group, []).append(cell)
        return groups.values()

    def _measure_tables(self, on_progress: OnProgress) -> None:
        """Measure cost tables before any cell runs, because a cell's id depends on the table that its method reads."""
        for cells in self._by_device(cell for cell in self._planned() if cell.plan and cell.plan.sees_latency):
            fields = cells[0].fields
            if cells[0].uniform_ratio is not None:
                fields = {**fields, "latency": "0.5x"}
            self._measure_shared("cost_table", cells, "cost table", on_progress, fields=fields)

    def _measure_budgets(self, on_progress: OnProgress) -> None:
        """Measure the latency of the uniformly pruned models, and make it the budget of the cells that ask for it."""
        for ratio in sorted({cell.uniform_ratio for cell in self._planned() if cell.uniform_ratio is not None}):
            for cells in self._by_device(cell for cell in self._planned() if cell.uniform_ratio == ratio):
                fields = {**cells[0].fields, "pruner": "dense", "settings": {}, "recovery": "none"}
                name = f"latency of uniform pruning by {ratio:g}"
                result = self._measure_shared("uniform_latency", cells, name, on_progress, fields=fields, ratio=ratio)
                if result is None:
                    continue
                for cell in cells:
                    cell.request = replace(cell.request, latency=result["latency"])

    def _measure_shared(
        self, job: str, cells: list[SweepCell], name: str, on_progress: OnProgress, **arguments: Any
    ) -> Any:
        """The stored result of a job, or the result of running it now. If it fails, all these cells fail or wait."""
        try:
            result = self.engine.run(job, root=self.root, measure=False, **arguments)
            if result is None:
                on_progress(cells[0], name)
                result = self.engine.run(job, root=self.root, **arguments)
            return result
        except HarnessError as error:
            for cell in cells:
                cell.status = "waits" if isinstance(error, EnvironmentFault) else error.status
                cell.reason = f"{name}: {error.line}"
                if cell.status != "waits" and cell.uniform_ratio is None:
                    failure = {"status": cell.status, "reason": cell.reason, "command": self.command}
                    cell.id = self.engine.run("fail", fields=cell.fields, root=self.root, **failure)["id"]
                on_progress(cell, "")
            return None

    def _save(self) -> None:
        """Write the state of all cells for `harness status`, which also shows those without a record."""
        cells = [{"label": c.label, "id": c.id, "status": c.status, "reason": c.reason} for c in self.cells]
        self.store.write(self.store.path("sweeps", f"{self.name}.json"), {"name": self.name, "cells": cells})


def sweep_name(path: Path, requests: Sequence[CellRequest]) -> str:
    """The name of a sweep: its suite's file name and a hash of its cells, since files of one name may differ."""
    cells_hash = hashlib.sha256(canonical([cell.label for cell in requests]).encode()).hexdigest()[:6]
    return f"{path.stem}-{cells_hash}"
