"""Calls of plug-in code: what they change in this process is set back and named.

A process that such code forked and let return goes no further.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.errors import HarnessError, describe
from harness.system.interrupts import interrupts

FORK_S = 2.0  # how long a forked process may take to show that it returned as well


class Changed(HarnessError):
    """Plug-in code that leaves this process other than it was."""


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _handlers() -> dict[int, Any]:
    return {int(number): signal.getsignal(number) for number in signal.valid_signals()}


def _restore_handlers(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            with contextlib.suppress(OSError, ValueError):  # SIGKILL, or not the main thread
                signal.signal(number, handler)


def _output() -> tuple[Any, ...]:
    """Python's streams, and the files behind their numbers."""
    files = []
    for number in (0, 1, 2):
        try:
            state = os.fstat(number)
            files.append((state.st_dev, state.st_ino))
        except OSError:
            files.append((0, 0))
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return (*streams, *files, *(getattr(stream, "closed", False) for stream in streams))


def torch_settings() -> dict[str, Any]:
    """What torch computes with by default; empty before it is imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):  # its import is going on
        return {}
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
    }


def restore_torch(settings: dict[str, Any]) -> None:
    if settings:
        import torch

        torch.set_default_dtype(settings["torch's default dtype"])
        torch.set_num_threads(settings["torch's number of threads"])
        torch.set_grad_enabled(settings["torch's grad mode"])


def _settings() -> dict[str, Any]:
    return {
        "the working folder": _working_folder(),
        "signal handlers": _handlers(),
        "the standard streams": _output(),
        **torch_settings(),
    }


class Settings:
    """What a process must have again after a visit: folder, streams, signal handlers, torch's defaults."""

    def __init__(self) -> None:
        self.values = _settings()
        self._spare = [_duplicate(number) for number in (0, 1, 2)]

    def restore(self) -> str:
        """Set all back; what was not as before, in words, or nothing."""
        now = _settings()
        changed = [name for name, value in self.values.items() if now[name] != value]
        if "the working folder" in changed and self.values["the working folder"]:
            os.chdir(self.values["the working folder"])
        if "signal handlers" in changed:
            _restore_handlers(self.values["signal handlers"])
        if "the standard streams" in changed:
            for number, spare in enumerate(self._spare):
                if spare is not None:
                    os.dup2(spare, number)
            streams = [_open(*pair) for pair in enumerate(self.values["the standard streams"][:3])]
            sys.stdin, sys.stdout, sys.stderr = streams
        restore_torch({name: value for name, value in self.values.items() if name.startswith("torch's")})
        return ", ".join(f"{name}{_difference(self.values[name], now[name])}" for name in changed)

    def close(self) -> None:
        for spare in self._spare:
            if spare is not None:
                with contextlib.suppress(OSError):
                    os.close(spare)


def _open(number: int, stream: Any) -> Any:
    """The stream, or a new one on the same file where it was closed."""
    if not getattr(stream, "closed", False):
        return stream
    return open(number, "w" if number else "r", closefd=False, errors="backslashreplace")


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _difference(before: Any, after: Any) -> str:
    """For plain values, from what to what."""
    plain = all(isinstance(value, str | int | float) or type(value).__module__ == "torch" for value in (before, after))
    return f" ({before} to {after or 'a deleted folder'})" if plain else ""


@contextmanager
def plugin_code(name: str) -> Iterator[None]:
    """Run plug-in code: its stray changes are set back and are its fault; every exception of its own is an Exception.

    A process that it forked and let return ends here. A KeyboardInterrupt that nobody typed is no interruption.
    """
    settings, forks = Settings(), _Forks()
    try:
        try:
            yield
        except HarnessError:
            raise
        except BaseException as error:
            forks.end_copy()
            if isinstance(error, Exception | SystemExit) or interrupts.typed(error):
                raise
            raise HarnessError(f"{name} raised {describe(error)}") from error
        finally:
            forks.end_copy()
            changed = settings.restore()
        if forks.returned():
            raise Changed(
                f"{name} forked this process and returned from both", "end the forked process where its work ends"
            )
        if changed:
            raise Changed(f"{name} changed {changed} and did not set it back", "set it back before returning")
    finally:
        settings.close()
        forks.close()


_forked = 0  # how often this process was forked by Python code


def _count() -> None:
    global _forked
    _forked += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_count)


class _Forks:
    """Whether code that was called came back in two processes."""

    def __init__(self) -> None:
        self.pid, self.before = os.getpid(), _forked
        self.reader, self.writer = os.pipe()

    def end_copy(self) -> None:
        """In the forked process: say so to the original, and end."""
        if os.getpid() != self.pid:
            with contextlib.suppress(OSError):
                os.write(self.writer, b"x")
            os._exit(0)

    def returned(self) -> bool:
        """In the original: whether a forked process came back as well. Workers of libraries do not."""
        until = time.monotonic() + FORK_S
        while _forked > self.before:
            if select.select([self.reader], [], [], 0.05)[0]:
                return True
            if time.monotonic() > until or not _children():
                return bool(select.select([self.reader], [], [], 0)[0])
        return False

    def close(self) -> None:
        for end in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(end)


def _children() -> bool:
    """Whether this process has children that are still at work."""
    import psutil

    return any(child.status() != psutil.STATUS_ZOMBIE for child in _quietly(psutil.Process().children))


def _quietly(children: Callable[[], list[Any]]) -> list[Any]:
    import psutil

    try:
        return [child for child in children() if child.is_running()]
    except psutil.Error:
        return []
