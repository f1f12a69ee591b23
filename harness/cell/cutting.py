"""What a method decides: directly for a ratio, by way of the matcher for a latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.api import Budget, Context, Cut, Shape
from harness.evaluation.calibration import calibration
from harness.models import counting
from harness.models.architectures.decoder import FAMILIES
from harness.plugins import registry
from harness.pruning.allocate import uniform
from harness.records import keys
from harness.records.files import guarded
from harness.system.isolation import plugin_code

if TYPE_CHECKING:
    from harness.cell.artefact import Artefacts
    from harness.cell.plan import Attempt, Plan
    from harness.models.cut import CheckedCut
    from harness.records.schema import Cost

TRAINING_RUNS = 2  # a method that trains is run for its first guess, and once more if that missed
LATENCY_RUNS = 4


class Decision:
    """One cut of one plan, on its way into a folder."""

    def __init__(self, made: Artefacts) -> None:
        self.made, self.plan, self.store = made, made.plan, made.store
        self.attempt = made.attempt
        self.pruner = self.plan.method()
        self.asked: dict[str, CheckedCut] = {}
        self.learned = 0  # tokens, by the method

    def write(self, scratch: Path) -> dict[str, Any]:
        """The cut's files; the words that go with them tell how a latency was reached."""
        from harness.models.saved import folders

        start = time.monotonic()
        words: dict[str, Any] = {}
        if self.plan.budget.kind == "ratio":
            cut = self.ask(self.plan.budget)
        else:
            words, cut = self._matched()
        self.made.cost.search_s = time.monotonic() - start
        with guarded(self.store.root):
            folders.write_cut(cut, self.made.origin(cut), scratch)
        return words

    def ask(self, budget: Budget) -> CheckedCut:
        """Run the method, once per budget."""
        from harness.models.cut import check_cut

        key = str(budget)
        if key not in self.asked:
            state = self.state
            with self.made.lent() as model, self.made.stage(f"prune to {budget}") as progress:
                with self.with_work_dir(self.context(progress)) as ctx, self._code():
                    decided: Cut = self.pruner.prune(model, budget, ctx, state)
                if "training" not in self.plan.pruner.needs:
                    self.asked.clear()  # the last one is nearly always the one, and another run is cheap
                self.asked[key] = check_cut(self.plan.anatomy, decided)
        return self.asked[key]

    @cached_property
    def state(self) -> Any:
        """Budget-free statistics, shared by every budget."""
        if not hasattr(self.pruner, "prepare"):
            return None
        from harness.models.saved import states

        def make(scratch: Path) -> None:
            with self.made.lent() as model:
                start = time.monotonic()
                with self.made.stage("prepare") as progress, self._code():
                    state = self.pruner.prepare(model, self.context(progress))
                self.made.cost.prepare_s = time.monotonic() - start
            with guarded(self.store.root):
                states.write(state, scratch)

        folder, *_ = self.made.kept("state", self.plan.prepare_parts(), make)
        return states.read(folder)

    def _code(self) -> Any:
        """Around calls of the method."""
        return plugin_code(f"pruner {self.plan.spec.pruner}")

    def context(
        self, progress: Callable[..., None], settings: Mapping[str, Any] | None = None, option: str = "--set "
    ) -> Any:
        """What a method or a recovery is lent; `settings` are its own, `option` how a user gives them."""
        tokenizer, spec = self.made.tokenizer, self.plan.spec
        ctx = self.made.context(progress, tokenizer=tokenizer, trained=self._learned)
        named = partial(_settings_of, spec.parameters if settings is None else settings, option)
        needs_bos = FAMILIES[self.plan.anatomy.family].needs_bos
        first = self.plan.anatomy.config.get("bos_token_id") if needs_bos else None
        ctx.calibration = lambda count, length: calibration(
            spec.calibration, tokenizer, count, length, ctx.seed("calibration"), first, named
        )
        ctx.latency = self.made.cost_model if self.plan.sees_latency else None
        return ctx

    @contextmanager
    def with_work_dir(self, ctx: Context) -> Iterator[Context]:
        """With a folder that outlives a kill: the same for all that is asked on the way to one budget."""
        parts = {**self.plan.cut_parts(self.attempt), "tightened": 1.0}
        parts.pop("matched", None)
        ctx.work_dir = self.store.path("works", keys.key("work", parts))
        with guarded(self.store.root):
            ctx.work_dir.mkdir(parents=True, exist_ok=True)
        yield ctx
        with suppress(OSError):  # nothing was left in it
            ctx.work_dir.rmdir()

    def _learned(self, tokens: int) -> None:
        self.made.cost.train_tokens += tokens
        self.learned += tokens

    # --- latency ---

    def _matched(self) -> tuple[dict[str, Any], CheckedCut]:
        from harness.latency.prober import Bed

        plan, unit, table = self.plan, self.plan.budget.unit, self.attempt.cost_table
        device = registry().device(plan.device.name, plan.spec.runtime)
        with self.made.stage(f"match {plan.budget}") as progress:
            laid = Bed(device, plan.anatomy, plan.spec.dtype, plan.workloads[0], plan.clock, unit)
            try:
                kind, found = self._search(laid, progress)
            finally:
                laid.close()
        words = found.words() | {"estimate": f"table {table[:8]}" if table else "FLOPs"}
        return words, self.ask(Budget(kind, found.setting, unit if kind == "latency" else ""))

    def _search(self, bed: Any, progress: Callable[..., None]) -> tuple[str, Any]:
        """The setting that reaches the limit, and what kind of budget the method takes it as."""
        from harness.latency import budget_search

        plan, told = self.plan, count(1)
        limit, unit = plan.budget.value * self.attempt.tighten, plan.budget.unit
        trains = may_train(plan, self.attempt, self.made.cost)
        spent = sum(bool(probe.get("ran")) for probe in self.attempt.probes)
        share, scale = self._estimate(), bed.scale()

        def measure(shape: Shape) -> Any:
            found = bed.measure(shape)
            progress(next(told), budget_search.PROBES)
            return found

        if "latency" in plan.pruner.budgets:

            def ask(limit: float) -> Shape:
                return self.ask(Budget("latency", limit, unit)).shape

            runs = TRAINING_RUNS - spent if trains else LATENCY_RUNS
            return "latency", budget_search.native(plan.anatomy, ask, lambda s: scale * share(s), measure, limit, runs)

        def allowed() -> int:
            return TRAINING_RUNS - spent if trains and (self.learned or not self.asked) else budget_search.PROBES

        method = self._method(allowed)
        return "ratio", budget_search.Matcher(
            plan.anatomy, method, share, measure, limit, unit, scale, self.attempt.probes
        ).run()

    def _method(self, runs: Callable[[], int]) -> Any:
        from harness.latency.budget_search import Method

        anatomy = self.plan.anatomy
        promise = self.plan.promise(self.pruner)
        if promise is not None and promise(0.01) is not None:
            return Method(cast(Any, promise), cast(Any, promise))
        return Method(
            lambda r: uniform(anatomy, r),
            lambda r: self.ask(Budget("ratio", r)).shape,
            promises=False,
            runs=runs,
        )

    def _estimate(self) -> Callable[[Shape], float]:
        """Shares of dense: by the device's cost table where there is one, else by FLOPs."""
        if (model := self.made.known_cost_model()) is not None:
            return model.share
        anatomy, workload = self.plan.anatomy, self.plan.workloads[0]
        dense = counting.flops(anatomy, {}, workload)
        return lambda shape: counting.flops(anatomy, shape, workload) / dense


def may_train(plan: Plan, attempt: Attempt, cost: Cost) -> bool:
    """Settings may keep a method that could from training, which shows once it has made a model."""
    return "training" in plan.pruner.needs and not (attempt.probes and not cost.train_tokens)


def _settings_of(settings: Mapping[str, Any], option: str, value: int) -> str:
    """How a user would change a number that a method asked for: by the settings that hold it."""
    names = [name for name, held in settings.items() if held == value and not isinstance(held, bool)]
    return " or ".join(f"{option}{name}=…" for name in names)
