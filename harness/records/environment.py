"""What a run stood on: the checkout, the packages, the host, and what plug-ins add."""

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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git() -> Git | None:
    """The checkout this code runs from, if it runs from one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        if answer.returncode:
            raise OSError(answer.stderr)
        return answer.stdout.strip()

    try:
        return Git(commit=ask("rev-parse", "HEAD"), dirty=bool(ask("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return None


def host() -> dict[str, Any]:
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
    added: dict[str, Any] = {}
    for name, facts in plugins.answers("harness_environment", device):
        added[name] = facts
    return Environment(
        git=git(), packages=packages(), host=host(), device=fingerprint | ({"plugins": added} if added else {})
    )
