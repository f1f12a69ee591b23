"""A transport to an Android device, by the system's adb client."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.devices.remote.shells import NO_EXIT_CODE, Posix, Shell, split_exit_code
from harness.devices.remote.transport import (
    CommandResult,
    ConnectionLost,
    RemoteProgram,
    TransferFailed,
    Unreachable,
    run_client,
)
from harness.errors import UsageError

SERIAL = re.compile(r"[A-Za-z0-9][\w.:-]*")
FAILURES = {  # a part of adb's message -> cause and remedy
    "unauthorized": ("does not trust this computer", "unlock it and allow USB debugging"),
    "offline": ("is offline", "unplug it and plug it in again, or adb reconnect"),
    "not found": ("is not connected", "adb devices lists those that are"),
    "no permissions": ("may not be opened by this user", "add udev rules for it, or this user to plugdev"),
    "cannot connect": ("cannot be reached: no adb server runs", "adb start-server"),
}


class Adb:
    shell: Shell = Posix()

    def __init__(self, serial: str, server_port: int | None = None) -> None:
        if not SERIAL.fullmatch(serial):
            raise UsageError(f"{serial!r} is not the serial of an Android device", "adb devices lists them")
        self.serial, self.machine = serial, f"device {serial}"
        self._adb = ["adb", *(["-P", str(server_port)] if server_port else [])]
        self._client = [*self._adb, "-s", serial]
        self._has_answered = False

    def run(self, command: Sequence[str], timeout_s: float = 60) -> CommandResult:
        client = [*self._client, "shell", self.shell.line(command)]
        try:
            return self._interpret(run_client(client, timeout_s, self.machine))
        except ConnectionLost:
            raise  # the command may have begun, so it is not run again
        except Unreachable:
            if not self._reconnect():
                raise
        return self._interpret(run_client(client, timeout_s, self.machine))

    def _reconnect(self) -> bool:
        """Connect to a network address again; adb forgets it when its server restarts or the connection breaks."""
        if ":" not in self.serial:
            return False
        return "connected to" in run_client([*self._adb, "connect", self.serial], 30, self.machine).out

    def start(self, command: Sequence[str]) -> RemoteProgram:
        line = self.shell.line(command, interactive=True)
        return RemoteProgram([*self._client, "shell", line], self.machine, self._interpret)

    def _interpret(self, result: CommandResult) -> CommandResult:
        code, out = split_exit_code(result.out)
        if code == NO_EXIT_CODE:
            raise self._unreachable(result.message)
        self._has_answered = True
        return CommandResult(code, out, result.err)

    def push(self, source: Path, target: str) -> None:
        self._copy("push", str(source.absolute()), target)

    def pull(self, source: str, target: Path) -> None:
        self._copy("pull", source, str(target.absolute()))

    def _copy(self, operation: str, source: str, target: str) -> None:
        result = run_client([*self._client, operation, source, target], 3600, self.machine)
        if result.code:
            raise self._known_failure(result.message) or TransferFailed(self.machine, operation, result.message)
        self._has_answered = True

    def _known_failure(self, message: str) -> Unreachable | None:
        for text, (cause, remedy) in FAILURES.items():
            if text in message and ("error: " in message or "adb: " in message):
                return Unreachable(f"{self.machine} {cause}", remedy)
        return None

    def _unreachable(self, message: str) -> Unreachable:
        if failure := self._known_failure(message):
            return failure
        if self._has_answered:
            return ConnectionLost(self.machine, message)
        return Unreachable(f"{self.machine} cannot be reached: {message}", "adb devices lists what can be reached")

    def close(self) -> None:
        return None
