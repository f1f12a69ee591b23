"""What a plug-in does besides its work: prints, writes outside its folder, connections, settings left changed.

Python's audit events tell of writes and connections as they happen; what libraries write from C++ or Rust is found by
looking into home and the current folder afterwards, which are empty ones meanwhile. Connections that a child process
makes are not seen.
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

# event -> which of its arguments is the path, and which the folder that a relative one counts from
WRITES = {
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rename": (1, 3),
    "os.rmdir": (0, 1),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
}
FOLDERS = ("HARNESS_DATA", "HARNESS_RUNS")  # may be relative to the folder we leave


@dataclass
class Seen:
    """What was noticed; `allowed` are the folders where writing is fine."""

    allowed: list[Path]
    others: set[int]  # threads that were there before: heartbeats of the run go on beside it
    printed: str = ""
    wrote: list[str] = field(default_factory=list)
    remains: list[str] = field(default_factory=list)  # files found in home and the current folder afterwards
    connected: list[str] = field(default_factory=list)
    left: str = ""  # a setting of torch that is not as it was


_watching: list[Seen] = []
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or threading.get_ident() in _watching[-1].others:
        return
    if event == "open":
        path, _, flags = arguments[0], arguments[1], arguments[2] or 0
        if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _wrote(path)
    elif event in WRITES:
        path, folder = WRITES[event]
        if folder is None or arguments[folder] in (-1, None):  # within an open folder: what opened it was told
            _wrote(arguments[path])
    elif event == "socket.connect":
        _watching[-1].connected.append(str(arguments[1]))
    elif event == "socket.getaddrinfo":
        _watching[-1].connected.append(str(arguments[0]))


def _wrote(path: Any) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return
    seen = _watching[-1]
    full = Path(os.path.abspath(os.fsdecode(path)))
    harmless = str(full).startswith("/dev/") or full.suffix == ".pyc" or "__pycache__" in full.parts
    if not harmless and not any(full.is_relative_to(folder) for folder in seen.allowed):
        seen.wrote.append(str(full))


@contextmanager
def watched(work: Path) -> Iterator[Seen]:
    """Watch this process while a plug-in works in `work/work`. Home and the current folder are empty ones meanwhile."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # it stays, and does nothing while nobody watches
        _hooked = True
    home, here, folder = work / "home", work / "here", work / "work"
    for made in (home, here, folder):
        made.mkdir(exist_ok=True)
    seen = Seen([folder], {thread.ident or 0 for thread in threading.enumerate()} - {threading.get_ident()})
    settings = torch_settings()
    with _elsewhere(home, here), _captured_stdout(seen):
        _watching.append(seen)
        try:
            yield seen
        finally:
            _watching.remove(seen)
            seen.remains = [str(path) for place in (home, here) for path in place.rglob("*") if path.is_file()]
            seen.wrote += seen.remains
            seen.left = disturbed(settings, torch_settings())
            restore_torch(settings)


@contextmanager
def _elsewhere(home: Path, here: Path) -> Iterator[None]:
    told = {name: str(Path(os.environ[name]).absolute()) for name in FOLDERS if os.environ.get(name)}
    told["MPLCONFIGDIR"] = str(home.parent / "work" / "matplotlib")  # its font cache is nobody's litter
    told |= {"HOME": str(home), "USERPROFILE": str(home), "HARNESS_CACHE": str(cache_dir().absolute())}
    before, where = {name: os.environ.get(name) for name in told}, Path.cwd()
    os.environ.update(told)
    os.chdir(here)
    try:
        yield
    finally:
        os.chdir(where)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _captured_stdout(seen: Seen) -> Iterator[None]:
    """What goes to stdout, by Python's name for it or by its number."""
    out = io.StringIO()
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            with redirect_stdout(out):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            file.seek(0)
            seen.printed = out.getvalue() + file.read().decode(errors="replace")


# --- what a visitor leaves as it found it ---


def standing(model: Any) -> dict[str, Any]:
    """A model beside its tensors: mode, gradients, hooks, config."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "the model's mode (train or eval)": [module.training for module in model.modules()],
        "requires_grad of the model": [parameter.requires_grad for parameter in model.parameters()],
        "hooks of the model": sum(len(getattr(module, kind)) for module in model.modules() for kind in hooks),
        "the model's config": model.config.to_dict(),
    }


def disturbed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What is not as it was."""
    return next((name for name, value in before.items() if after.get(name) != value), "")
