"""A transport to this machine itself, for devices on which harness runs, and for tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.devices.remote.shells import Posix, Python, Shell, split_exit_code
from harness.devices.remote.transport import CommandResult, RemoteProgram, TransferFailed, run_client

__all__ = ["Local"]


class Local:
    machine = "this machine"

    def __init__(self, shell: Shell | None = None) -> None:
        self.shell: Shell = shell or (Posix() if os.name == "posix" else Python(sys.executable))

    def run(self, command: Sequence[str], timeout_s: float = 60) -> CommandResult:
        return self._interpret(run_client(self.shell.argv(command), timeout_s, self.machine))

    def start(self, command: Sequence[str]) -> RemoteProgram:
        return RemoteProgram(self.shell.argv(command, interactive=True), self.machine, self._interpret)

    def _interpret(self, result: CommandResult) -> CommandResult:
        code, out = split_exit_code(result.out)
        return CommandResult(code, out, result.err)

    def push(self, source: Path, target: str) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise TransferFailed(self.machine, f"writing {target}", str(error.strerror)) from None

    def pull(self, source: str, target: Path) -> None:
        self.push(Path(source), str(target))

    def close(self) -> None:
        return None
