"""Records the side effects of a plug-in: output, writes outside its folder, connections, changed settings.

Python's audit events report writes and connections as they happen. Files that libraries write from C++ or Rust are
found afterwards in the home folder and the current folder, which are empty ones meanwhile. Connections of child
processes are not noticed.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.system.host import cache_dir
from harness.system.isolation import restore_torch, torch_settings

# audit event -> position of its path argument, and of the folder descriptor that a relative path starts from
WRITES = {
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rename": (1, 3),
    "os.rmdir": (0, 1),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
}
FOLDER_VARIABLES = ("HARNESS_DATA", "HARNESS_RUNS")  # may be relative to the current folder, which is changed here


@dataclass
class SideEffects:
    """What a plug-in did besides its work, for one call."""

    allowed: list[Path]  # folders where it may write
    other_threads: set[int]  # threads that ran before, such as the run's heartbeat; what they do is ignored
    stdout: str = ""
    writes: list[str] = field(default_factory=list)  # paths outside the allowed folders
    leftovers: list[str] = field(default_factory=list)  # files in the home folder and the current folder afterwards
    connections: list[str] = field(default_factory=list)
    changed_setting: str = ""  # a setting of torch that has another value afterwards


_recording: list[SideEffects] = []  # the innermost recording is last
_hook_installed = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _recording or threading.get_ident() in _recording[-1].other_threads:
        return
    if event == "open":
        path, _, flags = arguments[0], arguments[1], arguments[2] or 0
        if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _record_write(path)
    elif event in WRITES:
        path, folder = WRITES[event]
        # A path relative to an open folder is skipped: the event that opened the folder was recorded.
        if folder is None or arguments[folder] in (-1, None):
            _record_write(arguments[path])
    elif event == "socket.connect":
        _recording[-1].connections.append(str(arguments[1]))
    elif event == "socket.getaddrinfo":
        _recording[-1].connections.append(str(arguments[0]))


def _record_write(path: Any) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return
    effects = _recording[-1]
    full = Path(os.path.abspath(os.fsdecode(path)))
    harmless = str(full).startswith("/dev/") or full.suffix == ".pyc" or "__pycache__" in full.parts
    if not harmless and not any(full.is_relative_to(folder) for folder in effects.allowed):
        effects.writes.append(str(full))


@contextmanager
def record_side_effects(work: Path) -> Iterator[SideEffects]:
    """Record what this process does while a plug-in works in `work/work`.

    Home and the current folder are the empty folders `work/home` and `work/here` meanwhile.
    """
    global _hook_installed
    if not _hook_installed:
        sys.addaudithook(_audit)  # it cannot be removed again; it does nothing while there is no recording
        _hook_installed = True
    home, current, folder = work / "home", work / "here", work / "work"
    for path in (home, current, folder):
        path.mkdir(exist_ok=True)
    threads = {thread.ident or 0 for thread in threading.enumerate()}
    effects = SideEffects([folder], threads - {threading.get_ident()})
    settings = torch_settings()
    with _changed_folders(home, current), _captured_stdout(effects):
        _recording.append(effects)
        try:
            yield effects
        finally:
            _recording.remove(effects)
            effects.leftovers = [str(path) for root in (home, current) for path in root.rglob("*") if path.is_file()]
            effects.writes += effects.leftovers
            effects.changed_setting = first_difference(settings, torch_settings())
            restore_torch(settings)


@contextmanager
def _changed_folders(home: Path, current: Path) -> Iterator[None]:
    """Change the home folder and the current folder; folders that harness itself uses stay the same."""
    variables = {name: str(Path(os.environ[name]).absolute()) for name in FOLDER_VARIABLES if os.environ.get(name)}
    variables["MPLCONFIGDIR"] = str(home.parent / "work" / "matplotlib")  # matplotlib's font cache is no fault
    variables |= {"HOME": str(home), "USERPROFILE": str(home), "HARNESS_CACHE": str(cache_dir().absolute())}
    before = {name: os.environ.get(name) for name in variables}
    previous = Path.cwd()
    os.environ.update(variables)
    os.chdir(current)
    try:
        yield
    finally:
        os.chdir(previous)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _captured_stdout(effects: SideEffects) -> Iterator[None]:
    """Capture what is written to `sys.stdout` and to file descriptor 1."""
    out = io.StringIO()
    sys.stdout.flush()
    original = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            with redirect_stdout(out):
                yield
        finally:
            os.dup2(original, 1)
            os.close(original)
            file.seek(0)
            effects.stdout = out.getvalue() + file.read().decode(errors="replace")


def short_path(path: str, work: Path) -> str:
    """A recorded path as its author would write it: relative to home or to the current folder."""
    return path.replace(str(work / "home"), "~").replace(str(work / "here"), ".")


# --- what a plug-in must leave unchanged ---


def model_state(model: Any) -> dict[str, Any]:
    """The state of a model apart from its tensors: mode, gradients, hooks, config."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "the model's mode (train or eval)": [module.training for module in model.modules()],
        "requires_grad of the model": [parameter.requires_grad for parameter in model.parameters()],
        "hooks of the model": sum(len(getattr(module, kind)) for module in model.modules() for kind in hooks),
        "the model's config": model.config.to_dict(),
    }


def first_difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The name of the first value that has changed, or an empty text."""
    return next((name for name, value in before.items() if after.get(name) != value), "")
