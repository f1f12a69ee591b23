"""How a finished model stands to its budget, and the second try of one that missed a latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from harness.cell.artefact import Artefacts
from harness.cell.cutting import TRAINING_RUNS, may_train
from harness.cell.measuring import Timed, timed
from harness.cell.plan import Attempt, Plan
from harness.errors import OverBudget
from harness.records import schema
from harness.records.schema import Artefact, BudgetResult, BudgetSpec, Cost, Latency
from harness.records.store import Store

CORRECTIONS = 2  # a finished model that missed its latency is cut anew so often
AIM_BELOW = 0.004


def within_budget(
    plan: Plan, store: Store, stage: Any, made: Artefacts, notice: Callable[[str], None]
) -> tuple[Artefact, BudgetResult, dict[str, Timed]]:
    """The artefact that meets the budget, or the last one that did not, with the measurement that says so."""
    spec, attempt = plan.spec.budget, made.attempt
    kept: tuple[Artefact, BudgetResult, dict[str, Timed]] | None = None
    while True:
        try:
            artefact, search = made.ensure(attempt)
        except OverBudget:
            if kept is None:
                raise
            return kept  # what there is misses the limit, and nothing faster can be had
        if spec.kind == "ratio":
            return artefact, ratio_result(spec, artefact, search), {}
        workload = plan.workloads[0]
        found = timed(plan, store, stage, made.workspace, artefact, workload)
        budget = latency_result(spec, found.latency, search, attempt.probes)
        kept = artefact, budget, {str(workload): found}
        if budget.unused >= 0 or found.unstable:
            return kept
        attempt = replace(attempt, probes=budget.probes)
        if not may_correct(plan, attempt, made.workspace.cost):
            return kept
        notice(f"{overrun(plan, budget)}; cutting a little more")
        attempt = replace(attempt, tighten=attempt.tighten * (spec.value / budget.achieved * (1 - AIM_BELOW)))


def may_correct(plan: Plan, attempt: Attempt, cost: Cost) -> bool:
    """A finished model that missed is cut anew, unless its method trains and has had its runs."""
    finals = sum(bool(probe.get("final")) for probe in attempt.probes)
    ran = sum(bool(probe.get("ran")) for probe in attempt.probes)
    return finals <= CORRECTIONS and not (may_train(plan, attempt, cost) and ran >= TRAINING_RUNS)


def overrun(plan: Plan, budget: BudgetResult) -> str:
    spec = plan.spec.budget
    if spec.kind == "ratio":
        return f"{budget.asked:g} was to go, {plan.spec.pruner} removed {budget.achieved:.6g}"
    return f"{budget.achieved:.4g}{spec.unit} measured where {budget.asked:g}{spec.unit} is the limit"


def ratio_result(spec: BudgetSpec, artefact: Artefact, search: dict[str, Any]) -> BudgetResult:
    return BudgetResult(
        asked=spec.value,
        achieved=artefact.ratio_blocks,
        predicted=search.get("predicted"),
        unused=artefact.ratio_blocks - spec.value,
    )


def latency_result(
    spec: BudgetSpec, latency: Latency, search: dict[str, Any], earlier: Sequence[dict[str, Any]]
) -> BudgetResult:
    """How the finished model stands to a latency, by the ranked clock."""
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


def out_of_reach(spec: BudgetSpec, error: OverBudget) -> schema.BudgetResult | None:
    """What was tried on the way to a latency that cannot be had: the fastest stands for what was achieved."""
    if spec.kind != "latency" or not error.probes:
        return None
    fastest = min(probe["measured"] for probe in error.probes)
    return BudgetResult(asked=spec.value, achieved=fastest, unused=spec.value - fastest, probes=list(error.probes))
