"""What a run makes of its evaluators: paired with dense, each a stage of its own, none taking another along."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from harness import resolve
from harness.api import EvaluatorSpec, Score
from harness.cell import planning
from harness.cell.lifecycle import Cell, Reporter
from harness.cell.request import Request
from harness.cli.output import print_plan
from harness.cli.record import print_record
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.evaluation import score_stats, texts
from harness.plugins import registry
from harness.records.store import Store


class Asked:
    """Evaluators of these tests, and how often each was run."""

    runs: list = []  # noqa: RUF012
    broken = True

    def evaluate(self, model, ctx):
        Asked.runs.append(type(self).__name__)
        return {"": Score({f"d{at}": float(at % 2) for at in range(6)}, True)}


class Fine(Asked): ...


class Fails(Asked):
    def evaluate(self, model, ctx):
        if Asked.broken:
            raise HarnessError("the second layer is missing", "bring it back")
        return super().evaluate(model, ctx)


class Crashes(Asked):
    def evaluate(self, model, ctx):
        raise ZeroDivisionError("by nought")


class Absent(Asked):
    def identity(self, fetch):
        raise EnvironmentFault("its rows are not here", "fetch them")


class Writes(Asked):
    def evaluate(self, model, ctx):
        shown = [{"prompt": "a|b", "dense": "one\ntwo", "pruned": "[red]three\x1b[2J"}]
        return {
            "": Score({"a": 1.0}, True, notes=["two rows lost their start"], texts=shown),
            "norm": Score({"a": 0.5}, True, notes=["two rows lost their start"]),
        }


class Beside(Asked):
    """Sees the dense model."""

    def evaluate(self, model, ctx):
        count = sum(parameter.numel() for parameter in ctx.dense.parameters())
        return {"": Score({"all": float(count), "same": float(ctx.dense is model)}, True)}


MADE = (Fine, Fails, Crashes, Absent, Writes, Beside)


@pytest.fixture
def asked(monkeypatch, one_process):
    specs = dict(registry().specs["evaluator"])
    for made in MADE:
        name = made.__name__.lower()
        needs = ("dense",) if made is Beside else ()
        specs[name] = EvaluatorSpec(name=name, target=f"{__name__}:{made.__name__}", summary="of tests", needs=needs)
    monkeypatch.setitem(registry().specs, "evaluator", specs)
    whole = registry().load
    classes = {made.__name__.lower(): made for made in MADE}
    monkeypatch.setattr(registry(), "load", lambda kind, name: classes.get(name) or whole(kind, name))
    monkeypatch.setattr("harness.plugins.code_version", lambda kind, name: "1")
    Asked.runs, Asked.broken = [], True
    return Asked


def run(root, *evaluators, **more):
    request = Request(
        pruner="magnitude", model="tiny", ratio=0.3, device="null", evaluators=evaluators, limit=2, **more
    )
    return Cell(planning.make_plan(request), Store(root), Reporter()).run()


def test_one_that_fails_takes_nothing_along(asked, tmp_path):
    record = run(tmp_path, "fails", "crashes", "fine")
    assert record.status == "failed"
    assert record.scores["fine"].value == 0.5
    assert record.unscored["fails"] == "the second layer is missing (bring it back)"
    assert "by nought" in record.unscored["crashes"]
    assert "fails" in record.reason
    assert record.latency
    assert record.flops


def test_only_what_failed_is_asked_again(asked, tmp_path):
    run(tmp_path, "fails", "fine")
    Asked.broken = False
    Asked.runs.clear()
    record = run(tmp_path, "fails", "fine")
    assert record.status == "ok"
    assert not record.unscored
    assert set(Asked.runs) == {"Fails"}


def test_data_that_is_not_here_is_said_and_is_no_failure(asked, tmp_path):
    record = run(tmp_path, "absent", "fine")
    assert record.status == "ok"
    assert record.unscored == {"absent": "its rows are not here (fetch them)"}
    assert record.spec.evaluators == ["fine", "absent"]


def test_nothing_but_missing_data_ends_the_run(asked, tmp_path):
    with pytest.raises(EnvironmentFault, match="not here"):
        run(tmp_path, "absent")


def test_data_that_turns_out_to_be_damaged_ends_no_other(asked, tmp_path, monkeypatch):
    def damaged(self, model, ctx):
        raise EnvironmentFault("rows.jsonl:3 is not JSON", "repair the file")

    monkeypatch.setattr(Beside, "evaluate", damaged)
    record = run(tmp_path, "beside", "fine")
    assert record.unscored == {"beside": "rows.jsonl:3 is not JSON (repair the file)"}
    assert record.scores["fine"].value == 0.5


def test_a_damaged_side_file_is_made_again_alone(asked, tmp_path):
    first = run(tmp_path, "fine", "passages:window=32")
    (tmp_path / "samples" / first.scores["fine"].samples).write_bytes(b"junk")
    Asked.runs.clear()
    second = run(tmp_path, "fine", "passages:window=32")
    assert second.status == "ok"
    assert second.scores["fine"] == first.scores["fine"]
    assert Asked.runs == ["Fine"]  # dense and pruned share a side file here, since they answered the same


@pytest.mark.parametrize(("wanted", "cause"), [("", "no evaluator is named"), ("smoke:window=3", "is a group")])
def test_words_that_name_no_evaluator(wanted, cause):
    with pytest.raises(UsageError, match=cause):
        resolve.resolve_evaluators([wanted], "quick")


def test_text_that_no_hub_has_is_missed_while_planning(monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    _, missing = resolve.resolve_evaluators(["ptb", "passages"], "quick", fetch=False)
    assert list(missing) == ["ptb"]


def test_a_window_longer_than_the_model_stops_no_other(asked, tmp_path):
    record = run(tmp_path, "passages:window=4096", "fine")
    assert record.status == "ok"
    assert list(record.scores) == ["fine"]
    [(label, why)] = record.unscored.items()
    assert label == "passages:window=4096"
    assert "accepts 2048 tokens" in why
    assert "--eval passages:window=2048" in why
    alone = run(tmp_path, "passages:window=4096")
    assert alone.status == "unsupported"
    assert alone.reason == why


def test_a_reader_is_shown_notes_and_texts(asked, tmp_path, capsys):
    record = run(tmp_path, "writes", "crashes")
    print_record(record, tmp_path, False)
    told = capsys.readouterr().out
    assert told.count("writes: two rows lost their start") == 1
    assert "[red]three" in told
    assert "\x1b[2J" not in told
    assert told.count("by nought") == 1
    card = re.sub(" +", " ", (tmp_path / record.artefact.path / "README.md").read_text())
    assert "| prompt | dense | pruned |" in card
    assert r"| a\|b | one ⏎ two | \[red\]three�\[2J |" in card


def test_what_is_missing_makes_another_cell(asked, tmp_path):
    first, second = run(tmp_path, "fine"), run(tmp_path, "fine", "absent")
    assert first.id != second.id
    assert "absent" in second.unscored


def test_an_evaluator_is_lent_the_dense_model(asked, tmp_path):
    record = run(tmp_path, "beside")
    store = Store(tmp_path)
    documents = store.read_side_file(record.scores["beside"].samples)["documents"]
    assert documents == {"all": float(record.artefact.params_dense), "same": 0.0}
    assert record.scores["beside"].dense == (record.artefact.params_dense + 1) / 2


def test_a_change_is_paired_by_document(one_process, tmp_path):
    record = run(tmp_path, "passages:window=32")
    score = record.scores["passages:window=32"]
    side = Store(tmp_path).read_side_file(score.samples)["documents"]
    assert score.scale == "exp-mean"
    assert score.change == pytest.approx(score.value / score.dense)
    assert score.change_ci95[0] < score.change < score.change_ci95[1]
    assert len(side) == score.n == 2


def test_a_benchmark_that_asks_about_the_calibration_text_is_marked(asked, tmp_path, monkeypatch, capsys):
    """At the start of the run and beside each score; not where nothing was learned from a text."""
    passages = dataclasses.replace(texts.SOURCES["passages"], benchmarks=("writes",))
    monkeypatch.setitem(texts.SOURCES, "passages", passages)
    note = "calibrated on passages that this benchmark asks about"
    learned = run(tmp_path, "writes", "fine", recovery="least-squares:samples=4:length=16")
    assert learned.status == "ok", learned.reason
    assert learned.scores["writes"].notes == ["two rows lost their start", note]
    assert learned.scores["writes.norm"].notes[-1] == note
    assert not learned.scores["fine"].notes
    assert note not in run(tmp_path, "writes").scores["writes"].notes
    for recovery, times in (("least-squares", 1), ("none", 0)):
        request = Request(
            pruner="magnitude", model="tiny", ratio=0.3, device="null", evaluators=("writes",), recovery=recovery
        )
        print_plan(planning.make_plan(request), False)
        assert " ".join(capsys.readouterr().out.split()).count(f"writes: {note}") == times


def test_a_paired_interval_forgets_what_both_share():
    first = [10.0, 20.0, 30.0, 41.0]
    second = [9.0, 19.0, 29.0, 39.0]
    middle, (low, high) = score_stats.paired(first, second)
    assert middle == 1.25
    assert (low, high) == pytest.approx((1.25 - 3.182 * 0.25, 1.25 + 3.182 * 0.25))
    assert score_stats.paired([2.0], [1.0]) == (1.0, None)
    assert score_stats.paired([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]) == (0.0, None)


def test_perplexity_equals_a_loop_of_a_few_lines(one_process, tmp_path):
    """Windows of the joined text, each alone, the first token of each only read."""
    import torch
    from torch.nn.functional import log_softmax

    from harness.models.saved import folders

    record = run(tmp_path, "passages:window=48")
    score = record.scores["passages:window=48"]
    store = Store(tmp_path)
    model = folders.read(store.path(record.artefact.path), "fp32")
    tokenizer = folders.tokenizer(store.path(record.artefact.path))
    row = tokenizer("\n\n".join(texts.read("passages").documents), add_special_tokens=False).input_ids
    total = 0.0
    for at in range(2):
        window = row[48 * at : 48 * (at + 1)]
        with torch.no_grad():
            likely = log_softmax(model(torch.tensor([window])).logits[0].double(), dim=-1)
        total -= sum(float(likely[place, token]) for place, token in enumerate(window[1:])) / 47
    assert score.value == pytest.approx(math.exp(total / 2), rel=1e-4)
    assert score.details["tokens_scored"] == 2 * 47
    assert score.details["window"] == 48
    assert score.details["bos"] is None


# --- the Penn Treebank ---


def test_ptb_comes_from_a_folder_with_its_protocol(one_process, tmp_path, monkeypatch):
    lines = " no it was n't black monday \n but while the <unk> did n't fall <unk> \n\n" * 20
    (tmp_path / "ptb.test.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "ptb.valid.txt").write_text("of <unk> " * 200, encoding="utf-8")
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    record = run(tmp_path / "runs", "ptb:window=32", "ptb:window=32:split=validation")
    told = record.scores["ptb:window=32"].details
    assert told["unk"] == "40 times <unk>, as text"
    assert told["data"]["source"] == "ptb.test.txt"
    assert told["join"] == "one blank"
    assert texts.read("ptb").documents[0] == "no it was n't black monday"
    assert record.scores["ptb:split=validation:window=32"].details["unk"].startswith("200 ")


def test_ptb_that_is_not_here_says_where_it_would_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(EnvironmentFault) as fault:
        resolve.resolve_evaluators(["ptb"], "quick")
    assert "ptb.test.txt" in fault.value.remedy


def test_characters_are_not_taken_for_words(tmp_path, monkeypatch):
    """Both stand side by side as they were published."""
    (tmp_path / "ptb.char.test.txt").write_text("n o _ i t _", encoding="utf-8")
    (tmp_path / "ptb.test.txt").write_text("no it was", encoding="utf-8")
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    assert texts.read("ptb").documents == ["no it was"]


def test_old_records_keep_their_digest():
    """Fields that came later are not in words that lack them."""
    from harness.records.schema import ScoreRecord

    words = ScoreRecord(value=1.0, stderr=None, n=1, higher_is_better=True).model_dump(mode="json")
    assert not {"scale", "change", "change_ci95"} & set(words)
    assert json.dumps(words)
