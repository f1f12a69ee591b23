"""Turns a request into a plan: resolves names, fills in defaults, finds obstacles before any work.

It does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import replace

from harness import plugins
from harness.api import Budget, PrunerSpec
from harness.cell.plan import Plan
from harness.cell.request import Request
from harness.errors import HarnessError, Unsupported, UsageError
from harness.evaluation import texts
from harness.models import counting
from harness.models.architectures.lookup import architecture
from harness.models.loading.cards import card as find_card
from harness.models.loading.weights import locate
from harness.records import carbon as grids
from harness.records.schema import BudgetSpec, RunSpec
from harness.resolve import check_usable, resolve_evaluators, resolve_recovery, resolve_settings, timing_choices

DEFAULT_LATENCY, DEFAULT_RATIO = "0.8x", 0.2  # a ratio for methods whose cuts change no shape
QUICK_LIMIT = 40  # documents per evaluator under the quick preset


def make_plan(request: Request, fetch: bool = True, inspect: bool = True) -> Plan:
    """Resolve a request. Wrong names and values raise an error. What cannot work together is the plan's obstacle.

    Without `fetch`, nothing is downloaded to identify a text. Without `inspect`, the method's code is not run: it may
    have ended the process of an earlier try.
    """
    registry = plugins.registry()
    pruner: PrunerSpec = registry.get("pruner", request.pruner)
    choices = timing_choices(request.device, request.preset, request.runtime, request.dtype, request.workloads)
    device = choices.device
    runtime, dtype = choices.runtime, choices.dtype
    if request.sustain and not 1 <= request.sustain <= 7200:
        raise UsageError(f"{request.sustain:g} seconds cannot be sustained", "give from 1 to 7200")
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"limit {request.limit} leaves nothing to evaluate", "give --limit 1 or more")
    if request.calibration not in texts.SOURCES:
        raise plugins.unknown_name("calibration text", request.calibration, texts.SOURCES)
    grid = grids.parse(request.grid) if request.grid is not None else None
    parameters = resolve_settings(f"pruner {pruner.name}", pruner.parameters, request.preset, request.settings)
    problem = plugins.import_target(pruner.check_settings)(parameters) if pruner.check_settings else None
    if problem:
        raise UsageError(*problem)
    selected, absent = resolve_evaluators(request.evaluators, request.preset, fetch)
    missing = {label: fault.line for label, fault in absent.items()}
    limit = request.limit or (QUICK_LIMIT if request.preset == "quick" else None)
    recovery = resolve_recovery(request.recovery, request.preset, request.calibration, fetch)
    calibration = None
    if "calibration" in pruner.needs:
        calibration = texts.identity(request.calibration, texts.CALIBRATE, fetch)
    info = request.probed or registry.device(device.name, runtime).probe()
    check_usable(device.name, info)
    device = device.on_machine(info)
    card = find_card(request.model)
    requested = _requested_budget(request, pruner)
    budget = requested or Budget("ratio", 0.0)
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
        workloads=[str(workload) for workload in choices.workloads] or list(info.workloads) or [device.workload],
        recovery=recovery.label,
        calibration=request.calibration if calibration or recovery.data else "",
        evaluators=[*(evaluation.label for evaluation in selected), *missing],
        limit=limit,
        seed=request.seed,
        sustain=request.sustain,
    )
    plan = Plan(
        spec=spec,
        pruner=pruner,
        device=device,
        info=info,
        card=card,
        folder=None,
        evaluations=selected,
        calibration=calibration,
        recovery=recovery,
        missing=missing,
        inspect=inspect,
        grid=grid,
    )
    if requested is None and pruner.budgets:
        budget = _default_budget(plan)
        chosen = BudgetSpec(kind=budget.kind, value=budget.value, unit=budget.unit)
        plan = replace(plan, spec=spec.model_copy(update={"budget": chosen}))
    try:
        obstacle = _obstacle(plan) or _too_long_workload(plan)
        return replace(plan, obstacle=obstacle) if obstacle is not None else _without_long_evaluators(plan)
    except UsageError:
        raise
    except HarnessError as error:  # the method's code failed as its shape was asked for
        return replace(plan, obstacle=error)


def with_weights(plan: Plan) -> Plan:
    """The plan with the folder and the revision of its weights. Fetches or converts them if they are not at hand."""
    folder, revision = locate(plan.card)
    return replace(plan, folder=folder, spec=plan.spec.model_copy(update={"revision": revision}))


def _obstacle(plan: Plan) -> HarnessError | None:
    """Why this method, model, budget, recovery and workload cannot work together; None if they can."""
    try:
        anatomy = plan.anatomy
    except Unsupported as error:
        return error
    if not plan.pruner.works_on(anatomy) and plan.pruner.budgets:
        return Unsupported(
            f"{plan.pruner.name} does not work on {anatomy.family}",
            f"it works on {', '.join(plan.pruner.architectures)}",
        )
    kind = plan.spec.budget.kind
    if kind == "latency" and "latency" not in plan.pruner.budgets and not changes_shapes(plan):
        return Unsupported(
            f"{plan.pruner.name} zeroes elements in place: no shape changes, so no dense kernel gets faster",
            "give --ratio; the latency is measured and reported",
        )
    if plan.pruner.budgets and not plan.recovery.spec.masks and not changes_shapes(plan):
        return Unsupported(
            f"{plan.recovery.spec.name} would fill what {plan.pruner.name} zeroes",
            "give --recovery lora, which keeps the zeros",
        )
    if kind == "ratio" and plan.pruner.budgets and "ratio" not in plan.pruner.budgets:
        return Unsupported(f"{plan.pruner.name} prunes to a latency, not to a ratio", "give --latency 0.7x")
    for workload in plan.workloads:
        try:
            counting.flops(plan.anatomy, {}, workload)
        except Unsupported as error:
            return error
        windows = architecture(anatomy.architecture).windows(anatomy)
        if workload.kind == "decode" and any(windows.values()):
            return Unsupported("a sliding cache cannot step back one token to be timed again", "give prefill:BxS")
    return None


def _context_length(plan: Plan) -> float:
    """How many tokens the model accepts."""
    return plan.anatomy.config.get("max_position_embeddings") or math.inf


def _too_long(plan: Plan, name: object, tokens: int, remedy: str) -> Unsupported:
    """The error for a workload or an evaluator that needs more tokens than the model accepts."""
    return Unsupported(f"{plan.spec.model} accepts {_context_length(plan)} tokens, {name} needs {tokens}", remedy)


def _too_long_workload(plan: Plan) -> HarnessError | None:
    """Why the first workload that needs more tokens than the model accepts cannot run."""
    for workload in plan.workloads:
        tokens = workload.size + (workload.kind == "decode")
        if tokens > _context_length(plan):
            return _too_long(plan, workload, tokens, "give a shorter workload")
    return None


def _without_long_evaluators(plan: Plan) -> Plan:
    """The plan without evaluators whose windows are too long for the model. If none remains, that is the obstacle."""
    longest = _context_length(plan)
    errors = {
        evaluation.label: _too_long(
            plan,
            evaluation.label,
            evaluation.parameters["window"],
            f"--eval {evaluation.label.split(':')[0]}:window={longest}",
        )
        for evaluation in plan.evaluations
        if evaluation.parameters.get("window", 0) > longest
    }
    if errors and len(errors) == len(plan.evaluations):
        return replace(plan, obstacle=next(iter(errors.values())))
    return replace(
        plan,
        missing=plan.missing | {label: error.line for label, error in errors.items()},
        evaluations=[evaluation for evaluation in plan.evaluations if evaluation.label not in errors],
    )


def changes_shapes(plan: Plan) -> bool:
    """Whether the method, with these parameters, removes units rather than zeroing elements."""
    predict = plan.shape_predictor(plan.method()) if plan.inspect else None
    if predict is not None:
        try:
            shape = predict(0.5)
        except HarnessError:  # half of the parameters cannot be removed, but fewer can
            return True
        if shape is not None:
            return plan.anatomy.complete(shape) != plan.anatomy.full()
    return not {"structured", "depth"}.isdisjoint(plan.pruner.kinds)


def _default_budget(plan: Plan) -> Budget:
    """A latency if the method changes shapes, else a ratio."""
    try:
        if changes_shapes(plan):
            return Budget.latency(DEFAULT_LATENCY)
    except UsageError:
        raise
    except HarnessError:
        pass  # it becomes the plan's obstacle
    return Budget("ratio", DEFAULT_RATIO)


def _requested_budget(request: Request, pruner: PrunerSpec) -> Budget | None:
    """The budget of the request; None if it leaves the choice to the harness."""
    if request.ratio is not None and request.latency is not None:
        raise UsageError("a cell has one budget", "give --ratio or --latency")
    budget = None
    if request.ratio is not None:
        budget = Budget.ratio(request.ratio)
    if request.latency is not None:
        budget = Budget.latency(request.latency)
    if not pruner.budgets and budget is not None and budget.value != 0:
        raise UsageError(f"{pruner.name} cuts nothing and takes no budget", "leave the budget out")
    return budget
