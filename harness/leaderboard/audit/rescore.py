"""Scores, and what they are compared with, counted again from the documents behind them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import score_stats
from harness.leaderboard.audit.recount import apart
from harness.leaderboard.entries import Entry, documents_of
from harness.records.keys import canonical
from harness.records.sample_files import SIDE_FILE, side_words
from harness.records.schema import ScoreRecord

Dense = Mapping[str, Sequence[Path]]  # what was asked of dense models, and the side files with their answers
AGAINST = ("dense", "dense_stderr", "change", "change_ci95")


def dense_samples(entries: Sequence[Entry]) -> Dense:
    """Whose samples records can borrow that do not name their dense model's, as older ones do not."""
    found: dict[str, dict[Path, None]] = {}
    if any(True for entry in entries for _ in _borrowing(entry.words)):
        for entry in entries:
            with suppress(AttributeError, KeyError, TypeError):  # of a damaged record, which its verdict tells
                for name, score in entry.words["scores"].items():
                    if SIDE_FILE.fullmatch(score.get("dense_samples") or ""):
                        found.setdefault(_question(entry, name), {})[entry.side / score["dense_samples"]] = None
    return {question: list(files) for question, files in found.items()}


def _borrowing(words: Mapping[str, Any]) -> Iterator[str]:
    """The scores that stand beside a dense one without its samples."""
    with suppress(AttributeError, KeyError, TypeError):
        for name, score in words["scores"].items():
            if score.get("dense") is not None and not score.get("dense_samples"):
                yield name


def _question(entry: Entry, name: str) -> str:
    """All that a dense score hangs on: records of one folder that agree in it have the same one."""
    words = entry.words
    spec, score = words["spec"], words["scores"][name]
    model = [spec[part] for part in ("model", "revision", "dtype")]
    how = [score.get("scale", ""), score.get("details", {})]
    return canonical([str(entry.side), *model, words["environment"]["device"], name, *how])


def _lent(entry: Entry, name: str, dense: Dense) -> list[Mapping[str, float]]:
    """The scores of the dense model's documents that records beside this one name, as far as they can be read."""
    lent = []
    for path in dense.get(_question(entry, name), ()):
        with suppress(HarnessError):  # told of the record that names it
            lent.append(documents_of(path, side_words(path)))
    return [documents for documents in lent if documents]


def unfollowed(entry: Entry, dense: Dense) -> Iterator[str]:
    """What has no samples, in a verdict's words."""
    if names := [name for name in _borrowing(entry.words) if not _lent(entry, name, dense)]:
        told = ", ".join(names)
        yield f"dense figures of {told} without samples: they cannot be followed, only set against the score"


def followed(entry: Entry, dense: Dense) -> Iterator[str]:
    for name, score in entry.record.scores.items():
        words = side_words(entry.side / score.samples) if score.samples else None
        ours = documents_of(entry.side / score.samples, words)
        if ours is None:
            continue  # told as missing
        if not ours or (words or {}).get("scale", score.scale) != score.scale:
            yield f"{name}: its samples are not those of such a score"
            continue
        value, stderr = score_stats.estimate(list(ours.values()), score.scale)
        known = score.model_dump(mode="json", include={"value", "stderr", "n"})
        found = apart(known, {"value": value, "stderr": stderr, "n": len(ours)})
        yield from (f"{name}: {where}" for where in [*found, *_against(entry, name, ours, dense)])


def _against(entry: Entry, name: str, ours: Mapping[str, float], dense: Dense) -> Iterator[str]:
    """The figures that hang on the dense model, by its own samples, by those of a record beside, or by each other."""
    score = entry.record.scores[name]
    known = {figure: getattr(score, figure) for figure in AGAINST}
    if score.dense_samples:
        path = entry.side / score.dense_samples
        theirs = documents_of(path, side_words(path))
        if theirs is not None:  # else told as missing
            yield from apart(known, _figures(ours, theirs, score.scale))
    elif score.dense is None:
        yield from apart(known, dict.fromkeys(AGAINST), by="a record without a dense score")
    elif lent := _lent(entry, name, dense):
        tries = (_figures(ours, theirs, score.scale) for theirs in lent)
        yield from min((list(apart(known, found, by="the samples beside it")) for found in tries), key=len)
    else:
        yield from _alone(score)


def _figures(ours: Mapping[str, float], theirs: Mapping[str, float], scale: str) -> dict[str, Any]:
    values = (*score_stats.estimate(list(theirs.values()), scale), *score_stats.change(ours, theirs, scale))
    return dict(zip(AGAINST, values, strict=True))


def _alone(score: ScoreRecord) -> Iterator[str]:
    """Without samples: the change is of these two values, and within its interval."""
    assert score.dense is not None
    if score.change is not None:
        change = score.value / score.dense if score.scale == "exp-mean" else score.value - score.dense
        yield from apart({"change": score.change}, {"change": change}, by="value and dense")
        if score.change_ci95 and not score.change_ci95[0] <= score.change <= score.change_ci95[1]:
            yield f"change is {score.change}, outside of {score.change_ci95}"
