"""Measures the dense and the pruned model of a cell side by side on the device: time, gates, memory, energy."""

from __future__ import annotations

import datetime
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.api import Workload
from harness.cell.plan import Plan
from harness.cell.workspace import Workspace
from harness.latency import gates, sustained, timing
from harness.latency.fresh_process import openers
from harness.latency.timing import Opener
from harness.models.saved import reload_check
from harness.records import keys, schema
from harness.records.schema import Artefact, Gate, Latency, MemoryPair, Part, Sustained
from harness.system.host import total_memory

MAX_ATTEMPTS = 2  # a measurement is repeated once if a gate fails


class Measurement(Part):
    """What was measured of both models under one workload."""

    latency: Latency
    gates: list[Gate]
    memory: MemoryPair | None = Field(None, description="as the device itself reads it")
    energy: schema.Energy | None = None

    @property
    def unstable(self) -> str:
        """Why the ranked clock cannot be trusted; empty if it can."""
        return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates.failed_gates(self.gates, self.latency.clock))


@dataclass(frozen=True)
class Comparison:
    """The dense model and the pruned model of a cell, measured side by side on the plan's device."""

    workspace: Workspace
    artefact: Artefact

    @property
    def pruned_folder(self) -> Path:
        return self.workspace.store.path(self.artefact.path)

    def time(self, workload: Workload) -> Measurement:
        """The measurement from the store, or a new one. It is stored only if no gate of the ranked clock failed."""
        store, plan = self.workspace.store, self.workspace.plan
        parts = plan.measure_parts(self.artefact.sha256, str(workload))
        key = keys.key("measure", parts)
        stored = store.stage("measure", key)
        if stored is not None and not store.lacks(stored["latency"]["samples"]):
            return Measurement.model_validate(stored)
        for _ in range(MAX_ATTEMPTS):
            measurement = self._measure(workload)
            if not measurement.unstable:
                store.save_stage("measure", key, parts, measurement.model_dump(mode="json"))
                break
        return measurement

    def _measure(self, workload: Workload) -> Measurement:
        plan, store = self.workspace.plan, self.workspace.store
        with self.workspace.stage(f"time {workload}") as progress, self._openers(workload) as (dense, pruned):
            undecided = partial(missed_by_chance, plan, workload)
            began = _now()
            rounds = timing.interleave(dense, pruned, plan.protocol, plan.clock, progress, undecided)
        latency = timing.latency(rounds, plan.clock, plan.protocol, plan.provenance)
        latency.samples = store.side_file(timing.raw_samples(rounds))
        latency.began, latency.ended = began, _now()
        windows = [(visit.before, visit.after) for visit in rounds.visits()]
        return Measurement(
            latency=latency,
            gates=gates.evaluate_gates(windows, latency, str(workload)),
            memory=timing.memory(rounds, f"bytes on the device, {workload}, {plan.spec.runtime}"),
            energy=timing.energy(rounds, latency.clock),
        )

    def sustain(self, workload: str, latency: Latency) -> Sustained:
        """How the pruned model holds its speed under continuous load, from the store or measured now.

        It comes after everything that is ranked, because it warms the device.
        """
        store, plan = self.workspace.store, self.workspace.plan
        parts = {**plan.measure_parts(self.artefact.sha256, workload), "sustain": plan.spec.sustain}
        key = keys.key("sustain", parts)
        stored = store.stage("sustain", key)
        if stored is not None and not store.lacks(stored["samples"]):
            return Sustained.model_validate(stored)
        stage, both = self.workspace.stage(f"sustain {workload}"), self._openers(Workload.parse(workload))
        with stage as progress, both as (_, pruned):
            result = sustained.measure(pruned, plan.spec.sustain, latency.clock, store.side_file, progress)
        store.save_stage("sustain", key, parts, result.model_dump(mode="json"))
        return result

    def _openers(self, workload: Workload) -> AbstractContextManager[tuple[Opener, Opener]]:
        """How the dense model and the pruned one are opened on the device."""
        plan, spec = self.workspace.plan, self.workspace.plan.spec
        assert plan.folder is not None

        def model(folder: Path) -> Any:
            return self.workspace.dense() if folder == plan.folder else self.workspace.pruned(folder)

        folders = (plan.folder, self.pruned_folder)
        return openers(folders, spec.device, spec.runtime, spec.dtype, workload, plan.protocol, model)

    def memory(self, scratch: str) -> MemoryPair:
        """Resident bytes of each model in a process of its own, for devices that do not report memory themselves."""
        plan, store = self.workspace.plan, self.workspace.store
        workload = plan.workloads[0]
        readings = {}
        models = {"dense": (plan.folder, plan.model_key()), "pruned": (self.pruned_folder, self.artefact.sha256)}
        for side, (folder, content) in models.items():
            key, parts = plan.memory_key(content)
            reading = store.stage("memory", key)
            if reading is None:
                with self.workspace.stage(f"memory of {side}"):
                    out = store.scratch(scratch) / "out"
                    reading = reload_check.run_in_fresh_process(folder, out, plan.spec.dtype, workload)["memory"]  # type: ignore[arg-type]
                store.save_stage("memory", key, parts, reading)
            readings[side] = schema.Memory.model_validate(reading)
        what = f"resident bytes above the imported libraries, {workload}, eager on this CPU"
        return MemoryPair(dense=readings["dense"], pruned=readings["pruned"], what=what)


def _now() -> str:
    """The time, fine enough to see whether two measurements of one device overlap."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def values_for_evaluators(
    plan: Plan, memory: MemoryPair, by_device: bool, energy: schema.Energy | None
) -> dict[str, dict[str, Any]]:
    """What was measured of each model, as evaluators see it. `by_device` says that the device reported the memory."""
    total = plan.info.fingerprint.get("memory_bytes") if by_device else total_memory()
    values = {}
    for side in ("dense", "pruned"):
        taken = getattr(memory, side)
        values[side] = {
            "memory": taken and {**taken.model_dump(), "total": total},
            "energy_j": getattr(energy, side, None),
        }
    return values


def missed_by_chance(plan: Plan, workload: Workload, rounds: timing.Rounds) -> bool:
    """Whether the model was too slow for its budget by so little that more rounds may show it fast enough."""
    budget = plan.spec.budget
    if budget.kind != "latency" or str(workload) != plan.spec.workloads[0]:
        return False
    taken, bounds = timing.clock(rounds, rounds.ranked(plan.clock)).taken(budget.unit)
    return bounds is not None and bounds[0] <= budget.value < taken
