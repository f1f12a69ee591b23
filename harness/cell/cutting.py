"""Runs the method: once for a ratio, or as often as the budget search needs it for a latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.api import Budget, Context, Cut, Shape
from harness.cell.plan import Attempt, Plan
from harness.cell.workspace import Progress, Workspace
from harness.latency import budget_search
from harness.latency.budget_search import Method, SearchResult
from harness.latency.prober import Measurement, Prober
from harness.models import counting
from harness.plugins import registry
from harness.pruning.allocate import uniform
from harness.records import keys
from harness.records.files import disk_errors
from harness.records.schema import Cost
from harness.system.isolation import plugin_code

if TYPE_CHECKING:
    from harness.models.cut import CheckedCut

TRAINING_RUNS = 2  # a method that trains runs for its first guess, and once more if that was too slow
LATENCY_RUNS = 4  # of any other method that takes a latency itself


class Decision:
    """The cut that a method decides on for one attempt."""

    def __init__(self, workspace: Workspace, attempt: Attempt) -> None:
        self.workspace = workspace
        self.attempt = attempt
        self.plan, self.store = workspace.plan, workspace.store
        self.pruner = self.plan.method()
        self.cuts: dict[str, CheckedCut] = {}  # by budget
        self.trained_tokens = 0

    def write(self, scratch: Path) -> dict[str, Any]:
        """Write the files of the cut. Returns how a latency was reached; nothing for a ratio."""
        from harness.models.saved import folders

        start = time.monotonic()
        search: dict[str, Any] = {}
        if self.plan.budget.kind == "ratio":
            cut = self.cut_for(self.plan.budget)
        else:
            search, cut = self._cut_for_latency()
        self.workspace.cost.search_s = time.monotonic() - start
        with disk_errors(self.store.root):
            folders.write_cut(cut, self.workspace.origin(cut), scratch)
        return search

    def cut_for(self, budget: Budget) -> CheckedCut:
        """Run the method for a budget, unless the cut for it is still in memory."""
        from harness.models.cut import check_cut

        key = str(budget)
        if key not in self.cuts:
            state = self._state
            with self.workspace.lend_dense() as model, self.workspace.stage(f"prune to {budget}") as progress:
                with self._with_work_dir(self.context(progress)) as ctx, self._plugin_code():
                    cut: Cut = self.pruner.prune(model, budget, ctx, state)
                if "training" not in self.plan.pruner.needs:
                    self.cuts.clear()  # the last cut is nearly always the one that is used, and another run is cheap
                self.cuts[key] = check_cut(self.plan.anatomy, cut)
        return self.cuts[key]

    @cached_property
    def _state(self) -> Any:
        """What the method prepares for all budgets, from the store if it is there."""
        if not hasattr(self.pruner, "prepare"):
            return None
        from harness.models.saved import states

        def make(scratch: Path) -> None:
            with self.workspace.lend_dense() as model:
                start = time.monotonic()
                with self.workspace.stage("prepare") as progress, self._plugin_code():
                    state = self.pruner.prepare(model, self.context(progress))
                self.workspace.cost.prepare_s = time.monotonic() - start
            with disk_errors(self.store.root):
                states.write(state, scratch)

        folder, _, _ = self.workspace.cached_folder("state", self.plan.prepare_parts(), make)
        return states.read(folder)

    def _plugin_code(self) -> AbstractContextManager[Any]:
        """Goes around every call of the method."""
        return plugin_code(f"pruner {self.plan.spec.pruner}")

    def context(self, progress: Callable[..., None]) -> Context:
        """What the method gets."""
        return self.workspace.learning_context(progress, self.plan.spec.parameters, "--set ", self._count_tokens)

    @contextmanager
    def _with_work_dir(self, ctx: Context) -> Iterator[Context]:
        """Give the method a folder that survives a kill. All runs of the method for one budget share it."""
        # The constant stays in the key, so that folders of earlier versions are found.
        parts = {**self.plan.cut_parts(self.attempt), "tightened": 1.0}
        parts.pop("matched", None)
        ctx.work_dir = self.store.path("works", keys.key("work", parts))
        with disk_errors(self.store.root):
            ctx.work_dir.mkdir(parents=True, exist_ok=True)
        yield ctx
        with suppress(OSError):  # it is kept if the method left files in it
            ctx.work_dir.rmdir()

    def _count_tokens(self, tokens: int) -> None:
        self.workspace.count_tokens(tokens)
        self.trained_tokens += tokens

    # --- latency ---

    def _cut_for_latency(self) -> tuple[dict[str, Any], CheckedCut]:
        """The cut that should meet the latency, and the record of the search for it."""
        plan, unit = self.plan, self.plan.budget.unit
        device = registry().device(plan.device.name, plan.spec.runtime)
        with self.workspace.stage(f"match {plan.budget}") as progress:
            bed = Prober(device, plan.anatomy, plan.spec.dtype, plan.workloads[0], plan.clock, unit)
            try:
                kind, match = self._search(bed, progress)
            finally:
                bed.close()
        table = self.attempt.cost_table
        search = match.to_dict() | {"estimate": f"table {table[:8]}" if table else "FLOPs"}
        return search, self.cut_for(Budget(kind, match.setting, unit if kind == "latency" else ""))

    def _search(self, bed: Prober, progress: Progress) -> tuple[str, SearchResult]:
        """The setting that reaches the latency, and the kind of budget that it is for the method."""
        plan, attempt = self.plan, self.attempt
        limit, unit = plan.budget.value * attempt.tighten, plan.budget.unit
        trains = may_train(plan, attempt, self.workspace.cost)
        earlier_runs = sum(bool(probe.get("ran")) for probe in attempt.probes)
        share, scale = self._estimate(), bed.scale()
        numbers = count(1)

        def measure(shape: Shape) -> Measurement:
            measured = bed.measure(shape)
            progress(next(numbers), budget_search.PROBES)
            return measured

        if "latency" in plan.pruner.budgets:

            def shape_for(limit: float) -> Shape:
                return self.cut_for(Budget("latency", limit, unit)).shape

            runs = TRAINING_RUNS - earlier_runs if trains else LATENCY_RUNS
            return "latency", budget_search.search_by_latency(
                plan.anatomy, shape_for, lambda shape: scale * share(shape), measure, limit, runs
            )

        def allowed_runs() -> int:
            # Whether a method trains at all shows once it has run.
            trains_now = trains and (self.trained_tokens or not self.cuts)
            return TRAINING_RUNS - earlier_runs if trains_now else budget_search.PROBES

        method = self._method(allowed_runs)
        matcher = budget_search.BudgetSearch(
            plan.anatomy, method, share, measure, limit, unit, scale, earlier=attempt.probes
        )
        return "ratio", matcher.run()

    def _method(self, runs: Callable[[], int]) -> Method:
        """The method as the budget search sees it. `runs` is how often it may run if it cannot predict its shape."""
        anatomy = self.plan.anatomy
        predict = self.plan.shape_predictor(self.pruner)
        if predict is not None and predict(0.01) is not None:
            exact = cast("Callable[[float], Shape]", predict)
            return Method(exact, exact)
        return Method(
            lambda ratio: uniform(anatomy, ratio),
            lambda ratio: self.cut_for(Budget("ratio", ratio)).shape,
            promises=False,
            runs=runs,
        )

    def _estimate(self) -> Callable[[Shape], float]:
        """Estimates a shape's share of the dense latency: by the device's cost table if there is one, else by FLOPs."""
        model = self.workspace.stored_cost_model()
        if model is not None:
            return model.share
        anatomy, workload = self.plan.anatomy, self.plan.workloads[0]
        dense = counting.flops(anatomy, {}, workload)
        return lambda shape: counting.flops(anatomy, shape, workload) / dense


def may_train(plan: Plan, attempt: Attempt, cost: Cost) -> bool:
    """Whether the method may train. With some settings it does not, which shows once it has made a model."""
    made_without_training = attempt.probes and not cost.train_tokens
    return "training" in plan.pruner.needs and not made_without_training
