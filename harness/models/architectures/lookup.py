"""Finds the architecture and the task of a config.json, an anatomy or a model among the registered ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from harness.api import Architecture, Task
from harness.errors import Unsupported, one_line
from harness.models.anatomy.core import Anatomy
from harness.models.tasks import text
from harness.plugins import registry

__all__ = ["anatomy_of", "architecture", "architecture_for", "architecture_of", "task", "task_for"]

TASKS: dict[str, Task] = {"text": text.Text()}


@cache
def architecture(name: str) -> Architecture:
    """The registered architecture of this name."""
    return registry().build("architecture", name, {})


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture for a config's `model_type`, or `Unsupported` with what is supported."""
    if (name := _name_of(config)) is not None:
        return architecture(name)
    shown = str(config.get("model_type", "")).removeprefix(PRUNED) or "(none)"
    raise Unsupported(
        f"model family {one_line(repr(shown), 60)} has no anatomy yet", f"supported: {', '.join(model_types())}"
    )


PRUNED = "pruned_"  # what a model type begins with whose layers differ


def _name_of(config: Mapping[str, Any]) -> str | None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    plain = model_type.removeprefix(PRUNED)
    return next((spec.name for spec in _specs() if plain in spec.model_types), None)


def _specs() -> list[Any]:
    return list(registry().specs["architecture"].values())


def model_types() -> list[str]:
    """All supported values of `model_type`."""
    return sorted(model_type for spec in _specs() for model_type in spec.model_types)


def anatomy_of(config: Mapping[str, Any], where: str = "the model's config") -> Anatomy:
    """The anatomy behind a config.json, or `Unsupported` with what is supported."""
    kind = architecture_of(config)
    kind.check(config, where)
    if config.get("quantization_config"):
        raise Unsupported("the weights are quantised", "give the unquantised model")
    return kind.anatomy(config)


def check_config(config: Mapping[str, Any], where: str = "the model's config") -> None:
    """Refuse wrong types and sizes in the config of a supported model; others have no anatomy to build."""
    if (name := _name_of(config)) is not None:
        architecture(name).check(config, where)


def architecture_for(model: Any) -> Architecture:
    """The architecture of a model in memory."""
    return architecture_of({"model_type": getattr(model.config, "model_type", None)})


def task(name: str) -> Task:
    """The task of this name, as anatomies and architectures name it."""
    if name not in TASKS:
        raise Unsupported(f"there is no task {one_line(repr(name), 60)}", f"known: {', '.join(TASKS)}")
    return TASKS[name]


def task_for(model: Any) -> Task:
    """What goes into a model in memory and what comes out."""
    return task(architecture_for(model).task)
