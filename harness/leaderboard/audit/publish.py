"""Copying validated records from a runs folder into the published results, with their samples.

All changes are planned first, as files to write and files to remove. They are carried out in an order that survives a
kill at any moment: samples and components, then records, and last the removals. Removed are only records that newer
ones replace, samples that no record names, and components of cells without a record.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from harness.errors import EnvironmentFault, HarnessError, UsageError, describe
from harness.leaderboard.audit import identity
from harness.leaderboard.audit.validate import named_samples, verdicts
from harness.leaderboard.entries import BadRecord, Entry
from harness.records.files import disk_errors, write_file
from harness.records.keys import canonical
from harness.records.sample_files import SIDE_FILE, check_side_file
from harness.records.schema import TRUST
from harness.records.store import Store
from harness.system.paths import below, plain_name
from harness.system.reading import Unreadable, content

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Names of files that may be removed, by subfolder. Files that a kill left unfinished have these names with a suffix.
_REMOVABLE = {
    "samples": SIDE_FILE,
    identity.FOLDER: re.compile(rf"[0-9a-f]{{24}}{re.escape(identity.SUFFIX)}"),
    "": re.compile(r"[0-9a-f]{24}\.json"),
}
OTHER_FOLDER = "publish under another NAME, or to another folder: --to DIR"


@dataclass
class Published:
    """The outcome of publishing: cells by what became of them, and files relative to the folder."""

    folder: Path
    taken: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    older: dict[str, str] = field(default_factory=dict)  # each with the newer record of the same request
    refused: dict[str, list[str]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)  # published before; left as they are, with the reason


@dataclass
class Changes:
    """Files to write, each from its content or from another file, and files to remove afterwards."""

    evidence: dict[Path, bytes | Path] = field(default_factory=dict)
    records: dict[Path, bytes | Path] = field(default_factory=dict)
    removals: list[Path] = field(default_factory=list)

    def carry_out(self) -> None:
        for path, source in (*self.evidence.items(), *self.records.items()):
            write_file(path, _read(source) if isinstance(source, Path) else source)
        for path in self.removals:
            with disk_errors(path.parent, ""):
                path.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return content(path)
    except (Unreadable, FileNotFoundError) as error:
        raise HarnessError(f"{path} cannot be copied: {describe(error)}", "publish again") from None


def publish(store: Store, target: Path, name: str, cells: Sequence[str] = (), check: bool = False) -> Published:
    """Copy valid records and their samples to `results/NAME`: of each request and machine only the newest record.

    With `check` nothing is changed; the result says what would be.
    """
    folder = _target_folder(store, target, name)
    outcome = Published(folder)
    valid = _valid_records(store, cells, outcome)
    if not valid:
        return outcome
    try:
        if check:
            _plan_changes(valid, outcome)
            return outcome
        with disk_errors(folder, ""):
            folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            _plan_changes(valid, outcome).carry_out()
    except EnvironmentFault as fault:
        remedy = "make room there, or give a folder that can be written: --to DIR; the same command then goes on"
        raise EnvironmentFault(fault.cause, remedy) from fault
    return outcome


def _target_folder(store: Store, target: Path, name: str) -> Path:
    """The folder of published records, after checks that no other files can be written or removed through it."""
    folder = below(target / "results", plain_name(name, "a folder of published records"), error=UsageError)
    for path in (folder, folder / "samples", folder / identity.FOLDER):
        if path.is_symlink():
            raise UsageError(f"{path} is a link", OTHER_FOLDER)
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is not a folder", OTHER_FOLDER)
    for path in (folder, folder.parent):
        is_store = (path / "stages").is_dir() and (path / "samples").is_dir()
        if is_store or path.resolve() == store.root:
            raise UsageError(f"{path} is a runs folder, whose samples are not published ones", OTHER_FOLDER)
    return folder


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder of records; other processes wait. The folder itself is locked, so no lock file remains."""
    if fcntl is None:  # Windows cannot lock a folder
        yield
        return
    with disk_errors(folder, ""):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- which records ---


def _valid_records(store: Store, cells: Sequence[str], outcome: Published) -> dict[str, Entry]:
    """The newest record of each request, among those that pass validation without reservations."""
    valid: dict[str, Entry] = {}
    entries = _selection(store, cells, outcome)
    for entry, verdict in zip(entries, verdicts(entries, store.root), strict=True):
        reasons = [*verdict.faults, *verdict.reservations]
        if not reasons and not verdict.components:
            reasons = [f"the components of its cell are not in {store.root}: {identity.AGAIN}"]
        if reasons:
            outcome.refused[entry.path.stem] = reasons
            continue
        other = valid.setdefault(_request(entry), entry)
        if other is not entry:
            older, newest = sorted((other, entry), key=_finish_time)
            valid[_request(entry)] = newest
            outcome.older[older.path.stem] = newest.path.stem
    return valid


def _selection(store: Store, cells: Sequence[str], outcome: Published) -> list[Entry]:
    """The records of a runs folder, or those whose ids begin with `cells`. Files that are not records are refused."""
    paths = store.files("records")
    for cell in cells:
        if not any(path.stem.startswith(cell) for path in paths):
            raise UsageError(f"no cell {cell!r}", "harness status lists them")
    entries = []
    for path in paths:
        if not cells or path.stem.startswith(tuple(cells)):
            try:
                entries.append(Entry(path, store.path("samples")))
            except BadRecord as error:
                outcome.refused[path.stem] = [error.why]
    return entries


def _request(entry: Entry) -> str:
    """The spec of a record and the machine it ran on."""
    return canonical([entry.payload["spec"], entry.payload["environment"]["device"]])


def _finish_time(entry: Entry) -> tuple[datetime, str]:
    return datetime.fromisoformat(entry.payload["finished"]), entry.payload["id"]


def _trust(entry: Entry) -> int:
    return TRUST.index(entry.record.trust)


# --- what changes ---


def _plan_changes(valid: dict[str, Entry], outcome: Published) -> Changes:
    """What must be written and removed to publish these records; `outcome` is filled on the way."""
    folder, changes = outcome.folder, Changes()
    published = _records_in(folder, outcome)
    by_request: dict[str, list[Entry]] = {}
    for earlier in published.values():
        by_request.setdefault(_request(earlier), []).append(earlier)
    for request, entry in valid.items():
        cell, same_request = entry.path.stem, by_request.get(request, [])
        # Leave out a record that is older than a published one, or whose file cannot be written.
        newest = max(same_request, key=_finish_time, default=entry)
        if _finish_time(newest) > _finish_time(entry):
            outcome.older[cell] = newest.path.stem
            continue
        if entry.path.name in outcome.damaged:
            why = f"{folder / entry.path.name} {outcome.damaged[entry.path.name]}: move it away and publish again"
            outcome.refused[cell] = [why]
            continue
        try:
            changes.evidence |= dict(_evidence(entry, folder))
        except HarnessError as error:
            outcome.refused[cell] = [error.line]
            continue
        # Publish it, and remove the older records of the same request.
        outcome.taken.append(cell)
        if _is_news(entry, published.get(cell)):
            changes.records[folder / entry.path.name] = entry.path
        published[cell] = entry
        for earlier in same_request:
            if earlier.path.stem != cell:
                outcome.replaced.append(earlier.path.stem)
                changes.removals.append(earlier.path)
                del published[earlier.path.stem]
    if outcome.taken and not outcome.damaged:  # a damaged record may need any of the samples
        changes.removals += _unneeded(folder, published)
    outcome.written = [str(path.relative_to(folder)) for path in (*changes.evidence, *changes.records)]
    outcome.removed = [str(path.relative_to(folder)) for path in changes.removals]
    return changes


def _is_news(entry: Entry, published: Entry | None) -> bool:
    """Whether a record differs from the published one, or has more trust. Otherwise the published file stays."""
    if published is None or published.payload["digest"] != entry.payload["digest"]:
        return True
    return _trust(entry) > _trust(published)


def _records_in(folder: Path, outcome: Published) -> dict[str, Entry]:
    """The records already in the folder, by cell. Other JSON files are noted as damaged and left alone."""
    entries = {}
    for path in sorted(folder.glob("*.json")):
        try:
            if path.is_symlink():
                raise BadRecord(path, "is a link")
            entry = Entry(path, folder / "samples")
            entries[entry.record.id] = entry
        except BadRecord as error:
            outcome.damaged[path.name] = error.why
    return entries


def _evidence(entry: Entry, folder: Path) -> Iterator[tuple[Path, bytes | Path]]:
    """The samples of a record and the components of its cell, unless they are already published."""
    for name in dict.fromkeys(named_samples(entry.payload)):
        if not SIDE_FILE.fullmatch(name):
            raise HarnessError(f"it names its samples {name!r}, which is not the name of a side file")
        path = folder / "samples" / name
        if not _is_sample(path):
            yield path, below(entry.side, name)
    cell = identity.read(entry.side, entry.record.id)
    assert cell is not None, "records without components were refused"
    path = identity.published_path(folder / "samples", entry.record.id)
    if _content_if_any(path) != cell.text():
        yield path, cell.text()


def _is_sample(path: Path) -> bool:
    """Whether an intact sample has this path. A damaged one is written again."""
    if _content_if_any(path) is None:
        return False
    try:
        check_side_file(path)
    except HarnessError:
        return False
    return True


def _content_if_any(path: Path) -> bytes | None:
    """The content of a file; None if there is none. Raises HarnessError if it is a folder, a link or a device."""
    if path.is_symlink():
        raise HarnessError(f"{path} is a link and is in the way", "move it away and publish again")
    try:
        return content(path)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise HarnessError(f"{error} and is in the way", "move it away and publish again") from None


def _unneeded(folder: Path, published: dict[str, Entry]) -> Iterator[Path]:
    """Samples that no record names, components of cells without a record, and unfinished files that a kill left."""
    side = folder / "samples"
    needed = {identity.published_path(side, cell) for cell in published}
    needed |= {side / name for entry in published.values() for name in named_samples(entry.payload)}
    for subfolder, pattern in _REMOVABLE.items():
        unfinished = re.compile(rf"\.{pattern.pattern}\.[0-9a-f]+")
        paths = sorted((folder / subfolder).iterdir()) if (folder / subfolder).is_dir() else []
        for path in paths:
            is_ours = unfinished.fullmatch(path.name) or (subfolder and pattern.fullmatch(path.name))
            if is_ours and path not in needed and path.is_file() and not path.is_symlink():
                yield path
