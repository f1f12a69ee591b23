"""From what was asked to what will be done: names resolved, defaults filled in, keys known. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import accounting, data, keys, plugins
from harness.anatomy import Anatomy, anatomy_of
from harness.anatomy.llama import sliding_window
from harness.api import Budget, DeviceInfo, DeviceSpec, ModelCard, PrunerSpec, Workload
from harness.errors import EnvironmentFault, HarnessError, Unsupported, UsageError
from harness.latency import timing
from harness.models.cards import card as find_card
from harness.models.loading import locate
from harness.options import Evaluation, evaluations, settings
from harness.records import BudgetSpec, RunSpec

DEFAULT_MODEL, DEFAULT_RATIO, DEFAULT_CALIBRATION = "smollm2-135m", 0.2, "passages"
QUICK_LIMIT = 40  # documents per evaluator under the quick preset
CUT_VERSION = 1  # raise when surgery or accounting changes what a cut means


@dataclass(frozen=True)
class Request:
    """What a user may say; None is "you choose"."""

    pruner: str
    model: str = DEFAULT_MODEL
    ratio: str | float | None = None
    latency: str | None = None
    device: str = "cpu"
    runtime: str | None = None
    dtype: str | None = None
    workloads: Sequence[str] = ()
    preset: str = "quick"
    settings: Mapping[str, Any] = field(default_factory=dict)
    recovery: str = "none"
    calibration: str = DEFAULT_CALIBRATION
    evaluators: Sequence[str] = ("smoke",)
    limit: int | None = None
    seed: int = 0


@dataclass
class Plan:
    """A cell, ready to run. `obstacle` says why it cannot, if that is known already."""

    spec: RunSpec
    pruner: PrunerSpec
    device: DeviceSpec
    info: DeviceInfo
    card: ModelCard
    folder: Path | None
    evaluations: list[Evaluation]
    calibration: Mapping[str, Any] | None
    obstacle: HarnessError | None = None

    @property
    def budget(self) -> Budget:
        return Budget(self.spec.budget.kind, self.spec.budget.value, self.spec.budget.unit)

    @property
    def workloads(self) -> list[Workload]:
        return [Workload.parse(text) for text in self.spec.workloads]

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.card.config)

    @cached_property
    def predicted(self) -> dict[str, int] | None:
        """The shape the method expects to leave, where it can tell without a model."""
        made = plugins.registry().load("pruner", self.spec.pruner)(**self.spec.parameters)
        if self.spec.budget.kind != "ratio" or not hasattr(made, "shape"):
            return None
        shape = made.shape(self.anatomy, self.spec.budget.value)
        return None if shape is None else self.anatomy.complete(shape)

    # --- what each stage depends on ---

    def model_key(self) -> dict[str, Any]:
        return {"model": self.spec.model, "revision": self.spec.revision, "dtype": self.spec.dtype}

    def prepare_parts(self) -> dict[str, Any]:
        return {
            **self.model_key(),
            "pruner": self.spec.pruner,
            "version": plugins.code_version("pruner", self.spec.pruner),
            "parameters": self.spec.parameters,
            "calibration": self.calibration,
            "seed": self.spec.seed,
            "cut_version": CUT_VERSION,
        }

    def cut_parts(self) -> dict[str, Any]:
        return {**self.prepare_parts(), "budget": self.spec.budget.model_dump(), "cost_table": None}

    def artefact_parts(self) -> dict[str, Any]:
        return {"cut": keys.key("cut", self.cut_parts()), "recovery": self.recovery_part()}

    def recovery_part(self) -> dict[str, str]:
        return {"name": self.spec.recovery, "version": plugins.code_version("recovery", self.spec.recovery)}

    def measure_parts(self, content: Any, workload: str) -> dict[str, Any]:
        return {
            "artefact": content,
            "against": self.model_key(),
            "device": {
                "name": self.device.name,
                "version": plugins.code_version("device", self.device.name),
                "clock": self.device.clock,
                "provenance": self.device.provenance,
                "fingerprint": dict(self.info.fingerprint),
            },
            "runtime": self.spec.runtime,
            "workload": workload,
            "protocol": timing.PROTOCOLS[self.spec.preset].parts(),
        }

    def memory_key(self, content: Any) -> tuple[str, dict[str, Any]]:
        """Memory is read in a fresh process on this CPU, under the first workload."""
        parts = self.measure_parts(content, self.spec.workloads[0])
        return keys.key("memory", parts), parts

    def eval_parts(self, content: Any, evaluation: Evaluation) -> dict[str, Any]:
        return {
            "artefact": content,
            "evaluator": evaluation.spec.name,
            "version": plugins.code_version("evaluator", evaluation.spec.name),
            "parameters": evaluation.parameters,
            "data": evaluation.data,
            "machine": [] if evaluation.data else [self.spec.device, *self.spec.workloads],
            "limit": self.spec.limit,
            "batch_size": 1,
            "dtype": self.spec.dtype,
        }

    def cell_parts(self) -> dict[str, Any]:
        return {
            "artefact": {**self.cut_parts(), "recovery": self.recovery_part()},
            "measure": [self.measure_parts("", workload) for workload in self.spec.workloads],
            "eval": {e.label: self.eval_parts("", e) for e in self.evaluations},
        }

    @property
    def cell(self) -> str:
        return keys.key("cell", self.cell_parts())

    # --- what it will take ---

    def work_flops(self) -> float:
        """Forward passes ahead, in FLOPs: dense and pruned, timing and evaluation."""
        total = 0.0
        for workload in self.workloads:
            total += 30 * accounting.flops(self.anatomy, {}, workload)
        for evaluation in self.evaluations:
            if (window := evaluation.parameters.get("window")) is not None:
                once = accounting.flops(self.anatomy, {}, Workload("prefill", 1, window))
                head = 2 * window * self.anatomy.config["hidden_size"] * self.anatomy.config["vocab_size"]
                total += 2 * (self.spec.limit or 400) * (once + head)
        return total


def make(request: Request, fetch: bool = True) -> Plan:
    """Resolve a request. Wrong names and values raise; what merely cannot work becomes the plan's obstacle.

    Without `fetch`, text that is not on this machine stays unidentified instead of being asked for.
    """
    known = plugins.registry()
    pruner: PrunerSpec = known.get("pruner", request.pruner)
    device: DeviceSpec = known.get("device", request.device)
    known.get("recovery", request.recovery)
    if request.preset not in ("quick", "paper"):
        raise UsageError(f"no preset {request.preset!r}", "give quick or paper")
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"limit {request.limit} leaves nothing to evaluate", "give --limit 1 or more")
    if request.calibration not in data.SOURCES:
        raise plugins.unknown("calibration text", request.calibration, data.SOURCES)
    dtype = request.dtype or device.dtype
    if dtype not in accounting.BYTES:
        raise UsageError(f"no dtype {dtype!r}", f"known: {', '.join(accounting.BYTES)}")
    runtime = request.runtime or device.runtimes[0]
    if runtime not in device.runtimes:
        raise UsageError(f"device {device.name} has no runtime {runtime!r}", f"known: {', '.join(device.runtimes)}")
    workloads = [str(Workload.parse(text)) for text in request.workloads] or [device.workload]
    budget = _budget(request, pruner)
    parameters = settings(f"pruner {pruner.name}", pruner.parameters, request.preset, request.settings)
    found = evaluations(request.evaluators, request.preset, fetch)
    limit = request.limit or (QUICK_LIMIT if request.preset == "quick" else None)
    calibration = None
    if "calibration" in pruner.needs:
        calibration = data.identity(request.calibration, data.CALIBRATE, fetch)
    info = plugins.registry().device(device.name, runtime).probe()
    if not info.usable:
        raise EnvironmentFault(f"device {device.name} is not usable: {info.reason}", f"harness doctor {device.name}")
    card = find_card(request.model)
    spec = RunSpec(
        pruner=pruner.name,
        parameters=parameters,
        preset=request.preset,
        model=card.name,
        revision="",
        dtype=dtype,
        budget=BudgetSpec(kind=budget.kind, value=budget.value, unit=budget.unit),
        device=device.name,
        runtime=runtime,
        workloads=workloads,
        recovery=request.recovery,
        calibration=request.calibration if calibration else "",
        evaluators=[e.label for e in found],
        limit=limit,
        seed=request.seed,
    )
    plan = Plan(spec, pruner, device, info, card, None, found, calibration)
    plan.obstacle = _obstacle(plan)
    return plan


def find_weights(plan: Plan) -> None:
    """Fix which weights are meant; fetches or converts them when they are not at hand."""
    plan.folder, plan.spec.revision = locate(plan.card)


def _obstacle(plan: Plan) -> HarnessError | None:
    try:
        family = plan.anatomy.family
    except Unsupported as error:
        return error
    if family not in plan.pruner.families and plan.pruner.budgets:
        return Unsupported(
            f"{plan.pruner.name} does not know the family {family}", f"it knows {', '.join(plan.pruner.families)}"
        )
    if plan.spec.budget.kind == "latency":
        return Unsupported(
            "latency budgets need a cost model of the device, which this version does not have yet",
            "give --ratio; the latency is measured and reported",
        )
    for workload in plan.workloads:
        try:
            accounting.flops(plan.anatomy, {}, workload)
        except Unsupported as error:
            return error
        if workload.kind == "decode" and any(
            sliding_window(plan.anatomy.config, site.layer or 0) for site in plan.anatomy.blocks()
        ):
            return Unsupported("a sliding cache cannot step back one token to be timed again", "give prefill:BxS")
    longest = plan.anatomy.config.get("max_position_embeddings") or math.inf
    asked = {str(w): w.size + (w.kind == "decode") for w in plan.workloads}
    asked |= {e.label: e.parameters["window"] for e in plan.evaluations if "window" in e.parameters}
    for what, tokens in asked.items():
        if tokens > longest:
            return Unsupported(f"{plan.spec.model} sees {longest} tokens, {what} asks for {tokens}", "ask for less")
    return None


def _budget(request: Request, pruner: PrunerSpec) -> Budget:
    if request.ratio is not None and request.latency is not None:
        raise UsageError("a cell has one budget", "give --ratio or --latency")
    budget = None
    if request.ratio is not None:
        budget = Budget.ratio(request.ratio)
    if request.latency is not None:
        budget = Budget.latency(request.latency)
    if not pruner.budgets:
        if budget is not None and budget.value != 0:
            raise UsageError(f"{pruner.name} cuts nothing and takes no budget", "leave the budget out")
        return Budget("ratio", 0.0)
    return budget or Budget("ratio", DEFAULT_RATIO)
