"""Our own program on the other machine: one file that is pushed, asked, and taken away."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.devices.remote import agent
from harness.devices.remote.folder import Folder
from harness.devices.remote.programs.parsing import killed
from harness.devices.remote.shells import NOTHING_CAME
from harness.devices.remote.transport import Lost, Talk
from harness.errors import EnvironmentFault, HarnessError, one_line
from harness.system.reading import Unreadable, json_value

FILE = Path(agent.__file__)
AGAIN = "the same command again continues"
NO_PROGRAM = 127  # of a shell: it knows no such command


def _times(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one > 0 for one in value)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _facts(value: Any) -> bool:
    return isinstance(value, dict)


# What each reply must hold.
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "probe": {"missing": _texts, "packages": _texts, "python": lambda value: isinstance(value, str)},
    "open": {"fallback": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)},
    "time": {
        "wall_ns": lambda value: _times(value) and bool(value),
        "cpu_ns": lambda value: value is None or _times(value),
        "before": _facts,
        "after": _facts,
        "memory": lambda value: value is None or _facts(value),
    },
}


class Agent:
    def __init__(self, folder: Folder, python: str = "python3") -> None:
        self.folder, self.python = folder, python
        self._there = ""

    def start(self) -> Process:
        """A process of it, to be closed."""
        if self._there != f"{self.folder.path}/{FILE.name}":
            self._there = self.folder.push(FILE, FILE.name)
        return Process(self.folder.transport.start([self.python, self._there]), self.python)

    def ask(self, do: str, timeout_s: float = 120, **words: Any) -> dict[str, Any]:
        """One question to a process of its own."""
        with closing(self.start()) as process:
            return process.ask(do, timeout_s, **words)


class Process:
    def __init__(self, talk: Talk, python: str) -> None:
        self._talk, self.python, self.where = talk, python, talk.where

    def ask(self, do: str, timeout_s: float = 120, **words: Any) -> dict[str, Any]:
        """Its answer; an error over there is one here."""
        nonce = secrets.token_hex(8)
        self._talk.say(json.dumps({"do": do, "nonce": nonce, **words}))
        ends = time.monotonic() + timeout_s
        while (line := self._talk.hear(max(0.0, ends - time.monotonic()))) is not None:
            if line.startswith(agent.ANSWER):
                break
        else:
            done = self._talk.ended()
            raise self._silent(self.where, done.code, done.message)
        reply = self._parsed(line.removeprefix(agent.ANSWER))
        if reply.pop("nonce", "") != nonce:
            raise HarnessError(f"{self.where} answered something else than it was asked", AGAIN)
        if "error" in reply:
            raise HarnessError(one_line(f"{self.where}: {reply['error']}: {reply.get('said', '')}"))
        for name, usable in FIELDS.get(do, {}).items():
            if name not in reply or not usable(reply[name]):
                raise HarnessError(f"{self.where}: the agent's reply to {do!r} has no usable {name}", AGAIN)
        return reply

    def _parsed(self, text: str) -> dict[str, Any]:
        """The reply as a dict; what is none may be noise of a dying connection."""
        try:
            reply = json_value(Path(self.where), text.encode(errors="backslashreplace"))
        except Unreadable as fault:
            raise HarnessError(f"{self.where}: the agent's reply {fault.why}", AGAIN) from None
        if not isinstance(reply, dict):
            raise HarnessError(f"{self.where}: the agent's reply is not an object", AGAIN)
        return reply

    def close(self) -> None:
        self._talk.close()

    def _silent(self, where: str, code: int, said: str) -> HarnessError:
        if code == NO_PROGRAM:
            return EnvironmentFault(f"{where} has no {self.python}", "name its Python in the device's file")
        if code == NOTHING_CAME:
            return Lost(where, said)
        if code > 128:
            return HarnessError(f"{where}: the agent: {killed(code)}", AGAIN)
        return HarnessError(f"{where}: the agent ended with {code}: {said}")
