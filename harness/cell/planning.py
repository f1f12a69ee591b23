"""From what was asked to a plan: names resolved, defaults filled in, obstacles found before any work. No torch."""

from __future__ import annotations

import math

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
from harness.resolve import check_usable, evaluations, recovering, settings, timing_choices

DEFAULT_LATENCY, DEFAULT_RATIO = "0.8x", 0.2  # a ratio for methods whose cuts change no shape
QUICK_LIMIT = 40  # documents per evaluator under the quick preset


def make(request: Request, fetch: bool = True, inspect: bool = True) -> Plan:
    """Resolve a request. Wrong names and values raise; what merely cannot work becomes the plan's obstacle.

    Without `fetch`, text that is not on this machine stays unidentified instead of being asked for. Without `inspect`,
    the method's code is not run, for a method that ended the process before.
    """
    known = plugins.registry()
    pruner: PrunerSpec = known.get("pruner", request.pruner)
    choices = timing_choices(request.device, request.preset, request.runtime, request.dtype, request.workloads)
    device = choices.device
    runtime, dtype = choices.runtime, choices.dtype
    if request.sustain and not 1 <= request.sustain <= 7200:
        raise UsageError(f"{request.sustain:g} seconds are nothing to sustain", "give from 1 to 7200")
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"limit {request.limit} leaves nothing to evaluate", "give --limit 1 or more")
    if request.calibration not in texts.SOURCES:
        raise plugins.unknown("calibration text", request.calibration, texts.SOURCES)
    grid = grids.parse(request.grid) if request.grid is not None else None
    parameters = settings(f"pruner {pruner.name}", pruner.parameters, request.preset, request.settings)
    if pruner.check_settings and (wrong := plugins.resolve(pruner.check_settings)(parameters)):
        raise UsageError(*wrong)
    found, absent = evaluations(request.evaluators, request.preset, fetch)
    missing = {label: fault.line for label, fault in absent.items()}
    limit = request.limit or (QUICK_LIMIT if request.preset == "quick" else None)
    recovery = recovering(request.recovery, request.preset, request.calibration, fetch)
    calibration = None
    if "calibration" in pruner.needs:
        calibration = texts.identity(request.calibration, texts.CALIBRATE, fetch)
    info = request.probed or plugins.registry().device(device.name, runtime).probe()
    check_usable(device.name, info)
    device = device.on_machine(info)
    card = find_card(request.model)
    asked = _requested_budget(request, pruner)
    budget = asked or Budget("ratio", 0.0)
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
        evaluators=[*(e.label for e in found), *missing],
        limit=limit,
        seed=request.seed,
        sustain=request.sustain,
    )
    plan = Plan(spec, pruner, device, info, card, None, found, calibration, recovery, missing=missing, grid=grid)
    plan.inspect = inspect
    if asked is None and pruner.budgets:
        budget = _default(plan)
        spec.budget = BudgetSpec(kind=budget.kind, value=budget.value, unit=budget.unit)
    try:
        plan.obstacle = _obstacle(plan) or _too_long(plan)
    except UsageError:
        raise
    except HarnessError as error:  # the method's code fails already
        plan.obstacle = error
    return plan


def find_weights(plan: Plan) -> None:
    """Fix which weights are meant; fetches or converts them when they are not at hand."""
    plan.folder, plan.spec.revision = locate(plan.card)


def _obstacle(plan: Plan) -> HarnessError | None:
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
            "give --recovery lora, which keeps it",
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


def _too_long(plan: Plan) -> HarnessError | None:
    """What asks for more tokens than the model sees: a workload, or all evaluators. A few of those are left out."""
    longest = plan.anatomy.config.get("max_position_embeddings") or math.inf
    told = f"{plan.spec.model} sees {longest} tokens, {{}} asks for {{}}"
    for workload in plan.workloads:
        if (tokens := workload.size + (workload.kind == "decode")) > longest:
            return Unsupported(told.format(workload, tokens), "ask for less")
    windows = {e.label: e.parameters.get("window", 0) for e in plan.evaluations}
    long = {
        label: Unsupported(told.format(label, window), f"--eval {label.split(':')[0]}:window={longest}")
        for label, window in windows.items()
        if window > longest
    }
    if long and len(long) == len(windows):
        return next(iter(long.values()))
    plan.missing |= {label: error.line for label, error in long.items()}
    plan.evaluations = [e for e in plan.evaluations if e.label not in long]
    return None


def changes_shapes(plan: Plan) -> bool:
    """Whether the method, with these parameters, removes units rather than zeroing elements."""
    promise = plan.promise(plan.method()) if plan.inspect else None
    if promise is not None:
        try:
            shape = promise(0.5)
        except HarnessError:  # that much cannot go, less can
            return True
        if shape is not None:
            return plan.anatomy.complete(shape) != plan.anatomy.full()
    return not {"structured", "depth"}.isdisjoint(plan.pruner.kinds)


def _default(plan: Plan) -> Budget:
    try:
        if changes_shapes(plan):
            return Budget.latency(DEFAULT_LATENCY)
    except UsageError:
        raise
    except HarnessError:
        pass  # the plan's obstacle will say so
    return Budget("ratio", DEFAULT_RATIO)


def _requested_budget(request: Request, pruner: PrunerSpec) -> Budget | None:
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
