"""Discovers plug-ins by their entry points, and registers their specs. A broken plug-in is listed with its reason."""

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
    Event,
    ModelCard,
    Param,
    PrunerSpec,
    RecoverySpec,
)
from harness.errors import HarnessError, UsageError, describe, one_line
from harness.system import process, supervisor
from harness.system.isolation import plugin_code

__all__ = ["unknown_name"]

MAX_SPECS = 10_000  # of one kind, from one plug-in
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
    """Where a name was registered: the plug-in's entry point, and the distribution that contains it."""

    plugin: str
    distribution: str
    version: str


@dataclass
class Registry:
    """Every registered name with its spec and origin, and every broken plug-in with its reason."""

    manager: pluggy.PluginManager
    specs: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    broken: dict[Origin, str] = field(default_factory=dict)

    def get(self, kind: str, name: str) -> Any:
        """The spec of this name; the error for an unknown name suggests a similar one."""
        if name in self.specs[kind]:
            return self.specs[kind][name]
        raise unknown_name(kind, name, self.specs[kind], self.why_missing(name))

    def why_missing(self, name: str) -> str:
        """Why a name that exists is not registered: its plug-in is broken, not installed or hidden; otherwise empty."""
        for origin, reason in self.broken.items():
            if origin.plugin.replace("_", "-") == name:
                return f"its plug-in is installed but broken: {reason}"
        for parent in ("plugins", "devices") if re.fullmatch(r"[\w-]{1,100}", name) else ():
            folder = Path(__file__).parent.parent / parent / name.replace("-", "_")
            if (folder / "pyproject.toml").exists():
                if name.replace("-", "_") in {point.name for point in entry_points(group="harness")}:
                    continue
                return f"it is in this checkout but not installed: pip install -e {parent}/{folder.name}"
        if selected_plugins():
            return "HARNESS_PLUGINS hides all plug-ins except " + ", ".join(sorted(selected_plugins() | {"builtin"}))
        return ""

    def load(self, kind: str, name: str) -> Any:
        """Import and return the class of a registered name."""
        spec = self.get(kind, name)
        return self._call(kind, name, "imported", lambda: import_target(spec.target))

    def build(self, kind: str, name: str, parameters: Mapping[str, Any]) -> Any:
        """Create an instance of the class of a registered name, with these parameters."""
        plugin_class = self.load(kind, name)
        return self._call(kind, name, "set up", lambda: plugin_class(**parameters))

    def device(self, name: str, runtime: str = "") -> Any:
        """Create a device. It is given a runtime if it supports several: this one, or its first."""
        runtimes = self.get("device", name).runtimes
        return self.build("device", name, {"runtime": runtime or runtimes[0]} if len(runtimes) > 1 else {})

    def _call(self, kind: str, name: str, action: str, function: Callable[[], Any]) -> Any:
        """Call code of a plug-in. An unexpected exception becomes an error that names the plug-in."""
        try:
            with plugin_code(f"{kind} {name}"):
                return function()
        except HarnessError:
            raise
        except (Exception, SystemExit) as error:
            origin = self.origins[kind, name]
            raise HarnessError(
                f"{kind} {name!r} cannot be {action}: {describe(error, most=500)}",
                f"repair or uninstall {origin.distribution} {origin.version}",
            ) from error


def evaluator_groups() -> dict[str, list[str]]:
    """The groups of evaluators: the name of each group, and its members."""
    members: dict[str, list[str]] = {}
    for name, spec in registry().specs["evaluator"].items():
        for group in spec.groups:
            members.setdefault(group, []).append(name)
    return members


def code_version(kind: str, name: str) -> str:
    """The version of a plug-in's code, for keys: its version numbers, and a hash of its source if run from a checkout.

    The hash is there because authors change a method many times under one version number.
    """
    spec, origin = registry().specs[kind][name], registry().origins[kind, name]
    module = spec.target.partition(":")[0]
    package = module.partition(".")[0]
    return f"{origin.version}/{spec.version}{source_hash(module if package == 'harness' else package)}"


def source_hash(module: str) -> str:
    """`+` and a hash of the source of a module or package; empty if it was installed from a wheel."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin)
    if any(path.is_relative_to(sysconfig.get_path(folder)) for folder in ("purelib", "platlib")):
        return ""
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return f"+{hashlib.sha256(b''.join(file.read_bytes() for file in files)).hexdigest()[:12]}"


def import_target(target: str) -> Any:
    """Import and return what `module:name` refers to."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class UnknownName(UsageError):
    """A name that is not registered. `kind` is what it should have been: a pruner, a device, a command."""

    kind = ""


def unknown_name(kind: str, name: str, known: Iterable[str], elsewhere: str = "") -> UnknownName:
    """The error for an unknown name. Its remedy is `elsewhere`, a similar name, or all known ones."""
    names = sorted(known)
    similar = difflib.get_close_matches(name, names, 1)
    remedy = elsewhere
    if not remedy and names:
        remedy = f"did you mean {similar[0]!r}?" if similar else f"known: {', '.join(names)}"
    error = UnknownName(one_line(f"no {kind} {name[:100]!r}"), remedy)
    error.kind = kind
    return error


def selected_plugins() -> set[str]:
    """The entry points named by HARNESS_PLUGINS, which are the only ones loaded; empty if it names none."""
    return {name.strip() for name in os.environ.get("HARNESS_PLUGINS", "").split(",")} - {""}


def _entry_points() -> Iterator[tuple[EntryPoint, Origin]]:
    """The entry points to load: first harness's own, then the others by name."""
    names = None if os.environ.get("HARNESS_PLUGINS") is None else selected_plugins() | {"builtin"}
    for point in sorted(entry_points(group="harness"), key=lambda p: (p.value != "harness.builtin", p.name)):
        if names is None or point.name in names:
            dist = point.dist
            yield point, Origin(point.name, dist.name if dist else "?", dist.version if dist else "?")


def _hooks_of(manager: pluggy.PluginManager, plugin: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The names and functions of the hooks that a plug-in implements."""
    for caller in manager.get_hookcallers(plugin) or []:
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin:
                yield caller.name, impl.function


def _registrations(registry: Registry, plugin: ModuleType) -> list[tuple[str, Any]]:
    """The specs that a plug-in registers, each with its kind."""
    registrations: list[tuple[str, Any]] = []
    for hook, function in _hooks_of(registry.manager, plugin):
        for kind, (name, spec_type) in KINDS.items():
            if hook == name:
                specs = list(islice(function(), MAX_SPECS))
                if len(specs) == MAX_SPECS:
                    raise ValueError(f"{hook} returned {MAX_SPECS:,} specs or more")
                if wrong := [spec for spec in specs if not isinstance(spec, spec_type)]:
                    raise TypeError(f"{hook} returned {type(wrong[0]).__name__}, not {spec_type.__name__}")
                registrations += [(kind, spec) for spec in specs]
    return registrations


def _register(registry: Registry, registrations: Iterable[tuple[str, Any]], origin: Origin) -> None:
    """Register all of a plug-in's specs, or none."""
    names = set()
    for kind, spec in registrations:
        check_fields(spec)
        if (owner := registry.origins.get((kind, spec.name))) is not None:
            raise ValueError(f"{kind} {spec.name!r} is already registered by {owner.distribution}")
        if (kind, spec.name) in names:
            raise ValueError(f"it registers {kind} {spec.name!r} twice")
        names.add((kind, spec.name))
        for other in registry.specs["architecture"].values() if kind == "architecture" else ():
            if shared := set(other.model_types) & set(spec.model_types):
                raise ValueError(f"model type {min(shared)!r} is already registered by architecture {other.name!r}")
    for kind, spec in registrations:
        registry.specs[kind][spec.name] = spec
        registry.origins[kind, spec.name] = origin


def _with_old_default(spec: Any) -> Any:
    """A method of API version 1 that names no families works on decoders, which were all there was."""
    if isinstance(spec, PrunerSpec) and spec.architectures == ("*",):
        return dataclasses.replace(spec, architectures=("decoder",))
    return spec


def check_fields(spec: Any) -> None:
    """Check the types of a spec's fields now; a wrong one would otherwise fail later, for example in `harness list`."""
    for field_info in dataclasses.fields(spec):
        value = getattr(spec, field_info.name)
        label = f"{type(spec).__name__} {spec.name!r}: {field_info.name}"
        if field_info.type == "str" and not (isinstance(value, str) and value.isprintable()):
            raise TypeError(f"{label} is {value!r}, not a line of text")
        is_texts = isinstance(value, tuple) and all(isinstance(text, str) for text in value)
        if field_info.type == "tuple[str, ...]" and not is_texts:
            raise TypeError(f"{label} is {value!r}, not a tuple of strings")
        if field_info.name == "parameters":
            wrong = [name for name, param in value.items() if not isinstance(param, Param)]
            if wrong:
                raise TypeError(f"{label}: {wrong[0]!r} is not a Param")
    if not spec.name:
        raise ValueError(f"it registers a {type(spec).__name__} without a name")
    if not all(getattr(spec, "target", "a:b").partition(":")):
        raise ValueError(f"{spec.name}: its target {spec.target!r} is not of the form 'module:Class'")


@cache
def registry() -> Registry:
    """The registry of all plug-ins. They are loaded once per process."""
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    result = Registry(manager)
    first_by_name: dict[str, tuple[Origin, str]] = {}
    fatal = supervisor.fatal_imports()
    for point, origin in _entry_points():
        first, value = first_by_name.setdefault(point.name, (origin, point.value))
        if first.distribution == origin.distribution and value == point.value and first is not origin:
            continue  # the same distribution is on the path twice
        plugin = None
        try:
            if point.name in fatal:
                raise HarnessError(fatal[point.name])
            if first is not origin:
                raise ValueError(f"the entry point {point.name!r} is already used by {first.distribution}")
            with supervisor.importing(point.name), process.stdout_for_answers(), plugin_code("it"):
                plugin = point.load()
                api_version = getattr(plugin, "HARNESS_API", API_VERSION)
                if api_version not in range(OLDEST_API, API_VERSION + 1):
                    raise HarnessError(f"it is written for plug-in API {api_version}, this harness has {API_VERSION}")
                manager.register(plugin, name=point.name)
                manager.check_pending()
                registrations = _registrations(result, plugin)
                if api_version == 1:
                    registrations = [(kind, _with_old_default(spec)) for kind, spec in registrations]
            _register(result, registrations, origin)
        except (Exception, SystemExit) as error:
            if plugin is not None and manager.is_registered(plugin):
                manager.unregister(plugin)
            line = error.line if isinstance(error, HarnessError) else describe(error, 300)
            result.broken[origin] = one_line(line, 300)
    for name in sorted(selected_plugins() - set(first_by_name)):
        result.broken[Origin(name, "HARNESS_PLUGINS", "")] = "HARNESS_PLUGINS names it, but it is not installed"
    return result


def list_rows(kind: str | None = None) -> list[dict[str, Any]]:
    """What `harness list` shows: one row per registered name, one per broken plug-in."""
    loaded = registry()
    result = []
    for (row_kind, name), origin in loaded.origins.items():
        if kind in (None, row_kind):
            result.append(
                {
                    "name": name,
                    "kind": row_kind,
                    "ok": True,
                    "version": origin.version,
                    "origin": origin.distribution,
                    "summary": loaded.specs[row_kind][name].summary,
                    "reason": "",
                }
            )
    for origin, reason in loaded.broken.items():
        result.append(
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
    return result


def call_hook(hook: str, argument: Any) -> Iterator[tuple[str, Any]]:
    """Call a hook of every plug-in; yield the plug-in's name and the result. A hook that raises becomes `broken`."""
    loaded = registry()
    for plugin in loaded.manager.get_plugins():
        for name, function in _hooks_of(loaded.manager, plugin):
            if name == hook:
                plugin_name = str(loaded.manager.get_name(plugin))
                try:
                    with plugin_code("it"):
                        answer = function(argument)
                except (Exception, SystemExit) as error:
                    loaded.broken[Origin(plugin_name, hook, "")] = describe(error, 300)
                else:
                    yield plugin_name, answer


def emit(event: Event) -> None:
    """Send an event to every plug-in that implements `harness_event`."""
    for _ in call_hook("harness_event", event):
        pass
