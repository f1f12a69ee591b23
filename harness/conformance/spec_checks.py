"""Checks that apply to every kind of plug-in: a complete spec, and a registration that imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from harness.api import Spec
from harness.conformance.report import Fault
from harness.plugins import import_target, registry
from harness.system.process import last_line

HEAVY = ("torch", "transformers", "numpy", "datasets", "pydantic", "onnxruntime", "timm")
MAX_SUMMARY = 100  # characters


def check_light_import(kind: str, name: str) -> None:
    """Register the plug-in alone in a new process and fail if that imports a heavy package."""
    origin = registry().origins[kind, name]
    script = (
        "import sys; from harness.plugins import registry; loaded = registry(); "
        f"sys.exit('not registered') if {name!r} not in loaded.specs[{kind!r}] else None; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "HARNESS_PLUGINS": origin.plugin}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Fault(f"registering this plug-in alone fails: {last_line(done.stderr, '?')}")
    if done.stdout.strip():
        raise Fault(f"importing its module imports {done.stdout.strip().split()[0]}: import that inside functions")


def check_spec(spec: Spec, target: Any) -> None:
    """Everything that `harness list` and `harness info` show is there, and both presets can build the class."""
    if not spec.summary or "\n" in spec.summary or len(spec.summary) > MAX_SUMMARY:
        raise Fault(f"its summary must be one line of at most {MAX_SUMMARY} characters")
    if spec.name != spec.name.lower() or not spec.name.replace("-", "").replace(".", "").isalnum():
        raise Fault(f"its name {spec.name!r} must be lower case with hyphens")
    for name, param in spec.parameters.items():
        if not param.help:
            raise Fault(f"parameter {name} has no help")
        for preset in ("quick", "paper"):
            value = param.default(preset)
            if param.choices and value not in param.choices:
                raise Fault(f"parameter {name}: its {preset} value {value!r} is not among its choices")
            if type(value) is not type(param.quick):
                raise Fault(f"parameter {name}: its {preset} value has another type than its quick value")
    for preset in ("quick", "paper"):
        settings = {name: param.default(preset) for name, param in spec.parameters.items()}
        try:
            target(**settings)
        except TypeError as error:
            raise Fault(f"its class does not take the parameters of its spec: {error}") from None
        settings_check = getattr(spec, "check_settings", "")
        problem = import_target(settings_check)(settings) if settings_check else None
        if problem:
            raise Fault(f"its {preset} settings do not go together: {problem[0]}")
