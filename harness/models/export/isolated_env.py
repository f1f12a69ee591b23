"""A separate Python environment for an exporter whose packages conflict with harness's. It sees harness's as well."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from harness.errors import EnvironmentFault
from harness.system.host import cache_dir
from harness.system.process import last_line

__all__ = ["interpreter", "is_ready"]

READY = "ready"


def home(name: str, packages: Sequence[str]) -> Path:
    """Its folder, which may not exist yet. Other packages, or another base environment, have another folder."""
    identity = "\n".join([*packages, sys.executable, sysconfig.get_path("purelib")])
    return cache_dir() / "environments" / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def is_ready(name: str, packages: Sequence[str]) -> bool:
    """Whether the environment is installed."""
    return (home(name, packages) / READY).is_file()


def interpreter(name: str, packages: Sequence[str]) -> Path:
    """The environment's Python. uv installs it the first time, which needs a network; no dependencies are installed."""
    folder = home(name, packages)
    interpreter = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if is_ready(name, packages):
        return interpreter
    uv = shutil.which("uv")
    if uv is None:
        raise EnvironmentFault(f"{name} needs a separate environment, which uv creates", "pip install uv")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not is_ready(name, packages):
            shutil.rmtree(folder, ignore_errors=True)  # left by an installation that was interrupted
            _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], name)
            _run([uv, "pip", "install", "--quiet", "--no-deps", "--python", str(interpreter), *packages], name)
            site = subprocess.run(
                [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                capture_output=True,
                text=True,
            ).stdout.strip()
            (Path(site) / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            (folder / READY).touch()
    return interpreter


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = last_line(done.stderr, "it printed nothing")
        raise EnvironmentFault(
            f"the environment of {name} cannot be created: {reason}", "check the network and the free space"
        )
