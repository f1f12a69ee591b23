"""Whether records are what they claim: unedited, whole, and with figures that follow from their samples. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import plugins
from harness.api import Samples
from harness.cell.planning import QUICK_LIMIT
from harness.errors import HarnessError, describe, one_line
from harness.latency import gates, sustained, timing
from harness.leaderboard.audit import history, identity, recount, rescore
from harness.leaderboard.audit.recount import apart
from harness.leaderboard.entries import BadRecord, Entry
from harness.models.saved.contents import folder_sha256
from harness.records.files import is_text_of
from harness.records.sample_files import check_side_file, side_words
from harness.records.schema import SCHEMA, UNREAD, Energy, Gate, Latency, MemoryPair, Record
from harness.system.parallel import spread


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a record, and what keeps a sound one from being published."""

    path: Path
    faults: tuple[str, ...]
    reservations: tuple[str, ...]
    components: bool = True  # whether its cell's components are there to say what it is


@dataclass(frozen=True)
class Around:
    """What a record is judged with: where its model may lie, and whose samples it may borrow."""

    root: Path
    dense: rescore.Dense


def judged(entries: Sequence[Entry], root: Path) -> list[Verdict]:
    """All records, in order; samples that no record names are told by `orphans`."""
    around = Around(root, rescore.dense_samples(entries))
    return spread(partial(_verdict, around=around), entries)


def _verdict(entry: Entry, around: Around) -> Verdict:
    try:
        record = entry.record
    except BadRecord as error:
        return Verdict(entry.path, _lines([error.why]), ())
    faults: list[str] = []
    for check in CHECKS:
        try:
            faults += check(entry, around)
        except HarnessError as error:  # of a side file
            faults.append(error.cause)
        except Exception as error:  # whatever damaged words do to arithmetic
            faults.append(f"{check.__name__.strip('_')}: {describe(error)}")
    doubts = (*reservations(record), *rescore.unfollowed(entry, around.dense))
    has_components = identity.exists(entry.side, record.id)
    return Verdict(entry.path, _lines(faults), _lines(doubts), has_components)


def _lines(texts: Iterable[str]) -> tuple[str, ...]:
    """Each once, and fit for a terminal: names and figures of a record may hold anything."""
    return tuple(dict.fromkeys(map(one_line, texts)))


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


def _schema(entry: Entry, _: Around) -> Iterator[str]:
    if not 1 <= entry.record.schema_ <= SCHEMA:
        yield f"schema {entry.record.schema_} is not one that this harness knows (1 to {SCHEMA})"


def _written(entry: Entry, _: Around) -> Iterator[str]:
    if not is_text_of(entry.path.read_bytes(), entry.words):
        yield "its bytes are not those that harness writes: white space, order, or a name that stands twice"


def _status(entry: Entry, _: Around) -> Iterator[str]:
    record = entry.record
    if record.status == "ok" and (record.artefact is None or not record.latency):
        yield "ok, but without a model or a latency"
    if (record.status == "ok") == bool(record.reason):
        yield "ok, but with a reason" if record.reason else f"{record.status} without a reason"
    for latency in record.latency.values():
        broken = gates.failed(record.gates, latency.clock)
        if broken and record.status == "ok":
            yield f"ok, though {', '.join(gate.name for gate in broken)} forbids trusting its {latency.clock} time"


def _recount(entry: Entry, _: Around) -> Iterator[str]:
    for count in RECOUNTS:
        yield from count(entry.record)


def _identity(entry: Entry, _: Around) -> Iterator[str]:
    """What it says it is, and how it came by its trust."""
    yield from history.faults(entry.record)
    cell = identity.read(entry.side, entry.record.id)
    if cell is not None:
        yield from identity.faults(entry.record, cell)


def _latencies(entry: Entry, _: Around) -> Iterator[str]:
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
            yield from (f"{workload}, {name}: {where}" for where in apart(known, found))
        if latency.rounds != len(rounds.dense):
            yield f"{workload}: {latency.rounds} rounds told, {len(rounds.dense)} measured"
        if latency.processes not in (1, len(rounds.visits())):
            yield f"{workload}: processes is {latency.processes} in the record, with {len(rounds.visits())} visits"
        if workload == record.spec.workloads[0]:
            yield from _read(record, rounds, latency.clock)
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
    asked = entry.record.spec.sustain
    if entry.record.status == "ok" and (bool(asked) != (known is not None) or (known and known.seconds < asked)):
        yield f"spec.sustain asks for {asked:g} s of work, the record has {known.seconds if known else 0:g} s"
    words = side_words(entry.side / known.samples) if known is not None else None
    if known is not None and words is not None:
        visits = [Samples(**visit) for visit in words["visits"]]
        found = sustained.of(visits, known.seconds, latency.clock, known.samples).model_dump(mode="json")
        yield from (f"sustained {where}" for where in apart(known.model_dump(mode="json"), found))


def _read(record: Record, rounds: timing.Rounds, clock: str) -> Iterator[str]:
    """Memory and energy by the device's own readings. A model over its budget is not asked for them; of one that runs
    in this process, memory is read in a process of its own, and only the figures are kept."""
    memory, energy = timing.memory(rounds, ""), timing.energy(rounds, clock)
    device = plugins.registry().specs["device"].get(record.spec.device)
    elsewhere = memory is None and (device is None or device.in_process)
    found: dict[str, MemoryPair | Energy | None] = {"memory": memory or MemoryPair(), "energy": energy or UNREAD}
    if record.status == "over_budget":
        found = {"memory": MemoryPair(), "energy": UNREAD}
    elif elsewhere:
        found["memory"] = None
    for what, pair in found.items():
        if pair is not None:
            known, read = (one.model_dump(include={"dense", "pruned"}) for one in (getattr(record, what), pair))
            yield from apart(known, read, what)


def _gate(gate: Gate) -> tuple[str, str, str, bool]:
    return gate.name, gate.guards, gate.detail, gate.ok


def _scores(entry: Entry, around: Around) -> Iterator[str]:
    yield from rescore.followed(entry, around.dense)


def _artefact(entry: Entry, around: Around) -> Iterator[str]:
    """The model, where it still lies in the runs folder."""
    artefact = entry.record.artefact
    if artefact is None:
        return
    folder = around.root / artefact.path
    if folder.is_dir() and folder_sha256(folder) != artefact.sha256:
        yield f"the model {artefact.path} is not the one that was measured"


def _samples(entry: Entry, _: Around) -> Iterator[str]:
    named = list(dict.fromkeys(named_samples(entry.words)))
    missing = [name for name in named if not name or not (entry.side / name).is_file()]
    if missing:
        yield f"{len(missing)} files of samples are missing, so its figures cannot be followed"
    for name in named:
        try:
            if name not in missing:
                check_side_file(entry.side / name)
        except HarnessError as error:
            yield error.cause


RECOUNTS: tuple[Callable[[Record], Iterator[str]], ...] = (
    recount.budget,
    recount.model,
    recount.files,
    recount.documents,
    recount.conformance,
    recount.provenance,
    recount.co2,
)

CHECKS: tuple[Callable[[Entry, Around], Iterator[str]], ...] = (
    _schema,
    _written,
    _status,
    _identity,
    _recount,
    _samples,
    _latencies,
    _scores,
    _artefact,
)


def orphans(entries: Sequence[Entry]) -> list[Path]:
    """Samples that no record names, as far as records can be read, and components of cells without a record."""
    named: set[str] = set()
    for entry in entries:
        with suppress(AttributeError, KeyError, TypeError):  # of a damaged record, which its verdict tells
            named.update(named_samples(entry.words))
    known = {identity.published_path(entry.side, entry.path.stem) for entry in entries}
    found: list[Path] = []
    for side in {entry.side for entry in entries}:
        if side.is_dir():
            found += [path for path in side.iterdir() if path.name not in named]
        if (cells := identity.published_path(side, "").parent).is_dir():
            found += [path for path in cells.iterdir() if path not in known]
    return sorted(found)


def named_samples(words: dict[str, Any]) -> Iterator[str]:
    """The side files behind a record."""
    for part in ("latency", "scores"):
        for found in words.get(part, {}).values():
            yield found["samples"]
            if found.get("dense_samples"):
                yield found["dense_samples"]
            if found.get("sustained"):
                yield found["sustained"]["samples"]
