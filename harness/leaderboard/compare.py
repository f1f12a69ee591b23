"""Two records side by side: each score on the documents that both saw, and their latencies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.evaluation import score_stats
from harness.leaderboard import significance
from harness.leaderboard.entries import Entry
from harness.leaderboard.rows import LEVEL, column_of, ranked
from harness.records.schema import Latency, Record, ScoreRecord
from harness.records.store import Store


def find(word: str, store: Store) -> Entry:
    """A record by the beginning of its id, or by its file."""
    path = Path(word)
    if path.is_file():
        beside = path.parent / "samples"
        return Entry(path, beside if beside.is_dir() else path.parent.parent / "samples")
    near = sorted(store.path("records").glob(f"{word}*.json")) if word.isalnum() else []
    if len(near) != 1:
        many = f"{len(near)} records begin with {word!r}" if near else f"no record {word!r} in {store.root}"
        raise UsageError(many, "harness status lists them; a file may be given too")
    return Entry(near[0], store.path("samples"))


def compared(first: Entry, second: Entry) -> dict[str, Any]:
    """All that both have, as data; the differences are of the second from the first."""
    one, other = first.record, second.record
    scores = {}
    for name, score in ranked(one).items():
        theirs = ranked(other).get(name)
        if theirs is not None:
            scores[name] = _score(first, score, second, theirs)
    judged = [words for words in scores.values() if words["p"] is not None]
    for words, p in zip(judged, significance.holm([words["p"] for words in judged]), strict=True):
        words |= {"p_holm": p, "differ": p < LEVEL}
    alike = _ran(one) == _ran(other)
    latency = {w: _latency(one, other, w, alike) for w in one.latency if w in other.latency}
    if not scores and not latency:
        raise UsageError("the two have no score and no workload in common", "compare records of one suite")
    return {
        "first": one.id,
        "second": other.id,
        "same_machine": one.environment.device == other.environment.device and one.spec.device == other.spec.device,
        "scores": scores,
        "latency": latency,
    }


def _score(first: Entry, ours: ScoreRecord, second: Entry, theirs: ScoreRecord) -> dict[str, Any]:
    words: dict[str, Any] = {"first": ours.value, "second": theirs.value, "p": None, "change": None, "ci95": None}
    if column_of("", ours) != column_of("", theirs):
        return words | {"note": f"taken differently: {column_of('', ours).how}; {column_of('', theirs).how}"}
    mine, other = first.documents(ours), second.documents(theirs)
    shared = [name for name in mine if name in other]
    gap = significance.gap([[other[name] - mine[name] for name in shared]])
    if gap is None:
        return words | {"note": "its documents' scores are missing"}
    ratio = ours.scale == "exp-mean"
    bounds = gap.ci95 and [score_stats.scaled(bound, ours.scale) for bound in gap.ci95]
    return words | {
        "n": len(shared),
        "what": "ratio" if ratio else "difference",
        "change": score_stats.scaled(gap.value, ours.scale),
        "ci95": bounds,
        "p": gap.p,
        "note": "",
    }


def _ran(record: Record) -> tuple[str, ...]:
    """What a speed-up is over: another dense model makes it another figure."""
    spec = record.spec
    return spec.model, spec.device, spec.runtime, spec.dtype


def _latency(first: Record, second: Record, workload: str, alike: bool) -> dict[str, Any]:
    """By the speed-ups over the dense models of their own rounds: those may come from different hours."""
    one, other = first.latency[workload], second.latency[workload]
    words: dict[str, Any] = {"clock": one.clock, "first": one.speedup, "second": other.speedup, "ci95": None}
    words["provenance"] = [_provenance(first, one), _provenance(second, other)]
    if not alike:
        return words | {"note": "over different dense models: not compared"}
    if one.clock != other.clock:
        return words | {"note": f"ranked by {one.clock} and {other.clock}"}
    words["ratio"] = one.speedup / other.speedup
    if one.speedup_ci95 and other.speedup_ci95:
        half = math.hypot(*(math.log(t.speedup_ci95[1] / t.speedup_ci95[0]) / 2 for t in (one, other)))  # type: ignore
        words["ci95"] = [words["ratio"] * math.exp(-half), words["ratio"] * math.exp(half)]
    floors = [timing.noise_floor for timing in (one, other) if timing.noise_floor is not None]
    near = abs(words["ratio"] - 1) <= max(floors, default=0.0)
    return words | {"note": "closer than the noise floor; --remeasure times them together" if near else ""}


def _provenance(record: Record, timing: Latency) -> str:
    """What the machine tells of itself stands above what the device is known as."""
    return record.environment.device.get("provenance", timing.provenance)


def remeasured(first: Record, second: Record, root: Path) -> dict[str, Latency]:
    """Both pruned models in the same rounds, the first as what the second is compared with."""
    from harness.functions import measure

    folders = []
    for record in (first, second):
        folder = root / record.artefact.path if record.artefact else None
        if folder is None or not folder.is_dir():
            raise UsageError(
                f"the model of {record.id[:12]} is not in {root}", "run its command again; it is kept there"
            )
        folders.append(folder)
    spec = second.spec
    if (first.spec.device, first.spec.runtime, first.spec.dtype) != (spec.device, spec.runtime, spec.dtype):
        raise UsageError("the two were measured on different devices", "compare records of one device and dtype")
    where = {"device": spec.device, "runtime": spec.runtime, "dtype": spec.dtype, "preset": spec.preset}
    shared = [workload for workload in spec.workloads if workload in first.spec.workloads]
    if not shared:
        raise UsageError("the two were timed under different workloads", "harness run --workload times another one")
    return {workload: measure(folders[1], workload, against=folders[0], **where) for workload in shared}
