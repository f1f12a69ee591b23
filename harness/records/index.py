"""Cached rows of records, so that records that have not changed are not read and checked again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from harness.errors import HarnessError
from harness.records.store import Store

Row = dict[str, Any]
VERSION = 1
FIELDS = ("id", "status", "what", "detail")  # of a row


class Entry(TypedDict):
    """The row of a record, and the stamp of the file that it was made from."""

    stamp: list[int]
    row: Row


def rows(store: Store, row_of: Callable[[Mapping[str, Any]], Row]) -> dict[str, Row]:
    """The row of each record. A record is read and checked only if its file's time or size has changed."""
    path = store.path("index.json")
    cached = _entries(store.read(path))
    entries: dict[str, Entry] = {}
    for file in store.files("records"):
        entry = cached.get(file.stem)
        if entry is not None and entry["stamp"] == _stamp(file):
            entries[file.stem] = entry
        elif (record := store.record(file.stem)) is not None:
            entries[file.stem] = {"stamp": _stamp(file), "row": row_of(record.to_dict())}
    if entries != cached:
        with contextlib.suppress(HarnessError):  # the folder may be read-only
            store.write(path, {"version": VERSION, "rows": entries})
    return {cell: entries[cell]["row"] for cell in sorted(entries)}


def _stamp(file: Path) -> list[int]:
    """The modification time and size of a file; empty if there is no such file."""
    try:
        state = file.stat()
    except OSError:
        return []
    return [state.st_mtime_ns, state.st_size]


def _entries(index: object) -> dict[str, Entry]:
    """The valid entries of an index file by cell; none if it is of another version."""
    if not isinstance(index, dict) or index.get("version") != VERSION or not isinstance(index.get("rows"), dict):
        return {}
    return {cell: entry for cell, entry in index["rows"].items() if _is_entry(entry) and entry["row"]["id"] == cell}


def _is_entry(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"stamp", "row"} or not value["stamp"]:
        return False
    row = value["row"]
    return isinstance(row, dict) and row.keys() == set(FIELDS) and all(isinstance(text, str) for text in row.values())
