"""A suite: a YAML matrix of cells, validated before any work. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictInt, ValidationError, field_validator

from harness import plugins
from harness.cell.request import DEFAULT_CALIBRATION, Request
from harness.errors import UsageError, one_line
from harness.system import reading

CELLS = 100_000
RULES = 1_000
TEXT = 500  # characters of a name or a value, since each cell's label holds some
SETTINGS = 2_000  # characters of a method's parameters together
LIKE = "uniform:"  # a budget: the latency of the model that is narrowed evenly by this ratio, on that device


Name = str | int | float  # as YAML reads a seed or a ratio


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Method(Part):
    name: str
    set: dict[str, Any] = Field({}, description="parameters, as --set gives them")

    @field_validator("set")
    @classmethod
    def _short(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(str(value)) > SETTINGS:
            raise ValueError(f"parameters of more than {SETTINGS:,} characters")
        return value


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
    seeds: list[StrictInt] | None = None

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
    limit: int | None = Field(None, ge=1, le=10**9)
    sustain: float = Field(0.0, ge=0, le=7200, description="seconds that each pruned model also works for")
    calibration: str = DEFAULT_CALIBRATION
    timeout_minutes: float | None = Field(None, gt=0, le=10**5, description="of one step of a cell")
    include: list[Matrix] = []
    exclude: list[dict[str, Name | list[Name]]] = Field(
        [], description="cells that all of these match: an axis and its values"
    )
    _file: str = PrivateAttr("the suite")

    @field_validator("about")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return one_line(value)

    @field_validator("exclude")
    @classmethod
    def _axes(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(value) > RULES:
            raise ValueError(f"more than {RULES:,} rules")
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
    with reading.parsing(path, "a suite", "give a suite: benchmarks/suites/smoke.yaml", UsageError):
        values = reading.yaml_file(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a suite", "it holds keys: pruners, models, budgets …; see benchmarks/suites/")
    if odd := next(_odd_texts({name: value for name, value in values.items() if name != "about"}), None):
        why = f"is longer than {TEXT} characters" if len(odd) > TEXT else "has a control character"
        raise UsageError(f"{path}: {one_line(odd, 60)!r} {why}", "give plain names")
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a union, the form that fits best
        where = ".".join(str(part) for part in first["loc"] if part not in ("str", "Method", "Place", "float"))
        cause = one_line(f"{path}: {where}: {first['msg']}")
        raise UsageError(cause, f"known: {', '.join(Suite.model_fields)}") from None
    for axis in ("pruners", "models"):
        if getattr(suite, axis) is None:
            raise UsageError(f"{path} names no {axis}", f"add {axis}: [...]")
    suite._file = str(path)
    return suite


def _odd_texts(value: Any) -> Iterator[str]:
    """Texts that labels cannot hold."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for part in value:
            yield from _odd_texts(part)
    elif isinstance(value, str) and (len(value) > TEXT or not value.isprintable()):
        yield value


def cells(suite: Suite) -> list[Ask]:
    """All cells, once each: those with a cut in common stand together."""
    usual: dict[str, list[Any]] = {axis: getattr(suite, axis) or USUAL.get(axis, []) for axis in AXES}
    parts = [{**usual, **part.model_dump(exclude_none=True)} for part in suite.include]
    count = sum(math.prod(len(matrix[axis]) for axis in AXES) for matrix in (usual, *parts))
    if count > CELLS:
        raise UsageError(f"{suite._file} asks for {count:,} cells", f"a suite has at most {CELLS:,}: split it")
    found: dict[str, Ask] = {}
    rules = _Rules(suite.exclude)
    axes = [[(value, rules.matching(axis, value)) for value in usual[axis]] for axis in AXES]
    for pairs in itertools.product(*axes):
        if not rules.exclude([matching for _, matching in pairs]):
            _add(found, suite, [value for value, _ in pairs])
    for matrix in parts:
        for values in itertools.product(*(matrix[axis] for axis in AXES)):
            _add(found, suite, values)
    if (rule := rules.unused()) is not None:
        cause = one_line(f"{suite._file}: the rule {rule} excludes nothing")
        raise UsageError(cause, "correct its names and values, or take it out")
    if not found:
        raise UsageError(f"{suite._file}: the suite has no cells", "its exclude leaves none")
    return list(found.values())


def _add(found: dict[str, Ask], suite: Suite, values: Sequence[Any]) -> None:
    ask = _ask(suite, dict(zip(AXES, values, strict=True)))
    found.setdefault(ask.label, ask)


class _Rules:
    """The rules of `exclude`. Sets of rules are the bits of a number, so that many of them cost little per cell."""

    def __init__(self, rules: list[dict[str, Any]]) -> None:
        self.rules, self.used = rules, 0
        self.naming: dict[tuple[str, str], int] = {}  # an axis and a name: the rules that ask for it
        self.silent = dict.fromkeys(AXES, 0)  # the rules that say nothing of an axis
        for number, rule in enumerate(rules):
            for axis in AXES:
                if axis not in rule:
                    self.silent[axis] |= 1 << number
            for axis, wanted in rule.items():
                for name in wanted if isinstance(wanted, list) else [wanted]:
                    key = (axis, str(name))
                    self.naming[key] = self.naming.get(key, 0) | 1 << number

    def matching(self, axis: str, value: Any) -> int:
        """The rules that this value of an axis satisfies."""
        bits = self.silent[axis]
        for name in _names(value):
            bits |= self.naming.get((axis, name), 0)
        return bits

    def exclude(self, matching: Sequence[int]) -> int:
        """The rules that all values of a cell satisfy."""
        bits = (1 << len(self.rules)) - 1
        for part in matching:
            bits &= part
        self.used |= bits
        return bits

    def unused(self) -> dict[str, Any] | None:
        return next((rule for number, rule in enumerate(self.rules) if not self.used >> number & 1), None)


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
    like = _share(suite, budget) if budget.startswith(LIKE) else None
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


def _share(suite: Suite, budget: str) -> float:
    try:
        share = float(budget.removeprefix(LIKE))
    except ValueError:
        share = -1
    if not 0 < share < 1:
        raise UsageError(one_line(f"{suite._file}: budget {budget} names no share"), f"give {LIKE}0.3")
    return share
