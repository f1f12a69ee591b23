"""This machine, as if it were another one: for devices that harness runs on, and for tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.devices.remote.shells import Posix, Python, Shell, ended
from harness.devices.remote.transport import Done, Refused, Talk, call


class Local:
    where = "this machine"

    def __init__(self, shell: Shell | None = None) -> None:
        self.shell: Shell = shell or (Posix() if os.name == "posix" else Python(sys.executable))

    def run(self, words: Sequence[str], timeout_s: float = 60) -> Done:
        return self._judged(call(self.shell.argv(words), timeout_s, self.where))

    def start(self, words: Sequence[str]) -> Talk:
        return Talk(self.shell.argv(words, talks=True), self.where, self._judged)

    def _judged(self, done: Done) -> Done:
        code, out = ended(done.out)
        return Done(code, out, done.err)

    def push(self, source: Path, target: str) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise Refused(self.where, f"writing {target}", str(error.strerror)) from None

    def pull(self, source: str, target: Path) -> None:
        self.push(Path(source), str(target))

    def close(self) -> None:
        return None
