"""Records and where they lie: of a runs folder, or published below `results/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from harness.errors import HarnessError
from harness.records import Record, ScoreRecord, intact
from harness.store import Store, side_words

T = TypeVar("T")


class BadRecord(HarnessError):
    """A file that is no record, or was edited."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}", "harness validate names all such files")
        self.path, self.why = path, why

    def __reduce__(self) -> Any:
        return BadRecord, (self.path, self.why)


class Entry:
    """A record in its file, and the folder of its samples. Its words are as they are; its record is checked."""

    def __init__(self, path: Path, side: Path) -> None:
        self.path, self.side = path, side
        try:
            self.words = from_json(path.read_bytes(), allow_inf_nan=False)
        except ValueError:
            raise BadRecord(path, "is truncated or not JSON") from None
        if not _outlined(self.words):
            raise BadRecord(path, "is not a record")

    @cached_property
    def record(self) -> Record:
        try:
            found = Record.model_validate(self.words)
        except ValidationError as error:
            raise BadRecord(self.path, f"is not a record ({error.error_count()} fields are wrong)") from None
        if not intact(self.words) or found.id != self.path.stem:
            raise BadRecord(self.path, "was edited since it was written")
        return found

    def documents(self, score: ScoreRecord) -> Mapping[str, float]:
        """The score of each document; nothing where the samples were not published."""
        words = side_words(self.side / score.samples) if score.samples else None
        return words["documents"] if words else {}


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


def read(folder: Path) -> list[Entry]:
    """All records below `results/`, with their samples in a folder beside them."""
    return [Entry(path, path.parent / "samples") for path in sorted((folder / "results").rglob("*.json"))]


def of_runs(store: Store) -> list[Entry]:
    """All records of a runs folder; what is damaged is set aside with a notice."""
    found = []
    for path in sorted(store.path("records").glob("*.json")):
        try:
            found.append(Entry(path, store.path("samples")))
        except BadRecord as error:
            store.set_aside(path, error.why)
    return found


def despite_edits(store: Store, entries: list[Entry], work: Callable[[list[Entry]], T]) -> T:
    """The work on all records of a runs folder but those that turn out edited, which are set aside with a notice."""
    while True:
        try:
            return work(entries)
        except BadRecord as error:
            store.set_aside(error.path, error.why)
            entries = [entry for entry in entries if entry.path != error.path]
