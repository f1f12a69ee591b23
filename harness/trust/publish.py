"""From a runs folder to the published results: only what others may rely on, with the samples behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UsageError
from harness.files import put
from harness.keys import canonical
from harness.leaderboard.entries import Entry, of_runs
from harness.records import TRUST
from harness.store import Store
from harness.trust.validate import judged, named_samples


@dataclass
class Published:
    """What went where, and what did not and why."""

    folder: Path
    taken: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    older: dict[str, str] = field(default_factory=dict)  # than another record of the same question, which is named
    refused: dict[str, list[str]] = field(default_factory=dict)


def publish(store: Store, target: Path, name: str, cells: Sequence[str] = ()) -> Published:
    """Copy sound records and their samples below `results/NAME`; of one question on one machine the newest stands."""
    entries = _chosen(of_runs(store), cells)
    done = Published(target / "results" / name)
    side = done.folder / "samples"
    there = {_asked(entry): entry for entry in (Entry(path, side) for path in sorted(done.folder.glob("*.json")))}
    sound: dict[str, Entry] = {}
    for entry, verdict in zip(entries, judged(entries, store.root), strict=True):
        if why := [*verdict.faults, *verdict.reservations]:
            done.refused[entry.path.stem] = why
            continue
        known = sound.setdefault(_asked(entry), entry)
        if known is not entry:
            older, newest = sorted((known, entry), key=_age)
            sound[_asked(entry)], done.older[older.path.stem] = newest, newest.path.stem
    for asked, entry in sound.items():
        before = there.get(asked)
        if before is not None and _age(before) > _age(entry):
            done.older[entry.path.stem] = before.path.stem
            continue
        _take(entry, done.folder, before)
        done.taken.append(entry.path.stem)
        if before is not None and before.path.name != entry.path.name:
            before.path.unlink()
            done.replaced.append(before.path.stem)
    _tidy(done.folder)
    return done


def _take(entry: Entry, folder: Path, before: Entry | None) -> None:
    for sample in named_samples(entry.words):
        if not (to := folder / "samples" / sample).exists():
            put(to, (entry.side / sample).read_bytes())
    same = before is not None and before.words["digest"] == entry.words["digest"]
    if not same or _trust(entry) > _trust(before):  # what was learned of a row since it was published stays with it
        put(folder / entry.path.name, entry.path.read_bytes())


def _age(entry: Entry) -> tuple[str, str]:
    return entry.words["finished"], entry.words["id"]


def _trust(entry: Entry | None) -> int:
    return TRUST.index(entry.record.trust) if entry else -1


def _chosen(entries: list[Entry], cells: Sequence[str]) -> list[Entry]:
    for cell in cells:
        if not any(entry.path.stem.startswith(cell) for entry in entries):
            raise UsageError(f"no cell {cell!r}", "harness status lists them")
    return [entry for entry in entries if not cells or any(entry.path.stem.startswith(cell) for cell in cells)]


def _asked(entry: Entry) -> str:
    """The question: what was asked for, and of which machine."""
    return canonical([entry.words["spec"], entry.words["environment"]["device"]])


def _tidy(folder: Path) -> None:
    """No samples that no record names."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    named = {sample for words in records for sample in named_samples(words)}
    for path in (folder / "samples").glob("*"):
        if path.name not in named:
            path.unlink()
