"""A cell's scores: dense and pruned asked the same, and compared document by document.

Each evaluator is a stage of its own. One that fails takes nothing along: its reason stands where its score would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness import stats
from harness.api import Score
from harness.cell.plan import Evaluation, Plan
from harness.cell.workspace import Workspace
from harness.errors import EnvironmentFault, HarnessError, describe, one_line
from harness.evaluation import texts
from harness.records import keys, schema
from harness.records.schema import ScoreRecord
from harness.records.store import Store
from harness.system import seeds
from harness.system.interrupts import interrupts
from harness.system.isolation import plugin_code

Outcomes = dict[str, dict[str, Any]]


class Scoring:
    """All evaluators of a plan over its two models. `measured` tells what the run measured of a side before."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        stage: Callable[[str], Any],
        context: Callable[..., Any],
        cost: schema.Cost,
        measured: Mapping[str, dict[str, Any]],
    ) -> None:
        self.plan, self.store, self.stage, self.context, self.cost = plan, store, stage, context, cost
        self.measured = measured
        self.failed: dict[str, str] = {}

    def run(self, made: Workspace, artefact: schema.Artefact) -> dict[str, ScoreRecord]:
        found: dict[str, ScoreRecord] = {}
        for evaluation in self.plan.evaluations:
            try:
                with interrupts.told_apart():
                    dense = self._side("dense", self.plan.model_key(), made, artefact, evaluation)
                    pruned = self._side("pruned", artefact.sha256, made, artefact, evaluation)
                    note = texts.asked_about(self.plan.spec.calibration, evaluation.spec.name)
                    for name, words in pruned.items():
                        score = compared(words, dense.get(name), self.store)
                        score.notes = [*score.notes, note] if note else score.notes
                        found[evaluation.score_name(name)] = score
            except EnvironmentFault:
                raise
            except HarnessError as error:
                self.failed[evaluation.label] = one_line(error.line)
            except (Exception, SystemExit) as error:
                log = self.store.log_traceback(keys.key("eval", self.plan.eval_parts(artefact.sha256, evaluation)))
                self.failed[evaluation.label] = f"{describe(error, 1900)} (traceback: logs/{log.name})"
        return found

    def _side(
        self, side: str, content: Any, made: Workspace, artefact: schema.Artefact, evaluation: Evaluation
    ) -> Outcomes:
        parts = self.plan.eval_parts(content, evaluation, self.measured[side])
        key = keys.key("eval", parts)
        stored = self.store.stage("eval", key)
        if stored is not None and not self.store.lacks(*(score["samples"] for score in stored.values())):
            return stored
        start, needs = time.monotonic(), evaluation.spec.needs
        made.dense()  # load now, so that loading is its own stage and not part of the evaluator's
        with self.stage(f"{evaluation.label} of {side}") as progress:
            both = (
                made.dense() if side == "dense" else made.pruned(self.store.path(artefact.path)),
                *([made.dense()] if "dense" in needs else []),
            )
            with placed(both, self.plan.place) as (model, *_):
                ctx = self.context(
                    progress,
                    tokenizer=made.tokenizer(),
                    folder=self.store.path(artefact.path) if side == "pruned" else None,
                    measured=self.measured[side] if "measured" in needs else None,
                    dense=made.dense() if "dense" in needs else None,
                    seed=lambda *axis: seeds.seed(0, *axis),  # scores of two runs with different seeds compare
                )
                evaluator = evaluation.build()
                try:
                    with plugin_code(f"evaluator {evaluation.label}"):
                        scores = evaluator.evaluate(model, ctx)
                except EnvironmentFault as fault:  # of its data, not of the store
                    raise HarnessError(fault.cause, fault.remedy) from fault
            stored = {name: score_words(score, self.store) for name, score in scores.items()}
        self.store.save_stage("eval", key, parts, stored)
        self.cost.evaluate_s += time.monotonic() - start
        return stored


@contextmanager
def placed(models: Sequence[Any], place: str) -> Iterator[list[Any]]:
    """Models where they are to be evaluated; back afterwards, since more may not fit there together."""
    try:
        yield [model.to(place) for model in models]
    finally:
        for model in models:
            model.to("cpu")


def score_words(score: Score, store: Store) -> dict[str, Any]:
    """A score as the record holds it, its documents in a side file."""
    mean, _ = stats.mean_stderr(list(score.documents.values()))
    if not math.isfinite(mean) or (score.scale == "exp-mean" and mean > stats.MOST):
        raise HarnessError("the evaluation is not a number: the model overflows", "ask for a smaller ratio")
    value, stderr = stats.estimate(list(score.documents.values()), score.scale)
    return {
        "value": value,
        "stderr": stderr,
        "n": len(score.documents),
        "higher_is_better": score.higher_is_better,
        "scale": score.scale,
        "details": dict(score.details),
        "notes": list(score.notes),
        "texts": [dict(pair) for pair in score.texts],
        "samples": store.side_file({"scale": score.scale, "documents": dict(score.documents)}),
    }


def compared(pruned: dict[str, Any], dense: dict[str, Any] | None, store: Store) -> ScoreRecord:
    """A score beside the dense model's, and how far they are apart on the documents that both were asked."""
    if dense is None:
        return ScoreRecord(**pruned)
    ours, theirs = (store.read_side_file(words["samples"])["documents"] for words in (pruned, dense))
    change, change_ci95 = stats.change(ours, theirs, pruned.get("scale", ""))
    noted = pruned.get("notes", [])
    notes = [*noted, *(f"of dense: {words}" for words in dense.get("notes", []) if words not in noted)]
    return ScoreRecord(
        **{**pruned, "notes": notes},
        dense=dense["value"],
        dense_stderr=dense["stderr"],
        change=change,
        change_ci95=change_ci95,
        dense_samples=dense["samples"],
    )
