"""Records changed as somebody would who knows how they are sealed, and what a cell's id is the hash of."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.leaderboard.entries import Entry
from harness.records.files import json_text
from harness.records.keys import key
from harness.records.schema import Conformance, Git, digest, seal
from harness.records.store import Store

from .forks import in_one_process

Json = dict[str, Any]


def reseal(path: Path, payload: Json) -> None:
    """Write a record with the digest and the seal that fit it."""
    payload["digest"] = digest(payload)
    payload["seal"] = seal(payload)
    path.write_bytes(json_text(payload))


def later(payload: Json, **by: float) -> Json:
    """The same record, written at another time; its measurement may be older."""
    payload = copy.deepcopy(payload)
    for part, name in [
        (payload, "started"),
        (payload, "finished"),
        *((change, "when") for change in payload["history"]),
    ]:
        part[name] = (datetime.fromisoformat(part[name]) + timedelta(**by)).isoformat()
    return payload


def another_cell(runs: Path, payload: Json, alter: Callable[[Json, Json], None]) -> Json:
    """A record whose cell has other components, with the id and the keys that fit them. `alter` changes both."""
    payload = copy.deepcopy(payload)
    stage = json.loads((runs / "stages" / "cell" / f"{payload['id']}.json").read_text())
    parts = stage["components"]
    alter(payload, parts)
    cut = {name: part for name, part in parts["artefact"].items() if name != "recovery"}
    payload["keys"]["cut"] = key("cut", cut)
    payload["keys"]["artefact"] = key(
        "artefact", {"cut": payload["keys"]["cut"], "recovery": parts["artefact"]["recovery"]}
    )
    if payload["artefact"]:
        payload["artefact"]["path"] = f"artefacts/{payload['keys']['artefact']}"
    payload["id"] = key("cell", parts)
    stage["value"] = payload["spec"]
    (runs / "stages" / "cell" / f"{payload['id']}.json").write_bytes(json_text(stage))
    reseal(runs / "records" / f"{payload['id']}.json", payload)
    return payload


def as_version(runs: Path, payload: Json, version: str) -> Json:
    """What another version of the method would have recorded: the same question, another cell."""
    return another_cell(runs, payload, lambda _, parts: parts["artefact"].update(version=version))


def as_seed(runs: Path, payload: Json, seed: int) -> Json:
    """What another seed would have recorded: another question."""

    def alter(payload: Json, parts: Json) -> None:
        payload["spec"]["seed"] = parts["artefact"]["seed"] = seed

    return another_cell(runs, payload, alter)


_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def tiny_runs() -> Path:
    """A runs folder with two records fit to be published: random on tiny, by a ratio and by a latency. Copy it."""
    _folders.append(tempfile.TemporaryDirectory(prefix="harness-tiny-"))
    folder = Path(_folders[-1].name) / "runs"
    request = {"model": "tiny", "device": "null", "grid": 350, "out": folder}
    with pytest.MonkeyPatch.context() as patch:
        in_one_process(patch)
        harness.run("random", ratio=0.3, evaluators="passages:window=64", **request)
        harness.run("random", latency="0.8x", evaluators="footprint", **request)
    store = Store(folder)
    for record in store.records():
        environment = record.environment.model_copy(update={"git": Git(commit="0" * 40, dirty=False)})
        more = {"environment": environment, "conformance": Conformance(kit="test", passed=1, of=1)}
        store.save_record(record.model_copy(update=more).sealed())
    return folder


def records(runs: Path) -> dict[str, Entry]:
    """The records of a runs folder, by the kind of their budget."""
    entries = [Entry(path, runs / "samples") for path in sorted((runs / "records").glob("*.json"))]
    return {entry.payload["spec"]["budget"]["kind"]: entry for entry in entries}


def tree(folder: Path) -> dict[str, Any]:
    """All that lies in a folder: files with their bytes, links with where they lead."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        link = path.readlink() if path.is_symlink() else None
        found[str(path.relative_to(folder))] = link or (path.read_bytes() if path.is_file() else None)
    return found
