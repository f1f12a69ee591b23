"""Records with their files, of a runs folder or published below `results/`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harness.errors import EnvironmentFault, HarnessError, one_line
from harness.records.sample_files import load_side_file
from harness.records.schema import Record, ScoreRecord, intact
from harness.records.store import RECORD, Store
from harness.system.reading import Unreadable, json_file

T = TypeVar("T")
LARGEST_SCORE = 1e60  # of one document; its fourth power is still a finite number


class BadRecord(HarnessError):
    """A file is not a record, or was edited. `damaged` is false where the file itself may be intact."""

    def __init__(self, path: Path, why: str, damaged: bool = True) -> None:
        super().__init__(one_line(f"{path} {why}"), "harness validate names all such files")
        self.path, self.why, self.damaged = path, one_line(why), damaged

    def __reduce__(self) -> Any:
        return BadRecord, (self.path, self.why, self.damaged)


OnBad = Callable[[BadRecord], None]


class Entry:
    """A record's file and the folder of its samples. `payload` is the JSON as it was read; `record` is validated."""

    def __init__(self, path: Path, side: Path) -> None:
        self.path, self.side = path, side
        try:
            self.payload = json_file(path, RECORD)
        except Unreadable as fault:
            raise BadRecord(path, fault.why, fault.damaged) from None
        except FileNotFoundError:
            raise BadRecord(path, "was removed meanwhile", damaged=False) from None
        if not _has_outline(self.payload):
            raise BadRecord(path, "is not a record")

    @cached_property
    def record(self) -> Record:
        try:
            record = Record.model_validate(self.payload)
        except ValidationError as error:
            raise BadRecord(self.path, f"is not a record ({error.error_count()} fields are wrong)") from None
        if not intact(self.payload) or record.id != self.path.stem:
            raise BadRecord(self.path, "was edited since it was written")
        return record

    def documents(self, score: ScoreRecord) -> Mapping[str, float]:
        """The score of each document; empty where the samples were not published."""
        try:
            path = self.side / score.samples
            return documents_of(path, load_side_file(path)) or {} if score.samples else {}
        except HarnessError as error:
            raise BadRecord(self.path, f"cannot be ranked: {error.cause}", damaged=False) from None


def documents_of(path: Path, payload: Any) -> Mapping[str, float] | None:
    """The score of each document in the content of a side file; None where there is no such file."""
    if payload is None:
        return None
    documents = payload.get("documents") if isinstance(payload, dict) else None
    numbers = documents.values() if isinstance(documents, dict) else (None,)
    if not all(isinstance(number, int | float) and abs(number) <= LARGEST_SCORE for number in numbers):
        raise HarnessError(f"{path} does not hold scores of documents", "harness validate names all that is wrong")
    return documents


def _has_outline(payload: Any) -> bool:
    """Whether the fields that group records for pages are present. The other fields are checked when they are used."""
    try:
        spec = payload["spec"]
        texts = [payload[name] for name in ("id", "status", "finished", "digest")]
        texts += [spec[name] for name in ("pruner", "model", "revision", "dtype", "device", "runtime", "recovery")]
        texts += [spec["budget"]["kind"], spec["budget"]["unit"], spec["workloads"][0]]
        texts += [timing[name] for timing in payload["latency"].values() for name in ("provenance", "clock")]
        numbers = [spec["seed"], spec["budget"]["value"]]
        device = payload["environment"]["device"]
    except (KeyError, TypeError, IndexError, AttributeError):
        return False
    return (
        isinstance(device, dict)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers)
    )


def read(folder: Path, on_bad: OnBad | None = None) -> list[Entry]:
    """All records below `results/`, each with the folder of its samples.

    A file that is not a record is passed to `on_bad` and left out. Without `on_bad`, its BadRecord is raised.
    """
    published = []
    for path in paths(folder):
        try:
            published.append(Entry(path, path.parent / "samples"))
        except BadRecord as error:
            if on_bad is None:
                raise
            on_bad(error)
    return published


def paths(folder: Path) -> list[Path]:
    """Everything below `results/` whose name ends in `.json`, folders and links too."""

    def refuse(error: OSError) -> None:
        raise EnvironmentFault(f"cannot read {error.filename}: {error.strerror}", "make it a folder that can be read")

    walk = os.walk(folder / "results", onerror=refuse)
    return sorted(Path(root, name) for root, folders, files in walk for name in folders + files if _is_json(name))


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def runs_entries(store: Store) -> list[Entry]:
    """All records of a runs folder. Damaged ones are set aside with a notice."""
    entries = []
    for path in store.files("records"):
        try:
            entries.append(Entry(path, store.path("samples")))
        except BadRecord as error:
            store.refuse(path, error.why, error.damaged)
    return entries


def without_edited(store: Store, entries: list[Entry], work: Callable[[list[Entry]], T]) -> T:
    """The result of `work` on the records of a runs folder. Edited ones are set aside with a notice."""
    return without_bad(entries, work, lambda error: store.refuse(error.path, error.why, error.damaged))


def without_bad(entries: list[Entry], work: Callable[[list[Entry]], T], on_bad: OnBad) -> T:
    """The result of `work` on all entries that are records. Others are passed to `on_bad` and left out.

    An entry is checked only when it is used, so `work` starts anew whenever it meets a bad one.
    """
    while True:
        try:
            return work(entries)
        except BadRecord as error:
            on_bad(error)
            entries = [entry for entry in entries if entry.path != error.path and _is_sound(entry, on_bad)]


def _is_sound(entry: Entry, on_bad: OnBad) -> bool:
    try:
        return bool(entry.record)
    except BadRecord as error:
        on_bad(error)
        return False
