"""An Android device by the system's adb client."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.devices.remote.shells import NOTHING_CAME, Posix, Shell, ended
from harness.devices.remote.transport import Done, Lost, Refused, Talk, Unreachable, call
from harness.errors import UsageError

SERIAL = re.compile(r"[A-Za-z0-9][\w.:-]*")
WHY = {  # in the words of adb
    "unauthorized": ("does not trust this computer", "unlock it and allow USB debugging"),
    "offline": ("is offline", "unplug it and plug it in again, or adb reconnect"),
    "not found": ("is not there", "adb devices lists what is"),
    "no permissions": ("may not be opened by this user", "add udev rules for it, or this user to plugdev"),
    "cannot connect": ("has no adb server to ask", "adb start-server"),
}


class Adb:
    shell: Shell = Posix()

    def __init__(self, serial: str, server_port: int | None = None) -> None:
        if not SERIAL.fullmatch(serial):
            raise UsageError(f"{serial!r} is no serial of an Android device", "adb devices lists them")
        self.serial, self.where = serial, f"device {serial}"
        self._adb = ["adb", *(["-P", str(server_port)] if server_port else [])]
        self._client = [*self._adb, "-s", serial]
        self._answered = False

    def run(self, words: Sequence[str], timeout_s: float = 60) -> Done:
        asked = [*self._client, "shell", self.shell.line(words)]
        try:
            return self._judged(call(asked, timeout_s, self.where))
        except Lost:
            raise  # it may have begun
        except Unreachable:
            if not self._connects():
                raise
        return self._judged(call(asked, timeout_s, self.where))

    def _connects(self) -> bool:
        """To an address, which adb forgets with its server or when the line breaks."""
        return ":" in self.serial and "connected to" in call([*self._adb, "connect", self.serial], 30, self.where).out

    def start(self, words: Sequence[str]) -> Talk:
        return Talk([*self._client, "shell", self.shell.line(words, talks=True)], self.where, self._judged)

    def _judged(self, done: Done) -> Done:
        code, out = ended(done.out)
        if code == NOTHING_CAME:
            raise self._unreachable(done.message)
        self._answered = True
        return Done(code, out, done.err)

    def push(self, source: Path, target: str) -> None:
        self._copy("push", str(source.absolute()), target)

    def pull(self, source: str, target: Path) -> None:
        self._copy("pull", source, str(target.absolute()))

    def _copy(self, how: str, source: str, target: str) -> None:
        done = call([*self._client, how, source, target], 3600, self.where)
        if done.code and (found := self._known(done.message)):
            raise found
        if done.code:
            raise Refused(self.where, how, done.message)
        self._answered = True

    def _known(self, said: str) -> Unreachable | None:
        for words, (cause, remedy) in WHY.items():
            if words in said and ("error: " in said or "adb: " in said):
                return Unreachable(f"{self.where} {cause}", remedy)
        return None

    def _unreachable(self, said: str) -> Unreachable:
        if found := self._known(said):
            return found
        if self._answered:
            return Lost(self.where, said)
        return Unreachable(f"{self.where} cannot be reached: {said}", "adb devices lists what can")

    def close(self) -> None:
        return None
