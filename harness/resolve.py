"""Resolves what a user writes (devices, evaluators, recoveries, settings) to what plug-ins registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import ge, gt, le
from typing import Any

from harness import plugins
from harness.api import (
    DeviceInfo,
    DeviceSpec,
    Evaluator,
    EvaluatorSpec,
    Param,
    PrunerSpec,
    Recovery,
    RecoverySpec,
    Workload,
)
from harness.errors import EnvironmentFault, UsageError, one_line
from harness.evaluation import texts
from harness.models import counting
from harness.records.schema import RunSpec
from harness.system.process import prepare

PRESETS = ("quick", "paper")
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a line of text"}
MAX_NUMBER = 2.0**63  # numbers of a setting stay below this size


@dataclass(frozen=True)
class TimingChoices:
    """On which device, with which runtime and dtype, and under which workloads models are timed."""

    device: DeviceSpec
    runtime: str
    dtype: str
    workloads: tuple[Workload, ...]
    """The requested workloads; empty if the device's own default is to be used."""


def timing_choices(
    device: str, preset: str, runtime: str | None = None, dtype: str | None = None, workloads: Iterable[str] = ()
) -> TimingChoices:
    """Check what a user chose for timing, and fill in the defaults of the device. Nothing is probed or loaded."""
    spec: DeviceSpec = plugins.registry().get("device", device)
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}", f"give {' or '.join(PRESETS)}")
    dtype = dtype or spec.dtype
    if dtype not in counting.BYTES:
        raise UsageError(f"no dtype {dtype!r}", f"known: {', '.join(counting.BYTES)}")
    runtime = runtime or spec.runtimes[0]
    if runtime not in spec.runtimes:
        raise UsageError(f"device {spec.name} has no runtime {runtime!r}", f"known: {', '.join(spec.runtimes)}")
    return TimingChoices(spec, runtime, dtype, tuple(Workload.parse(text) for text in workloads))


def check_usable(device: str, info: DeviceInfo) -> None:
    """Raise an error if the probe of a device reported that it cannot be used."""
    if not info.usable:
        raise EnvironmentFault(f"device {device} is not usable: {info.reason}", f"harness doctor {device}")


def prepare_process(device: str, dtype: str | None) -> None:
    """Prepare this process for a dtype, or for the device's default one, before torch is imported."""
    spec = plugins.registry().specs["device"].get(device)
    prepare(dtype or (spec.dtype if spec else "fp32"))


@dataclass(frozen=True)
class Evaluation:
    """One evaluator with its parameters and the identity of the data that it reads."""

    label: str
    spec: EvaluatorSpec
    parameters: Mapping[str, Any]
    data: Mapping[str, Any]

    def build(self) -> Evaluator:
        return plugins.registry().build("evaluator", self.spec.name, self.parameters)

    def score_name(self, name: str) -> str:
        """The name of a score in a record: the label for the main score (named ""), `label.name` for the others."""
        return f"{self.label}.{name}" if name else self.label


@dataclass(frozen=True)
class ResolvedRecovery:
    """One recovery with its parameters and the identity of the data that it reads."""

    label: str
    spec: RecoverySpec
    parameters: Mapping[str, Any]
    data: Mapping[str, Any] | None

    def build(self) -> Recovery:
        return plugins.registry().build("recovery", self.spec.name, self.parameters)


def resolve_settings(owner: str, params: Mapping[str, Param], preset: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a plug-in: a preset's defaults, overridden by what the user chose.

    `owner` is how errors name the plug-in.
    """
    values = {name: param.default(preset) for name, param in params.items()}
    for name, value in chosen.items():
        if name not in params:
            if not params:
                raise UsageError(f"{owner} has no parameters, so {name!r} cannot be set", "leave the setting out")
            raise plugins.unknown_name(f"parameter of {owner}", name, params)
        values[name] = _checked(f"{owner}: {name}", value, params[name])
    return values


def changed_parameters(pruner: PrunerSpec, spec: RunSpec) -> dict[str, Any]:
    """The parameters of a cell that differ from its preset's defaults."""
    defaults = {name: param.default(spec.preset) for name, param in pruner.parameters.items()}
    return {name: value for name, value in spec.parameters.items() if name not in defaults or defaults[name] != value}


def _checked(name: str, chosen: Any, param: Param) -> Any:
    """A value as the parameter's type, within its choices and bounds. `name` is how errors name it."""
    kind = type(param.quick)
    try:
        value = _converted(chosen, kind)
    except (ValueError, KeyError, TypeError, OverflowError):
        cause = f"{name}={_shown(chosen)} is not {TYPE_NAMES.get(kind, kind.__name__)}"
        raise UsageError(cause, f"for example {param.quick}") from None
    if param.choices and value not in param.choices:
        raise UsageError(f"{name}={_shown(chosen)} is not known", f"known: {', '.join(map(str, param.choices))}")
    if bounds := _violated_bounds(value, param):
        raise UsageError(f"{name}={_shown(chosen)} is out of range", f"give {bounds}, for example {param.quick}")
    return value


def _shown(value: Any) -> str:
    """A user's value as an error message shows it: short, and on one line."""
    if isinstance(value, int) and abs(value) >= MAX_NUMBER:
        return "an integer of many digits"
    if isinstance(value, str | int | float):
        return one_line(str(value), 100)
    return "null" if value is None else f"a {type(value).__name__}"


def _converted(source: Any, kind: type) -> Any:
    """Text, a number or a boolean as a parameter's type. A lossy conversion is an error."""
    if kind not in TYPE_NAMES:
        return source if isinstance(source, kind) else kind(source)
    if not isinstance(source, str | int | float):
        raise ValueError("a setting must be text, a number or a boolean")
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[str(source).lower()]
    if isinstance(source, bool) and kind is not str:
        raise ValueError("a boolean is not a number")
    value = kind(source)
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("the text has unprintable characters")
    if isinstance(value, int | float) and not abs(value) < MAX_NUMBER:  # also true for NaN
        raise ValueError("the number is not finite or is too large")
    if kind is int and isinstance(source, float) and value != source:
        raise ValueError("the number has a fraction")
    return value


def _violated_bounds(value: Any, param: Param) -> str:
    """All bounds of a parameter in words, if the value violates one of them; otherwise an empty text."""
    possible = (("at least", param.least, ge), ("more than", param.above, gt), ("at most", param.most, le))
    bounds = [(text, bound, holds) for text, bound, holds in possible if bound is not None]
    if all(holds(value, bound) for _, bound, holds in bounds):
        return ""
    return " and ".join(f"{text} {bound}" for text, bound, _ in bounds)


def resolve_evaluators(
    wanted: Sequence[str], preset: str, fetch: bool = True
) -> tuple[list[Evaluation], dict[str, EnvironmentFault]]:
    """Resolve evaluators and groups, each evaluator once and in order; `name:key=value` sets a parameter.

    Returns the evaluators, and the errors of those whose data is missing. It is an error only if all data is missing.
    """
    texts.folders()  # reports a missing HARNESS_DATA folder, which would otherwise look like missing texts
    resolved: list[Evaluation] = []
    missing: dict[str, EnvironmentFault] = {}
    for text in _expand(wanted):
        try:
            resolved.append(_evaluation(text, preset, fetch))
        except EnvironmentFault as error:
            missing[text] = error
    if not resolved:
        raise next(iter(missing.values()), UsageError("no evaluator is named", "give --eval smoke"))
    return resolved, missing


def _expand(wanted: Sequence[str]) -> list[str]:
    """Evaluators without groups and repetitions: a group stands for all its members."""
    groups = plugins.evaluator_groups()
    return list(dict.fromkeys(name for text in wanted if text for name in groups.get(text, [text])))


def resolve_recovery(text: str, preset: str, source: str, fetch: bool = True) -> ResolvedRecovery:
    """Resolve a recovery; `name:key=value` sets a parameter. `source` is the calibration text that it learns from."""
    name, chosen = _parse(text)
    spec = plugins.registry().get("recovery", name)
    parameters = resolve_settings(f"recovery {name}", spec.parameters, preset, chosen)
    identity = texts.identity(source, texts.CALIBRATE, fetch) if "calibration" in spec.needs else None
    recovery = ResolvedRecovery(_label(name, chosen, parameters), spec, parameters, identity)
    recovery.build()  # wrong values are reported before any work
    return recovery


def _parse(text: str) -> tuple[str, dict[str, str]]:
    name, *pairs = text.split(":")
    return name, dict(pair.partition("=")[::2] for pair in pairs)


def _label(name: str, chosen: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    return ":".join([name, *(f"{key}={parameters[key]}" for key in sorted(chosen))])


def _evaluation(text: str, preset: str, fetch: bool) -> Evaluation:
    name, chosen = _parse(text)
    specs = plugins.registry().specs["evaluator"]
    if name not in specs:
        groups = plugins.evaluator_groups()
        if name in groups:
            raise UsageError(f"{name} is a group and takes no settings", f"set them for {' or '.join(groups[name])}")
        raise plugins.unknown_name("evaluator", name, {*specs, *groups})
    parameters = resolve_settings(f"evaluator {name}", specs[name].parameters, preset, chosen)
    evaluation = Evaluation(_label(name, chosen, parameters), specs[name], parameters, {})
    evaluator = evaluation.build()  # wrong values are reported before any work
    identity = {source: texts.identity(source, texts.EVALUATE, fetch) for source in specs[name].reads}
    if hasattr(evaluator, "identity"):
        identity |= evaluator.identity(fetch)
    return replace(evaluation, data=identity)
