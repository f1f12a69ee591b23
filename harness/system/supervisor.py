"""A command in a process of its own: however a method or a plug-in ends it, somebody is left to say so.

The supervisor forks before any library is imported, waits, and hears through a pipe what the command is doing. It never
touches a device. Where there is no fork, the command runs in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.system.fork_server import bound, check_fork_is_safe, ending

IMPORT_S = 20.0  # what the import of a plug-in's registration module may take
FORWARDED = (
    (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP) if hasattr(os, "fork") else ()
)
EXIT_S = 10.0  # what a process may take to end after it has answered or was interrupted


def import_seconds() -> float:
    """Seconds that an import may take, where the environment allows another time."""
    text = os.environ.get("HARNESS_IMPORT_S", "")
    return float(text) if text.replace(".", "", 1).isdigit() else IMPORT_S


fatal_imports: dict[str, str] = {}  # plug-ins that ended an earlier attempt of this command, and how
_pipe: tuple[int, int] | None = None  # of the supervised process: its pid and where it reports to


@dataclass
class Ending:
    """How a supervised command ended; `code` is None where it did not get as far as an exit code of its own."""

    code: int | None
    reason: str = ""
    status: str = "failed"
    reports: dict[str, Any] = field(default_factory=dict)  # the latest of each kind


def report(**what: Any) -> None:
    """Tell the supervisor what this process is doing; nothing where there is none."""
    if _pipe is not None and _pipe[0] == os.getpid():
        with contextlib.suppress(OSError):
            os.write(_pipe[1], (json.dumps(what) + "\n").encode())


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Name the plug-in that is imported meanwhile."""
    report(importing=name)
    try:
        yield
    finally:
        report(importing="")


def supervise(command: Callable[[], int]) -> Ending:
    """Run the command in a forked process and wait for its end."""
    if not hasattr(os, "fork"):
        return Ending(command())
    open_closed_streams()
    check_fork_is_safe()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(reader)
        _exit_with(command, writer, parent)
    os.close(writer)
    try:
        return _Watch(child, reader).wait()
    finally:
        os.close(reader)


def open_closed_streams() -> None:
    """Put the null device where a standard stream is closed, or the next file that is opened would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        stream.flush()


def _exit_with(command: Callable[[], int], writer: int, parent: int) -> None:
    """The child: lead a group of its own, run the command, report its exit code, end."""
    global _pipe
    code = 70
    try:
        os.setsid()
        bound(parent)
        _pipe = os.getpid(), writer
        code = command()
        if os.getpid() == _pipe[0]:  # not a fork that a plug-in let return
            _close_output()
            report(done=code)
            _run_exit_functions()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_output() -> None:
    """Flush the answer; what is printed later, for instance by exit functions of libraries, goes to stderr."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)


def _run_exit_functions() -> None:
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(Exception):
        sys.stderr.flush()


class _Watch:
    """The supervisor's side of one supervised process."""

    def __init__(self, child: int, reader: int) -> None:
        self.child, self.reader = child, reader
        self.reports: dict[str, Any] = {}
        self.rest = b""
        self.limits: dict[str, tuple[float, str, str]] = {}  # when it is killed, with which reason and status
        self.killed = ("", "failed")  # reason and status of the limit that was reached
        self.code: int | None = None

    def wait(self) -> Ending:
        handled = [number for number in FORWARDED if signal.getsignal(number) not in (signal.SIG_IGN, None)]  # nohup, &
        before = {number: signal.signal(number, self._forward) for number in handled}
        try:
            while self.code is None:
                self._listen()
                self._enforce()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._kill(signal.SIGKILL)  # whatever the command left running
        self._drain()
        if "done" in self.reports:
            return Ending(self.reports["done"], reports=self.reports)
        reason, status = self.killed
        return Ending(None, reason or ending(self.code), status, self.reports)

    def _listen(self) -> None:
        """Hear reports until the process has ended."""
        readable, _, _ = select.select([self.reader], [], [], 0.5 if self.limits else 5.0)
        text = os.read(self.reader, 65536) if readable else b""
        if readable and not text:  # every writer is gone, or the process closed its end
            time.sleep(0.05)
        *lines, self.rest = (self.rest + text).split(b"\n")
        for line in lines:
            self._hear(line)
        self._reap(block=False)

    def _drain(self) -> None:
        """What the process reported before its end; a process that it left behind may hold the pipe open."""
        os.set_blocking(self.reader, False)
        with contextlib.suppress(BlockingIOError):
            while text := os.read(self.reader, 65536):
                self.rest += text
        for line in self.rest.split(b"\n"):
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            what = json.loads(line)
        except ValueError:  # the process was killed while it wrote
            return
        self.reports |= what
        if "done" in what:
            self._limit("exit", EXIT_S, "it did not end")
        if "importing" in what:
            seconds = import_seconds()
            self.limits.pop("import", None)
            if what["importing"]:
                self._limit("import", seconds, f"its import took longer than {seconds:g} s")
        if "timeout_s" in what:
            self._limit("timeout", what["timeout_s"], f"it took longer than {what['timeout_s']:g} s", "timeout")

    def _limit(self, name: str, seconds: float, reason: str, status: str = "failed") -> None:
        self.limits[name] = (time.monotonic() + seconds, reason, status)

    def _enforce(self) -> None:
        """Kill the process if a limit was reached."""
        for moment, reason, status in self.limits.values():
            if self.code is None and time.monotonic() > moment:
                self.killed = (reason, status)
                self._kill(signal.SIGKILL)
                self._reap(block=True)

    def _reap(self, block: bool) -> None:
        pid, status = os.waitpid(self.child, 0 if block else os.WNOHANG)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)

    def _forward(self, number: int, _: Any) -> None:
        """Ctrl-C, Ctrl-Z and the like reach the process that leads a group of its own; a second one kills it."""
        if number == signal.SIGTSTP:
            self._pause()
            return
        again = "interrupted" in self.reports
        self.reports["interrupted"] = int(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL if again else number)
        self._limit("exit", EXIT_S, "it did not end")

    def _pause(self) -> None:
        """Stop both processes until they are continued; the pause counts against no limit."""
        began = time.monotonic()
        self._kill(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._kill(signal.SIGCONT)
        pause = time.monotonic() - began
        for name, (moment, reason, status) in self.limits.items():
            self.limits[name] = (moment + pause, reason, status)

    def _kill(self, number: int) -> None:
        """The process and what it started: it leads a group of its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child, number)
