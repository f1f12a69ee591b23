"""A cell's measurements: dense and pruned side by side on the device, with gates, memory and energy."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.api import Workload
from harness.cell.plan import Plan
from harness.cell.workspace import Workspace
from harness.latency import gates, sustained, timing
from harness.latency.fresh_process import openers
from harness.models.saved import reload_check
from harness.records import keys, schema
from harness.records.schema import Artefact, Gate, Latency, MemoryPair, Part, Sustained
from harness.records.store import Store
from harness.system.host import total_memory

LOOKS = 2  # a measurement that a gate forbids to trust is repeated once


class Timed(Part):
    """One workload as it was measured."""

    latency: Latency
    gates: list[Gate]
    memory: MemoryPair | None = Field(None, description="as the device itself reads it")
    energy: schema.Energy | None = None

    @property
    def unstable(self) -> str:
        """Why the ranked clock cannot be trusted; empty if it can."""
        return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates.failed(self.gates, self.latency.clock))


def timed(plan: Plan, store: Store, stage: Any, made: Workspace, artefact: Artefact, workload: Workload) -> Timed:
    """From the store, or measured now. What a gate forbids to trust is not stored, but measured again."""
    parts = plan.measure_parts(artefact.sha256, str(workload))
    key = keys.key("measure", parts)
    stored = store.stage("measure", key)
    if stored is not None and not store.lacks(stored["latency"]["samples"]):
        return Timed.model_validate(stored)
    for _ in range(LOOKS):
        found = _measured(plan, store, stage, made, artefact, workload)
        if not found.unstable:
            break
    if not found.unstable:
        store.save_stage("measure", key, parts, found.model_dump(mode="json"))
    return found


def sustained_latency(
    plan: Plan, store: Store, stage: Any, made: Workspace, artefact: Artefact, latency: Latency, workload: str
) -> Sustained:
    """From the store, or at work now: after all that is ranked, for it warms the device."""
    parts = {**plan.measure_parts(artefact.sha256, workload), "sustain": plan.spec.sustain}
    key = keys.key("sustain", parts)
    stored = store.stage("sustain", key)
    if stored is not None and not store.lacks(stored["samples"]):
        return Sustained.model_validate(stored)
    with (
        stage(f"sustain {workload}") as progress,
        _both(plan, store, made, artefact, Workload.parse(workload)) as (_, pruned),
    ):
        found = sustained.measure(pruned, plan.spec.sustain, latency.clock, store.side_file, progress)
    store.save_stage("sustain", key, parts, found.model_dump(mode="json"))
    return found


def _both(plan: Plan, store: Store, made: Workspace, artefact: Artefact, workload: Workload) -> Any:
    """How to open the dense model on the device, and the pruned one."""
    spec = plan.spec
    assert plan.folder is not None

    def model(folder: Path) -> Any:
        return made.dense() if folder == plan.folder else made.pruned(folder)

    folders = (plan.folder, store.path(artefact.path))
    return openers(folders, spec.device, spec.runtime, spec.dtype, workload, plan.protocol, model)


def _measured(plan: Plan, store: Store, stage: Any, made: Workspace, artefact: Artefact, workload: Workload) -> Timed:
    with stage(f"time {workload}") as progress, _both(plan, store, made, artefact, workload) as (dense, pruned):
        judge, began = partial(missed_by_chance, plan, workload), now()
        rounds = timing.interleave(dense, pruned, plan.protocol, plan.clock, told=progress, undecided=judge)
    latency = timing.latency(rounds, plan.clock, plan.protocol, plan.provenance)
    latency.samples = store.side_file(timing.raw(rounds))
    latency.began, latency.ended = began, now()
    windows = [(visit.before, visit.after) for visit in rounds.visits()]
    return Timed(
        latency=latency,
        gates=gates.judge(windows, latency, str(workload)),
        memory=timing.memory(rounds, f"bytes on the device, {workload}, {plan.spec.runtime}"),
        energy=timing.energy(rounds, latency.clock),
    )


def now() -> str:
    """Fine enough to see whether two measurements of one device overlap."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def sides(plan: Plan, memory: MemoryPair, told: bool, energy: schema.Energy | None) -> dict[str, dict[str, Any]]:
    """What was measured of each model, as evaluators see it. `told`: the device itself said what memory it took."""
    total = plan.info.fingerprint.get("memory_bytes") if told else total_memory()
    found = {}
    for side in ("dense", "pruned"):
        taken = getattr(memory, side)
        found[side] = {
            "memory": taken and {**taken.model_dump(), "total": total},
            "energy_j": getattr(energy, side, None),
        }
    return found


def missed_by_chance(plan: Plan, workload: Workload, rounds: timing.Rounds) -> bool:
    """Whether the model was too slow for its budget by no more than what another measurement may find."""
    budget = plan.spec.budget
    if budget.kind != "latency" or str(workload) != plan.spec.workloads[0]:
        return False
    taken, bounds = timing.clock(rounds, rounds.ranked(plan.clock)).taken(budget.unit)
    return bounds is not None and bounds[0] <= budget.value < taken


def memory(plan: Plan, store: Store, stage: Callable[[str], Any], artefact: Artefact, scratch: str) -> MemoryPair:
    """Resident bytes of each model in a process of its own, for devices that do not say themselves."""
    workload, found = plan.workloads[0], {}
    for side, content in (("dense", plan.model_key()), ("pruned", artefact.sha256)):
        key, parts = plan.memory_key(content)
        if (stored := store.stage("memory", key)) is None:
            with stage(f"memory of {side}"):
                folder = plan.folder if side == "dense" else store.path(artefact.path)
                out = store.scratch(scratch) / "out"
                stored = reload_check.ask(folder, out, plan.spec.dtype, workload)["memory"]  # type: ignore[arg-type]
            store.save_stage("memory", key, parts, stored)
        found[side] = schema.Memory.model_validate(stored)
    what = f"resident bytes above the imported libraries, {workload}, eager on this CPU"
    return MemoryPair(dense=found["dense"], pruned=found["pruned"], what=what)
