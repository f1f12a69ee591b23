"""What is known of records that did not change since: their rows, without reading ten thousand files again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.records.store import Store

Row = dict[str, Any]
VERSION = 1
ROW = ("id", "status", "what", "detail")


def rows(store: Store, row_of: Callable[[Mapping[str, Any]], Row]) -> dict[str, Row]:
    """A row per record. A file is read, and checked, where its time or size is not what it was."""
    path = store.path("index.json")
    known = _known(store.read(path))
    found: dict[str, Any] = {}
    for file in store.files("records"):
        before = known.get(file.stem)
        if before is not None and before["stamp"] == _stamp(file):
            found[file.stem] = before
        elif (record := store.record(file.stem)) is not None:
            found[file.stem] = {"stamp": _stamp(file), "row": row_of(record.words())}
    if found != known:
        with contextlib.suppress(HarnessError):  # a folder that may only be read
            store.write(path, {"version": VERSION, "rows": found})
    return {cell: found[cell]["row"] for cell in sorted(found)}


def _stamp(file: Path) -> list[int]:
    try:
        state = file.stat()
    except OSError:
        return []
    return [state.st_mtime_ns, state.st_size]


def _known(words: Any) -> dict[str, Any]:
    """What an index holds; nothing where it is of another version or shape."""
    if not isinstance(words, dict) or words.get("version") != VERSION or not isinstance(words.get("rows"), dict):
        return {}
    return {cell: kept for cell, kept in words["rows"].items() if _is_kept(kept) and kept["row"]["id"] == cell}


def _is_kept(kept: Any) -> bool:
    if not isinstance(kept, dict) or kept.keys() != {"stamp", "row"} or not kept["stamp"]:
        return False
    row = kept["row"]
    return isinstance(row, dict) and row.keys() == set(ROW) and all(isinstance(text, str) for text in row.values())
