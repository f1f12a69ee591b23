"""How files and commands get to another machine. The system's own clients carry them; quoting is ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.errors import EnvironmentFault, HarnessError
from harness.remote.shells import Shell


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
    def said(self) -> str:
        """The last line that says why."""
        lines = [line.strip() for line in (self.err + "\n" + self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"nothing, and ended with {self.code}"


class Transport(Protocol):
    """`where` names the machine for people. Paths there are absolute, and of our own making."""

    where: str
    shell: Shell

    def run(self, words: Sequence[str], timeout_s: float = 60) -> Done:
        """Any exit code is an answer; Unreachable, Lost and TooLong are not. Stdin stays open until the end."""

    def push(self, source: Path, target: str) -> None: ...
    def pull(self, source: str, target: Path) -> None: ...
    def close(self) -> None: ...


def call(words: Sequence[str], timeout_s: float, where: str, **more: Any) -> Done:
    """A client of this machine, with an open stdin: whatever reads it over there ends when this process does."""
    ours, theirs = os.pipe()
    try:
        client = subprocess.Popen(
            words, stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **more
        )
    except FileNotFoundError:
        os.close(theirs)
        raise EnvironmentFault(f"{words[0]} is not installed here", f"install {words[0]}") from None
    finally:
        os.close(ours)
    try:
        out, err = client.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TooLong(f"{where}: no end after {timeout_s:g} s") from None
    finally:
        os.close(theirs)
        client.kill()
        client.wait()
    return Done(client.returncode, out, err)
