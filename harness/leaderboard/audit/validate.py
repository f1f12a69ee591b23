"""Validation of records: they are unedited and complete, and their figures follow from their samples. No torch."""

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
from harness.records.files import is_json_text_of
from harness.records.sample_files import check_side_file, load_side_file
from harness.records.schema import SCHEMA, UNREAD, Energy, Gate, Latency, MemoryPair, Record
from harness.system.parallel import parallel_map


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a record, and what keeps a valid one from being published."""

    path: Path
    faults: tuple[str, ...]
    reservations: tuple[str, ...]
    components: bool = True  # whether its cell's components exist, so that its identity could be checked


@dataclass(frozen=True)
class Context:
    """What validation needs beside the record: the runs folder, and dense samples that other records name."""

    root: Path
    dense: rescore.Dense


def verdicts(entries: Sequence[Entry], root: Path) -> list[Verdict]:
    """The verdict on each record, in order. Files that no record needs are found by `orphans`."""
    context = Context(root, rescore.dense_samples(entries))
    return parallel_map(partial(_verdict, context=context), entries)


def _verdict(entry: Entry, context: Context) -> Verdict:
    try:
        record = entry.record
    except BadRecord as error:
        return Verdict(entry.path, _lines([error.why]), ())
    faults: list[str] = []
    for check in CHECKS:
        try:
            faults += check(entry, context)
        except HarnessError as error:  # a side file cannot be read
            faults.append(error.cause)
        except Exception as error:  # damaged values can fail in any way
            faults.append(f"{check.__name__.strip('_')}: {describe(error)}")
    doubts = (*reservations(record), *rescore.unverifiable(entry, context.dense))
    has_components = identity.exists(entry.side, record.id)
    return Verdict(entry.path, _lines(faults), _lines(doubts), has_components)


def _lines(texts: Iterable[str]) -> tuple[str, ...]:
    """Each message once, and safe for a terminal: names and figures of a record may hold anything."""
    return tuple(dict.fromkeys(map(one_line, texts)))


def reservations(record: Record) -> Iterator[str]:
    """Why a valid record must not be published."""
    git, spec = record.environment.git, record.spec
    if git is not None and git.dirty:
        yield "made from a checkout with uncommitted changes"
    if spec.limit is not None and (spec.preset != "quick" or spec.limit < QUICK_LIMIT):
        required = f"{QUICK_LIMIT} documents" if spec.preset == "quick" else "all documents"
        yield f"limited to {spec.limit} documents, the preset {spec.preset} has {required}"
    if record.status in ("planned", "running", "unstable"):
        yield f"{record.status}: {record.reason}"
    if record.unscored:
        yield f"no score of {', '.join(record.unscored)}"
    if record.conformance is None and record.status == "ok":
        yield "the method was not checked (HARNESS_CHECK=0)"


# --- the checks ---


def _schema(entry: Entry, _: Context) -> Iterator[str]:
    if not 1 <= entry.record.schema_ <= SCHEMA:
        yield f"schema {entry.record.schema_} is not one that this harness knows (1 to {SCHEMA})"


def _written(entry: Entry, _: Context) -> Iterator[str]:
    if not is_json_text_of(entry.path.read_bytes(), entry.payload):
        yield "its bytes are not those that harness writes: white space, order, or a name that occurs twice"


def _status(entry: Entry, _: Context) -> Iterator[str]:
    record = entry.record
    if record.status == "ok" and (record.artefact is None or not record.latency):
        yield "ok, but without a model or a latency"
    if (record.status == "ok") == bool(record.reason):
        yield "ok, but with a reason" if record.reason else f"{record.status} without a reason"
    for latency in record.latency.values():
        failed = gates.failed_gates(record.gates, latency.clock)
        if failed and record.status == "ok":
            names = ", ".join(gate.name for gate in failed)
            yield f"ok, though {names} failed, so its {latency.clock} time cannot be trusted"


def _recount(entry: Entry, _: Context) -> Iterator[str]:
    for recompute in RECOUNTS:
        yield from recompute(entry.record)


def _identity(entry: Entry, _: Context) -> Iterator[str]:
    """What the record says it is, and where its trust comes from."""
    yield from history.faults(entry.record)
    cell = identity.read(entry.side, entry.record.id)
    if cell is not None:
        yield from identity.faults(entry.record, cell)


def _latencies(entry: Entry, _: Context) -> Iterator[str]:
    """Every figure of a latency and every gate, computed again from the raw samples."""
    record = entry.record
    computed_gates: list[Gate] = []
    for workload, latency in record.latency.items():
        payload = load_side_file(entry.side / latency.samples) if latency.samples else None
        if payload is None:
            return
        dense, pruned, again = ([Samples(**visit) for visit in payload[side]] for side in ("dense", "pruned", "again"))
        rounds = timing.Rounds(dense, pruned, again, latency.processes)
        # The ranked clock and the other ones.
        for name, recorded in {latency.clock: latency, **latency.other_clock}.items():
            computed = timing.clock(rounds, name).model_dump(mode="json")
            fields = recorded.model_dump(mode="json", include=set(computed))
            yield from (f"{workload}, {name}: {message}" for message in apart(fields, computed))
        # How it was measured, and what the device reported about the models.
        if latency.rounds != len(rounds.dense):
            yield f"{workload}: {latency.rounds} rounds in the record, {len(rounds.dense)} in its samples"
        if latency.processes not in (1, len(rounds.visits())):
            yield f"{workload}: processes is {latency.processes} in the record, with {len(rounds.visits())} visits"
        if workload == record.spec.workloads[0]:
            yield from _memory_and_energy(record, rounds, latency.clock)
        for side, visits in (("dense", rounds.dense), ("pruned", rounds.pruned)):
            if latency.told.get(side, {}) != dict(visits[0].told):
                yield f"{workload}: what the device reports about the {side} model is not in its samples"
        yield from (f"{workload}: {message}" for message in _sustained(entry, latency))
        computed_gates += gates.evaluate_gates([(v.before, v.after) for v in rounds.visits()], latency, workload)
    differ = {_gate(gate) for gate in record.gates} ^ {_gate(gate) for gate in computed_gates}
    if record.latency and differ:
        yield f"the gates {', '.join(sorted({name for name, *_ in differ}))} do not follow from the samples"


def _sustained(entry: Entry, latency: Latency) -> Iterator[str]:
    recorded = latency.sustained
    requested = entry.record.spec.sustain
    is_short = bool(requested) != (recorded is not None) or (recorded and recorded.seconds < requested)
    if entry.record.status == "ok" and is_short:
        yield f"spec.sustain asks for {requested:g} s of work, the record has {recorded.seconds if recorded else 0:g} s"
    payload = load_side_file(entry.side / recorded.samples) if recorded is not None else None
    if recorded is not None and payload is not None:
        visits = [Samples(**visit) for visit in payload["visits"]]
        computed = sustained.from_visits(visits, recorded.seconds, latency.clock, recorded.samples).model_dump(
            mode="json"
        )
        yield from (f"sustained {message}" for message in apart(recorded.model_dump(mode="json"), computed))


def _memory_and_energy(record: Record, rounds: timing.Rounds, clock: str) -> Iterator[str]:
    """Memory and energy, computed again from the device's own readings."""
    memory, energy = timing.memory(rounds, ""), timing.energy(rounds, clock)
    device = plugins.registry().specs["device"].get(record.spec.device)
    # A device that runs in this process has its memory read in another process, and only the figures are kept.
    is_memory_unknown = memory is None and (device is None or device.in_process)
    computed: dict[str, MemoryPair | Energy | None] = {"memory": memory or MemoryPair(), "energy": energy or UNREAD}
    if record.status == "over_budget":  # neither is read for a model over its budget
        computed = {"memory": MemoryPair(), "energy": UNREAD}
    elif is_memory_unknown:
        computed["memory"] = None
    for name, pair in computed.items():
        if pair is not None:
            fields = {"dense", "pruned"}
            yield from apart(getattr(record, name).model_dump(include=fields), pair.model_dump(include=fields), name)


def _gate(gate: Gate) -> tuple[str, str, str, bool]:
    return gate.name, gate.guards, gate.detail, gate.ok


def _scores(entry: Entry, context: Context) -> Iterator[str]:
    yield from rescore.recompute(entry, context.dense)


def _artefact(entry: Entry, context: Context) -> Iterator[str]:
    """The model's hash, if it is still in the runs folder."""
    artefact = entry.record.artefact
    if artefact is None:
        return
    folder = context.root / artefact.path
    if folder.is_dir() and folder_sha256(folder) != artefact.sha256:
        yield f"the model {artefact.path} is not the one that was measured"


def _samples(entry: Entry, _: Context) -> Iterator[str]:
    names = list(dict.fromkeys(named_samples(entry.payload)))
    missing = [name for name in names if not name or not (entry.side / name).is_file()]
    if missing:
        yield f"{len(missing)} files of samples are missing, so its figures cannot be checked"
    for name in names:
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

CHECKS: tuple[Callable[[Entry, Context], Iterator[str]], ...] = (
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
    """Samples that no readable record names, and components of cells without a record."""
    named: set[str] = set()
    for entry in entries:
        with suppress(AttributeError, KeyError, TypeError):  # a damaged record, as its own verdict says
            named.update(named_samples(entry.payload))
    needed = {identity.published_path(entry.side, entry.path.stem) for entry in entries}
    unneeded: list[Path] = []
    for side in {entry.side for entry in entries}:
        if side.is_dir():
            unneeded += [path for path in side.iterdir() if path.name not in named]
        if (cells := identity.published_path(side, "").parent).is_dir():
            unneeded += [path for path in cells.iterdir() if path not in needed]
    return sorted(unneeded)


def named_samples(payload: dict[str, Any]) -> Iterator[str]:
    """The names of the side files that a record refers to."""
    for part in ("latency", "scores"):
        for figures in payload.get(part, {}).values():
            yield figures["samples"]
            if figures.get("dense_samples"):
                yield figures["dense_samples"]
            if figures.get("sustained"):
                yield figures["sustained"]["samples"]
