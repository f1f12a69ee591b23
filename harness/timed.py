"""A cell's measurements: dense and pruned side by side on the device, with gates, memory and energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field

from harness import keys, records
from harness.api import Workload
from harness.artefacts import Artefacts
from harness.checkpoints import fresh
from harness.latency import gates, timing
from harness.latency.worker import worker
from harness.plan import Plan
from harness.plugins import registry
from harness.records import Artefact, Gate, Latency, MemoryPair, Part
from harness.store import Store


class Timed(Part):
    """One workload as it was measured."""

    latency: Latency
    gates: list[Gate]
    memory: MemoryPair | None = Field(None, description="as the device itself reads it")
    energy: records.Energy | None = None

    @property
    def unstable(self) -> str:
        """Why the ranked clock cannot be trusted; empty if it can."""
        return "; ".join(f"{gate.name}: {gate.detail}" for gate in gates.failed(self.gates, self.latency.clock))


def timed(plan: Plan, store: Store, stage: Any, made: Artefacts, artefact: Artefact, workload: Workload) -> Timed:
    """From the store, or measured now. What a gate forbids to trust is not stored, but measured again."""
    parts = plan.measure_parts(artefact.sha256, str(workload))
    key = keys.key("measure", parts)
    stored = store.stage("measure", key)
    if stored is not None and not store.lacks(stored["latency"]["samples"]):
        return Timed.model_validate(stored)
    with stage(f"time {workload}") as progress:
        rounds = timing.interleave(
            *_openers(plan, store, made, artefact, workload), plan.protocol, plan.clock, told=progress
        )
    latency = timing.latency(rounds, plan.clock, plan.protocol, plan.device.provenance)
    latency.samples = store.side_file(timing.raw(rounds))
    windows = [(visit.before, visit.after) for visit in rounds.visits()]
    found = Timed(
        latency=latency,
        gates=gates.judge(windows, latency, str(workload)),
        memory=timing.memory(rounds, f"bytes on the device, {workload}, {plan.spec.runtime}"),
        energy=timing.energy(rounds, latency.clock),
    )
    if not found.unstable:
        store.save_stage("measure", key, parts, found.model_dump(mode="json"))
    return found


def _openers(
    plan: Plan, store: Store, made: Artefacts, artefact: Artefact, workload: Workload
) -> tuple[timing.Opener, timing.Opener]:
    spec = plan.spec
    if plan.protocol.fresh:
        assert plan.folder is not None
        folders = (plan.folder, store.path(artefact.path))
        dense, pruned = (worker(folder, spec.device, spec.runtime, spec.dtype, workload) for folder in folders)
    else:
        device = registry().device(spec.device, spec.runtime)
        dense, pruned = (timing.here(device, model, workload) for model in (made.dense, made.pruned))
    return dense, pruned


def memory(plan: Plan, store: Store, stage: Callable[[str], Any], artefact: Artefact, scratch: str) -> MemoryPair:
    """Resident bytes of each model in a process of its own, for devices that do not say themselves."""
    workload, found = plan.workloads[0], {}
    for side, content in (("dense", plan.model_key()), ("pruned", artefact.sha256)):
        key, parts = plan.memory_key(content)
        if (stored := store.stage("memory", key)) is None:
            with stage(f"memory of {side}"):
                folder = plan.folder if side == "dense" else store.path(artefact.path)
                out = store.scratch(scratch) / "out"
                stored = fresh.ask(folder, out, plan.spec.dtype, workload)["memory"]  # type: ignore[arg-type]
            store.save_stage("memory", key, parts, stored)
        found[side] = records.Memory.model_validate(stored)
    what = f"resident bytes above the imported libraries, {workload}, eager on this CPU"
    return MemoryPair(dense=found["dense"], pruned=found["pruned"], what=what)


def latency_budget(
    spec: records.BudgetSpec, latency: records.Latency, search: dict[str, Any], earlier: list[dict[str, Any]]
) -> records.BudgetResult:
    """How the finished model stands to a latency, by the ranked clock."""
    if spec.unit == "ms":
        achieved, bounds = latency.pruned.median_ns / 1e6, latency.pruned.ci95_ns
        ci95 = bounds and (bounds[0] / 1e6, bounds[1] / 1e6)
    else:
        achieved, bounds = 1 / latency.speedup, latency.speedup_ci95
        ci95 = bounds and (1 / bounds[1], 1 / bounds[0])
    final = {"setting": search["setting"], "estimated": search["predicted"], "measured": achieved, "final": True}
    return records.BudgetResult(
        asked=spec.value,
        achieved=achieved,
        achieved_ci95=ci95,
        predicted=search["predicted"],
        unused=spec.value - achieved,
        probes=[*earlier, *search["probes"], final],
    )
