"""An environment of its own for an exporter whose packages do not go with ours. It sees ours beneath its own."""

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

READY = "ready"


def home(name: str, packages: Sequence[str]) -> Path:
    """Where it lies, or would: another one for other packages, or for another environment beneath."""
    known = "\n".join([*packages, sys.executable, sysconfig.get_path("purelib")])
    return cache_dir() / "environments" / f"{name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"


def there(name: str, packages: Sequence[str]) -> bool:
    return (home(name, packages) / READY).is_file()


def python(name: str, packages: Sequence[str]) -> Path:
    """Its Python; made by uv the first time, which takes a network. The packages bring nothing with them."""
    folder = home(name, packages)
    found = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if there(name, packages):
        return found
    uv = shutil.which("uv")
    if uv is None:
        raise EnvironmentFault(f"{name} is in an environment of its own, which uv makes", "pip install uv")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not there(name, packages):
            shutil.rmtree(folder, ignore_errors=True)  # what was begun and never ended
            _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], name)
            _run([uv, "pip", "install", "--quiet", "--no-deps", "--python", str(found), *packages], name)
            site = subprocess.run(
                [found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
            ).stdout.strip()
            (Path(site) / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            (folder / READY).touch()
    return found


def _run(words: list[str], name: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = last_line(done.stderr, "it printed nothing")
        raise EnvironmentFault(f"the environment of {name} cannot be made: {reason}", "is there a network, and room?")
