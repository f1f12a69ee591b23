"""Figures from papers and repositories. Pages show them apart, and never rank them with measured rows."""

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
    """A result that others reported, as `reported.json` has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pruner: str
    model: str
    setting: str = Field(description="what was removed, the calibration data, and the recovery")
    scores: dict[str, Number]
    taken: dict[str, str] = Field(
        {}, description="how scores were taken, as our columns say it; others are not compared"
    )
    source: str
    ratio: Number | None = Field(None, description="the ratio of the same setting here; null where there is none")
    parameters: dict[str, Any] = Field({}, description="parameters of our method for the same setting")
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
        """The difference of a measured row from the reported scores; empty where the setting is not the same."""
        spec = row.spec
        request = (spec.pruner, spec.model, spec.recovery, spec.preset, spec.budget.kind)
        if request != (self.pruner, self.model, self.recovery, "paper", "ratio") or spec.budget.value != self.ratio:
            return ""
        if any(spec.parameters.get(name) != value for name, value in self.parameters.items()):
            return ""
        gaps = []
        for name, score in self.scores.items():
            for column in row.scores:
                same_protocol = column.name == name and name in self.taken and self.taken[name] in column.protocol
                value = row.value(column) if same_protocol else None
                if value is not None:
                    gaps.append(f"{name} {value - score:+.3g}")
        return ", ".join(gaps)


def read(folder: Path) -> list[Reported]:
    path = folder / "reported.json"
    if not os.path.lexists(path):
        return []
    with parsing(path, "a list of reported figures", "see harness/leaderboard/reported.py", HarnessError):
        return TypeAdapter(list[Reported]).validate_python(json_file(path))
