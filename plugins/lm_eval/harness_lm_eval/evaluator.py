"""A benchmark as an evaluator of harness: accuracy per document, by lm-eval's own prompts and metrics."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

from harness import Context, HarnessError, Score, Scores
from harness.plugins import unknown_name
from harness.records.keys import canonical
from harness_lm_eval import rows
from harness_lm_eval.tasks import SUBJECTS, TASKS, Part

Question = tuple[str, Any, Any, list[Any]]  # key of the document, lm-eval's task, the document, lm-eval's requests


class Benchmark:
    """The base class of all benchmarks. `name` is a key of `tasks.TASKS`."""

    name = ""

    def __init__(self, fewshot: int = 0, subjects: str = "") -> None:
        self.fewshot, self.subjects = fewshot, subjects
        self.parts = _select(TASKS[self.name], subjects)

    @cached_property
    def sources(self) -> list[rows.TaskRows]:
        """The rows of each part."""
        return [rows.find(part.source) for part in self.parts]

    def identity(self, fetch: bool) -> dict[str, Any]:
        """lm-eval's version, and the content of the rows of each part."""
        sources = self.sources if fetch else [rows.find(part.source, fetch) for part in self.parts]
        identity: dict[str, Any] = {"lm_eval": version("lm-eval")}
        return identity | {part.name: source.identity for part, source in zip(self.parts, sources, strict=True)}

    def evaluate(self, model: Any, ctx: Context) -> Scores:
        from harness_lm_eval.model import SharedLM

        lm = SharedLM(model, ctx.tokenizer, ctx.progress)
        questions = list(self.questions(ctx.limit))
        all_requests = [request for *_, requests in questions for request in requests]
        answers = iter(lm.loglikelihood(all_requests, disable_tqdm=True))
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for key, task, doc, requests in questions:
            metrics = task.process_results(doc, list(itertools.islice(answers, len(requests))))
            for metric in ("acc", "acc_norm"):
                if metric in metrics:
                    values[metric][key] = float(metrics[metric])
        _, first_task, *_ = questions[0]
        split = self.parts[0].split(first_task.dataset)
        notes = [*_notes(lm), *self.parts[0].notes(split)]
        facts: dict[str, Any] = {"details": self._details(first_task, split), "notes": notes}
        main = Score(values["acc"], higher_is_better=True, **facts)
        return {"": main} | {name: Score(values[name], True, **facts) for name in values if name != "acc"}

    def questions(self, limit: int | None) -> Iterator[Question]:
        """The first documents of every part, with lm-eval's requests for each."""
        for part, source, count in zip(self.parts, self.sources, _counts(len(self.parts), limit), strict=True):
            if count == 0:
                continue
            with _errors_name(f"the rows of {part.name}", part):
                task = part.build(source, self.fewshot, count)
            for number, doc in task.doc_iterator(limit=count):
                with _errors_name(f"row {part.name}/{number}", part):
                    context = task.fewshot_context(doc, self.fewshot)
                    requests = task.construct_requests(doc=doc, ctx=context, metadata=(part.name, number, 1))
                    question = f"{part.name}/{number}", task, doc, requests
                    _must_have_answer(question)
                yield question

    def _details(self, task: Any, split: str) -> dict[str, Any]:
        """Facts for the record."""
        count, used = self.sources[0].counts.get(split, (0, 0))
        return {
            "task_version": task.VERSION,
            "lm_eval": version("lm-eval"),
            "fewshot": self.fewshot,
            "split": split,
            "data": _identity(self.name, self.sources),
            "documents_from": "the first of the split" + (", each subject in turn" if len(self.parts) > 1 else ""),
            **({"rows": {"in the split": count, "that may be asked": used}} if used < count else {}),
        }


def _notes(lm: Any) -> list[str]:
    """Notes for the record about what happened while the model scored the requests."""
    notes = {
        f"{lm.truncated} requests are longer than {lm.max_length} tokens; they lost their start": lm.truncated,
        f"a pass did not fit into memory; continued with {lm.scorer.capacity} tokens a pass": lm.scorer.halved,
        f"scored by lm-eval's stock class: rows are longer than a window of {lm.window}": lm.slides,
    }
    return [text for text, applies in notes.items() if applies]


@contextmanager
def _errors_name(what: str, part: Part) -> Iterator[None]:
    """Turn errors of lm-eval's code into one that names the rows. That code assumes columns and answers to be there."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(
            f"{what} cannot be asked: {type(error).__name__}: {error}",
            f"give rows with the columns and answers of {part.source.hub}",
        ) from error


def _must_have_answer(question: Question) -> None:
    """Raise if a row has no valid answer, as in hidden test sets: every choice would count as wrong."""
    key, task, doc, _ = question
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    if answer not in (choices if isinstance(answer, str) else range(len(choices))):
        raise HarnessError(
            f"row {key} has the answer {answer!r}, which is none of its choices", "give rows with answers"
        )


def _identity(name: str, sources: Sequence[rows.TaskRows]) -> dict[str, Any]:
    """The identity of all rows; for several parts, one hash over their identities."""
    if len(sources) == 1:
        return sources[0].identity
    sha256 = hashlib.sha256(canonical([source.identity for source in sources]).encode()).hexdigest()
    return {"name": name, "source": sorted({str(source.identity["source"]) for source in sources}), "sha256": sha256}


def _select(parts: Sequence[Part], subjects: str) -> list[Part]:
    """The parts with these names, joined by +; all parts if there is none."""
    names = [name for name in subjects.split("+") if name]
    for name in names:
        if name not in SUBJECTS:
            raise unknown_name("subject of mmlu", name, SUBJECTS)
    return [part for part in parts if not names or part.name in names]


def _counts(parts: int, limit: int | None) -> list[int | None]:
    """The number of documents of each part, so that they add up to the limit and differ by at most one."""
    if limit is None:
        return [None] * parts
    return [limit // parts + (at < limit % parts) for at in range(parts)]
