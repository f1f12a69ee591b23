"""Records and where they lie: of a runs folder, or published below `results/`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harness.errors import EnvironmentFault, HarnessError, one_line
from harness.records.sample_files import side_words
from harness.records.schema import Record, ScoreRecord, intact
from harness.records.store import RECORD, Store
from harness.system.reading import Unreadable, json_file

T = TypeVar("T")
MOST = 1e60  # of one document's score; squares and fourth powers of it are still numbers


class BadRecord(HarnessError):
    """A file that is no record, or was edited. `damaged` is false where the file itself may be good."""

    def __init__(self, path: Path, why: str, damaged: bool = True) -> None:
        super().__init__(one_line(f"{path} {why}"), "harness validate names all such files")
        self.path, self.why, self.damaged = path, one_line(why), damaged

    def __reduce__(self) -> Any:
        return BadRecord, (self.path, self.why, self.damaged)


OnBad = Callable[[BadRecord], None]


class Entry:
    """A record in its file, and the folder of its samples. Its words are as they are; its record is checked."""

    def __init__(self, path: Path, side: Path) -> None:
        self.path, self.side = path, side
        try:
            self.words = json_file(path, RECORD)
        except Unreadable as fault:
            raise BadRecord(path, fault.why, fault.damaged) from None
        except FileNotFoundError:
            raise BadRecord(path, "was removed meanwhile", damaged=False) from None
        if not _outlined(self.words):
            raise BadRecord(path, "is not a record")

    @cached_property
    def record(self) -> Record:
        try:
            record = Record.model_validate(self.words)
        except ValidationError as error:
            raise BadRecord(self.path, f"is not a record ({error.error_count()} fields are wrong)") from None
        if not intact(self.words) or record.id != self.path.stem:
            raise BadRecord(self.path, "was edited since it was written")
        return record

    def documents(self, score: ScoreRecord) -> Mapping[str, float]:
        """The score of each document; nothing where the samples were not published."""
        try:
            path = self.side / score.samples
            return documents_of(path, side_words(path)) or {} if score.samples else {}
        except HarnessError as error:
            raise BadRecord(self.path, f"cannot be ranked: {error.cause}", damaged=False) from None


def documents_of(path: Path, words: Any) -> Mapping[str, float] | None:
    """The score of each document in a side file's words; None where there is no such file."""
    if words is None:
        return None
    documents = words.get("documents") if isinstance(words, dict) else None
    numbers = documents.values() if isinstance(documents, dict) else (None,)
    if not all(isinstance(number, int | float) and abs(number) <= MOST for number in numbers):
        raise HarnessError(f"{path} does not hold scores of documents", "harness validate names all that is wrong")
    return documents


def _outlined(words: Any) -> bool:
    """Whether there is what pages are laid out by; the rest is looked at when it is needed."""
    try:
        spec = words["spec"]
        known = [words[name] for name in ("id", "status", "finished", "digest")]
        known += [spec[name] for name in ("pruner", "model", "revision", "dtype", "device", "runtime", "recovery")]
        known += [spec["budget"]["kind"], spec["budget"]["unit"], spec["workloads"][0]]
        known += [timing[name] for timing in words["latency"].values() for name in ("provenance", "clock")]
        numbers = [spec["seed"], spec["budget"]["value"]]
        device = words["environment"]["device"]
    except (KeyError, TypeError, IndexError, AttributeError):
        return False
    plain = all(isinstance(word, str) for word in known) and isinstance(device, dict)
    return plain and all(isinstance(number, int | float) for number in numbers)


def read(folder: Path, on_bad: OnBad | None = None) -> list[Entry]:
    """All records below `results/`, with their samples in a folder beside them.

    What is no record is given to `on_bad` and left out, or raised where there is none.
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
    """Every JSON file below `results/`, and what else has such a name."""

    def refuse(error: OSError) -> None:
        raise EnvironmentFault(f"cannot read {error.filename}: {error.strerror}", "make it a folder that can be read")

    walk = os.walk(folder / "results", onerror=refuse)
    return sorted(Path(place, name) for place, inside, files in walk for name in inside + files if _is_json(name))


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def of_runs(store: Store) -> list[Entry]:
    """All records of a runs folder; what is damaged is set aside with a notice."""
    entries = []
    for path in store.files("records"):
        try:
            entries.append(Entry(path, store.path("samples")))
        except BadRecord as error:
            store.refuse(path, error.why, error.damaged)
    return entries


def despite_edits(store: Store, entries: list[Entry], work: Callable[[list[Entry]], T]) -> T:
    """The work on all records of a runs folder but those that turn out edited, which are set aside with a notice."""
    return without_bad(entries, work, lambda error: store.refuse(error.path, error.why, error.damaged))


def without_bad(entries: list[Entry], work: Callable[[list[Entry]], T], on_bad: OnBad) -> T:
    """The work on all entries but those that turn out to be no records, which are given to `on_bad` and left out."""
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
