"""Whether records are what they claim: unedited, whole, and with figures that follow from their samples. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness import stats
from harness.api import Samples
from harness.checkpoints import folder_sha256
from harness.errors import HarnessError
from harness.latency import gates, sustained, timing
from harness.leaderboard.entries import BadRecord, Entry
from harness.planning import QUICK_LIMIT
from harness.records import SCHEMA, Gate, Latency, Record
from harness.spread import spread
from harness.store import side_words
from harness.trust import recount
from harness.trust.recount import close


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a record, and what keeps a sound one from being published."""

    path: Path
    faults: tuple[str, ...]
    reservations: tuple[str, ...]


def judged(entries: Sequence[Entry], root: Path) -> list[Verdict]:
    """All records, in order; samples that no record names are told by `orphans`."""
    return spread(lambda entry: _verdict(entry, root), entries)


def _verdict(entry: Entry, root: Path) -> Verdict:
    try:
        record = entry.record
    except BadRecord as error:
        return Verdict(entry.path, (error.why,), ())
    faults: list[str] = []
    for check in CHECKS:
        try:
            faults += check(entry, root)
        except HarnessError as error:  # of a side file
            faults.append(error.cause)
        except Exception as error:  # whatever damaged words do to arithmetic
            faults.append(f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")
    return Verdict(entry.path, tuple(dict.fromkeys(faults)), tuple(reservations(record)))


def reservations(record: Record) -> Iterator[str]:
    """Why a sound record is not for others to rely on."""
    git, spec = record.environment.git, record.spec
    if git is not None and git.dirty:
        yield "made from a checkout with uncommitted changes"
    if spec.limit is not None and (spec.preset != "quick" or spec.limit < QUICK_LIMIT):
        usual = f"{QUICK_LIMIT} documents" if spec.preset == "quick" else "all documents"
        yield f"limited to {spec.limit} documents, the preset {spec.preset} has {usual}"
    if record.status in ("planned", "running", "unstable"):
        yield f"{record.status}: {record.reason}"
    if record.unscored:
        yield f"no score of {', '.join(record.unscored)}"
    if record.conformance is None and record.status == "ok":
        yield "the method was not checked (HARNESS_CHECK=0)"


# --- the checks ---


def _schema(entry: Entry, _: Path) -> Iterator[str]:
    if entry.record.schema_ > SCHEMA:
        yield f"schema {entry.record.schema_} is newer than this harness knows ({SCHEMA})"


def _status(entry: Entry, _: Path) -> Iterator[str]:
    record = entry.record
    if record.status == "ok" and (record.artefact is None or not record.latency):
        yield "ok, but without a model or a latency"
    if record.status != "ok" and not record.reason:
        yield f"{record.status} without a reason"
    for latency in record.latency.values():
        broken = gates.failed(record.gates, latency.clock)
        if broken and record.status == "ok":
            yield f"ok, though {', '.join(gate.name for gate in broken)} forbids trusting its {latency.clock} time"


def _recount(entry: Entry, _: Path) -> Iterator[str]:
    for count in (recount.budget, recount.model, recount.provenance):
        yield from count(entry.record)


def _latencies(entry: Entry, _: Path) -> Iterator[str]:
    """Every figure of a latency and every gate from the raw samples."""
    record = entry.record
    judged: list[Gate] = []
    for workload, latency in record.latency.items():
        words = side_words(entry.side / latency.samples) if latency.samples else None
        if words is None:
            return
        dense, pruned, again = ([Samples(**visit) for visit in words[side]] for side in ("dense", "pruned", "again"))
        rounds = timing.Rounds(dense, pruned, again, latency.processes)
        for name, told in {latency.clock: latency, **latency.other_clock}.items():
            found = timing.clock(rounds, name).model_dump(mode="json")
            known = told.model_dump(mode="json", include=set(found))
            yield from (f"{workload}, {name}: {where}" for where in _apart(known, found))
        if latency.rounds != len(rounds.dense):
            yield f"{workload}: {latency.rounds} rounds told, {len(rounds.dense)} measured"
        if workload == record.spec.workloads[0]:
            seen = {"memory": timing.memory(rounds, ""), "energy": timing.energy(rounds, latency.clock)}
            for what, pair in seen.items():
                for side in ("dense", "pruned") if pair is not None else ():
                    known, found = (_plain(getattr(one, side)) for one in (getattr(record, what), pair))
                    yield from (f"{what} of {side}: {where}" for where in _apart(known, found))
        for side, visits in (("dense", rounds.dense), ("pruned", rounds.pruned)):
            if latency.told.get(side, {}) != dict(visits[0].told):
                yield f"{workload}: what the device tells of {side} is not in its samples"
        yield from (f"{workload}: {where}" for where in _sustained(entry, latency))
        judged += gates.judge([(v.before, v.after) for v in rounds.visits()], latency, workload)
    differ = {_gate(gate) for gate in record.gates} ^ {_gate(gate) for gate in judged}
    if record.latency and differ:
        yield f"the gates {', '.join(sorted({name for name, *_ in differ}))} do not follow from the samples"


def _sustained(entry: Entry, latency: Latency) -> Iterator[str]:
    known = latency.sustained
    words = side_words(entry.side / known.samples) if known is not None else None
    if known is not None and words is not None:
        visits = [Samples(**visit) for visit in words["visits"]]
        found = sustained.of(visits, known.seconds, latency.clock, known.samples).model_dump(mode="json")
        yield from (f"sustained {where}" for where in _apart(known.model_dump(mode="json"), found))


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _gate(gate: Gate) -> tuple[str, str, str, bool]:
    return gate.name, gate.guards, gate.detail, gate.ok


def _scores(entry: Entry, _: Path) -> Iterator[str]:
    for name, score in entry.record.scores.items():
        words = side_words(entry.side / score.samples) if score.samples else None
        if words is None:
            continue  # told by `_samples`
        ours = words["documents"]
        if not ours or words.get("scale", score.scale) != score.scale:
            yield f"{name}: its samples are not those of such a score"
            continue
        value, stderr = stats.told(list(ours.values()), score.scale)
        found: dict[str, Any] = {"value": value, "stderr": stderr, "n": len(ours)}
        if dense := side_words(entry.side / score.dense_samples) if score.dense_samples else None:
            theirs = dense["documents"]
            found["dense"], found["dense_stderr"] = stats.told(list(theirs.values()), score.scale)
            found["change"], found["change_ci95"] = stats.change(ours, theirs, score.scale)
        known = score.model_dump(include=set(found))
        yield from (f"{name}: {where}" for where in _apart(known, found))


def _artefact(entry: Entry, root: Path) -> Iterator[str]:
    """The model, where it still lies in the runs folder."""
    artefact = entry.record.artefact
    if artefact is not None and (folder := root / artefact.path).is_dir() and folder_sha256(folder) != artefact.sha256:
        yield f"the model {artefact.path} is not the one that was measured"


def _samples(entry: Entry, _: Path) -> Iterator[str]:
    missing = [name for name in named_samples(entry.words) if not name or not (entry.side / name).is_file()]
    if missing:
        yield f"{len(missing)} files of samples are missing, so its figures cannot be followed"


CHECKS: tuple[Callable[[Entry, Path], Iterator[str]], ...] = (
    _schema,
    _status,
    _recount,
    _samples,
    _latencies,
    _scores,
    _artefact,
)


def _apart(known: Any, found: Any, where: str = "") -> Iterator[str]:
    """The figures that are not what the samples give."""
    if isinstance(found, dict) and isinstance(known, dict):
        for name in found.keys() | known.keys():
            yield from _apart(known.get(name), found.get(name), f"{where}.{name}" if where else str(name))
    elif isinstance(found, list | tuple) and isinstance(known, list | tuple) and len(found) == len(known):
        for at, (one, other) in enumerate(zip(known, found, strict=True)):
            yield from _apart(one, other, f"{where}[{at}]")
    elif not close(known, found):
        yield f"{where} is {known} in the record, {found} by its samples"


def orphans(entries: Sequence[Entry]) -> list[Path]:
    """Samples that no record names, as far as records can be read."""
    named: set[str] = set()
    for entry in entries:
        with suppress(AttributeError, KeyError, TypeError):  # of a damaged record, which its verdict tells
            named.update(named_samples(entry.words))
    sides = {entry.side for entry in entries}
    return sorted(path for side in sides if side.is_dir() for path in side.iterdir() if path.name not in named)


def named_samples(words: dict[str, Any]) -> Iterator[str]:
    """The side files behind a record."""
    for part in ("latency", "scores"):
        for found in words.get(part, {}).values():
            yield found["samples"]
            if found.get("dense_samples"):
                yield found["dense_samples"]
            if found.get("sustained"):
                yield found["sustained"]["samples"]
