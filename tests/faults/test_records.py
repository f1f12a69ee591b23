"""Records, side files and other files of a store that are poisoned: named in one line, while the rest is answered."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import HarnessError
from harness.records.schema import Record
from harness.records.store import Store

from .records import GOOD, OTHER, SOURCE, changed, contents, harness, published_folder, runs_folder

TEXT = (SOURCE / f"{OTHER}.json").read_bytes()


def _median(number: bytes) -> bytes:
    head, _, tail = TEXT.partition(b'"median_ns": ')
    return head + b'"median_ns": ' + number + tail[tail.index(b",") :]


FILES = {
    "infinite-by-its-exponent": _median(b"1e999"),
    "infinite-by-name": _median(b"Infinity"),
    "not-a-number": _median(b"NaN"),
    "five-thousand-digits": _median(b"9" * 5000),
    "three-thousand-brackets": b"[" * 3000,
    "a-million-brackets": b"[" * 10**6,
    "deep-in-a-field": TEXT.replace(b'"gates": [', b'"gates": [' + b"[" * 3000 + b"]" * 3000 + b", "),
    "empty": b"",
    "truncated": TEXT[: len(TEXT) // 2],
    "binary": bytes(range(256)),
    "not-utf-8": TEXT.replace(b'"reason": ""', b'"reason": "\xff"'),
    "utf-16": TEXT.decode().encode("utf-16"),
    "a-lone-surrogate": TEXT.replace(b'"reason": ""', b'"reason": "\\ud800"'),
    "a-null-in-text": TEXT.replace(b'"reason": ""', b'"reason": "\0"'),
    "a-list": b"[]",
    "a-number": b"1",
    "null": b"null",
    "an-empty-object": b"{}",
    "no-digest": TEXT.replace(b'"digest"', b'"digests"'),
    "megabytes-of-blanks": TEXT + b" " * 5 * 2**20,
    "a-million-objects": b"[" + b"{}," * 10**6 + b"{}]",
}
PLACES = {
    "link-to-nothing": lambda path: path.symlink_to(path.with_name("nowhere")),
    "link-to-itself": lambda path: path.symlink_to(path),
    "link-to-a-device": lambda path: path.symlink_to("/dev/zero"),
    "link-to-a-folder": lambda path: path.symlink_to(path.parent.parent),
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir() or (path / "only-copy.txt").write_text("mine"),
}


def poison(path: Path, kind: str) -> None:
    if kind in FILES:
        path.write_bytes(FILES[kind])
    else:
        PLACES[kind](path)


@pytest.mark.parametrize("kind", [*FILES, *PLACES])
@pytest.mark.parametrize("command", ["status", "leaderboard", "validate"])
def test_a_poisoned_record_is_one_line(tmp_path, lost, command, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    path = runs / "records" / f"{OTHER}.json"
    poison(path, kind)
    before, start = contents(runs / "records"), time.process_time()
    code, text = harness(command, HARNESS_RUNS=str(runs))
    assert time.process_time() - start < 3  # a second where nothing is traced and nobody else works
    assert code == (1 if command == "validate" else 0)
    lines = [line for line in text.splitlines() if path.name in line]
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert any(word in lines[0] for word in ("set aside as", "not used", "wrong"))
    assert GOOD[0][:8] in text
    assert contents(runs / "records") == before
    lost(GOOD, Store(runs))


@pytest.mark.parametrize("kind", [*FILES, *PLACES])
@pytest.mark.parametrize("command", ["leaderboard", "validate"])
def test_a_poisoned_published_record_is_one_line(tmp_path, command, kind):
    folder = published_folder(tmp_path / "board", *GOOD)
    path = folder / "results" / "set" / f"{OTHER}.json"
    poison(path, kind)
    before = contents(folder / "results")
    code, text = harness(command, str(folder), HARNESS_RUNS=str(tmp_path / "none"))
    assert code == 1
    lines = [line for line in text.splitlines() if path.name in line]
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert os.path.lexists(path)
    assert contents(folder / "results") == before
    if command == "leaderboard":
        assert "wanda-sp" in "".join(page.read_text() for page in folder.rglob("*.md"))


# --- resealed records ---

TIMING = "prefill:1x128"


def _latency(**figures):
    return lambda words: words["latency"][TIMING].update(figures)


def _score(**figures):
    return lambda words: words["scores"]["passages"].update(figures)


ABSURD = {
    "speedup-of-zero": _latency(speedup=0.0),
    "speedup-below-zero": _latency(speedup=-1.0),
    "speedup-without-end": _latency(speedup=1e308),
    "speedup-of-almost-nothing": _latency(speedup=5e-324),
    "interval-from-zero": _latency(speedup_ci95=[0.0, 1.0]),
    "time-below-zero": lambda words: words["latency"][TIMING]["pruned"].update(median_ns=-1.0),
    "time-of-ages": lambda words: words["latency"][TIMING]["pruned"].update(median_ns=1e308),
    "count-below-zero": lambda words: words["latency"][TIMING]["pruned"].update(n=-5),
    "perplexity-of-zero": _score(value=0.0),
    "perplexity-below-zero": _score(value=-3.0),
    "perplexity-beyond-all": _score(value=1.7e308),
    "dense-perplexity-of-zero": _score(dense=0.0),
    "documents-below-zero": _score(n=-1),
    "accuracy-beyond-all": _score(value=1e304, higher_is_better=True, scale="mean"),
    "workload-of-nobody": lambda words: words.update(latency={"juggle:1x1": words["latency"][TIMING]}),
    "no-workload": lambda words: words["spec"].update(workloads=[]),
    "start-that-is-no-time": lambda words: words.update(started="yesterday"),
    "end-without-a-zone": lambda words: words.update(finished="2026-01-01T00:00:00"),
    "parameters-beyond-all": lambda words: words["artefact"].update(params=2**127),
    "id-of-another-length": lambda words: words.update(id="abc"),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_a_resealed_record_with_absurd_figures_is_left_out(tmp_path, lost, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    path = runs / "records" / f"{OTHER}.json"
    path.write_bytes(changed(OTHER, ABSURD[kind]))
    code, text = harness("leaderboard", HARNESS_RUNS=str(runs))
    assert code == 0
    assert f"{path} is not a record" in text
    assert "set aside as" in text
    assert "wanda-sp" in text
    lost(GOOD, Store(runs))


ODD = {
    "a-deviation-beyond-all": _score(stderr=1e300),
    "an-interval-from-nothing-to-all": _latency(speedup_ci95=[1e-12, 1e12]),
    "a-perplexity-of-almost-nothing": _score(value=1e-300, stderr=1e-300),
    "a-broken-model": _score(value=1.0142e304, stderr=1e304, change=1e304),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_figures_that_may_be_true_are_shown(tmp_path, lost, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    (runs / "records" / f"{OTHER}.json").write_bytes(changed(OTHER, ODD[kind]))
    folder = published_folder(tmp_path / "board", *GOOD)
    (folder / "results" / "set" / f"{OTHER}.json").write_bytes(changed(OTHER, ODD[kind]))
    code, text = harness("leaderboard", HARNESS_RUNS=str(runs))
    assert code == 0
    assert "llm-pruner" in text
    code, text = harness("leaderboard", str(folder), HARNESS_RUNS=str(runs))
    assert code == 0, text
    lost([*GOOD, OTHER], Store(runs))


# --- paths in records ---

DIGEST = "0" * 64
PATHS = {
    "samples-above": _latency(samples="../../victim/notes.txt"),
    "samples-absolute": _latency(samples="{victim}/notes.txt"),
    "samples-above-by-a-good-name": _latency(samples=f"../../victim/{DIGEST}.json.gz"),
    "samples-of-another-case": _latency(samples=f"{'A' * 64}.json.gz"),
    "samples-with-a-line-break": _latency(samples=f"{DIGEST}.json.gz\n"),
    "samples-of-a-score": _score(samples="../records/" + GOOD[0] + ".json"),
    "samples-of-dense": _score(dense_samples="../../victim/notes.txt"),
    "model-above": lambda words: words["artefact"].update(path="../victim/important"),
    "model-absolute": lambda words: words["artefact"].update(path="{victim}"),
    "model-is-the-store": lambda words: words["artefact"].update(path="."),
    "model-is-the-records": lambda words: words["artefact"].update(path="records"),
    "model-behind-dots": lambda words: words["artefact"].update(path=f"artefacts/../../victim/{'0' * 24}"),
}


@pytest.mark.parametrize("kind", PATHS)
def test_a_path_in_a_record_leads_nowhere(tmp_path, lost, kind):
    """The way of `harness run` with an answer that is there: what a record points to is looked at, and set aside."""
    from harness.cell.lifecycle import Cell

    victim = tmp_path / "victim"
    (victim / "important").mkdir(parents=True)
    (victim / "important" / "only-copy.txt").write_text("mine")
    (victim / "important.damaged").mkdir()
    (victim / "important.damaged" / "only-copy.txt").write_text("also mine")
    (victim / "notes.txt").write_text("mine")
    (victim / f"{DIGEST}.json.gz").write_text("mine")
    runs = runs_folder(tmp_path / "runs", *GOOD)
    text = changed(OTHER, PATHS[kind], lambda text: text.replace("{victim}", str(victim)))
    (runs / "records" / f"{OTHER}.json").write_bytes(text)
    before, records = contents(victim), contents(runs / "records")
    store = Store(runs)
    record = store.record(OTHER)
    if record is not None:
        quiet = SimpleNamespace(notice=lambda text: None)
        Cell._evidence_is_gone(SimpleNamespace(store=store, reporter=quiet, _tell_notices=lambda: None), record)
    assert contents(victim) == before
    assert contents(runs / "records") == records
    assert f"{OTHER}.json" in store.notices[0]
    assert "is not a record" in store.notices[0]
    lost(GOOD, store)


def test_every_record_of_this_repository_is_one():
    for path in [*SOURCE.parent.rglob("*.json"), *(Path(__file__).parents[1] / "golden").glob("record-*.json")]:
        words = json.loads(path.read_text())
        assert Record.model_validate(words).digest == words["digest"]


# --- setting aside ---


def test_setting_aside_never_replaces(tmp_path):
    store = Store(runs_folder(tmp_path / "runs"))
    path = store.path("records", "x.json")
    taken = store.path("records", "x.json.damaged")
    taken.mkdir()
    (taken / "only-copy.txt").write_text("mine")
    for number, text in enumerate(("one", "two", "three"), 1):
        path.write_text(text)
        store.set_aside(path, "is damaged")
        assert path.with_name(f"x.json.damaged.{number}").read_text() == text
    assert (taken / "only-copy.txt").read_text() == "mine"


def test_setting_a_folder_aside_never_replaces(tmp_path):
    store = Store(runs_folder(tmp_path / "runs"))
    for text in ("one", "two"):
        folder = store.path("artefacts", "a")
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)
        store.set_aside(folder, "was changed")
    assert (store.path("artefacts", "a.damaged") / "file").read_text() == "one"
    assert (store.path("artefacts", "a.damaged.1") / "file").read_text() == "two"


OUTSIDE = {
    "a-neighbour": lambda root: root.parent / "neighbour.txt",
    "by-dots": lambda root: root / "records" / ".." / ".." / "neighbour.txt",
    "the-store-itself": lambda root: root,
    "above-the-store": lambda root: root / "..",
    "through-a-link": lambda root: root / "way-out" / "neighbour.txt",
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_nothing_outside_is_set_aside(tmp_path, kind):
    store = Store(runs_folder(tmp_path / "runs", *GOOD))
    (tmp_path / "neighbour.txt").write_text("mine")
    (store.root / "way-out").symlink_to(tmp_path)
    before = contents(tmp_path)
    store.set_aside(OUTSIDE[kind](store.root), "is damaged")
    assert contents(tmp_path) == before
    assert (tmp_path / "neighbour.txt").read_text() == "mine"
    assert store.root.is_dir()
    assert "left as it is" in store.notices[0]


def test_a_link_is_set_aside_and_not_what_it_leads_to(tmp_path):
    store = Store(runs_folder(tmp_path / "runs"))
    (tmp_path / "mine.txt").write_text("{")
    path = store.path("records", "x.json")
    path.symlink_to(tmp_path / "mine.txt")
    assert store.read(path) is None
    assert (tmp_path / "mine.txt").read_text() == "{"
    assert store.path("records", "x.json.damaged").is_symlink()


# --- files beside the records ---

LEASE = {"pid": 1, "host": "h", "stage": "s", "started": 0.0, "heartbeat": 0.0}
SHAPES = {
    "list": [1],
    "number": 7,
    "text": "x",
    "null-inside": {"version": 1, "rows": None, "cells": None, "name": None},
    "list-inside": {"version": 1, "rows": [], "cells": [[]]},
    "empty-inside": {"version": 1, "rows": {GOOD[0]: {}}, "cells": [{}]},
    "numbers-inside": {
        "version": 1,
        "rows": {GOOD[0]: {"stamp": 1, "row": 2}},
        "cells": [{"id": 1, "status": 2, "reason": 3}],
    },
    "lists-for-text": {
        "version": 1,
        "rows": {GOOD[0]: {"stamp": [1, 2], "row": {"id": [], "status": [], "what": [], "detail": []}}},
        "cells": [{"id": [], "status": [], "reason": []}],
    },
    "pid-too-large": LEASE | {"pid": 2**70},
    "pid-below-zero": LEASE | {"pid": -1, "heartbeat": 1e300},
    "pid-of-text": LEASE | {"pid": "1; reboot"},
    "owner-of-numbers": LEASE | {"owner": [1, 2]},
    "heartbeat-of-text": LEASE | {"heartbeat": "now"},
    "seal-of-nobody": {"digest": None, "value": None, "components": [1]},
    "components-of-text": {"digest": "", "components": "x"},
}
OTHERS = {
    "index": "index.json",
    "lease": f"leases/{OTHER}.json",
    "sweep": "sweeps/suite-123456.json",
    "cell": f"stages/cell/{OTHER}.json",
}


@pytest.mark.parametrize("kind", [*SHAPES, "three-thousand-brackets", "infinite-by-its-exponent", *PLACES])
@pytest.mark.parametrize("other", OTHERS)
def test_status_answers_beside_a_poisoned_file(tmp_path, lost, other, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    path = runs / OTHERS[other]
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in SHAPES:
        path.write_text(json.dumps(SHAPES[kind]))
    else:
        poison(path, kind)
    for words in (["status"], ["status", "--why"], ["status", "--json"]):
        code, text = harness(*words, HARNESS_RUNS=str(runs))
        assert code == 0
        assert GOOD[0][:8] in text
        assert "running" not in text
    lost(GOOD, Store(runs))


STAGE = {"value-is-missing": {"digest": ""}, "list": [], "text": "x", "numbers": {"digest": 1, "value": 2}}


@pytest.mark.parametrize("kind", [*STAGE, "three-thousand-brackets", "five-thousand-digits", *PLACES])
def test_a_poisoned_stage_is_made_again(tmp_path, kind):
    store = Store(runs_folder(tmp_path / "runs"))
    path = store.path("stages", "eval", "k.json")
    path.parent.mkdir(parents=True)
    if kind in STAGE:
        path.write_text(json.dumps(STAGE[kind]))
    else:
        poison(path, kind)
    before = contents(path.parent)
    assert store.stage("eval", "k") is None
    assert "k.json" in store.notices[0]
    assert contents(path.parent) == before
    store.save_stage("eval", "k", {}, {"value": 1})
    assert store.stage("eval", "k") == {"value": 1}


# --- side files ---


@pytest.fixture(scope="module")
def bomb():
    """Two hundred megabytes of zeros in two hundred kilobytes."""
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = b"0" * 2**20
    return b"".join([*(press.compress(piece) for _ in range(200)), press.flush()])


def _named(content: bytes) -> str:
    import hashlib

    return f"{hashlib.sha256(gzip.decompress(content)).hexdigest()}.json.gz"


WORDS = gzip.compress(b'{"documents":{"a":1.0}}', mtime=0)
SIDES = {
    "not-gzip": b"documents",
    "empty": b"",
    "only-a-head": WORDS[:10],
    "truncated": WORDS[:-9],
    "wrong-sum": WORDS[:-8] + b"\0\0\0\0" + WORDS[-4:],
    "two-streams": WORDS + WORDS,
    "zeros-behind": WORDS + b"\0" * 100,
    "text-behind": WORDS + b"more",
    "of-another-name": gzip.compress(b"{}", mtime=0),
}


@pytest.mark.parametrize("kind", [*SIDES, "bomb", *PLACES])
def test_a_poisoned_side_file_is_named_in_time(tmp_path, bomb, kind):
    store = Store(runs_folder(tmp_path / "runs"))
    name = _named(WORDS)
    path = store.path("samples", name)
    path.parent.mkdir()
    if kind in PLACES:
        poison(path, kind)
    else:
        path.write_bytes(bomb if kind == "bomb" else SIDES[kind])
    before = contents(path.parent)
    tracemalloc.start()
    try:
        start = time.process_time()
        assert store.read_side_file(name) is None
        took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < 2
    assert peak < 200e6
    assert name in store.notices[0]
    assert contents(path.parent) == before


SIDE_NAMES = {
    "of-a-record": f"../records/{GOOD[0]}.json",
    "above": "../../neighbour.txt",
    "absolute": "{}/neighbour.txt",
    "without-a-digest": "x.json.gz",
    "with-a-nul": "a\0b",
    "without-end": "0" * 5000,
}


@pytest.mark.parametrize("kind", SIDE_NAMES)
def test_a_name_of_a_side_file_leads_nowhere(tmp_path, lost, kind):
    store = Store(runs_folder(tmp_path / "runs", *GOOD))
    store.path("samples").mkdir()
    (tmp_path / "neighbour.txt").write_text("mine")
    name = SIDE_NAMES[kind].replace("{}", str(tmp_path))
    assert store.read_side_file(name) is None
    assert store.lacks(name)
    assert (tmp_path / "neighbour.txt").read_text() == "mine"
    assert "is not the name of a side file" in store.notices[0]
    lost(GOOD, store)


DOCUMENTS = {
    "no-documents": {"scale": "mean"},
    "a-list": [1, 2],
    "a-list-inside": {"documents": [1.0]},
    "text-inside": {"documents": {"a": "1.0"}},
    "null-inside": {"documents": {"a": None}},
    "beyond-all": {"documents": {"a": 1e300, "b": -1e300}},
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_samples_that_are_no_scores_leave_one_row_out(tmp_path, lost, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)
    name = Store(runs).side_file(DOCUMENTS[kind])
    path = runs / "records" / f"{OTHER}.json"
    path.write_bytes(changed(OTHER, _score(samples=name)))
    code, text = harness("leaderboard", HARNESS_RUNS=str(runs))
    assert code == 0
    (line,) = (line for line in text.splitlines() if path.name in line)
    assert name in line
    assert "wanda-sp" in text
    assert path.exists()  # it is the samples that are wrong
    code, text = harness("validate", HARNESS_RUNS=str(runs))
    assert code == 1
    assert f"records/{OTHER}.json: " in text
    lost([*GOOD, OTHER], Store(runs))


UNWRITABLE = {
    "not-finite": {"documents": {"a": float("inf")}},
    "not-a-number": {"documents": {"a": float("nan")}},
    "too-deep": json.loads("[" * 300 + "]" * 300),
    "too-deep-for-python": None,
    "digits": {"documents": {"a": 10**60}},
    "a-lone-surrogate": {"texts": "\ud800"},
    "too-large": {"text": "x" * 20_000},
    "too-many-values": {"documents": {}, "values": [{}] * 20_000},
}


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_what_would_not_be_read_is_not_written(tmp_path, monkeypatch, kind):
    store, words = Store(runs_folder(tmp_path / "runs")), UNWRITABLE[kind]
    monkeypatch.setattr("harness.records.store.DOCUMENT", 10_000 if kind == "too-large" else 64 * 2**20, raising=False)
    monkeypatch.setattr("harness.system.reading.MEMORY", 10**6, raising=False)
    if kind == "too-deep-for-python":
        words = []
        for _ in range(100_000):
            words = [words]
    path = store.path("stages", "k.json")
    for write in (lambda: store.side_file(words), lambda: store.write(path, words, 10_000)):
        with pytest.raises(HarnessError) as caught:
            write()
        assert "is not written" in caught.value.cause
        assert len(caught.value.cause) < 500
        assert caught.value.remedy
    assert not list(tmp_path.rglob("*.gz"))
    assert not path.exists()


def test_a_record_that_would_not_be_read_is_not_written(tmp_path, lost):
    store = Store(runs_folder(tmp_path / "runs", *GOOD))
    record = store.record(GOOD[0])
    large = record.model_copy(update={"reason": "x" * (5 * 2**20)})
    with pytest.raises(HarnessError, match="larger than"):
        store.save_record(large)
    lost(GOOD, store)


# --- terminals ---

CODES = {
    "title": "\x1b]0;owned\x07",
    "colour": "\x1b[31mred",
    "clear": "\x1b[2J\x1b[H",
    "line-break": "a\nb: wrong",
    "return": "a\rb",
    "c1": "\x9b31m",
    "right-to-left": "a\u202eb",
    "null": "a\0b",
}


@pytest.mark.parametrize("kind", CODES)
def test_a_record_cannot_write_on_the_terminal(tmp_path, kind):
    runs = runs_folder(tmp_path / "runs", *GOOD)

    def change(words):
        words["reason"] = words["spec"]["model"] = words["spec"]["device"] = CODES[kind]
        words["status"] = "failed"
        words["scores"][CODES[kind]] = words["scores"]["passages"] | {"value": 3.0}
        words["gates"] = [{"name": CODES[kind], "guards": "cpu", "ok": True, "detail": ""}]

    (runs / "records" / f"{OTHER}.json").write_bytes(changed(OTHER, change))
    (runs / "records" / f"{CODES[kind].replace(chr(0), '')}.json").write_text("{")
    for command in ("status", "validate"):
        _, text = harness(command, HARNESS_RUNS=str(runs))
        assert OTHER[:8] in text
        assert all(line.isprintable() for line in text.split("\n"))
        assert "\nb: wrong" not in text
