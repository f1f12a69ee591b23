"""Atomic files in one folder: what is there is whole, what is damaged is named and set aside."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harness.errors import EnvironmentFault

_NUMBERS = itertools.count()
_BREAK = re.compile(rb"\n *")


class Files:
    """A folder that several processes write to. Notices collect what a user should hear about."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.mine = f"@{socket.gethostname()}@{os.getpid()}-{next(_NUMBERS)}"  # marks scratch; folders may be shared
        self.notices: list[str] = []

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def prepare(self) -> None:
        """Make the folder and prove that it can be written, before minutes are spent."""
        with guarded(self.root):
            self.path("tmp").mkdir(parents=True, exist_ok=True)
            probe = self.path("tmp", f"probe{self.mine}")
            probe.write_bytes(b"x" * 4096)
            probe.unlink()
        self.sweep()

    def sweep(self, mine: bool = False) -> None:
        """Clear the scratch of this host's processes that were killed; in the end, this store's own as well."""
        for left in self.path("tmp").iterdir():
            host, _, owner = left.name.partition("@")[2].rpartition("@")
            pid = owner.partition("-")[0]
            dead = host == socket.gethostname() and pid.isdigit() and not alive(int(pid))
            if dead or (mine and left.name.endswith(self.mine)):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """An empty folder that `commit` turns into the real one; swept away if this process dies."""
        folder = self.path("tmp", f"{name}{self.mine}")
        shutil.rmtree(folder, ignore_errors=True)
        with guarded(self.root):
            folder.mkdir(parents=True)
        return folder

    def commit(self, scratch: Path, final: Path) -> None:
        """Make a finished folder appear under its name, whole."""
        with guarded(self.root):
            for file in scratch.rglob("*"):
                if file.is_file():
                    _fsync(file)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                shutil.rmtree(final)
            scratch.rename(final)
            _fsync(final.parent)

    # --- JSON ---

    def write(self, path: Path, words: Any) -> None:
        self.write_bytes(path, text_of(words))

    def write_bytes(self, path: Path, content: bytes) -> None:
        with guarded(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path("tmp", f"{path.name}-{threading.get_ident()}{self.mine}")
            scratch.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
            _fsync(path.parent)

    def read(self, path: Path) -> Any:
        """The JSON of a file, or None if there is none or it is damaged; damage is named and set aside."""
        try:
            return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        except FileNotFoundError:
            return None
        except (ValueError, IsADirectoryError):
            self.set_aside(path, "is truncated or not JSON")
            return None

    def set_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            if aside.is_dir():
                shutil.rmtree(aside)
            path.replace(aside)
            self.notices.append(f"{path} {why}; set aside as {aside.name}, not used")
        except OSError:  # a folder that may only be read
            self.notices.append(f"{path} {why}; not used")


def put(path: Path, content: bytes) -> None:
    """A file outside a store, whole or not at all."""
    with guarded(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)


def text_of(words: Any) -> bytes:
    """JSON as files hold it."""
    return (json.dumps(words, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def is_text_of(content: bytes, words: Any) -> bool:
    """Whether a file holds words byte for byte as `text_of` has them: by two faster ways that are stricter together."""
    from pydantic_core import to_json

    # by C: the order of names and how numbers are written; by Rust, whose numbers differ at times: white space
    flat = json.dumps(words, sort_keys=True, allow_nan=False, separators=(",", ": ")).encode()
    if _BREAK.sub(b"", content) == flat and content == to_json(words, indent=2) + b"\n":
        return True
    return content == text_of(words)


@contextlib.contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Disk trouble as one line of cause and one of remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        remedy = {
            errno.ENOSPC: "make room, or write elsewhere: HARNESS_RUNS=DIR",
            errno.EDQUOT: "your quota is used up: write elsewhere: HARNESS_RUNS=DIR",
        }.get(getattr(error, "errno", None) or 0, "give a folder that can be written: HARNESS_RUNS=DIR")
        raise EnvironmentFault(
            f"cannot write to {root}: {getattr(error, 'strerror', None) or error}", remedy
        ) from error


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
