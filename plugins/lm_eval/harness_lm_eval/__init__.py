"""lm-eval's multiple-choice benchmarks, with tokens that requests share computed once."""

from __future__ import annotations

from harness import EvaluatorSpec, Param, hookimpl

ABOUT = {  # name -> subject, computed tokens per document, number of documents
    "hellaswag": ("which sentence follows", 120, 10_042),
    "arc_easy": ("grade-school science, the easy part", 60, 2376),
    "arc_challenge": ("grade-school science, the hard part", 70, 1172),
    "piqa": ("how to do everyday things", 70, 1838),
    "openbookqa": ("science facts and common sense", 40, 500),
    "winogrande": ("what a pronoun means", 40, 1267),
    "boolq": ("yes or no about a passage", 150, 3270),
    "boolq_passages": ("yes or no about a passage without its title, none that calibrates", 150, 1618),
    "mmlu": ("57 subjects, four choices, five examples before each question", 120, 14_042),
}
STAGES = ("mmlu", "openbookqa", "arc_easy", "winogrande", "arc_challenge", "piqa", "hellaswag")


@hookimpl
def harness_register_evaluators():
    return [_spec(name, *about) for name, about in ABOUT.items()]


def _spec(name: str, subject: str, tokens: int, documents: int) -> EvaluatorSpec:
    parameters = {"fewshot": Param(5 if name == "mmlu" else 0, "solved examples before each question", least=0)}
    if name == "mmlu":
        parameters["subjects"] = Param("", "only these, joined by +; empty is all")
    return EvaluatorSpec(
        name=name,
        target=f"harness_lm_eval.benchmarks:{name.title().replace('_', '')}",
        summary=f"accuracy: {subject}",
        groups=("stage1", "stage2") if name in STAGES else (),
        parameters=parameters,
        exceptions={"spec": "its name has an underscore, as lm-eval's names have"} if "_" in name else {},
        tokens=tokens,
        documents=documents,
    )
