"""Running a command in a supervised process, so that a record can be written however a plug-in ends that process.

The supervisor forks before any library is imported, and waits. The command reports through a pipe what it is doing. The
supervisor never touches a device. On systems without fork, the command runs in this process.
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

from harness.system.fork_server import check_fork_is_safe, describe_exit, die_with_parent

IMPORT_S = 20.0  # time limit for the import of a plug-in's registration module
FORWARDED = (
    (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP) if hasattr(os, "fork") else ()
)
EXIT_S = 10.0  # time limit for the exit of a process that has answered or was interrupted


def import_seconds() -> float:
    """Time limit for an import: HARNESS_IMPORT_S if it is set, else the default."""
    text = os.environ.get("HARNESS_IMPORT_S", "")
    return float(text) if text.replace(".", "", 1).isdigit() else IMPORT_S


FATAL_IMPORTS = "HARNESS_FATAL_IMPORTS"  # an environment variable, so that processes which this command starts see it
_pipe: tuple[int, int] | None = None  # in the supervised process: its pid, and the descriptor that it reports to


@dataclass
class Ending:
    """How a supervised command ended. `code` is None if the process ended before the command returned an exit code."""

    code: int | None
    reason: str = ""
    status: str = "failed"
    reports: dict[str, Any] = field(default_factory=dict)  # the latest report of each kind


def report(**reports: Any) -> None:
    """Tell the supervisor what this process is doing. Does nothing in a process that is not supervised."""
    if _pipe is not None and _pipe[0] == os.getpid():
        with contextlib.suppress(OSError):
            os.write(_pipe[1], (json.dumps(reports) + "\n").encode())


def fatal_imports() -> dict[str, str]:
    """Plug-ins whose import ended an earlier attempt of this command, and how it ended."""
    with contextlib.suppress(ValueError):
        reasons = json.loads(os.environ.get(FATAL_IMPORTS, "{}"))
        if isinstance(reasons, dict):
            return {str(plugin): str(reason) for plugin, reason in reasons.items()}
    return {}


def add_fatal_import(plugin: str, reason: str) -> None:
    """Keep this process, and all that it starts, from importing the plug-in."""
    os.environ[FATAL_IMPORTS] = json.dumps({**fatal_imports(), plugin: reason})


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Report that the block imports this plug-in."""
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
        _run_and_exit(command, writer, parent)
    os.close(writer)
    try:
        return _Supervisor(child, reader).wait()
    finally:
        os.close(reader)


def open_closed_streams() -> None:
    """Open the null device for each closed standard stream. Otherwise the next opened file would get its descriptor."""
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


def _run_and_exit(command: Callable[[], int], writer: int, parent: int) -> None:
    """In the child: become a process group leader, run the command, report its exit code and exit."""
    global _pipe
    code = 70
    try:
        os.setsid()
        die_with_parent(parent)
        _pipe = os.getpid(), writer
        code = command()
        if os.getpid() == _pipe[0]:  # this is not a process that a plug-in forked
            _close_output()
            report(done=code)
            _run_exit_functions()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_output() -> None:
    """Flush stdout and point it to stderr, so that exit functions of libraries print nothing after the answer."""
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


class _Supervisor:
    """Waits for one supervised process, reads its reports and enforces time limits."""

    def __init__(self, child: int, reader: int) -> None:
        self.child, self.reader = child, reader
        self.reports: dict[str, Any] = {}
        self.unparsed = b""  # the start of a report whose end has not arrived
        self.limits: dict[str, tuple[float, str, str]] = {}  # deadline, and the reason and status if it is reached
        self.verdict = ("", "failed")  # reason and status of the limit that was reached
        self.code: int | None = None

    def wait(self) -> Ending:
        # signals that are ignored stay ignored: the command was started with nohup or in the background
        handled = [number for number in FORWARDED if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        handlers = {number: signal.signal(number, self._forward) for number in handled}
        try:
            while self.code is None:
                self._listen()
                self._enforce()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._kill(signal.SIGKILL)  # whatever the command left running
        self._drain()
        if "done" in self.reports:
            return Ending(self.reports["done"], reports=self.reports)
        reason, status = self.verdict
        return Ending(None, reason or describe_exit(self.code), status, self.reports)

    def _listen(self) -> None:
        """Wait for reports, for a few seconds at most, and check whether the process has ended."""
        readable, _, _ = select.select([self.reader], [], [], 0.5 if self.limits else 5.0)
        text = os.read(self.reader, 65536) if readable else b""
        if readable and not text:  # end of file: the process is ending, or closed the pipe
            time.sleep(0.05)
        *lines, self.unparsed = (self.unparsed + text).split(b"\n")
        for line in lines:
            self._receive(line)
        self._reap(block=False)

    def _drain(self) -> None:
        """Read what the process reported before its end, without waiting: a child of it may hold the pipe open."""
        os.set_blocking(self.reader, False)
        with contextlib.suppress(BlockingIOError):
            while text := os.read(self.reader, 65536):
                self.unparsed += text
        for line in self.unparsed.split(b"\n"):
            self._receive(line)

    def _receive(self, line: bytes) -> None:
        """Keep one line of reports, and set the time limits that follow from it."""
        try:
            reports = json.loads(line)
        except ValueError:  # the process was killed while it wrote
            return
        self.reports |= reports
        if "done" in reports:
            self._limit("exit", EXIT_S, "it did not end")
        if "importing" in reports:
            seconds = import_seconds()
            self.limits.pop("import", None)
            if reports["importing"]:
                self._limit("import", seconds, f"its import took longer than {seconds:g} s")
        if "timeout_s" in reports:
            seconds = reports["timeout_s"]
            self._limit("timeout", seconds, f"it took longer than {seconds:g} s", "timeout")

    def _limit(self, name: str, seconds: float, reason: str, status: str = "failed") -> None:
        self.limits[name] = (time.monotonic() + seconds, reason, status)

    def _enforce(self) -> None:
        """Kill the process if a limit was reached."""
        for deadline, reason, status in self.limits.values():
            if self.code is None and time.monotonic() > deadline:
                self.verdict = (reason, status)
                self._kill(signal.SIGKILL)
                self._reap(block=True)

    def _reap(self, block: bool) -> None:
        pid, status = os.waitpid(self.child, 0 if block else os.WNOHANG)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)

    def _forward(self, number: int, _: Any) -> None:
        """Pass a signal such as Ctrl-C on to the process, which is in another process group. A second one kills it."""
        if number == signal.SIGTSTP:
            self._pause()
            return
        again = "interrupted" in self.reports
        self.reports["interrupted"] = int(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL if again else number)
        self._limit("exit", EXIT_S, "it did not end")

    def _pause(self) -> None:
        """Stop both processes until they are continued. The pause does not count against time limits."""
        start = time.monotonic()
        self._kill(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._kill(signal.SIGCONT)
        pause = time.monotonic() - start
        for name, (deadline, reason, status) in self.limits.items():
            self.limits[name] = (deadline + pause, reason, status)

    def _kill(self, number: int) -> None:
        """Signal the process and everything that it started, which is its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child, number)
