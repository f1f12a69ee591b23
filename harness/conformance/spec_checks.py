"""What every spec must hold, and that describing a plug-in costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from harness.api import Spec
from harness.conformance.report import Fault
from harness.plugins import registry, resolve

HEAVY = ("torch", "transformers", "numpy", "datasets", "pydantic", "onnxruntime", "timm")
LONGEST = 100


def heavy(kind: str, name: str) -> None:
    """In a process of its own: which heavy packages a plug-in's registration brings in."""
    origin = registry().origins[kind, name]
    script = (
        "import sys; from harness.plugins import registry; known = registry(); "
        f"sys.exit('not registered') if {name!r} not in known.specs[{kind!r}] else None; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "HARNESS_PLUGINS": origin.plugin}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Fault(f"registering alone fails: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    if done.stdout.strip():
        raise Fault(f"importing its module imports {done.stdout.strip().split()[0]}: do that inside the functions")


def check_spec(spec: Spec, target: Any) -> None:
    """Whatever `harness list` and `harness info` show is there, and both presets build the class."""
    if not spec.summary or "\n" in spec.summary or len(spec.summary) > LONGEST:
        raise Fault(f"its summary must be one line of at most {LONGEST} characters")
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
                raise Fault(f"parameter {name}: its {preset} value is of another type than its quick one")
    for preset in ("quick", "paper"):
        settings = {name: param.default(preset) for name, param in spec.parameters.items()}
        try:
            target(**settings)
        except TypeError as error:
            raise Fault(f"its class does not take the parameters of its spec: {error}") from None
        if (check := getattr(spec, "check_settings", "")) and (wrong := resolve(check)(settings)):
            raise Fault(f"its {preset} settings are refused by its own check: {wrong[0]}")
