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
from harness.store import Store
from harness.trust.validate import judged, named_samples


@dataclass
class Published:
    """What went where, and what did not and why."""

    folder: Path
    taken: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=dict)


def publish(store: Store, target: Path, name: str, cells: Sequence[str] = ()) -> Published:
    """Copy sound records and their samples below `results/NAME`; one asked for again takes the place of the older."""
    entries = _chosen(of_runs(store), cells)
    done = Published(target / "results" / name)
    asked = {_asked(path): path for path in done.folder.glob("*.json")}
    for entry, verdict in zip(entries, judged(entries, store.root), strict=True):
        cell = entry.path.stem
        if why := [*verdict.faults, *verdict.reservations]:
            done.refused[cell] = why
            continue
        for sample in named_samples(entry.words):
            if not (to := done.folder / "samples" / sample).exists():
                put(to, (entry.side / sample).read_bytes())
        put(done.folder / entry.path.name, entry.path.read_bytes())
        older = asked.get(_asked(entry.path))
        if older is not None and older.name != entry.path.name:
            older.unlink()
            done.replaced.append(older.stem)
        done.taken.append(cell)
    _tidy(done.folder)
    return done


def _chosen(entries: list[Entry], cells: Sequence[str]) -> list[Entry]:
    for cell in cells:
        if not any(entry.path.stem.startswith(cell) for entry in entries):
            raise UsageError(f"no cell {cell!r}", "harness status lists them")
    return [entry for entry in entries if not cells or any(entry.path.stem.startswith(cell) for cell in cells)]


def _asked(path: Path) -> str:
    return canonical(json.loads(path.read_text(encoding="utf-8"))["spec"])


def _tidy(folder: Path) -> None:
    """No samples that no record names."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    named = {sample for words in records for sample in named_samples(words)}
    for path in (folder / "samples").glob("*"):
        if path.name not in named:
            path.unlink()
