"""Client of the agent: pushes `agent.py` to a remote machine, starts it and sends it requests."""

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
from harness.devices.remote.programs.parsing import signal_message
from harness.devices.remote.shells import NO_EXIT_CODE
from harness.devices.remote.transport import ConnectionLost, RemoteProgram
from harness.errors import EnvironmentFault, HarnessError, one_line
from harness.system.reading import Unreadable, json_value

__all__ = ["Agent"]

FILE = Path(agent.__file__)
RETRY = "the same command again continues"
COMMAND_NOT_FOUND = 127  # exit code of a shell


def _is_times(value: Any) -> bool:
    return isinstance(value, list) and all(type(ns) is int and ns > 0 for ns in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_text_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


# For each request, the fields that its reply must have, and how their values are checked.
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "probe": {"missing": _is_text_dict, "packages": _is_text_dict, "python": _is_text},
    "open": {"fallback": _is_text_list},
    "time": {
        "wall_ns": lambda value: _is_times(value) and bool(value),
        "cpu_ns": lambda value: value is None or _is_times(value),
        "before": _is_dict,
        "after": _is_dict,
        "memory": lambda value: value is None or _is_dict(value),
    },
}


class Agent:
    """The agent on one remote machine. It is pushed when it is first needed."""

    def __init__(self, folder: Folder, python: str = "python3") -> None:
        self.folder, self.python = folder, python
        self._remote_path = ""

    def start(self) -> AgentProcess:
        """Start a new process of the agent; the caller closes it."""
        if self._remote_path != f"{self.folder.path}/{FILE.name}":
            self._remote_path = self.folder.push(FILE, FILE.name)
        return AgentProcess(self.folder.transport.start([self.python, self._remote_path]), self.python)

    def request(self, do: str, timeout_s: float = 120, **arguments: Any) -> dict[str, Any]:
        """Send one request to a new process and return the reply."""
        with closing(self.start()) as process:
            return process.request(do, timeout_s, **arguments)


class AgentProcess:
    """A running process of the agent."""

    def __init__(self, program: RemoteProgram, python: str) -> None:
        self._program, self.python, self.machine = program, python, program.machine

    def request(self, do: str, timeout_s: float = 120, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the reply; an error of the agent is raised here."""
        nonce = secrets.token_hex(8)
        self._program.send(json.dumps({"do": do, "nonce": nonce, **arguments}))
        deadline = time.monotonic() + timeout_s
        while (line := self._program.receive(max(0.0, deadline - time.monotonic()))) is not None:
            if line.startswith(agent.ANSWER):
                break
        else:
            result = self._program.result()
            raise self._no_reply(result.code, result.message)
        reply = self._parse_reply(line.removeprefix(agent.ANSWER))
        if reply.pop("nonce", "") != nonce:
            raise HarnessError(f"{self.machine} replied to another request", RETRY)
        if "error" in reply:
            raise HarnessError(one_line(f"{self.machine}: {reply['error']}: {reply.get('message', '')}"))
        for name, is_usable in FIELDS.get(do, {}).items():
            if name not in reply or not is_usable(reply[name]):
                raise HarnessError(f"{self.machine}: the agent's reply to {do!r} has no usable {name}", RETRY)
        return reply

    def _parse_reply(self, text: str) -> dict[str, Any]:
        """The reply as a dict. A connection that breaks may garble it."""
        try:
            reply = json_value(Path(self.machine), text.encode(errors="backslashreplace"))
        except Unreadable as fault:
            raise HarnessError(f"{self.machine}: the agent's reply {fault.why}", RETRY) from None
        if not isinstance(reply, dict):
            raise HarnessError(f"{self.machine}: the agent's reply is not an object", RETRY)
        return reply

    def close(self) -> None:
        self._program.close()

    def _no_reply(self, code: int, message: str) -> HarnessError:
        """The error for a process that ended without a reply."""
        if code == COMMAND_NOT_FOUND:
            return EnvironmentFault(f"{self.machine} has no {self.python}", "name its Python in the device's file")
        if code == NO_EXIT_CODE:
            return ConnectionLost(self.machine, message)
        if code > 128:
            return HarnessError(f"{self.machine}: the agent: {signal_message(code)}", RETRY)
        return HarnessError(f"{self.machine}: the agent ended with {code}: {message}")
