"""harness prunes a model to a budget on a real device and says with evidence what it cost.

The public names are listed below. Each is imported when it is first used, so that `import harness` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES_BY_MODULE = {
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
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}
__all__ = sorted(_MODULE_OF)

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
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
