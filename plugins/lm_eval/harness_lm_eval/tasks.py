"""The benchmarks as lm-eval defines them, over the rows that `rows` finds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault, UsageError
from harness_lm_eval import boolq, rows

DEFINITIONS = Path(str(find_spec("lm_eval").origin)).parent / "tasks"
BOOLQ = "super_glue/boolq/default.yaml"
SUBJECTS = sorted(file.stem.removeprefix("mmlu_") for file in DEFINITIONS.glob("mmlu/default/mmlu_*.yaml"))


@dataclass(frozen=True)
class Part:
    """One lm-eval task: its definition in lm-eval's package, and the source of its rows."""

    name: str
    file: str
    source: rows.Source
    note: str = ""  # how its prompts differ from those of lm-eval's task

    @cached_property
    def definition(self) -> dict[str, Any]:
        from lm_eval.tasks._yaml_loader import load_yaml  # TaskManager would index thousands of files first

        return load_yaml(DEFINITIONS / self.file)

    def build(self, task_rows: rows.TaskRows, fewshot: int, limit: int | None) -> Any:
        """lm-eval's own task over the rows. If the rows of its first split are missing, the second one is evaluated."""
        from lm_eval.api.task import ConfigurableTask

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it logs every default that it fills in
        definition = dict(self.definition)
        examples = _examples_split(definition)
        evaluation_splits = [definition.get(kind) for kind in ("test_split", "validation_split")]
        datasets = task_rows.read({split: limit for split in evaluation_splits if split and split != examples})
        if not self.split(datasets):
            names = " or ".join(split for split in evaluation_splits if split)
            raise EnvironmentFault(
                f"{self.source.name} is evaluated on its split {names}, of which there are no rows",
                f"put them into HARNESS_DATA/{self.source.name}/{names.split()[-1]}.jsonl",
            )
        for kind in ("training_split", "validation_split", "test_split"):
            if definition.get(kind) not in datasets:
                definition.pop(kind, None)
        if fewshot and examples not in datasets:
            raise UsageError(
                f"{self.name} takes its examples from the split {examples}, which is not available",
                f"give {self.source.name}:fewshot=0, or HARNESS_DATA with {self.source.name}/{examples}.jsonl",
            )
        if not fewshot:
            definition.pop("fewshot_split", None)
        metadata = {"version": definition.get("metadata", {}).get("version")}
        overrides = {
            "custom_dataset": lambda **_: datasets,
            "dataset_kwargs": None,
            "num_fewshot": fewshot,
            "metadata": metadata,
        }
        task = ConfigurableTask(config=definition | overrides)
        task.set_fewshot_seed(1234)  # as lm-eval's own command does
        return task

    def split(self, datasets: Mapping[str, Any]) -> str:
        """The name of the split to evaluate, of those that have rows; empty if there is none."""
        for kind in ("test_split", "validation_split"):
            if self.definition.get(kind) in datasets:
                return str(self.definition[kind])
        return ""

    def notes(self, split: str) -> list[str]:
        """Notes for the record when `split` is evaluated: why the figures may differ from published ones."""
        first = self.definition.get("test_split") or split
        notes = [self.note] if self.note else []
        if first != split:
            notes.append(f"asked on {split}; the rows of {first}, which lm-eval asks, are not at hand")
        return notes


def _examples_split(definition: Mapping[str, Any]) -> str | None:
    """The split from which lm-eval takes the few-shot examples."""
    own_split = (definition.get("fewshot_config") or {}).get("split") or definition.get("fewshot_split")
    return own_split or definition.get("training_split") or definition.get("validation_split")


def _single(name: str, file: str, packed: str, hub: str, config: str | None = None) -> list[Part]:
    return [Part(name, file, rows.Source(name, packed, hub, config))]


TASKS: dict[str, list[Part]] = {
    "hellaswag": _single("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag/none", "Rowan/hellaswag"),
    "arc_easy": _single("arc_easy", "arc/arc_easy.yaml", "ai2_arc/ARC-Easy", "allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": _single(
        "arc_challenge", "arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge", "allenai/ai2_arc", "ARC-Challenge"
    ),
    "piqa": _single("piqa", "piqa/piqa.yaml", "piqa/plain_text", "baber/piqa"),
    "openbookqa": _single("openbookqa", "openbookqa/openbookqa.yaml", "openbookqa/main", "allenai/openbookqa", "main"),
    "winogrande": _single(
        "winogrande", "winogrande/default.yaml", "winogrande/winogrande_xl", "allenai/winogrande", "winogrande_xl"
    ),
    "boolq": [Part("boolq", BOOLQ, boolq.WITH_TITLES)],
    "boolq_passages": [Part("boolq_passages", BOOLQ, boolq.PASSAGES, boolq.NOTE)],
    "mmlu": [
        Part(
            subject,
            f"mmlu/default/mmlu_{subject}.yaml",
            rows.Source(f"mmlu/{subject}", f"hails/mmlu_no_train/{subject}", "cais/mmlu", subject),
        )
        for subject in SUBJECTS
    ],
}
