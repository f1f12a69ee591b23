"""One benchmark as an evaluator: accuracy per document, by lm-eval's own prompts and metrics."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

from harness.api import Context, Score, Scores
from harness.errors import HarnessError
from harness.plugins import unknown
from harness.records.keys import canonical
from harness_lm_eval import rows
from harness_lm_eval.tasks import SUBJECTS, TASKS, Part

Question = tuple[str, Any, Any, list[Any]]  # a document's name, its task, itself, and the requests


class Benchmark:
    """`name` is one of `tasks.TASKS`."""

    name = ""

    def __init__(self, fewshot: int = 0, subjects: str = "") -> None:
        self.fewshot, self.subjects = fewshot, subjects
        self.parts = _chosen(TASKS[self.name], subjects)

    @cached_property
    def sources(self) -> list[rows.TaskRows]:
        return [rows.find(part.source) for part in self.parts]

    def identity(self, fetch: bool) -> dict[str, Any]:
        """What is asked: lm-eval's version, and the rows by their content."""
        here = self.sources if fetch else [rows.find(part.source, fetch) for part in self.parts]
        told: dict[str, Any] = {"lm_eval": version("lm-eval")}
        return told | {part.name: found.identity for part, found in zip(self.parts, here, strict=True)}

    def evaluate(self, model: Any, ctx: Context) -> Scores:
        from harness_lm_eval.model import SharedLM

        lm = SharedLM(model, ctx.tokenizer, ctx.progress)
        asked = list(self.questions(ctx.limit))
        answers = iter(lm.loglikelihood([one for *_, requests in asked for one in requests], disable_tqdm=True))
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for key, task, doc, requests in asked:
            found = task.process_results(doc, list(itertools.islice(answers, len(requests))))
            for metric in ("acc", "acc_norm"):
                if metric in found:
                    values[metric][key] = float(found[metric])
        split = self.parts[0].split(asked[0][1].dataset)
        notes = [*_notes(lm), *self.parts[0].notes(split)]
        about: dict[str, Any] = {"details": self._details(asked[0][1], split), "notes": notes}
        main = Score(values["acc"], higher_is_better=True, **about)
        return {"": main} | {name: Score(values[name], True, **about) for name in values if name != "acc"}

    def questions(self, limit: int | None) -> Iterator[Question]:
        """The first documents of every part, with lm-eval's requests for each."""
        for part, found, share in zip(self.parts, self.sources, _shares(len(self.parts), limit), strict=True):
            if share == 0:
                continue
            with _naming_the_benchmark(f"the rows of {part.name}", part):
                task = part.build(found, self.fewshot, share)
            for number, doc in task.doc_iterator(limit=share):
                with _naming_the_benchmark(f"row {part.name}/{number}", part):
                    context = task.fewshot_context(doc, self.fewshot)
                    requests = task.construct_requests(doc=doc, ctx=context, metadata=(part.name, number, 1))
                    asked = f"{part.name}/{number}", task, doc, requests
                    _answerable(asked)
                yield asked

    def _details(self, first: Any, split: str) -> dict[str, Any]:
        count, taken = self.sources[0].counts.get(split, (0, 0))
        return {
            "task_version": first.VERSION,
            "lm_eval": version("lm-eval"),
            "fewshot": self.fewshot,
            "split": split,
            "data": _named(self.name, self.sources),
            "documents_from": "the first of the split" + (", each subject in turn" if len(self.parts) > 1 else ""),
            **({"rows": {"in the split": count, "that may be asked": taken}} if taken < count else {}),
        }


def _notes(lm: Any) -> list[str]:
    told = {
        f"{lm.truncated} requests are longer than {lm.max_length} tokens; they lost their start": lm.truncated,
        f"a pass did not fit into memory; continued with {lm.scorer.capacity} tokens a pass": lm.scorer.halved,
        f"scored by lm-eval's stock class: rows are longer than a window of {lm.window}": lm.slides,
    }
    return [words for words, so in told.items() if so]


@contextmanager
def _naming_the_benchmark(what: str, part: Part) -> Iterator[None]:
    """lm-eval's definitions take their columns and answers for granted."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(
            f"{what} cannot be asked: {type(error).__name__}: {error}",
            f"give rows with the columns and answers of {part.source.hub}",
        ) from error


def _answerable(asked: Question) -> None:
    """A row without a valid answer (hidden test sets have such) would only ever count as wrong."""
    key, task, doc, _ = asked
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    if answer not in (choices if isinstance(answer, str) else range(len(choices))):
        raise HarnessError(
            f"row {key} has the answer {answer!r}, which is none of its choices", "give rows with answers"
        )


def _named(name: str, found: Sequence[rows.TaskRows]) -> dict[str, Any]:
    """The rows by their content; of many parts, one hash over all."""
    if len(found) == 1:
        return found[0].identity
    whole = hashlib.sha256(canonical([one.identity for one in found]).encode()).hexdigest()
    return {"name": name, "source": sorted({str(one.identity["source"]) for one in found}), "sha256": whole}


def _chosen(parts: Sequence[Part], subjects: str) -> list[Part]:
    names = [name for name in subjects.split("+") if name]
    for name in names:
        if name not in SUBJECTS:
            raise unknown("subject of mmlu", name, SUBJECTS)
    return [part for part in parts if not names or part.name in names]


def _shares(parts: int, limit: int | None) -> list[int | None]:
    """Documents of each part, so that all together are as many as asked for: each part in turn gives one."""
    if limit is None:
        return [None] * parts
    return [limit // parts + (at < limit % parts) for at in range(parts)]
