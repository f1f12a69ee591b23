"""The benchmarks as lm-eval defines them, fed with rows that are at hand."""

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
    """One lm-eval task: its definition inside the package, and its rows."""

    name: str
    file: str
    source: rows.Source
    note: str = ""  # where its prompts are not those of lm-eval's task

    @cached_property
    def definition(self) -> dict[str, Any]:
        from lm_eval.tasks._yaml_loader import load_yaml  # TaskManager would index thousands of files to find one

        return load_yaml(DEFINITIONS / self.file)

    def build(self, found: rows.TaskRows, fewshot: int, limit: int | None) -> Any:
        """lm-eval's own task over the rows. Where only its second choice of split is at hand, that is evaluated."""
        from lm_eval.api.task import ConfigurableTask

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of every default it fills in
        definition = dict(self.definition)
        examples = _examples(definition)
        wanted = [definition.get(kind) for kind in ("test_split", "validation_split")]
        here = found.read({split: limit for split in wanted if split and split != examples})
        if not self.split(here):
            known = " or ".join(split for split in wanted if split)
            raise EnvironmentFault(
                f"{self.source.name} is asked on its split {known}, of which there are no rows",
                f"put them into HARNESS_DATA/{self.source.name}/{known.split()[-1]}.jsonl",
            )
        for kind in ("training_split", "validation_split", "test_split"):
            if definition.get(kind) not in here:
                definition.pop(kind, None)
        if fewshot and examples not in here:
            raise UsageError(
                f"{self.name} takes its examples from the split {examples}, which is not at hand",
                f"give {self.source.name}:fewshot=0, or HARNESS_DATA with {self.source.name}/{examples}.jsonl",
            )
        if not fewshot:
            definition.pop("fewshot_split", None)
        metadata = {"version": definition.get("metadata", {}).get("version")}
        made = {"custom_dataset": lambda **_: here, "dataset_kwargs": None, "num_fewshot": fewshot}
        task = ConfigurableTask(config=definition | made | {"metadata": metadata})
        task.set_fewshot_seed(1234)  # as lm-eval's own command does
        return task

    def split(self, here: Mapping[str, Any]) -> str:
        """The split that is evaluated, of those at hand."""
        for kind in ("test_split", "validation_split"):
            if self.definition.get(kind) in here:
                return str(self.definition[kind])
        return ""

    def notes(self, asked: str) -> list[str]:
        """What to know of figures of a split that is not the one others publish."""
        first = self.definition.get("test_split") or asked
        notes = [self.note] if self.note else []
        if first != asked:
            notes.append(f"asked on {asked}; the rows of {first}, which lm-eval asks, are not at hand")
        return notes


def _examples(definition: Mapping[str, Any]) -> str | None:
    given = (definition.get("fewshot_config") or {}).get("split") or definition.get("fewshot_split")
    return given or definition.get("training_split") or definition.get("validation_split")


def _one(name: str, file: str, packed: str, hub: str, config: str | None = None) -> list[Part]:
    return [Part(name, file, rows.Source(name, packed, hub, config))]


TASKS: dict[str, list[Part]] = {
    "hellaswag": _one("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag/none", "Rowan/hellaswag"),
    "arc_easy": _one("arc_easy", "arc/arc_easy.yaml", "ai2_arc/ARC-Easy", "allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": _one(
        "arc_challenge", "arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge", "allenai/ai2_arc", "ARC-Challenge"
    ),
    "piqa": _one("piqa", "piqa/piqa.yaml", "piqa/plain_text", "baber/piqa"),
    "openbookqa": _one("openbookqa", "openbookqa/openbookqa.yaml", "openbookqa/main", "allenai/openbookqa", "main"),
    "winogrande": _one(
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
