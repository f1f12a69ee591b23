"""What a run tells to those who listen through `harness_event`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """name is one of cell-started, stage-started, stage-finished, cell-finished."""

    name: str
    cell: str
    stage: str = ""
    seconds: float = 0.0
    status: str = ""
