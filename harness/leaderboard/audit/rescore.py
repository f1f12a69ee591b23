"""Recomputes scores, and their changes from the dense model, from the scores of documents. No torch."""

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
from harness.records.sample_files import SIDE_FILE, load_side_file
from harness.records.schema import ScoreRecord

Dense = Mapping[str, Sequence[Path]]  # how a dense model was scored, and the side files with such scores
DENSE_FIELDS = ("dense", "dense_stderr", "change", "change_ci95")


def dense_samples(entries: Sequence[Entry]) -> Dense:
    """The dense samples that records name, for older records that do not name their own."""
    files_of: dict[str, dict[Path, None]] = {}
    if any(True for entry in entries for _ in _without_samples(entry.payload)):
        for entry in entries:
            with suppress(AttributeError, KeyError, TypeError):  # a damaged record, as its own verdict says
                for name, score in entry.payload["scores"].items():
                    if SIDE_FILE.fullmatch(score.get("dense_samples") or ""):
                        files_of.setdefault(_dense_request(entry, name), {})[entry.side / score["dense_samples"]] = None
    return {request: list(files) for request, files in files_of.items()}


def _without_samples(payload: Mapping[str, Any]) -> Iterator[str]:
    """The names of scores that have a dense score but not its samples."""
    with suppress(AttributeError, KeyError, TypeError):
        for name, score in payload["scores"].items():
            if score.get("dense") is not None and not score.get("dense_samples"):
                yield name


def _dense_request(entry: Entry, name: str) -> str:
    """All that a dense score depends on. Records of one folder that agree in it have the same dense score."""
    payload = entry.payload
    spec, score = payload["spec"], payload["scores"][name]
    model = [spec[part] for part in ("model", "revision", "dtype")]
    protocol = [score.get("scale", ""), score.get("details", {})]
    return canonical([str(entry.side), *model, payload["environment"]["device"], name, *protocol])


def _dense_documents(entry: Entry, name: str, dense: Dense) -> list[Mapping[str, float]]:
    """The dense model's document scores in readable samples that other records name."""
    candidates = []
    for path in dense.get(_dense_request(entry, name), ()):
        with suppress(HarnessError):  # reported for the record that names it
            candidates.append(documents_of(path, load_side_file(path)))
    return [documents for documents in candidates if documents]


def unverifiable(entry: Entry, dense: Dense) -> Iterator[str]:
    """A reservation about dense scores for which no samples can be found."""
    if names := [name for name in _without_samples(entry.payload) if not _dense_documents(entry, name, dense)]:
        listed = ", ".join(names)
        yield f"dense figures of {listed} without samples: they cannot be checked, only set against the score"


def recompute(entry: Entry, dense: Dense) -> Iterator[str]:
    """Where scores differ from what their samples give."""
    for name, score in entry.record.scores.items():
        payload = load_side_file(entry.side / score.samples) if score.samples else None
        documents = documents_of(entry.side / score.samples, payload)
        if documents is None:
            continue  # reported as missing
        if not documents or (payload or {}).get("scale", score.scale) != score.scale:
            yield f"{name}: its samples are not those of such a score"
            continue
        value, stderr = score_stats.estimate(list(documents.values()), score.scale)
        recorded = score.model_dump(mode="json", include={"value", "stderr", "n"})
        differences = apart(recorded, {"value": value, "stderr": stderr, "n": len(documents)})
        against_dense = _against_dense(entry, name, documents, dense)
        yield from (f"{name}: {message}" for message in [*differences, *against_dense])


def _against_dense(entry: Entry, name: str, documents: Mapping[str, float], dense: Dense) -> Iterator[str]:
    """Where figures that depend on the dense model do not follow.

    They are checked against its own samples, else against those that another record names, else against each other.
    """
    score = entry.record.scores[name]
    recorded = {field: getattr(score, field) for field in DENSE_FIELDS}
    if score.dense_samples:
        path = entry.side / score.dense_samples
        dense_documents = documents_of(path, load_side_file(path))
        if dense_documents is not None:  # otherwise reported as missing
            yield from apart(recorded, _dense_figures(documents, dense_documents, score.scale))
    elif score.dense is None:
        yield from apart(recorded, dict.fromkeys(DENSE_FIELDS), by="a record without a dense score")
    elif candidates := _dense_documents(entry, name, dense):
        # Several records may name samples; the closest ones decide.
        figures = (_dense_figures(documents, candidate, score.scale) for candidate in candidates)
        yield from min((list(apart(recorded, computed, by="the samples beside it")) for computed in figures), key=len)
    else:
        yield from _without_dense_samples(score)


def _dense_figures(documents: Mapping[str, float], dense: Mapping[str, float], scale: str) -> dict[str, Any]:
    values = (*score_stats.estimate(list(dense.values()), scale), *score_stats.change(documents, dense, scale))
    return dict(zip(DENSE_FIELDS, values, strict=True))


def _without_dense_samples(score: ScoreRecord) -> Iterator[str]:
    """Where the change is not that of the two values, or is outside its interval."""
    assert score.dense is not None
    if score.change is not None:
        change = score.value / score.dense if score.scale == "exp-mean" else score.value - score.dense
        yield from apart({"change": score.change}, {"change": change}, by="value and dense")
        if score.change_ci95 and not score.change_ci95[0] <= score.change <= score.change_ci95[1]:
            yield f"change is {score.change}, outside of {score.change_ci95}"
