"""What an evaluator must hold."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.api import Context, EvaluatorSpec, Score, Workload
from harness.conformance import tiny_models
from harness.conformance.guard import Seen, disturbed, standing, watched
from harness.conformance.report import Fault, NotApplicable
from harness.conformance.spec_checks import check_spec, heavy
from harness.errors import EnvironmentFault
from harness.evaluation import texts
from harness.plugins import registry
from harness.resolve import settings as resolve
from harness.system import seeds

LIMIT = 3
SCALES = ("mean", "exp-mean")
NEEDS = {"measured", "dense"}


class EvaluatorBench:
    def __init__(self, name: str, given: Mapping[str, Any], work: Path) -> None:
        self.name, self.work = name, work
        self.spec: EvaluatorSpec = registry().get("evaluator", name)
        self.parameters = resolve(f"evaluator {name}", self.spec.parameters, "quick", {**self.spec.check_with, **given})
        self.seen: list[Seen] = []

    def close(self) -> None:
        return None

    def evaluate(self, model: str, limit: int | None = LIMIT) -> dict[str, Score]:
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
        made, anatomy = tiny_models.tiny(model)
        before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        stood = standing(made)
        context = Context(
            anatomy=anatomy,
            tokenizer=byte_tokenizer(),
            work_dir=self.work / "work",
            seed=lambda *axis: seeds.seed(0, *axis),
            calibration=None,
            workloads=[Workload("prefill", 1, 16)],
            limit=limit,
            dense=made if "dense" in self.spec.needs else None,
        )
        with watched(self.work) as seen:
            found = evaluator.evaluate(made, context)
        self.seen.append(seen)
        if changed := [name for name, tensor in made.state_dict().items() if not tensor.equal(before[name])]:
            raise Fault(f"it changed {changed[0]} of the model it was to judge")
        if left := disturbed(stood, standing(made)) or seen.left:
            raise Fault(f"it left {left} changed")
        if not isinstance(found, dict) or not all(isinstance(score, Score) for score in found.values()):
            raise Fault("it must return a dict of Score by name")
        return found

    @cached_property
    def scores(self) -> dict[str, Score]:
        return self.evaluate(tiny_models.PLAIN)

    # --- the checks, in the order they are told ---

    def check_light(self) -> None:
        """Registering imports nothing heavy."""
        heavy("evaluator", self.name)

    def check_spec(self) -> None:
        """The spec is complete, and names the text it reads."""
        check_spec(self.spec, registry().load("evaluator", self.name))
        if unknown := [source for source in self.spec.reads if source not in texts.SOURCES]:
            raise Fault(f"it reads {unknown[0]!r}, which is no text source; known: {', '.join(texts.SOURCES)}")
        if wrong := sorted({*self.spec.needs} - NEEDS):
            raise Fault(f"needs names {wrong[0]!r}; known: {', '.join(sorted(NEEDS))}")

    def check_documents(self) -> None:
        """Every score has a figure per document, so that methods can be compared pair by pair."""
        if not self.scores:
            raise Fault("it returned no score")
        for name, score in self.scores.items():
            if not score.documents:
                raise Fault(f"score {name or 'main'!r} has no documents")
            for key, value in score.documents.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not isinstance(key, str) or not number or not math.isfinite(value):
                    raise Fault(f"document {key!r} of {name or 'main'!r} scores {value!r}: give a finite number")

    def check_words(self) -> None:
        """Names, directions and details are what a record can hold and a table can show."""
        for name, score in self.scores.items():
            if not isinstance(name, str) or not name.isprintable() or re.search(r"[\s,=/]", name):
                raise Fault(f"a score is called {name!r}: no blanks, ',', '=' or '/'; '' is the main one")
            if not isinstance(score.higher_is_better, bool):
                raise Fault(f"higher_is_better of {name or 'main'!r} is {score.higher_is_better!r}, not true or false")
            try:
                json.dumps(dict(score.details), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise Fault(f"the details of {name or 'main'!r} are not JSON: {error}") from None

    def check_mean(self) -> None:
        """The value follows from the documents."""
        for name, score in self.scores.items():
            if score.scale not in SCALES:
                raise Fault(f"score {name or 'main'!r} is on scale {score.scale!r}; known: {', '.join(SCALES)}")
            mean = statistics.fmean(score.documents.values())
            if score.scale == "exp-mean" and mean > 700:
                raise Fault(f"the exponential of {name or 'main'!r} is no number")

    def check_same_documents(self) -> None:
        """Two models are asked the same documents in the same order."""
        other = self.evaluate("llama, one KV head per head, tied")
        if list(other) != list(self.scores):
            raise Fault("another model gets other scores")
        for name, score in self.scores.items():
            if list(other[name].documents) != list(score.documents):
                raise Fault(f"another model gets other documents, or in another order, for {name or 'main'!r}")

    def check_deterministic(self) -> None:
        """The same model scores the same again."""
        again = self.evaluate(tiny_models.PLAIN)
        for name, score in self.scores.items():
            if dict(again[name].documents) != dict(score.documents):
                raise Fault(f"a second run scores {name or 'main'!r} differently: scores must not depend on chance")

    def check_limit(self) -> None:
        """`ctx.limit` is the most documents it looks at, and the first of them stay the same."""
        fewer = self.evaluate(tiny_models.PLAIN, limit=1)
        for name, score in self.scores.items():
            if len(score.documents) > LIMIT:
                raise Fault(f"{LIMIT} documents were asked for, {name or 'main'!r} has {len(score.documents)}")
            if list(fewer[name].documents) != list(score.documents)[: len(fewer[name].documents)]:
                raise Fault(f"with a smaller limit {name or 'main'!r} takes other documents")

    def check_unlimited(self) -> None:
        """Without a limit it takes all documents."""
        if self.spec.reads or self.spec.tokens:
            raise NotApplicable("all of a text or task set would take minutes")
        every = self.evaluate(tiny_models.PLAIN, limit=None)
        for name, score in self.scores.items():
            if list(every[name].documents)[: len(score.documents)] != list(score.documents):
                raise Fault(f"without a limit {name or 'main'!r} takes other documents")

    def check_quiet(self) -> None:
        """It prints nothing: stdout is the record's."""
        assert self.scores
        if printed := next((seen.printed for seen in self.seen if seen.printed), ""):
            raise Fault(f"it printed to stdout: {printed.strip().splitlines()[0][:80]!r}; use ctx.progress")

    def check_tidy(self) -> None:
        """It writes nowhere but into ctx.work_dir."""
        assert self.scores
        if wrote := next((seen.wrote for seen in self.seen if seen.wrote), []):
            where = wrote[0].replace(str(self.work / "home"), "~").replace(str(self.work / "here"), ".")
            raise Fault(f"it wrote to {where}, outside ctx.work_dir")

    def check_offline(self) -> None:
        """It connects to nothing when its text is on this machine."""
        assert self.scores
        if to := next((seen.connected for seen in self.seen if seen.connected), []):
            raise Fault(f"it connected to {to[0]}")
