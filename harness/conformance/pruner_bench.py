"""A pruner on the bench: run on tiny models under watch, each question asked once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import Budget, Context, Cut, PrunerSpec, Workload
from harness.conformance import tiny_models
from harness.conformance.guard import Seen, watched
from harness.conformance.report import Fault, NotApplicable
from harness.conformance.second_process import Second, second
from harness.errors import HarnessError, OverBudget, Unsupported
from harness.models import counting
from harness.plugins import registry
from harness.resolve import settings as resolve
from harness.system import seeds

RATIOS = (0.1, 0.25, 0.5)
WORKLOAD = Workload("prefill", 1, 512)  # long enough that launches are not most of it


@dataclass
class Trial:
    """One run of the method on one tiny model: what it returned, or how it refused."""

    model: str
    ratio: float
    cut: Any = None  # checked
    refused: HarnessError | None = None
    touched: tuple[str, ...] = ()  # tensors changed in place


class PrunerBench:
    def __init__(self, name: str, given: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: PrunerSpec = registry().get("pruner", name)
        self.parameters = resolve(f"pruner {name}", self.spec.parameters, "quick", {**self.spec.check_with, **given})
        self.known: dict[Any, Trial | BaseException] = {}
        self.watches: list[Seen] = []
        self.tables: dict[str, Any] = {}  # of the made-up device, by anatomy
        self.second: Second | None = None
        models = tiny_models.of(self.spec)
        self.plain = tiny_models.PLAIN if tiny_models.PLAIN in models else next(iter(models), tiny_models.PLAIN)

    def begin(self) -> None:
        """The second process imports what it needs while the first checks run."""
        self.second = second()

    def close(self) -> None:
        if self.second is not None:
            self.second.leave(self.work)

    # --- running the method ---

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        with watched(self.work) as seen:
            yield seen
        self.watches.append(seen)

    def build(self) -> Any:
        return registry().load("pruner", self.name)(**self.parameters)

    def promise(self, anatomy: Any, ratio: float) -> Any:
        """What `shape()` says; None where it says nothing."""
        with self.watch():
            made = self.build()
            return made.shape(anatomy, ratio) if hasattr(made, "shape") else None

    def context(self, anatomy: Any) -> Context:
        def calibration(count: int, length: int) -> Any:
            if "calibration" not in self.spec.needs:
                raise Fault("it asks for calibration text, but its spec does not say so: needs=('calibration',)")
            return tiny_models.tokens(count, min(length, 128), seeds.seed(0, "calibration"))

        (self.work / "work").mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.work / "work"))  # as in a run: one question's own
        context = tiny_models.context(anatomy, work_dir=folder, calibration=calibration, workloads=[WORKLOAD])
        if {"latency"} & {*self.spec.needs, *self.spec.budgets}:
            context.latency = self.latency(anatomy)
        return context

    def stored(self, state: Any) -> Any:
        """A state as a run hands it on: written to a file and read again. The order of names is anybody's."""
        from harness.models.saved import states

        folder = self.work / "work" / "state"
        folder.mkdir(exist_ok=True)
        states.write(state, folder)
        found = states.read(folder)
        return found and dict(reversed(found.items()))

    def latency(self, anatomy: Any) -> Any:
        """A cost model of the made-up device with steps, which costs nothing to measure."""
        from harness.devices.simulated import Staircase
        from harness.latency.cost_table.cost_model import CostModel
        from harness.latency.cost_table.profile import Effort, Profile, Target
        from harness.latency.cost_table.shape_timer import Visits
        from harness.latency.cost_table.table import anatomy_mark

        if (mark := anatomy_mark(anatomy)) in self.tables:
            return CostModel(self.tables[mark], anatomy)
        device = {"name": "staircase", "fingerprint": {}, "clock": "wall", "provenance": "simulated"}
        target = Target("tiny", anatomy, device, "eager", "fp32", WORKLOAD, "quick")
        effort = Effort(coarse=8, edges=40, seconds=5, rounds=1, fitting=6, unseen=0)
        profile = Profile(target, Staircase(), Visits(), lambda _: None, lambda *_: None, effort)
        self.tables[mark] = profile.run(judge=False)
        return CostModel(self.tables[mark], anatomy)

    def ask(self, ratio: float, model: str = "", dtype: str = "fp32", again: bool = False) -> Trial:
        key = (ratio, model or self.plain, dtype, again)
        if key not in self.known:
            try:
                self.known[key] = self._ask(*key)
            except (Exception, SystemExit) as error:  # asked again it would only fail again
                self.known[key] = error
        if isinstance(found := self.known[key], BaseException):
            raise found
        return found

    @property
    def answers(self) -> list[Trial]:
        """Every question that was answered with a cut or a refusal."""
        return [found for found in self.known.values() if isinstance(found, Trial)]

    def _ask(self, ratio: float, name: str, dtype: str, again: bool) -> Trial:
        import random

        import numpy as np
        import torch

        from harness.models.cut import check_cut

        model, anatomy = tiny_models.tiny(name, dtype)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        trial = Trial(name, ratio)
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # chance that is not ctx.seed's must not matter
            seed(7 if again else 3)
        budget = Budget("ratio", ratio)
        if "ratio" not in self.spec.budgets:
            budget = Budget("latency", max(1 - ratio, 0.01), "x")
        context = self.context(anatomy)
        with self.watch():
            try:
                state, first = None, self.build()
                if hasattr(first, "prepare"):
                    state = self.stored(first.prepare(model, context))
                # another object: a second budget gets the state from the store, and no prepare before
                cut = self.build().prune(model, budget, context, state)
            except (Unsupported, OverBudget) as error:
                trial.refused = error
                return trial
        if not isinstance(cut, Cut):
            raise Fault(f"prune returned {type(cut).__name__}, not a Cut")
        trial.touched = tuple(n for n, t in model.state_dict().items() if n in before and not t.equal(before[n]))
        trial.cut = check_cut(anatomy, cut)
        return trial

    def cut(self, ratio: float) -> Trial:
        trial = self.ask(ratio)
        if trial.refused is not None:
            raise NotApplicable(f"refused {ratio:g}: {trial.refused.cause}")
        return trial

    @cached_property
    def some(self) -> Trial:
        """A cut that the method does make."""
        for ratio in (0.25, 0.5, 0.1):
            if self.ask(ratio).refused is None:
                return self.ask(ratio)
        raise Fault(f"it refused every budget from {RATIOS[0]:g} to {RATIOS[-1]:g}: {self.ask(0.25).refused}")

    # --- what a cut leaves, in figures ---

    def slowest(self, trial: Trial) -> float:
        """The sub-layer that takes most, as a share of dense."""
        _, anatomy = tiny_models.tiny(trial.model)
        cost = self.latency(anatomy)
        return float(max(max(cost.site_times(site.name)) for site in anatomy.blocks()) / cost.dense)

    def share(self, trial: Trial) -> float:
        _, anatomy = tiny_models.tiny(trial.model)
        return float(self.latency(anatomy).share(trial.cut.shape))

    def removed(self, trial: Trial) -> float:
        from harness.models import surgery

        _, anatomy = tiny_models.tiny(trial.model)
        return counting.ratios(anatomy, trial.cut.shape, surgery.masked_elements(anatomy, trial.cut))[0]

    def step(self, trial: Trial) -> float:
        """The coarsest unit in play, as a share of the prunable parameters."""
        _, anatomy = tiny_models.tiny(trial.model)
        sites = list(anatomy.blocks())
        if "depth" in self.spec.kinds:
            layers = {site.layer for site in sites}
            size = max(sum(anatomy.site_params(s, s.units) for s in sites if s.layer == layer) for layer in layers)
        else:
            size = max(anatomy.site_params(site, 1) for site in sites)
        return size / anatomy.params(prunable=True)

    # --- what comes of it ---

    @cached_property
    def pair(self) -> tuple[Any, Any, Any]:
        """The dense tiny model, its anatomy, and the model that the cut leaves."""
        from harness.models import surgery

        model, anatomy = tiny_models.tiny(self.some.model)
        return model, anatomy, surgery.apply(model, anatomy, self.some.cut)

    @cached_property
    def saved(self) -> Path:
        """The pruned model's folder; the second process begins to read it at once."""
        from harness.models.saved import folders

        folder = self.work / "saved"
        folder.mkdir()
        folders.write(self.pair[2], None, folder)
        if self.second is not None:
            question = {"name": self.name, "parameters": self.parameters, "ratio": self.some.ratio}
            self.second.ask(self.work, folder=str(folder), model=self.some.model, **question)
        return folder

    @cached_property
    def answered(self) -> str:
        """What the second process complained of."""
        if self.second is None:
            raise NotApplicable("no second process was started")
        assert self.saved
        return self.second.complaint()
