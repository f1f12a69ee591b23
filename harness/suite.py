"""A suite: a YAML matrix of cells, validated before any work. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness import plugins
from harness.errors import UsageError
from harness.planning import DEFAULT_CALIBRATION, Request

LIKE = "uniform:"  # a budget: the latency of the model that is narrowed evenly by this ratio, on that device


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Method(Part):
    name: str
    set: dict[str, Any] = Field({}, description="parameters, as --set gives them")


class Place(Part):
    name: str
    runtime: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] | None = None


class Matrix(Part):
    """What is crossed. Of an `include`, what it leaves out is that of the suite."""

    pruners: list[str | Method] | None = None
    models: list[str] | None = None
    budgets: list[str | float] | None = Field(None, description="0.3, 0.8x, 25ms or uniform:0.3")
    devices: list[str | Place] | None = None
    workloads: list[str | list[str]] | None = Field(None, description="a list in the list: several in one cell")
    recoveries: list[str] | None = None
    seeds: list[int] | None = None

    @field_validator("*")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("an empty list leaves no cells")
        return value


AXES = tuple(Matrix.model_fields)
USUAL: dict[str, list[Any]] = {
    "budgets": [""],
    "devices": ["cpu"],
    "workloads": [[]],
    "recoveries": ["none"],
    "seeds": [0],
}


class Suite(Matrix):
    about: str = ""
    evaluators: list[str] = ["smoke"]
    preset: Literal["quick", "paper"] = "quick"
    limit: int | None = Field(None, ge=1)
    sustain: float = Field(0.0, ge=0, le=7200, description="seconds that each pruned model also works for")
    calibration: str = DEFAULT_CALIBRATION
    timeout_minutes: float | None = Field(None, gt=0, description="of one step of a cell")
    include: list[Matrix] = []
    exclude: list[dict[str, Any]] = Field([], description="cells that all of these match: an axis and its values")

    @field_validator("exclude")
    @classmethod
    def _axes(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for rule in value:
            if not rule or not set(rule) <= set(AXES):
                raise ValueError(f"a rule names some of {', '.join(AXES)}")
        return value


@dataclass(frozen=True)
class Ask:
    """One cell as the suite asks for it. `like` is the ratio whose even narrowing sets the latency, if one does."""

    label: str
    request: Request
    like: float | None = None


def read(path: Path) -> Suite:
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "give a suite: benchmarks/suites/smoke.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}", "see benchmarks/suites/") from None
    if not isinstance(words, dict):
        raise UsageError(f"{path} is not a suite", "it holds keys: pruners, models, budgets …; see benchmarks/suites/")
    try:
        suite = Suite.model_validate(words)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("str", "Method", "Place", "float"))
        raise UsageError(f"{path}: {where}: {first['msg']}", f"known: {', '.join(Suite.model_fields)}") from None
    for axis in ("pruners", "models"):
        if getattr(suite, axis) is None:
            raise UsageError(f"{path} names no {axis}", f"add {axis}: [...]")
    return suite


def cells(suite: Suite) -> list[Ask]:
    """All cells, once each: those with a cut in common stand together."""
    usual = {axis: getattr(suite, axis) or USUAL.get(axis) for axis in AXES}
    found: dict[str, Ask] = {}
    idle = list(suite.exclude)
    for matrix in ({}, *(part.model_dump(exclude_none=True) for part in suite.include)):
        for values in itertools.product(*({**usual, **matrix}[axis] for axis in AXES)):
            one = dict(zip(AXES, values, strict=True))
            if not matrix and (rules := [rule for rule in suite.exclude if _matches(rule, one)]):
                idle = [rule for rule in idle if rule not in rules]
                continue
            ask = _ask(suite, one)
            found.setdefault(ask.label, ask)
    if idle:
        raise UsageError(f"the rule {idle[0]} excludes nothing", "correct its names and values, or take it out")
    if not found:
        raise UsageError("the suite has no cells", "its exclude leaves none")
    return list(found.values())


def _matches(rule: dict[str, Any], one: dict[str, Any]) -> bool:
    for axis, wanted in rule.items():
        names = {str(name) for name in (wanted if isinstance(wanted, list) else [wanted])}
        if not names & set(_names(one[axis])):
            return False
    return True


def _names(value: Any) -> Iterator[str]:
    """What a rule may call a value: a recovery also by its name without settings."""
    if isinstance(value, Part):
        value = value.model_dump()
    value = value["name"] if isinstance(value, dict) else value
    for word in value if isinstance(value, list) else [value]:
        yield str(word)
        yield str(word).partition(":")[0]


def _ask(suite: Suite, one: dict[str, Any]) -> Ask:
    method = _part(one["pruners"])
    place = _part(one["devices"])
    known = plugins.registry().specs["pruner"].get(method["name"])
    budget = "" if known is not None and not known.budgets else str(one["budgets"])  # dense takes none
    workloads = one["workloads"] if isinstance(one["workloads"], list) else [one["workloads"]]
    like = _share(budget) if budget.startswith(LIKE) else None
    request = Request(
        pruner=method["name"],
        model=one["models"],
        ratio=budget if budget and like is None and budget.replace(".", "", 1).isdigit() else None,
        latency=budget if budget and like is None and not budget.replace(".", "", 1).isdigit() else None,
        device=place["name"],
        runtime=place.get("runtime"),
        dtype=place.get("dtype"),
        workloads=tuple(workloads),
        preset=suite.preset,
        settings=dict(method.get("set", {})),
        recovery=one["recoveries"],
        calibration=suite.calibration,
        evaluators=tuple(suite.evaluators),
        limit=suite.limit,
        sustain=suite.sustain,
        seed=one["seeds"],
    )
    settings = " ".join(f"{name}={value}" for name, value in request.settings.items())
    where = " ".join(word for word in (request.device, request.runtime, request.dtype) if word)
    parts = (request.model, f"{request.pruner} {settings}".strip(), budget, where, "+".join(workloads))
    healed = "" if request.recovery == "none" else request.recovery
    label = ", ".join(part for part in (*parts, healed, f"seed {request.seed}" if request.seed else "") if part)
    return Ask(label, request, like)


def _part(value: Any) -> dict[str, Any]:
    if isinstance(value, Part):
        return value.model_dump()
    return value if isinstance(value, dict) else {"name": value}


def _share(budget: str) -> float:
    try:
        share = float(budget.removeprefix(LIKE))
    except ValueError:
        share = -1
    if not 0 < share < 1:
        raise UsageError(f"budget {budget} names no share", f"give {LIKE}0.3")
    return share
