"""harness prunes a model to a budget on a real device and says with evidence what it cost.

The names below are the public ones. Each is imported when it is first asked for, so `import harness` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "harness.api": (
        "API_VERSION",
        "Architecture",
        "ArchitectureSpec",
        "Budget",
        "Context",
        "Cut",
        "Device",
        "DeviceInfo",
        "DeviceSpec",
        "Evaluator",
        "EvaluatorSpec",
        "ModelCard",
        "Param",
        "Pruner",
        "PrunerSpec",
        "Recovery",
        "RecoverySpec",
        "Samples",
        "Score",
        "Scores",
        "Shape",
        "Step",
        "Task",
        "TimingPlan",
        "Workload",
        "hookimpl",
    ),
    "harness.pruning.allocate": ("uniform", "ranked", "best", "to_remove"),
    "harness.errors": ("HarnessError", "OverBudget", "Unsupported"),
    "harness.functions": ("evaluate", "load", "measure", "run"),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from harness.api import (
        API_VERSION,
        Architecture,
        ArchitectureSpec,
        Budget,
        Context,
        Cut,
        Device,
        DeviceInfo,
        DeviceSpec,
        Evaluator,
        EvaluatorSpec,
        ModelCard,
        Param,
        Pruner,
        PrunerSpec,
        Recovery,
        RecoverySpec,
        Samples,
        Score,
        Scores,
        Shape,
        Step,
        Task,
        TimingPlan,
        Workload,
        hookimpl,
    )
    from harness.errors import HarnessError, OverBudget, Unsupported
    from harness.functions import evaluate, load, measure, run
    from harness.pruning.allocate import best, ranked, to_remove, uniform


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
