"""Figures that others reported: shown beside ours and marked, never ranked with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from harness.errors import HarnessError
from harness.leaderboard.rows import Row
from harness.records.schema import Number
from harness.system.reading import json_file, parsing


class Reported(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pruner: str
    model: str
    setting: str = Field(description="what was removed, from which data, what followed")
    scores: dict[str, Number]
    taken: dict[str, str] = Field({}, description="how, in the words of our columns; only such figures are compared")
    source: str
    ratio: Number | None = Field(None, description="our ratio for the same setting; null where there is none")
    parameters: dict[str, Any] = Field({}, description="those of ours that make it the same setting")
    recovery: str = "none"

    def row(self) -> dict[str, str]:
        scores = ", ".join(f"{name} {value:g}" for name, value in self.scores.items())
        return {
            "method": f"`{self.pruner}`",
            "setting": self.setting,
            "scores": scores,
            "reported, not re-run": self.source,
        }

    def gap(self, row: Row) -> str:
        """How far our row is from what was reported, where it is the same setting."""
        spec = row.spec
        asked = (spec.pruner, spec.model, spec.recovery, spec.preset, spec.budget.kind)
        if asked != (self.pruner, self.model, self.recovery, "paper", "ratio") or spec.budget.value != self.ratio:
            return ""
        if any(spec.parameters.get(name) != value for name, value in self.parameters.items()):
            return ""
        gaps = [
            f"{name} {value - self.scores[name]:+.3g}"
            for name in self.scores
            for column in row.scores
            if column.name == name and name in self.taken and self.taken[name] in column.how
            if (value := row.value(column)) is not None
        ]
        return ", ".join(gaps)


def read(folder: Path) -> list[Reported]:
    path = folder / "reported.json"
    if not os.path.lexists(path):
        return []
    with parsing(path, "a list of reported figures", "see harness/leaderboard/reported.py", HarnessError):
        return TypeAdapter(list[Reported]).validate_python(json_file(path))
