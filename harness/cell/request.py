"""A request for one cell, as a user makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.api import DeviceInfo

DEFAULT_MODEL, DEFAULT_CALIBRATION = "smollm2-135m", "passages"


@dataclass(frozen=True)
class Request:
    """What a user may specify. None leaves the choice to the harness."""

    pruner: str
    model: str = DEFAULT_MODEL
    ratio: str | float | None = None
    latency: str | None = None
    device: str = "cpu"
    runtime: str | None = None
    dtype: str | None = None
    workloads: Sequence[str] = ()
    preset: str = "quick"
    settings: Mapping[str, Any] = field(default_factory=dict)
    recovery: str = "none"
    calibration: str = DEFAULT_CALIBRATION
    evaluators: Sequence[str] = ("smoke",)
    limit: int | None = None
    seed: int = 0
    grid: str | float | None = None
    sustain: float = 0.0
    probed: DeviceInfo | None = None  # what the device reported on its own machine; None probes it on this machine
