"""Transports of files and commands to remote machines, by the clients that the system has (ssh, sftp, adb)."""

from __future__ import annotations

import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.devices.remote.shells import Shell
from harness.errors import EnvironmentFault, HarnessError
from harness.system.process import last_line

__all__ = ["CommandResult", "TransferFailed", "Transport", "Unreachable"]

PATIENCE_S = 2  # for a client to end by itself after its stdin was closed


class Unreachable(EnvironmentFault):
    """The machine does not answer or refuses the login."""


class ConnectionLost(Unreachable):
    """The machine answered before and does so no more. The command that ran there is lost."""

    def __init__(self, machine: str, message: str) -> None:
        super().__init__(f"the connection to {machine} was lost: {message}", "the same command again continues")


class TransferFailed(EnvironmentFault):
    """A remote file could not be written or read."""

    def __init__(self, machine: str, operation: str, message: str) -> None:
        super().__init__(
            f"{machine}: {operation} failed: {message}", "check the free space and the permissions of the remote folder"
        )


class TimedOut(HarnessError):
    status = "timeout"


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line that it printed, which usually says why it failed."""
        return last_line(self.err + "\n" + self.out, f"no output, exit code {self.code}")


class Transport(Protocol):
    """A way to a machine. `machine` is its name in messages. Remote paths are absolute and made by harness."""

    machine: str
    shell: Shell

    def run(self, command: Sequence[str], timeout_s: float = 60) -> CommandResult:
        """Run a command. Any exit code is a result; Unreachable, ConnectionLost and TimedOut are raised.

        The command's stdin stays open until it ends.
        """

    def start(self, command: Sequence[str]) -> RemoteProgram:
        """Start a program that reads and writes lines. It ends when this process ends."""

    def push(self, source: Path, target: str) -> None: ...
    def pull(self, source: str, target: Path) -> None: ...
    def close(self) -> None: ...


class RemoteProgram:
    """A running program on a remote machine, with which lines of text are exchanged.

    `interpret` turns the result of the local client into that of the remote program, or raises.
    """

    def __init__(
        self, command: Sequence[str], machine: str, interpret: Callable[[CommandResult], CommandResult]
    ) -> None:
        self.machine, self._interpret = machine, interpret
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - it lives as long as the client
        self._client = _start_client(command, stdin=subprocess.PIPE, stderr=self._errors)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._latest: list[str] = []  # the last lines that were received
        threading.Thread(target=self._read_lines, daemon=True).start()

    def _read_lines(self) -> None:
        assert self._client.stdout is not None
        for line in self._client.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def send(self, line: str) -> None:
        assert self._client.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # if it has ended, the next `receive` reports that
            self._client.stdin.write(line + "\n")
            self._client.stdin.flush()

    def receive(self, timeout_s: float) -> str | None:
        """The next line of its output, or None if it has ended."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise TimedOut(f"{self.machine}: no answer after {timeout_s:g} s") from None
        if line is None:
            self._lines.put(None)  # for the next call
        self._latest = [*self._latest[-50:], line or ""]
        return line

    def result(self) -> CommandResult:
        """Exit code and output of the program, after `receive` has returned None."""
        self.close()
        self._errors.seek(0)
        return self._interpret(CommandResult(self._client.returncode, "".join(self._latest), self._errors.read()))

    def close(self) -> None:
        assert self._client.stdin is not None
        with suppress(BrokenPipeError):
            self._client.stdin.close()
        _end_client(self._client)


def _end_client(client: subprocess.Popen[str]) -> None:
    """End a client whose stdin is closed. It gets some time, in which the remote command notices that and ends."""
    with suppress(subprocess.TimeoutExpired):
        client.wait(PATIENCE_S)
    client.kill()
    client.wait()


def _start_client(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace", **options)
    except FileNotFoundError:
        raise EnvironmentFault(f"{command[0]} is not installed on this machine", f"install {command[0]}") from None


def run_client(command: Sequence[str], timeout_s: float, machine: str) -> CommandResult:
    """Run a client on this machine with an open stdin, so that the remote command ends when this process ends."""
    read_end, write_end = os.pipe()
    try:
        client = _start_client(command, stdin=read_end, stderr=subprocess.PIPE)
    except EnvironmentFault:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    try:
        out, err = client.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        remedy = "log in by hand and check whether the command or the login shell waits for something"
        raise TimedOut(f"{machine}: no end after {timeout_s:g} s", remedy) from None
    finally:
        os.close(write_end)
        _end_client(client)
    return CommandResult(client.returncode, out, err)
