"""Discovery: one entry point at a time. A broken plug-in is a line with its reason, never a crash."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from harness import hookspecs
from harness.api import (
    API_VERSION,
    OLDEST_API,
    ArchitectureSpec,
    DeviceSpec,
    EvaluatorSpec,
    ModelCard,
    Param,
    PrunerSpec,
    RecoverySpec,
)
from harness.errors import HarnessError, UsageError, describe, one_line
from harness.system import process, supervisor
from harness.system.isolation import plugin_code

MOST = 10_000  # specs of one kind by one plug-in
KINDS = {
    "pruner": ("harness_register_pruners", PrunerSpec),
    "device": ("harness_register_devices", DeviceSpec),
    "evaluator": ("harness_register_evaluators", EvaluatorSpec),
    "recovery": ("harness_register_recoveries", RecoverySpec),
    "model": ("harness_register_models", ModelCard),
    "architecture": ("harness_register_architectures", ArchitectureSpec),
}


@dataclass(frozen=True)
class Origin:
    plugin: str
    distribution: str
    version: str


@dataclass
class Registry:
    """Every registered name with its spec and origin, and every plug-in that could not be read."""

    manager: pluggy.PluginManager
    specs: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    broken: dict[Origin, str] = field(default_factory=dict)

    def get(self, kind: str, name: str) -> Any:
        """The spec under this name, or an error that says what was probably meant."""
        if name in self.specs[kind]:
            return self.specs[kind][name]
        raise unknown(kind, name, self.specs[kind], self._elsewhere(name))

    def _elsewhere(self, name: str) -> str:
        for origin, reason in self.broken.items():
            if origin.plugin.replace("_", "-") == name:
                return f"its plug-in is installed but broken: {reason}"
        for room in ("plugins", "devices") if re.fullmatch(r"[\w-]{1,100}", name) else ():
            folder = Path(__file__).parent.parent / room / name.replace("-", "_")
            if (folder / "pyproject.toml").exists():
                if name.replace("-", "_") in {point.name for point in entry_points(group="harness")}:
                    continue
                return f"it is in this checkout but not installed: pip install -e {room}/{folder.name}"
        if only():
            return "HARNESS_PLUGINS hides all plug-ins but " + ", ".join(sorted(only() | {"builtin"}))
        return ""

    def load(self, kind: str, name: str) -> Any:
        """The class behind a name, imported now."""
        spec = self.get(kind, name)
        return self._guarded(kind, name, "imported", lambda: resolve(spec.target))

    def build(self, kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
        """An instance of the class behind a name, with these parameters."""
        plugin_class = self.load(kind, name)
        return self._guarded(kind, name, "set up", lambda: plugin_class(**parameters))

    def device(self, name: str, runtime: str = "") -> Any:
        """A device, ready to be asked; told its runtime where it has a choice."""
        runtimes = self.get("device", name).runtimes
        return self.build("device", name, {"runtime": runtime or runtimes[0]} if len(runtimes) > 1 else {})

    def _guarded(self, kind: str, name: str, what: str, call: Callable[[], Any]) -> Any:
        """What a call into a plug-in's code returns; whatever it raises names the plug-in."""
        try:
            with plugin_code(f"{kind} {name}"):
                return call()
        except HarnessError:
            raise
        except (Exception, SystemExit) as error:
            origin = self.origins[kind, name]
            raise HarnessError(
                f"{kind} {name!r} cannot be {what}: {describe(error, most=500)}",
                f"repair or uninstall {origin.distribution} {origin.version}",
            ) from error


def groups() -> dict[str, list[str]]:
    """Names that stand for several evaluators, and which."""
    found: dict[str, list[str]] = {}
    for name, spec in registry().specs["evaluator"].items():
        for group in spec.groups:
            found.setdefault(group, []).append(name)
    return found


def code_version(kind: str, name: str) -> str:
    """What names a plug-in's code in keys: its versions, and the text itself where it is run from a checkout.

    Whoever is writing a method changes it many times under one version; yesterday's result is not today's.
    """
    spec, origin = registry().specs[kind][name], registry().origins[kind, name]
    module = spec.target.partition(":")[0]
    package = module.partition(".")[0]
    return f"{origin.version}/{spec.version}{source_mark(module if package == 'harness' else package)}"


def source_mark(module: str) -> str:
    """`+hash` of a module's source, or of its package's; nothing for what was installed from a wheel."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return ""
    path = Path(found.origin)
    if any(path.is_relative_to(sysconfig.get_path(where)) for where in ("purelib", "platlib")):
        return ""
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return f"+{hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:12]}"


def resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class Unknown(UsageError):
    """A name that nothing here goes by."""

    kind = ""


def unknown(kind: str, name: str, known: Iterable[str], elsewhere: str = "") -> Unknown:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    remedy = elsewhere or (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}" if known else "")
    error = Unknown(one_line(f"no {kind} {name[:100]!r}"), remedy)
    error.kind = kind
    return error


def only() -> set[str]:
    """The entry points that HARNESS_PLUGINS restricts loading to."""
    return {name.strip() for name in os.environ.get("HARNESS_PLUGINS", "").split(",")} - {""}


def _entry_points() -> Iterator[tuple[EntryPoint, Origin]]:
    wanted = None if os.environ.get("HARNESS_PLUGINS") is None else only() | {"builtin"}
    for point in sorted(entry_points(group="harness"), key=lambda p: (p.value != "harness.builtin", p.name)):
        if wanted is None or point.name in wanted:
            dist = point.dist
            yield point, Origin(point.name, dist.name if dist else "?", dist.version if dist else "?")


def _hooks_of(manager: pluggy.PluginManager, plugin: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    for caller in manager.get_hookcallers(plugin) or []:
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin:
                yield caller.name, impl.function


def _read(registry: Registry, plugin: ModuleType) -> list[tuple[str, Any]]:
    """All of a plug-in's registrations by kind."""
    registrations: list[tuple[str, Any]] = []
    for hook, function in _hooks_of(registry.manager, plugin):
        for kind, (name, spec_type) in KINDS.items():
            if hook == name:
                specs = list(islice(function(), MOST))
                if len(specs) == MOST:
                    raise ValueError(f"{hook} returned {MOST:,} specs or more")
                if wrong := [s for s in specs if not isinstance(s, spec_type)]:
                    raise TypeError(f"{hook} returned {type(wrong[0]).__name__}, not {spec_type.__name__}")
                registrations += [(kind, spec) for spec in specs]
    return registrations


def _take(registry: Registry, registrations: Iterable[tuple[str, Any]], origin: Origin) -> None:
    """Register all of a plug-in's specs, or none."""
    names = set()
    for kind, spec in registrations:
        check_fields(spec)
        if (other := registry.origins.get((kind, spec.name))) is not None:
            raise ValueError(f"{kind} {spec.name!r} is already registered by {other.distribution}")
        if (kind, spec.name) in names:
            raise ValueError(f"it registers {kind} {spec.name!r} twice")
        names.add((kind, spec.name))
    for kind, spec in registrations:
        registry.specs[kind][spec.name] = spec
        registry.origins[kind, spec.name] = origin


def check_fields(spec: Any) -> None:
    """What a wrong type would only show when somebody asks for a list."""
    for about in dataclasses.fields(spec):
        value, what = getattr(spec, about.name), f"{type(spec).__name__} {spec.name!r}: {about.name}"
        if about.type == "str" and not (isinstance(value, str) and value.isprintable()):
            raise TypeError(f"{what} is {value!r}, not a line of text")
        if about.type == "tuple[str, ...]" and not (
            isinstance(value, tuple) and all(isinstance(word, str) for word in value)
        ):
            raise TypeError(f"{what} is {value!r}, not a tuple of words")
        if about.name == "parameters" and (wrong := [n for n, p in value.items() if not isinstance(p, Param)]):
            raise TypeError(f"{what}: {wrong[0]!r} is not a Param")
    if not spec.name:
        raise ValueError("it registers something without a name")
    if not all(getattr(spec, "target", "a:b").partition(":")):
        raise ValueError(f"{spec.name}: its target {spec.target!r} is not of the form 'module:Class'")


@cache
def registry() -> Registry:
    """All plug-ins of this process, read once."""
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    result = Registry(manager)
    taken: dict[str, tuple[Origin, str]] = {}
    for point, origin in _entry_points():
        first, value = taken.setdefault(point.name, (origin, point.value))
        if first.distribution == origin.distribution and value == point.value and first is not origin:
            continue  # one distribution that is found twice on the path
        plugin = None
        try:
            if point.name in supervisor.fatal_imports:
                raise HarnessError(supervisor.fatal_imports[point.name])
            if first is not origin:
                raise ValueError(f"the entry point {point.name!r} is taken by {first.distribution}")
            with supervisor.importing(point.name), process.stdout_kept(), plugin_code("it"):
                plugin = point.load()
                written_for = getattr(plugin, "HARNESS_API", API_VERSION)
                if written_for not in range(OLDEST_API, API_VERSION + 1):
                    raise HarnessError(f"it is written for plug-in API {written_for}, this harness has {API_VERSION}")
                manager.register(plugin, name=point.name)
                manager.check_pending()
                registrations = _read(result, plugin)
            _take(result, registrations, origin)
        except (Exception, SystemExit) as error:
            if plugin is not None and manager.is_registered(plugin):
                manager.unregister(plugin)
            line = error.line if isinstance(error, HarnessError) else describe(error, 300)
            result.broken[origin] = one_line(line, 300)
    for name in sorted(only() - set(taken)):
        result.broken[Origin(name, "HARNESS_PLUGINS", "")] = "HARNESS_PLUGINS names it, but it is not installed"
    return result


def rows(kind: str | None = None) -> list[dict[str, Any]]:
    """What `harness list` shows: one row per registered name, one per broken plug-in."""
    known = registry()
    found = []
    for (row_kind, name), origin in known.origins.items():
        if kind in (None, row_kind):
            found.append(
                {
                    "name": name,
                    "kind": row_kind,
                    "ok": True,
                    "version": origin.version,
                    "origin": origin.distribution,
                    "summary": known.specs[row_kind][name].summary,
                    "reason": "",
                }
            )
    for origin, reason in known.broken.items():
        found.append(
            {
                "name": origin.plugin,
                "kind": "plugin",
                "ok": False,
                "version": origin.version,
                "origin": origin.distribution,
                "summary": "",
                "reason": reason,
            }
        )
    return found


def answers(hook: str, argument: Any) -> Iterator[tuple[str, Any]]:
    """What each plug-in's hook answers; one that raises must not take the run with it."""
    known = registry()
    for plugin in known.manager.get_plugins():
        for name, function in _hooks_of(known.manager, plugin):
            if name == hook:
                where = str(known.manager.get_name(plugin))
                try:
                    with plugin_code("it"):
                        answer = function(argument)
                except (Exception, SystemExit) as error:
                    known.broken[Origin(where, hook, "")] = describe(error, 300)
                else:
                    yield where, answer


def emit(event: Any) -> None:
    """Tell whoever listens."""
    for _ in answers("harness_event", event):
        pass
