"""The conformance checks for evaluators."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.api import Context, EvaluatorSpec, Score, Workload
from harness.conformance import tiny_models
from harness.conformance.guard import SideEffects, first_difference, model_state, record_side_effects, short_path
from harness.conformance.report import Fault, NotApplicable, first_line
from harness.conformance.spec_checks import check_light_import, check_spec
from harness.errors import EnvironmentFault
from harness.evaluation import texts
from harness.plugins import registry
from harness.resolve import resolve_settings as resolve
from harness.system import seeds

LIMIT = 3
SCALES = ("mean", "exp-mean")
NEEDS = {"measured", "dense"}


class EvaluatorBench:
    """Scores tiny models and holds the checks. They run in the order in which they are written here."""

    def __init__(self, name: str, settings: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: EvaluatorSpec = registry().get("evaluator", name)
        self.parameters = resolve(
            f"evaluator {name}", self.spec.parameters, "quick", {**self.spec.check_with, **settings}
        )
        self.side_effects: list[SideEffects] = []
        self._scores: dict[str, Score] | None = None

    def close(self) -> None:
        return None

    def evaluate(self, model_name: str, limit: int | None = LIMIT) -> dict[str, Score]:
        """Score a tiny model; fail if the evaluator changes it or a setting of torch."""
        from harness.models.loading.tiny import byte_tokenizer

        for source in self.spec.reads:
            if texts.local(source) is None:
                raise NotApplicable(f"the text {source} is not on this machine")
        evaluator = registry().load("evaluator", self.name)(**self.parameters)
        if hasattr(evaluator, "identity"):
            try:
                evaluator.identity(True)
            except EnvironmentFault as fault:
                raise NotApplicable(fault.cause) from None
        model, anatomy = tiny_models.tiny(model_name)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = model_state(model)
        context = Context(
            anatomy=anatomy,
            tokenizer=byte_tokenizer(),
            work_dir=self.work / "work",
            seed=lambda *axis: seeds.seed(0, *axis),
            calibration=None,
            workloads=[Workload("prefill", 1, 16)],
            limit=limit,
            dense=model if "dense" in self.spec.needs else None,
        )
        with record_side_effects(self.work) as effects:
            scores = evaluator.evaluate(model, context)
        self.side_effects.append(effects)
        if changed := [name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])]:
            raise Fault(f"it changed {changed[0]} of the model that it evaluates")
        changed_setting = first_difference(state, model_state(model)) or effects.changed_setting
        if changed_setting:
            raise Fault(f"it left {changed_setting} changed")
        if not isinstance(scores, dict) or not all(isinstance(score, Score) for score in scores.values()):
            raise Fault("it must return a dict of Score by name")
        return scores

    def scores(self) -> dict[str, Score]:
        """The scores of the plain tiny model, computed once."""
        if self._scores is None:
            self._scores = self.evaluate(tiny_models.PLAIN)
        return self._scores

    # --- the checks ---

    def check_light(self) -> None:
        """Registering imports nothing heavy."""
        check_light_import("evaluator", self.name)

    def check_spec(self) -> None:
        """The spec is complete and names the texts that it reads."""
        check_spec(self.spec, registry().load("evaluator", self.name))
        if unknown := [source for source in self.spec.reads if source not in texts.SOURCES]:
            raise Fault(f"it reads {unknown[0]!r}, which is not a text source; known: {', '.join(texts.SOURCES)}")
        if unknown := sorted({*self.spec.needs} - NEEDS):
            raise Fault(f"needs names {unknown[0]!r}; known: {', '.join(sorted(NEEDS))}")

    def check_documents(self) -> None:
        """Every score has one finite number per document, so that methods can be compared pair by pair."""
        if not self.scores():
            raise Fault("it returned no score")
        for name, score in self.scores().items():
            if not score.documents:
                raise Fault(f"score {name or 'main'!r} has no documents")
            for key, value in score.documents.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not isinstance(key, str) or not number or not math.isfinite(value):
                    raise Fault(f"document {key!r} of {name or 'main'!r} scores {value!r}: give a finite number")

    def check_words(self) -> None:
        """Names, directions and details fit into a record and a table."""
        for name, score in self.scores().items():
            if not isinstance(name, str) or not name.isprintable() or re.search(r"[\s,=/]", name):
                raise Fault(f"a score is called {name!r}: no blanks, ',', '=' or '/'; '' is the main one")
            if not isinstance(score.higher_is_better, bool):
                raise Fault(f"higher_is_better of {name or 'main'!r} is {score.higher_is_better!r}, not true or false")
            try:
                json.dumps(dict(score.details), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise Fault(f"the details of {name or 'main'!r} are not JSON: {error}") from None

    def check_mean(self) -> None:
        """The value can be computed from the documents: as their mean, or its exponential."""
        for name, score in self.scores().items():
            if score.scale not in SCALES:
                raise Fault(f"score {name or 'main'!r} is on scale {score.scale!r}; known: {', '.join(SCALES)}")
            mean = statistics.fmean(score.documents.values())
            if score.scale == "exp-mean" and mean > 700:
                raise Fault(f"the exponential of {name or 'main'!r} is too large for a number")

    def check_same_documents(self) -> None:
        """Two models are scored on the same documents in the same order."""
        second = self.evaluate("llama, one KV head per head, tied")
        if list(second) != list(self.scores()):
            raise Fault("another model gets other scores")
        for name, score in self.scores().items():
            if list(second[name].documents) != list(score.documents):
                raise Fault(f"another model gets other documents, or in another order, for {name or 'main'!r}")

    def check_deterministic(self) -> None:
        """The same model gets the same scores again."""
        again = self.evaluate(tiny_models.PLAIN)
        for name, score in self.scores().items():
            if dict(again[name].documents) != dict(score.documents):
                raise Fault(f"a second run scores {name or 'main'!r} differently: scores must not depend on chance")

    def check_limit(self) -> None:
        """It scores at most `ctx.limit` documents; a smaller limit takes the first of the same documents."""
        fewer = self.evaluate(tiny_models.PLAIN, limit=1)
        for name, score in self.scores().items():
            if len(score.documents) > LIMIT:
                raise Fault(f"{LIMIT} documents were asked for, {name or 'main'!r} has {len(score.documents)}")
            if list(fewer[name].documents) != list(score.documents)[: len(fewer[name].documents)]:
                raise Fault(f"with a smaller limit {name or 'main'!r} takes other documents")

    def check_unlimited(self) -> None:
        """Without a limit it scores all documents, and the first ones are the same as with a limit."""
        if self.spec.reads or self.spec.tokens:
            raise NotApplicable("all of a text or task set would take minutes")
        unlimited = self.evaluate(tiny_models.PLAIN, limit=None)
        for name, score in self.scores().items():
            if list(unlimited[name].documents)[: len(score.documents)] != list(score.documents):
                raise Fault(f"without a limit {name or 'main'!r} takes other documents")

    def check_quiet(self) -> None:
        """It prints nothing: stdout is for the record."""
        self.scores()
        for effects in self.side_effects:
            if effects.stdout:
                raise Fault(f"it printed to stdout: {first_line(effects.stdout)!r}; use ctx.progress")

    def check_tidy(self) -> None:
        """It writes only to ctx.work_dir."""
        self.scores()
        for effects in self.side_effects:
            if effects.writes:
                raise Fault(f"it wrote to {short_path(effects.writes[0], self.work)}, outside ctx.work_dir")

    def check_offline(self) -> None:
        """It opens no network connection when its text is on this machine."""
        self.scores()
        for effects in self.side_effects:
            if effects.connections:
                raise Fault(f"it connected to {effects.connections[0]}")
