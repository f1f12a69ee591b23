"""Running plug-in code: changes that it leaves in this process are undone and reported.

If such code forks and returns from both processes, the forked one is ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.errors import HarnessError, describe
from harness.system.interrupts import interrupts

FORK_S = 2.0  # how long to wait for a forked process to report that it returned as well


class SideEffect(HarnessError):
    """Plug-in code returned and left this process changed."""


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
    """Python's standard streams, and the files behind their descriptors."""
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
    """Torch's global defaults; empty if torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):  # it is being imported
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
    """A snapshot of this process's settings: working folder, standard streams, signal handlers, torch's defaults."""

    def __init__(self) -> None:
        self.values = _settings()
        self._duplicates = [_duplicate(number) for number in (0, 1, 2)]

    def restore(self) -> str:
        """Restore all settings. Returns text that names those that had changed; empty if none had."""
        now = _settings()
        changed = [name for name, value in self.values.items() if now[name] != value]
        if "the working folder" in changed and self.values["the working folder"]:
            os.chdir(self.values["the working folder"])
        if "signal handlers" in changed:
            _restore_handlers(self.values["signal handlers"])
        if "the standard streams" in changed:
            for number, duplicate in enumerate(self._duplicates):
                if duplicate is not None:
                    os.dup2(duplicate, number)
            streams = [_reopen(*pair) for pair in enumerate(self.values["the standard streams"][:3])]
            sys.stdin, sys.stdout, sys.stderr = streams
        restore_torch({name: value for name, value in self.values.items() if name.startswith("torch's")})
        return ", ".join(f"{name}{_difference(self.values[name], now[name])}" for name in changed)

    def close(self) -> None:
        for duplicate in self._duplicates:
            if duplicate is not None:
                with contextlib.suppress(OSError):
                    os.close(duplicate)


def _reopen(number: int, stream: Any) -> Any:
    """The stream, or if it was closed, a new one on the same file."""
    if not getattr(stream, "closed", False):
        return stream
    return open(number, "w" if number else "r", closefd=False, errors="backslashreplace")


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _difference(before: Any, after: Any) -> str:
    """For plain values, text that says what they were and what they are."""
    plain = all(isinstance(value, str | int | float) or type(value).__module__ == "torch" for value in (before, after))
    return f" ({before} to {after or 'a deleted folder'})" if plain else ""


@contextmanager
def plugin_code(name: str) -> Iterator[None]:
    """Run plug-in code in the block. Changes that it leaves in this process are undone, and raise SideEffect.

    If the code forks and returns from both processes, the forked one is ended. Its exceptions and SystemExit pass, and
    so does the user's Ctrl-C. Any other BaseException becomes a HarnessError.
    """
    settings, forks = Settings(), _Forks()
    try:
        try:
            yield
        except HarnessError:
            raise
        except BaseException as error:
            forks.end_forked_process()
            if isinstance(error, Exception | SystemExit) or interrupts.caused(error):
                raise
            raise HarnessError(f"{name} raised {describe(error)}") from error
        finally:
            forks.end_forked_process()
            changed = settings.restore()
        if forks.have_returned():
            raise SideEffect(
                f"{name} forked this process and returned from both", "end the forked process where its work ends"
            )
        if changed:
            raise SideEffect(f"{name} changed {changed} and did not set it back", "set it back before returning")
    finally:
        settings.close()
        forks.close()


_fork_count = 0  # how often Python code forked this process


def _count_fork() -> None:
    global _fork_count
    _fork_count += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_count_fork)


class _Forks:
    """Detects whether code forked this process and returned from both. A forked process reports through a pipe."""

    def __init__(self) -> None:
        self.pid, self.count_before = os.getpid(), _fork_count
        self.reader, self.writer = os.pipe()

    def end_forked_process(self) -> None:
        """If this is a forked process, report to the original one and exit."""
        if os.getpid() != self.pid:
            with contextlib.suppress(OSError):
                os.write(self.writer, b"x")
            os._exit(0)

    def have_returned(self) -> bool:
        """In the original process: whether a forked process returned as well. Workers of libraries do not."""
        deadline = time.monotonic() + FORK_S
        while _fork_count > self.count_before:
            if select.select([self.reader], [], [], 0.05)[0]:
                return True
            if time.monotonic() > deadline or not _has_working_children():
                return bool(select.select([self.reader], [], [], 0)[0])
        return False

    def close(self) -> None:
        for end in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(end)


def _has_working_children() -> bool:
    """Whether this process has children that have not ended."""
    import psutil

    try:
        children = [child for child in psutil.Process().children() if child.is_running()]
    except psutil.Error:
        return False
    return any(child.status() != psutil.STATUS_ZOMBIE for child in children)
