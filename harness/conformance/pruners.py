"""A pruner on the bench: run on tiny models under watch, each question asked once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import seeds
from harness.api import Budget, Context, Cut, PrunerSpec, Workload
from harness.conformance import models
from harness.conformance.guard import Seen, watched
from harness.conformance.kit import Fault, NotApplicable
from harness.errors import HarnessError, OverBudget, Unsupported
from harness.options import settings as resolve
from harness.plugins import registry

RATIOS = (0.1, 0.25, 0.5)
WORKLOAD = Workload("prefill", 1, 512)  # long enough that launches are not most of it


@dataclass
class Asked:
    """One run of the method on one tiny model: what it returned, or how it refused."""

    model: str
    ratio: float
    cut: Any = None  # checked
    refused: HarnessError | None = None
    touched: tuple[str, ...] = ()  # tensors changed in place
    seen: Seen | None = None


class PrunerBench:
    def __init__(self, name: str, given: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: PrunerSpec = registry().get("pruner", name)
        self.parameters = resolve(f"pruner {name}", self.spec.parameters, "quick", {**self.spec.check_with, **given})
        self.known: dict[Any, Asked] = {}
        self.fresh: Any = None

    def close(self) -> None:
        if self.fresh is not None and self.fresh.poll() is None:
            self.fresh.kill()

    # --- running the method ---

    def made(self) -> Any:
        return registry().load("pruner", self.name)(**self.parameters)

    def context(self, anatomy: Any) -> Context:
        def calibration(count: int, length: int) -> Any:
            if "calibration" not in self.spec.needs:
                raise Fault("it asks for calibration text, but its spec does not say so: needs=('calibration',)")
            return models.tokens(count, min(length, 128), seeds.seed(0, "calibration"))

        context = Context(
            anatomy=anatomy,
            tokenizer=None,
            work_dir=self.work / "work",
            seed=lambda *axis: seeds.seed(0, *axis),
            calibration=calibration,
            workloads=[WORKLOAD],
        )
        if {"latency"} & {*self.spec.needs, *self.spec.budgets}:
            context.latency = self.latency(anatomy)
        return context

    def stored(self, state: Any) -> Any:
        """A state as a run hands it on: written to a file and read again."""
        from harness.checkpoints import states

        folder = self.work / "work" / "state"
        folder.mkdir(exist_ok=True)
        states.write(state, folder)
        return states.read(folder)

    def latency(self, anatomy: Any) -> Any:
        """A cost model of the made-up device with steps, which costs nothing to measure."""
        from harness.builtin.null import Staircase
        from harness.latency.bench import Visits
        from harness.latency.profile import Effort, Profile, Target
        from harness.latency.table import CostModel

        device = {"name": "staircase", "fingerprint": {}, "clock": "wall", "provenance": "simulated"}
        target = Target("tiny", anatomy, device, "eager", "fp32", WORKLOAD, "quick")
        effort = Effort(coarse=8, edges=40, seconds=5, rounds=1, fitting=6, unseen=4)
        table = Profile(target, Staircase(), Visits(), lambda _: None, lambda *_: None, effort).run()
        return CostModel(table, anatomy)

    def ask(self, ratio: float, model: str = models.PLAIN, dtype: str = "fp32", again: bool = False) -> Asked:
        key = (ratio, model, dtype, again)
        if key not in self.known:
            self.known[key] = self._ask(ratio, model, dtype, again)
        return self.known[key]

    def _ask(self, ratio: float, name: str, dtype: str, again: bool) -> Asked:
        import torch

        from harness import surgery

        model, anatomy = models.tiny(name, dtype)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        asked = Asked(name, ratio)
        pruner, context = self.made(), self.context(anatomy)
        torch.manual_seed(7 if again else 3)  # chance that is not ctx.seed's must not matter
        import random

        import numpy as np

        random.seed(7 if again else 3)
        np.random.seed(7 if again else 3)
        budget = Budget("ratio", ratio)
        if "ratio" not in self.spec.budgets:
            budget = Budget("latency", max(1 - ratio, 0.01), "x")
        with watched(self.work) as asked.seen:
            try:
                state = self.stored(pruner.prepare(model, context)) if hasattr(pruner, "prepare") else None
                cut = pruner.prune(model, budget, context, state)
            except (Unsupported, OverBudget) as error:
                asked.refused = error
                return asked
        asked.touched = tuple(n for n, t in model.state_dict().items() if n in before and not t.equal(before[n]))
        if not isinstance(cut, Cut):
            raise Fault(f"prune returned {type(cut).__name__}, not a Cut")
        asked.cut = surgery.check(anatomy, cut)
        return asked

    def cut(self, ratio: float, model: str = models.PLAIN, dtype: str = "fp32") -> Asked:
        asked = self.ask(ratio, model, dtype)
        if asked.refused is not None:
            raise NotApplicable(f"refused {ratio:g}: {asked.refused.cause}")
        return asked

    @cached_property
    def some(self) -> Asked:
        """A cut that the method does make."""
        for ratio in (0.25, 0.5, 0.1):
            if self.ask(ratio).refused is None:
                return self.ask(ratio)
        raise Fault(f"it refused every budget from {RATIOS[0]:g} to {RATIOS[-1]:g}: {self.ask(0.25).refused}")

    @cached_property
    def pair(self) -> tuple[Any, Any, Any]:
        """The dense tiny model, its anatomy, and the model that the cut leaves."""
        from harness import surgery

        model, anatomy = models.tiny(self.some.model)
        return model, anatomy, surgery.apply(model, anatomy, self.some.cut)

    @cached_property
    def saved(self) -> Path:
        """The pruned model's folder; a fresh process begins to read it at once."""
        from harness.checkpoints import folders

        folder = self.work / "saved"
        folder.mkdir()
        folders.write(self.pair[2], None, folder)
        command = [sys.executable, "-m", "harness.checkpoints.fresh", str(folder), str(self.work / "fresh")]
        command += ["--dtype", "fp32", "--workload", "prefill:1x16", "--logits-only"]
        self.fresh = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return folder
