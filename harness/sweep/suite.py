"""Suites: YAML files that describe a matrix of cells, validated before any work. Imports no torch."""

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

MAX_CELLS = 100_000
MAX_RULES = 1_000
MAX_TEXT = 500  # characters of a name or a value, several of which make up each cell's label
MAX_SETTINGS = 2_000  # characters of all parameters of a method together
UNIFORM = "uniform:"  # prefix of a budget: the latency of the model pruned uniformly by this ratio, on the same device


AxisValue = str | int | float  # as YAML reads a name, a seed or a ratio


class SuiteModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Method(SuiteModel):
    name: str
    set: dict[str, Any] = Field({}, description="parameters of the method, as with --set")

    @field_validator("set")
    @classmethod
    def _limit_length(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(str(value)) > MAX_SETTINGS:
            raise ValueError(f"the parameters have more than {MAX_SETTINGS:,} characters")
        return value


class DeviceChoice(SuiteModel):
    name: str
    runtime: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] | None = None


class Matrix(SuiteModel):
    """The axes to cross. In an `include`, an axis that is left out has the values of the suite."""

    pruners: list[str | Method] | None = None
    models: list[str] | None = None
    budgets: list[str | float] | None = Field(None, description="0.3, 0.8x, 25ms or uniform:0.3")
    devices: list[str | DeviceChoice] | None = None
    workloads: list[str | list[str]] | None = Field(
        None, description="a list inside the list puts several workloads into one cell"
    )
    recoveries: list[str] | None = None
    seeds: list[StrictInt] | None = None

    @field_validator("*")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("an empty list leaves no cells")
        return value


AXES = tuple(Matrix.model_fields)
DEFAULTS: dict[str, list[Any]] = {
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
    sustain: float = Field(0.0, ge=0, le=7200, description="seconds for which each pruned model is also kept running")
    calibration: str = DEFAULT_CALIBRATION
    timeout_minutes: float | None = Field(None, gt=0, le=10**5, description="limit for one step of a cell")
    include: list[Matrix] = []
    exclude: list[dict[str, AxisValue | list[AxisValue]]] = Field(
        [], description="rules, each an axis and its values; a cell that matches a whole rule is left out"
    )
    _file: str = PrivateAttr("the suite")

    @field_validator("about")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return one_line(value)

    @field_validator("exclude")
    @classmethod
    def _check_rules(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(value) > MAX_RULES:
            raise ValueError(f"there are more than {MAX_RULES:,} rules")
        for rule in value:
            if not rule or not set(rule) <= set(AXES):
                raise ValueError(f"each rule must name one or more of {', '.join(AXES)}")
        return value


@dataclass(frozen=True)
class CellRequest:
    """One cell of a suite, before it is planned.

    With a `uniform_ratio`, its budget is the latency of the model that is pruned uniformly by that ratio.
    """

    label: str
    request: Request
    uniform_ratio: float | None = None


def load_suite(path: Path) -> Suite:
    with reading.parsing(path, "a suite", "give a suite: benchmarks/suites/smoke.yaml", UsageError):
        values = reading.yaml_file(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a suite", "it needs the keys pruners and models; see benchmarks/suites/")
    labelled = {name: value for name, value in values.items() if name != "about"}
    if bad_text := next(_bad_texts(labelled), None):
        reason = f"is longer than {MAX_TEXT} characters" if len(bad_text) > MAX_TEXT else "has a control character"
        raise UsageError(f"{path}: {one_line(bad_text, 60)!r} {reason}", "use short names of printable characters")
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        # Of the members of a union, the one with the longest location fits best.
        fault = max(error.errors(), key=lambda fault: len(fault["loc"]))
        types = ("str", "Method", "DeviceChoice", "float")  # members of unions, which a location names too
        location = ".".join(str(part) for part in fault["loc"] if part not in types)
        cause = one_line(f"{path}: {location}: {fault['msg']}")
        raise UsageError(cause, f"known: {', '.join(Suite.model_fields)}") from None
    for axis in ("pruners", "models"):
        if getattr(suite, axis) is None:
            raise UsageError(f"{path} names no {axis}", f"add {axis}: [...]")
    suite._file = str(path)
    return suite


def _bad_texts(value: Any) -> Iterator[str]:
    """Texts that are too long for a label, or not printable."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for part in value:
            yield from _bad_texts(part)
    elif isinstance(value, str) and (len(value) > MAX_TEXT or not value.isprintable()):
        yield value


def cell_requests(suite: Suite) -> list[CellRequest]:
    """All cells of a suite, each once. Cells that share a cut follow each other."""
    main: dict[str, list[Any]] = {axis: getattr(suite, axis) or DEFAULTS.get(axis, []) for axis in AXES}
    included = [{**main, **matrix.model_dump(exclude_none=True)} for matrix in suite.include]
    count = sum(math.prod(len(matrix[axis]) for axis in AXES) for matrix in (main, *included))
    if count > MAX_CELLS:
        raise UsageError(f"{suite._file} asks for {count:,} cells", f"a suite has at most {MAX_CELLS:,}: split it")
    by_label: dict[str, CellRequest] = {}
    # Cross the axes of the suite, leaving out what a rule excludes.
    rules = _Rules(suite.exclude)
    axes = [[(value, rules.matching(axis, value)) for value in main[axis]] for axis in AXES]
    for pairs in itertools.product(*axes):
        if not rules.exclude([matching for _, matching in pairs]):
            _add(by_label, suite, [value for value, _ in pairs])
    # Cross the axes of each include, which no rule restricts.
    for matrix in included:
        for values in itertools.product(*(matrix[axis] for axis in AXES)):
            _add(by_label, suite, values)
    if (rule := rules.unused()) is not None:
        cause = one_line(f"{suite._file}: the rule {rule} excludes nothing")
        raise UsageError(cause, "correct its names and values, or delete it")
    if not by_label:
        raise UsageError(f"{suite._file}: the suite has no cells", "its exclude rules leave none; relax them")
    return list(by_label.values())


def _add(by_label: dict[str, CellRequest], suite: Suite, values: Sequence[Any]) -> None:
    cell = _cell_request(suite, dict(zip(AXES, values, strict=True)))
    by_label.setdefault(cell.label, cell)


class _Rules:
    """The rules of `exclude`. A set of rules is a bit mask, so that checking a cell is fast even with many rules."""

    def __init__(self, rules: list[dict[str, Any]]) -> None:
        self.rules, self.used = rules, 0
        self.naming: dict[tuple[str, str], int] = {}  # (axis, name) -> the rules that name it
        self.silent = dict.fromkeys(AXES, 0)  # axis -> the rules that do not restrict it
        for number, rule in enumerate(rules):
            for axis in AXES:
                if axis not in rule:
                    self.silent[axis] |= 1 << number
            for axis, names in rule.items():
                for name in names if isinstance(names, list) else [names]:
                    key = (axis, str(name))
                    self.naming[key] = self.naming.get(key, 0) | 1 << number

    def matching(self, axis: str, value: Any) -> int:
        """The rules that this value of an axis matches."""
        bits = self.silent[axis]
        for name in _names(value):
            bits |= self.naming.get((axis, name), 0)
        return bits

    def exclude(self, matching: Sequence[int]) -> int:
        """The rules that all values of a cell match; they are marked as used."""
        bits = (1 << len(self.rules)) - 1
        for mask in matching:
            bits &= mask
        self.used |= bits
        return bits

    def unused(self) -> dict[str, Any] | None:
        return next((rule for number, rule in enumerate(self.rules) if not self.used >> number & 1), None)


def _names(value: Any) -> Iterator[str]:
    """The names by which a rule may refer to a value: with and without settings (`lora:epochs=1`, `lora`)."""
    if isinstance(value, SuiteModel):
        value = value.model_dump()
    value = value["name"] if isinstance(value, dict) else value
    for name in value if isinstance(value, list) else [value]:
        yield str(name)
        yield str(name).partition(":")[0]


def _cell_request(suite: Suite, values: dict[str, Any]) -> CellRequest:
    """One cell, from its value on each axis."""
    method, device = _with_name(values["pruners"]), _with_name(values["devices"])
    spec = plugins.registry().specs["pruner"].get(method["name"])
    takes_budget = spec is None or bool(spec.budgets)  # dense takes none
    budget = str(values["budgets"]) if takes_budget else ""
    uniform_ratio = _uniform_ratio(suite, budget) if budget.startswith(UNIFORM) else None
    is_ratio = budget.replace(".", "", 1).isdigit()
    is_latency = bool(budget) and not is_ratio and uniform_ratio is None
    workloads = values["workloads"] if isinstance(values["workloads"], list) else [values["workloads"]]
    request = Request(
        pruner=method["name"],
        model=values["models"],
        ratio=budget if is_ratio else None,
        latency=budget if is_latency else None,
        device=device["name"],
        runtime=device.get("runtime"),
        dtype=device.get("dtype"),
        workloads=tuple(workloads),
        preset=suite.preset,
        settings=dict(method.get("set", {})),
        recovery=values["recoveries"],
        calibration=suite.calibration,
        evaluators=tuple(suite.evaluators),
        limit=suite.limit,
        sustain=suite.sustain,
        seed=values["seeds"],
    )
    return CellRequest(_label(request, budget, workloads), request, uniform_ratio)


def _label(request: Request, budget: str, workloads: Sequence[str]) -> str:
    """What distinguishes a cell within its suite, in one line."""
    settings = " ".join(f"{name}={value}" for name, value in request.settings.items())
    parts = (
        request.model,
        f"{request.pruner} {settings}".strip(),
        budget,
        " ".join(name for name in (request.device, request.runtime, request.dtype) if name),
        "+".join(workloads),
        request.recovery if request.recovery != "none" else "",
        f"seed {request.seed}" if request.seed else "",
    )
    return ", ".join(part for part in parts if part)


def _with_name(value: Any) -> dict[str, Any]:
    """A value of an axis as a dictionary with a name: it may be given as a name alone."""
    if isinstance(value, SuiteModel):
        return value.model_dump()
    return value if isinstance(value, dict) else {"name": value}


def _uniform_ratio(suite: Suite, budget: str) -> float:
    try:
        ratio = float(budget.removeprefix(UNIFORM))
    except ValueError:
        ratio = -1
    if not 0 < ratio < 1:
        raise UsageError(
            one_line(f"{suite._file}: budget {budget} has no ratio between 0 and 1"), f"for example {UNIFORM}0.3"
        )
    return ratio
