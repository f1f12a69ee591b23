"""How files and commands get to another machine. The system's own clients carry them; quoting is ours."""

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

PATIENCE_S = 2  # with a program that was told that nobody listens any more


class Unreachable(EnvironmentFault):
    """The machine does not answer, or does not let us in."""


class Lost(Unreachable):
    """It answered before. What was under way there is gone."""

    def __init__(self, where: str, said: str) -> None:
        super().__init__(f"{where} was lost in the middle: {said}", "the same command again continues")


class Refused(EnvironmentFault):
    """A file could not be written or read there."""

    def __init__(self, where: str, how: str, said: str) -> None:
        super().__init__(f"{where}: {how} failed: {said}", "check the space and the rights of the folder there")


class TooLong(HarnessError):
    status = "timeout"


@dataclass(frozen=True)
class Done:
    """How a command ended there."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line that says why."""
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"nothing, and ended with {self.code}"


class Transport(Protocol):
    """`where` names the machine for people. Paths there are absolute, and of our own making."""

    where: str
    shell: Shell

    def run(self, words: Sequence[str], timeout_s: float = 60) -> Done:
        """Any exit code is an answer; Unreachable, Lost and TooLong are not. Stdin stays open until the end."""

    def start(self, words: Sequence[str]) -> Talk:
        """A program that is spoken to by lines, and ends when this process does."""

    def push(self, source: Path, target: str) -> None: ...
    def pull(self, source: str, target: Path) -> None: ...
    def close(self) -> None: ...


class Talk:
    """A program at the other end of a client, and lines to and fro."""

    def __init__(self, words: Sequence[str], where: str, judged: Callable[[Done], Done]) -> None:
        self.where, self._judged = where, judged
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - it lives as long as the client
        self._client = _client(words, stdin=subprocess.PIPE, stderr=self._errors)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._heard: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._client.stdout is not None
        for line in self._client.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def say(self, line: str) -> None:
        assert self._client.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # how it ended is heard next
            self._client.stdin.write(line + "\n")
            self._client.stdin.flush()

    def hear(self, timeout_s: float) -> str | None:
        """Its next line; None when it has ended."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise TooLong(f"{self.where}: no answer after {timeout_s:g} s") from None
        if line is None:
            self._lines.put(None)  # for who asks again
        self._heard = [*self._heard[-50:], line or ""]
        return line

    def ended(self) -> Done:
        """How, once nothing more is heard."""
        self.close()
        self._errors.seek(0)
        return self._judged(Done(self._client.returncode, "".join(self._heard), self._errors.read()))

    def close(self) -> None:
        assert self._client.stdin is not None
        with suppress(BrokenPipeError):
            self._client.stdin.close()
        _ended(self._client)


def _ended(client: subprocess.Popen[str]) -> None:
    """Nobody listens any more: what runs at the other end hears that first."""
    with suppress(subprocess.TimeoutExpired):
        client.wait(PATIENCE_S)
    client.kill()
    client.wait()


def _client(words: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, errors="replace", **more)
    except FileNotFoundError:
        raise EnvironmentFault(f"{words[0]} is not installed here", f"install {words[0]}") from None


def call(words: Sequence[str], timeout_s: float, where: str) -> Done:
    """A client of this machine, with an open stdin: whatever reads it over there ends when this process does."""
    ours, theirs = os.pipe()
    try:
        client = _client(words, stdin=ours, stderr=subprocess.PIPE)
    except EnvironmentFault:
        os.close(theirs)
        raise
    finally:
        os.close(ours)
    try:
        out, err = client.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        hint = "see by hand whether it, or the start-up of its login shell, waits for something"
        raise TooLong(f"{where}: no end after {timeout_s:g} s", hint) from None
    finally:
        os.close(theirs)
        _ended(client)
    return Done(client.returncode, out, err)
