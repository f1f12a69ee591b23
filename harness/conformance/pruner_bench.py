"""Runs a pruner on tiny models, records its side effects, and caches the results for the checks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.api import Budget, Context, Cut, PrunerSpec, Workload
from harness.conformance import tiny_models
from harness.conformance.guard import SideEffects, record_side_effects
from harness.conformance.report import Fault, NotApplicable
from harness.conformance.second_process import SecondProcess, shared_process
from harness.errors import HarnessError, OverBudget, Unsupported
from harness.models import counting
from harness.plugins import registry
from harness.resolve import resolve_settings as resolve
from harness.system import seeds

RATIOS = (0.1, 0.25, 0.5)
WORKLOAD = Workload("prefill", 1, 512)  # long enough that kernel launches do not dominate

TrialKey = tuple[float, str, str, bool]  # ratio, name of the tiny model, dtype, whether it is a repetition


@dataclass
class Trial:
    """One run of the method on one tiny model: the cut it returned, or its refusal."""

    model: str
    ratio: float
    cut: Any = None  # a harness.models.cut.CheckedCut
    refusal: HarnessError | None = None
    changed_in_place: tuple[str, ...] = ()  # names of the tensors that were changed in place


class PrunerBench:
    """Every trial runs once; checks that need the same trial share it."""

    def __init__(self, name: str, settings: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: PrunerSpec = registry().get("pruner", name)
        self.parameters = resolve(f"pruner {name}", self.spec.parameters, "quick", {**self.spec.check_with, **settings})
        self.side_effects: list[SideEffects] = []
        self.second_process: SecondProcess | None = None
        self._trials: dict[TrialKey, Trial | BaseException] = {}
        self._cost_tables: dict[str, Any] = {}  # of the simulated staircase device, by anatomy
        self._models: tuple[Any, Any, Any] | None = None
        self._saved: Path | None = None
        self._second_process_error: str | None = None
        models = tiny_models.for_method(self.spec)
        self.default_model = tiny_models.PLAIN
        if tiny_models.PLAIN not in models and models:
            self.default_model = models[0]

    def start_second_process(self) -> None:
        """Start it early: it imports its libraries while the first checks run."""
        self.second_process = shared_process()

    def close(self) -> None:
        if self.second_process is not None:
            self.second_process.cancel(self.work)

    # --- running the method ---

    @contextmanager
    def observe(self) -> Iterator[None]:
        with record_side_effects(self.work) as effects:
            yield
        self.side_effects.append(effects)

    def new_pruner(self) -> Any:
        return registry().load("pruner", self.name)(**self.parameters)

    def predicted_shape(self, anatomy: Any, ratio: float) -> Any:
        """The shape that the pruner's optional `shape()` predicts, or None."""
        with self.observe():
            pruner = self.new_pruner()
            return pruner.shape(anatomy, ratio) if hasattr(pruner, "shape") else None

    def context(self, anatomy: Any) -> Context:
        """The context that a run would give this pruner, with a work directory of its own."""

        def calibration(count: int, length: int) -> Any:
            if "calibration" not in self.spec.needs:
                raise Fault("it asks for calibration text, but its spec does not say so: needs=('calibration',)")
            return tiny_models.tokens(count, min(length, 128), seeds.seed(0, "calibration"))

        (self.work / "work").mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.work / "work"))
        context = tiny_models.context(anatomy, work_dir=folder, calibration=calibration, workloads=[WORKLOAD])
        if {"latency"} & {*self.spec.needs, *self.spec.budgets}:
            context.latency = self.cost_model(anatomy)
        return context

    def reload_state(self, state: Any) -> Any:
        """Write the pruner's state to a file and read it again, as a run does, with its keys in another order."""
        from harness.models.saved import states

        folder = self.work / "work" / "state"
        folder.mkdir(exist_ok=True)
        states.write(state, folder)
        loaded = states.read(folder)
        return loaded and dict(reversed(loaded.items()))

    def cost_model(self, anatomy: Any) -> Any:
        """A cost model of the simulated staircase device, which takes no time to measure."""
        from harness.devices.simulated import Staircase
        from harness.latency.cost_table.cost_model import CostModel
        from harness.latency.cost_table.profile import Effort, Profile, ProfileTarget
        from harness.latency.cost_table.shape_timer import Visits
        from harness.latency.cost_table.table import anatomy_hash

        mark = anatomy_hash(anatomy)
        if mark not in self._cost_tables:
            device = {"name": "staircase", "fingerprint": {}, "clock": "wall", "provenance": "simulated"}
            target = ProfileTarget("tiny", anatomy, device, "eager", "fp32", WORKLOAD, "quick")
            effort = Effort(coarse=8, edges=40, seconds=5, rounds=1, fitting=6, unseen=0)
            profile = Profile(target, Staircase(), Visits(), lambda _: None, lambda *_: None, effort)
            self._cost_tables[mark] = profile.run(validate=False)
        return CostModel(self._cost_tables[mark], anatomy)

    def trial(self, ratio: float, model: str = "", dtype: str = "fp32", again: bool = False) -> Trial:
        """Run the method once for these arguments; a second call returns, or raises, the same result."""
        key = (ratio, model or self.default_model, dtype, again)
        if key not in self._trials:
            try:
                self._trials[key] = self._run_trial(*key)
            except (Exception, SystemExit) as error:
                self._trials[key] = error
        result = self._trials[key]
        if isinstance(result, BaseException):
            raise result
        return result

    def finished_trials(self) -> list[Trial]:
        """All trials so far that ended with a cut or a refusal."""
        return [result for result in self._trials.values() if isinstance(result, Trial)]

    def _run_trial(self, ratio: float, name: str, dtype: str, again: bool) -> Trial:
        import random

        import numpy as np
        import torch

        from harness.models.cut import check_cut

        model, anatomy = tiny_models.tiny(name, dtype)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        trial = Trial(name, ratio)
        # A repetition has other global seeds: only ctx.seed may have an effect.
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(7 if again else 3)
        budget = Budget("ratio", ratio)
        if "ratio" not in self.spec.budgets:
            budget = Budget("latency", max(1 - ratio, 0.01), "x")
        context = self.context(anatomy)
        with self.observe():
            try:
                state = None
                first = self.new_pruner()
                if hasattr(first, "prepare"):
                    state = self.reload_state(first.prepare(model, context))
                # A new object: in a run, a second budget gets the state from the store and never calls prepare.
                cut = self.new_pruner().prune(model, budget, context, state)
            except (Unsupported, OverBudget) as error:
                trial.refusal = error
                return trial
        if not isinstance(cut, Cut):
            raise Fault(f"prune returned {type(cut).__name__}, not a Cut")
        trial.changed_in_place = tuple(
            n for n, t in model.state_dict().items() if n in before and not t.equal(before[n])
        )
        trial.cut = check_cut(anatomy, cut)
        return trial

    def require_cut(self, ratio: float) -> Trial:
        """The trial at this ratio; where the method refuses the ratio, the check does not apply."""
        trial = self.trial(ratio)
        if trial.refusal is not None:
            raise NotApplicable(f"refused {ratio:g}: {trial.refusal.cause}")
        return trial

    def first_cut(self) -> Trial:
        """The first trial in which the method does not refuse."""
        for ratio in (0.25, 0.5, 0.1):
            if self.trial(ratio).refusal is None:
                return self.trial(ratio)
        raise Fault(f"it refused every budget from {RATIOS[0]:g} to {RATIOS[-1]:g}: {self.trial(0.25).refusal}")

    # --- figures of a cut ---

    def slowest_site_share(self, trial: Trial) -> float:
        """The time of the slowest site, as a share of the dense model's time."""
        _, anatomy = tiny_models.tiny(trial.model)
        cost = self.cost_model(anatomy)
        return float(max(max(cost.site_times(site.name)) for site in anatomy.blocks()) / cost.dense)

    def latency_share(self, trial: Trial) -> float:
        """The time of the pruned shape, as a share of the dense model's time."""
        _, anatomy = tiny_models.tiny(trial.model)
        return float(self.cost_model(anatomy).share(trial.cut.shape))

    def removed_share(self, trial: Trial) -> float:
        """The share of the prunable parameters that the cut removes or masks."""
        from harness.models import surgery

        _, anatomy = tiny_models.tiny(trial.model)
        return counting.ratios(anatomy, trial.cut.shape, surgery.masked_elements(anatomy, trial.cut))[0]

    def coarsest_unit_share(self, trial: Trial) -> float:
        """The largest unit that the method can remove, as a share of the prunable parameters."""
        _, anatomy = tiny_models.tiny(trial.model)
        sites = list(anatomy.blocks())
        if "depth" in self.spec.kinds:
            layers = {site.layer for site in sites}
            size = max(sum(anatomy.site_params(s, s.units) for s in sites if s.layer == layer) for layer in layers)
        else:
            size = max(anatomy.site_params(site, 1) for site in sites)
        return size / anatomy.params(prunable=True)

    # --- the pruned model ---

    def models(self) -> tuple[Any, Any, Any]:
        """The dense tiny model, its anatomy, and the pruned model that the first cut gives."""
        from harness.models import surgery

        if self._models is None:
            trial = self.first_cut()
            model, anatomy = tiny_models.tiny(trial.model)
            self._models = (model, anatomy, surgery.apply(model, anatomy, trial.cut))
        return self._models

    def save(self) -> Path:
        """Save the pruned model once and have the second process start reading it; the folder is returned."""
        from harness.models.saved import folders

        if self._saved is None:
            trial = self.first_cut()
            _, _, pruned = self.models()
            folder = self.work / "saved"
            folder.mkdir()
            folders.write(pruned, None, folder)
            self._saved = folder
            if self.second_process is not None:
                job = {"name": self.name, "parameters": self.parameters, "ratio": trial.ratio}
                self.second_process.start_job(self.work, folder=str(folder), model=trial.model, **job)
        return self._saved

    def second_process_error(self) -> str:
        """The error that the second process ended with, or an empty text. Waits until it has ended."""
        if self.second_process is None:
            raise NotApplicable("no second process was started")
        if self._second_process_error is None:
            self.save()
            self._second_process_error = self.second_process.wait_for_error()
        return self._second_process_error
