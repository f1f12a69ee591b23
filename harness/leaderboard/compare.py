"""The comparison of two records: each score on the documents that both have, and their latencies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.evaluation import score_stats
from harness.leaderboard import significance
from harness.leaderboard.entries import Entry
from harness.leaderboard.rows import LEVEL, column_of, quality_scores
from harness.records.schema import Latency, Record, ScoreRecord
from harness.records.store import Store


def find(text: str, store: Store) -> Entry:
    """The record whose id begins so, or that is in this file."""
    path = Path(text)
    if path.is_file():
        samples = path.parent / "samples"
        return Entry(path, samples if samples.is_dir() else path.parent.parent / "samples")
    matches = sorted(store.path("records").glob(f"{text}*.json")) if text.isalnum() else []
    if len(matches) != 1:
        cause = f"{len(matches)} records begin with {text!r}" if matches else f"no record {text!r} in {store.root}"
        raise UsageError(cause, "harness status lists them; a file may be given too")
    return Entry(matches[0], store.path("samples"))


def comparison(first: Entry, second: Entry) -> dict[str, Any]:
    """All scores and workloads that both records have, as data. Changes are of the second from the first."""
    a, b = first.record, second.record
    scores = {}
    for name, score in quality_scores(a).items():
        second_score = quality_scores(b).get(name)
        if second_score is not None:
            scores[name] = _score(first, score, second, second_score)
    tested = [row for row in scores.values() if row["p"] is not None]
    for row, p in zip(tested, significance.holm([row["p"] for row in tested]), strict=True):
        row |= {"p_holm": p, "differ": p < LEVEL}
    same_dense = _dense_setup(a) == _dense_setup(b)
    latency = {w: _latency(a, b, w, same_dense) for w in a.latency if w in b.latency}
    if not scores and not latency:
        raise UsageError("the two have no score and no workload in common", "compare records of one suite")
    return {
        "first": a.id,
        "second": b.id,
        "same_machine": a.environment.device == b.environment.device and a.spec.device == b.spec.device,
        "scores": scores,
        "latency": latency,
    }


def _score(first: Entry, first_score: ScoreRecord, second: Entry, second_score: ScoreRecord) -> dict[str, Any]:
    result: dict[str, Any] = {
        "first": first_score.value,
        "second": second_score.value,
        "p": None,
        "change": None,
        "ci95": None,
    }
    first_column, second_column = column_of("", first_score), column_of("", second_score)
    if first_column != second_column:
        return result | {"note": f"taken differently: {first_column.protocol}; {second_column.protocol}"}
    before, after = first.documents(first_score), second.documents(second_score)
    shared = [name for name in before if name in after]
    gap = significance.gap([[after[name] - before[name] for name in shared]])
    if gap is None:
        return result | {"note": "its documents' scores are missing"}
    scale = first_score.scale
    return result | {
        "n": len(shared),
        "what": "ratio" if scale == "exp-mean" else "difference",
        "change": score_stats.scaled(gap.value, scale),
        "ci95": gap.ci95 and [score_stats.scaled(bound, scale) for bound in gap.ci95],
        "p": gap.p,
        "note": "",
    }


def _dense_setup(record: Record) -> tuple[str, ...]:
    """What the dense model's latency depends on. Speed-ups over different dense models cannot be compared."""
    spec = record.spec
    return spec.model, spec.device, spec.runtime, spec.dtype


def _latency(first: Record, second: Record, workload: str, same_dense: bool) -> dict[str, Any]:
    """The ratio of two latencies, from their speed-ups over the dense models of their own rounds.

    Absolute times are not compared, because they may come from different hours.
    """
    a, b = first.latency[workload], second.latency[workload]
    result: dict[str, Any] = {"clock": a.clock, "first": a.speedup, "second": b.speedup, "ci95": None}
    result["provenance"] = [_provenance(first, a), _provenance(second, b)]
    if not same_dense:
        return result | {"note": "over different dense models: not compared"}
    if a.clock != b.clock:
        return result | {"note": f"ranked by {a.clock} and {b.clock}"}
    result["ratio"] = a.speedup / b.speedup
    if a.speedup_ci95 and b.speedup_ci95:
        half = math.hypot(*(math.log(high / low) / 2 for low, high in (a.speedup_ci95, b.speedup_ci95)))
        result["ci95"] = [result["ratio"] * math.exp(-half), result["ratio"] * math.exp(half)]
    floors = [timing.noise_floor for timing in (a, b) if timing.noise_floor is not None]
    is_close = abs(result["ratio"] - 1) <= max(floors, default=0.0)
    return result | {"note": "closer than the noise floor; --remeasure times them together" if is_close else ""}


def _provenance(record: Record, timing: Latency) -> str:
    """The machine's own provenance, if it reports one, else the one the device was registered with."""
    return record.environment.device.get("provenance", timing.provenance)


def remeasure(first: Record, second: Record, root: Path) -> dict[str, Latency]:
    """Time both pruned models in the same rounds. The first takes the place of the dense model."""
    from harness.functions import measure

    folders = []
    for record in (first, second):
        folder = root / record.artefact.path if record.artefact else None
        if folder is None or not folder.is_dir():
            raise UsageError(
                f"the model of {record.id[:12]} is not in {root}", "run its command again, which saves the model there"
            )
        folders.append(folder)
    spec = second.spec
    if (first.spec.device, first.spec.runtime, first.spec.dtype) != (spec.device, spec.runtime, spec.dtype):
        raise UsageError("the two were measured on different devices", "compare records of one device and dtype")
    settings = {"device": spec.device, "runtime": spec.runtime, "dtype": spec.dtype, "preset": spec.preset}
    shared = [workload for workload in spec.workloads if workload in first.spec.workloads]
    if not shared:
        raise UsageError("the two were timed under different workloads", "harness run --workload times another one")
    return {workload: measure(folders[1], workload, against=folders[0], **settings) for workload in shared}
