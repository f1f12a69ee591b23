"""Compares a finished model with its budget, and makes another one if it missed a latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.cell.artefact import Artefacts
from harness.cell.cutting import TRAINING_RUNS, may_train
from harness.cell.measuring import Comparison, Measurement
from harness.cell.plan import Attempt, Plan
from harness.errors import OverBudget
from harness.records.schema import Artefact, BudgetResult, BudgetSpec, Cost, Latency

CORRECTIONS = 2  # how often another model is made after the first one missed its latency
AIM_BELOW = 0.004  # a correction aims this share below what the miss suggests


@dataclass(frozen=True)
class Outcome:
    """The last finished model of a cell, how it compares with the budget, and the measurements made for that."""

    artefact: Artefact
    budget: BudgetResult
    measurements: dict[str, Measurement] = field(default_factory=dict)  # by workload


def within_budget(artefacts: Artefacts, notice: Callable[[str], None]) -> Outcome:
    """Make a model that meets the budget. If none does, the outcome holds the last one that was made."""
    workspace, attempt = artefacts.workspace, artefacts.attempt
    plan = workspace.plan
    spec = plan.spec.budget
    outcome: Outcome | None = None
    finished = attempt  # the attempt that `outcome` comes from
    while True:
        try:
            artefact, search = artefacts.ensure(attempt)
        except OverBudget:
            if outcome is None:
                raise
            artefacts.attempt = finished  # its keys are those of the record
            return outcome  # no faster model can be had than the one that missed
        if spec.kind == "ratio":
            return Outcome(artefact, ratio_result(spec, artefact, search))
        workload = plan.workloads[0]
        measurement = Comparison(workspace, artefact).time(workload)
        budget = latency_result(spec, measurement.latency, search, attempt.probes)
        outcome, finished = Outcome(artefact, budget, {str(workload): measurement}), attempt
        if budget.unused >= 0 or measurement.unstable:
            return outcome
        attempt = replace(attempt, probes=budget.probes)
        if not may_correct(plan, attempt, workspace.cost):
            return outcome
        notice(f"{overrun(plan, budget)}; cutting a little more")
        attempt = replace(attempt, tighten=attempt.tighten * (spec.value / budget.achieved * (1 - AIM_BELOW)))


def may_correct(plan: Plan, attempt: Attempt, cost: Cost) -> bool:
    """Whether another model may be made. A method that trains has only its first runs."""
    finished = sum(bool(probe.get("final")) for probe in attempt.probes)
    runs = sum(bool(probe.get("ran")) for probe in attempt.probes)
    return finished <= CORRECTIONS and not (may_train(plan, attempt, cost) and runs >= TRAINING_RUNS)


def overrun(plan: Plan, budget: BudgetResult) -> str:
    """By how much a finished model missed its budget, in a sentence."""
    spec = plan.spec.budget
    if spec.kind == "ratio":
        return f"{budget.asked:g} was to go, {plan.spec.pruner} removed {budget.achieved:.6g}"
    return f"{budget.achieved:.4g}{spec.unit} measured where {budget.asked:g}{spec.unit} is the limit"


def ratio_result(spec: BudgetSpec, artefact: Artefact, search: dict[str, Any]) -> BudgetResult:
    """How the finished model compares with a ratio."""
    return BudgetResult(
        asked=spec.value,
        achieved=artefact.ratio_blocks,
        predicted=search.get("predicted"),
        unused=artefact.ratio_blocks - spec.value,
    )


def latency_result(
    spec: BudgetSpec, latency: Latency, search: dict[str, Any], earlier: Sequence[dict[str, Any]]
) -> BudgetResult:
    """How the finished model compares with a latency, by the ranked clock. `earlier` are probes of earlier attempts."""
    achieved, ci95 = latency.taken(spec.unit)
    final = {"setting": search["setting"], "estimated": search["predicted"], "measured": achieved, "final": True}
    return BudgetResult(
        asked=spec.value,
        achieved=achieved,
        achieved_ci95=ci95,
        predicted=search["predicted"],
        unused=spec.value - achieved,
        probes=[*earlier, *search["probes"], final],
    )


def out_of_reach(spec: BudgetSpec, error: OverBudget) -> BudgetResult | None:
    """The result for a latency that no cut reaches: the fastest probe counts as achieved. None without probes."""
    if spec.kind != "latency" or not error.probes:
        return None
    fastest = min(probe["measured"] for probe in error.probes)
    return BudgetResult(asked=spec.value, achieved=fastest, unused=spec.value - fastest, probes=list(error.probes))
