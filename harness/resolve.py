"""Parameters and evaluators as a user writes them, resolved against what plug-ins registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import ge, gt, le
from typing import Any

from harness import plugins
from harness.api import Evaluator, EvaluatorSpec, Param, PrunerSpec, Recovery, RecoverySpec
from harness.errors import EnvironmentFault, UsageError, one_line
from harness.evaluation import texts
from harness.records.schema import RunSpec
from harness.system.process import prepare


@dataclass(frozen=True)
class Evaluation:
    """One evaluator with its parameters and the identity of what it reads."""

    label: str
    spec: EvaluatorSpec
    parameters: Mapping[str, Any]
    data: Mapping[str, Any]

    def build(self) -> Evaluator:
        return plugins.registry().build("evaluator", self.spec.name, self.parameters)

    def score_name(self, name: str) -> str:
        """An evaluator's main score stands under its own label, the others behind a dot."""
        return f"{self.label}.{name}" if name else self.label


@dataclass(frozen=True)
class Recovering:
    """What follows the cut, with its parameters and the identity of what it reads."""

    label: str
    spec: RecoverySpec
    parameters: Mapping[str, Any]
    data: Mapping[str, Any] | None

    def build(self) -> Recovery:
        return plugins.registry().build("recovery", self.spec.name, self.parameters)


SORTS = {bool: "true or false", int: "a whole number", float: "a number", str: "a line of text"}
LARGEST = 2.0**63  # of a number


def settings(owner: str, known: Mapping[str, Param], preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A plug-in's parameters under a preset, with what the user set, in the type of the default."""
    found = {name: param.default(preset) for name, param in known.items()}
    for name, text in given.items():
        if name not in known:
            if not known:
                raise UsageError(f"{owner} has no parameters, so no {name!r}", "leave the setting out")
            raise plugins.unknown(f"parameter of {owner}", name, known)
        found[name] = _typed(f"{owner}: {name}", text, known[name])
    return found


def unusual(pruner: PrunerSpec, spec: RunSpec) -> dict[str, Any]:
    """A cell's parameters that are not their preset's."""
    usual = {name: param.default(spec.preset) for name, param in pruner.parameters.items()}
    return {name: value for name, value in spec.parameters.items() if name not in usual or usual[name] != value}


def _typed(what: str, given: Any, param: Param) -> Any:
    kind = type(param.quick)
    try:
        value = _converted(given, kind)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UsageError(
            f"{what}={_shown(given)} is not {SORTS.get(kind, kind.__name__)}", f"for example {param.quick}"
        ) from None
    if param.choices and value not in param.choices:
        raise UsageError(f"{what}={_shown(given)} is not known", f"known: {', '.join(map(str, param.choices))}")
    if bounds := _broken(value, param):
        raise UsageError(f"{what}={_shown(given)} is out of range", f"give {bounds}, for example {param.quick}")
    return value


def _shown(given: Any) -> str:
    if isinstance(given, int) and abs(given) >= LARGEST:
        return "an integer of many digits"
    if isinstance(given, str | int | float):
        return one_line(str(given), 100)
    return "null" if given is None else f"a {type(given).__name__}"


def _converted(given: Any, kind: type) -> Any:
    """Text, a number or a switch as a parameter's type; what would lose something on the way is refused."""
    if kind not in SORTS:
        return given if isinstance(given, kind) else kind(given)
    if not isinstance(given, str | int | float):
        raise ValueError("only plain values are settings")
    if kind is bool:
        return {"true": True, "false": False, "1": True, "0": False}[str(given).lower()]
    if isinstance(given, bool) and kind is not str:
        raise ValueError("a switch is no number")
    value = kind(given)
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("only plain text is a setting")
    if isinstance(value, int | float) and not abs(value) < LARGEST:  # NaN is not, either
        raise ValueError("only finite numbers of a moderate size are settings")
    if kind is int and isinstance(given, float) and value != given:
        raise ValueError("a part of one is lost")
    return value


def _broken(value: Any, param: Param) -> str:
    """All bounds, where a value does not keep one of them; nothing where it does."""
    known = (("at least", param.least, ge), ("more than", param.above, gt), ("at most", param.most, le))
    bounds = [(words, bound, keeps) for words, bound, keeps in known if bound is not None]
    if all(keeps(value, bound) for _, bound, keeps in bounds):
        return ""
    return " and ".join(f"{words} {bound}" for words, bound, _ in bounds)


def evaluations(
    wanted: Sequence[str], preset: str, fetch: bool = True
) -> tuple[list[Evaluation], dict[str, EnvironmentFault]]:
    """Evaluators by name or group, once each, in order; `name:key=value` sets a parameter.

    Those whose data is not at hand stand beside, with where to get it, as long as there are others.
    """
    texts.folders()  # a folder that is not there is no missing text
    found: list[Evaluation] = []
    missing: dict[str, EnvironmentFault] = {}
    for text in _expand(wanted):
        try:
            found.append(_evaluation(text, preset, fetch))
        except EnvironmentFault as error:
            missing[text] = error
    if not found:
        raise next(iter(missing.values()), UsageError("no evaluator is named", "give --eval smoke"))
    return found, missing


def _expand(wanted: Sequence[str]) -> list[str]:
    groups = plugins.groups()
    return list(dict.fromkeys(name for text in wanted if text for name in groups.get(text, [text])))


def recovering(text: str, preset: str, source: str, fetch: bool = True) -> Recovering:
    """A recovery by name; `name:key=value` sets a parameter."""
    name, given = _parse(text)
    spec = plugins.registry().get("recovery", name)
    parameters = settings(f"recovery {name}", spec.parameters, preset, given)
    identity = texts.identity(source, texts.CALIBRATE, fetch) if "calibration" in spec.needs else None
    made = Recovering(_label(name, given, parameters), spec, parameters, identity)
    made.build()
    return made


def _parse(text: str) -> tuple[str, dict[str, str]]:
    name, *pairs = text.split(":")
    return name, dict(pair.partition("=")[::2] for pair in pairs)


def _label(name: str, given: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    return ":".join([name, *(f"{key}={parameters[key]}" for key in sorted(given))])


def _evaluation(text: str, preset: str, fetch: bool) -> Evaluation:
    name, given = _parse(text)
    specs = plugins.registry().specs["evaluator"]
    if name not in specs:
        groups = plugins.groups()
        if name in groups:
            raise UsageError(f"{name} is a group and takes no settings", f"give them to {' or '.join(groups[name])}")
        raise plugins.unknown("evaluator", name, {*specs, *groups})
    parameters = settings(f"evaluator {name}", specs[name].parameters, preset, given)
    made = Evaluation(_label(name, given, parameters), specs[name], parameters, {})
    built = made.build()  # wrong values are said before any work
    identity = {source: texts.identity(source, texts.EVALUATE, fetch) for source in specs[name].reads}
    if hasattr(built, "identity"):
        identity |= built.identity(fetch)
    return replace(made, data=identity)


def prepare_for(device: str, dtype: str | None) -> None:
    """The same, with the device's own dtype where none was asked for."""
    from harness.plugins import registry

    spec = registry().specs["device"].get(device)
    prepare(dtype or (spec.dtype if spec else "fp32"))
