"""What is known of records that did not change since: their rows, without reading ten thousand files again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from harness.errors import HarnessError
from harness.store import Store

Row = dict[str, Any]
VERSION = 1


def rows(store: Store, row_of: Callable[[Mapping[str, Any]], Row]) -> dict[str, Row]:
    """A row per record. A file is read, and checked, where its time or size is not what it was."""
    path = store.path("index.json")
    known = store.read(path) or {}
    known = known.get("rows", {}) if known.get("version") == VERSION else {}
    found: dict[str, Any] = {}
    for file in store.path("records").glob("*.json"):
        state = file.stat()
        stamp = [state.st_mtime_ns, state.st_size]
        before = known.get(file.stem)
        if before is not None and before["stamp"] == stamp:
            found[file.stem] = before
        elif (record := store.record(file.stem)) is not None:
            found[file.stem] = {"stamp": stamp, "row": row_of(record.words())}
    if found != known:
        with contextlib.suppress(HarnessError):  # a folder that may only be read
            store.write(path, {"version": VERSION, "rows": found})
    return {cell: found[cell]["row"] for cell in sorted(found)}
