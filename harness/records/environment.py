"""The environment of a run, for its record: checkout, packages, host, and facts that plug-ins add."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import plugins
from harness.records.schema import Environment, Git
from harness.system.host import cores, cpu_model, total_memory

PACKAGES = ("prune-harness", "torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "lm-eval")


def packages() -> dict[str, str]:
    """The versions of the packages that results depend on, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git() -> Git | None:
    """The git commit of the checkout that this code runs from; None if it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def output_of(*arguments: str) -> str:
        process = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        if process.returncode:
            raise OSError(process.stderr)
        return process.stdout.strip()

    try:
        return Git(commit=output_of("rev-parse", "HEAD"), dirty=bool(output_of("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None


def host() -> dict[str, Any]:
    """The machine: CPU, cores, memory, system, and the environment variables that change timings."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA")
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_bytes": total_memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }


def environment(device: str, fingerprint: dict[str, Any]) -> Environment:
    """The environment of a run on a device with this fingerprint."""
    facts = dict(plugins.call_hook("harness_environment", device))
    if facts:
        fingerprint = fingerprint | {"plugins": facts}
    return Environment(git=git(), packages=packages(), host=host(), device=fingerprint)
