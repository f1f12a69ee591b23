"""What a plug-in does besides its work: prints, writes outside its folder, connections."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WRITES = {"os.mkdir": 0, "os.remove": 0, "os.rename": 1, "os.rmdir": 0, "os.symlink": 1, "os.truncate": 0}


@dataclass
class Seen:
    """What was noticed; `allowed` are the folders where writing is fine."""

    allowed: list[Path]
    thread: int
    printed: str = ""
    wrote: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)


_watching: list[Seen] = []
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or _watching[-1].thread != threading.get_ident():  # heartbeats of the run go on beside it
        return
    if event == "open":
        path, _, flags = arguments[0], arguments[1], arguments[2] or 0
        if isinstance(path, str | bytes | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _wrote(path)
    elif event in WRITES:
        _wrote(arguments[WRITES[event]])
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
    """Watch this process while a plug-in works in `work/work`. Home is an empty folder meanwhile."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # it stays, and does nothing while nobody watches
        _hooked = True
    home, folder = work / "home", work / "work"
    home.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)
    seen = Seen([folder], threading.get_ident())
    before = {name: os.environ.get(name) for name in ("HOME", "USERPROFILE")}
    os.environ.update(dict.fromkeys(before, str(home)))
    out = io.StringIO()
    _watching.append(seen)
    try:
        with redirect_stdout(out):
            yield seen
    finally:
        _watching.remove(seen)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        seen.printed = out.getvalue()
