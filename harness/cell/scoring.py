"""Scores the dense and the pruned model of a cell with the same documents, and compares them document by document.

Each evaluator is a stage of its own. If one fails, the others still run, and its reason is recorded instead of a score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from harness.api import Score
from harness.cell.plan import Evaluation
from harness.cell.workspace import Workspace
from harness.errors import EnvironmentFault, HarnessError, describe, one_line
from harness.evaluation import score_stats, texts
from harness.records import keys, schema
from harness.records.schema import ScoreRecord
from harness.records.store import Store
from harness.system import seeds
from harness.system.interrupts import interrupts
from harness.system.isolation import plugin_code

Payloads = dict[str, dict[str, Any]]  # of scores, by name


class Scoring:
    """Runs all evaluators of a plan on both models. `measured` holds what the run measured of each of them before."""

    def __init__(
        self, workspace: Workspace, artefact: schema.Artefact, measured: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.workspace = workspace
        self.artefact = artefact
        self.measured = measured
        self.plan, self.store = workspace.plan, workspace.store
        self.failed: dict[str, str] = {}  # reasons, by the evaluator's label

    def run(self) -> dict[str, ScoreRecord]:
        """All scores by name. Why an evaluator gave none stands in `failed`."""
        records: dict[str, ScoreRecord] = {}
        for evaluation in self.plan.evaluations:
            try:
                with interrupts.as_keyboard_interrupt():
                    dense = self._scores("dense", evaluation)
                    pruned = self._scores("pruned", evaluation)
                    note = texts.overlap_note(self.plan.spec.calibration, evaluation.spec.name)
                    for name, payload in pruned.items():
                        record = compare_scores(payload, dense.get(name), self.store)
                        record.notes = [*record.notes, note] if note else record.notes
                        records[evaluation.score_name(name)] = record
            except EnvironmentFault:
                raise
            except HarnessError as error:
                self.failed[evaluation.label] = one_line(error.line)
            except (Exception, SystemExit) as error:
                key = keys.key("eval", self.plan.eval_parts(self.artefact.sha256, evaluation))
                log = self.store.log_traceback(key)
                self.failed[evaluation.label] = f"{describe(error, 1900)} (traceback: logs/{log.name})"
        return records

    def _scores(self, side: str, evaluation: Evaluation) -> Payloads:
        """The scores of one model by one evaluator, from the store or computed now."""
        content = self.plan.model_key() if side == "dense" else self.artefact.sha256
        parts = self.plan.eval_parts(content, evaluation, self.measured[side])
        key = keys.key("eval", parts)
        stored = self.store.stage("eval", key)
        if stored is not None and not self.store.lacks(*(payload["samples"] for payload in stored.values())):
            return stored
        start = time.monotonic()
        self.workspace.dense()  # load now, so that loading is its own stage and not part of the evaluator's
        with self.workspace.stage(f"{evaluation.label} of {side}") as progress:
            scores = self._evaluate(side, evaluation, progress)
            payloads = {name: score_payload(score, self.store) for name, score in scores.items()}
        self.store.save_stage("eval", key, parts, payloads)
        self.workspace.cost.evaluate_s += time.monotonic() - start
        return payloads

    def _evaluate(self, side: str, evaluation: Evaluation, progress: Any) -> Mapping[str, Score]:
        """Run one evaluator on one model."""
        workspace, needs = self.workspace, evaluation.spec.needs
        folder = self.store.path(self.artefact.path)
        models = [workspace.dense() if side == "dense" else workspace.pruned(folder)]
        if "dense" in needs:
            models.append(workspace.dense())
        with placed(models, self.plan.torch_device) as (model, *_):
            ctx = workspace.context(
                progress,
                tokenizer=workspace.tokenizer(),
                folder=folder if side == "pruned" else None,
                measured=self.measured[side] if "measured" in needs else None,
                dense=workspace.dense() if "dense" in needs else None,
                # Not the run's seed, so that scores of runs with different seeds can be compared.
                seed=lambda *axis: seeds.seed(0, *axis),
            )
            evaluator = evaluation.build()
            try:
                with plugin_code(f"evaluator {evaluation.label}"):
                    return evaluator.evaluate(model, ctx)
            except EnvironmentFault as fault:  # the evaluator's data is at fault, not the store: the run goes on
                raise HarnessError(fault.cause, fault.remedy) from fault


@contextmanager
def placed(models: Sequence[Any], place: str) -> Iterator[list[Any]]:
    """Move models to a torch device, and back to the CPU afterwards: further models may not fit beside them."""
    try:
        yield [model.to(place) for model in models]
    finally:
        for model in models:
            model.to("cpu")


def score_payload(score: Score, store: Store) -> dict[str, Any]:
    """A score as the record holds it. Its values per document go to a side file."""
    mean, _ = score_stats.mean_stderr(list(score.documents.values()))
    if not math.isfinite(mean) or (score.scale == "exp-mean" and mean > score_stats.MOST):
        raise HarnessError("the evaluation is not a number: the model overflows", "ask for a smaller ratio")
    value, stderr = score_stats.estimate(list(score.documents.values()), score.scale)
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


def compare_scores(pruned: dict[str, Any], dense: dict[str, Any] | None, store: Store) -> ScoreRecord:
    """The record of a pruned model's score, with the dense model's score and the change over the shared documents."""
    if dense is None:
        return ScoreRecord(**pruned)
    pruned_documents, dense_documents = (
        store.read_side_file(payload["samples"])["documents"] for payload in (pruned, dense)
    )
    change, change_ci95 = score_stats.change(pruned_documents, dense_documents, pruned.get("scale", ""))
    notes = list(pruned.get("notes", []))
    notes += [f"of dense: {note}" for note in dense.get("notes", []) if note not in notes]
    return ScoreRecord(
        **{**pruned, "notes": notes},
        dense=dense["value"],
        dense_stderr=dense["stderr"],
        change=change,
        change_ci95=change_ci95,
        dense_samples=dense["samples"],
    )
