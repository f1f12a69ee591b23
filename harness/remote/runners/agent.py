"""Our own program on the other machine: one file that is pushed, asked, and taken away."""

from __future__ import annotations

import json
import secrets
import signal
import tempfile
from pathlib import Path
from typing import Any

from harness.errors import EnvironmentFault, HarnessError
from harness.remote import agent
from harness.remote.folder import Folder
from harness.remote.shells import NOTHING_CAME
from harness.remote.transport import Lost

FILE = Path(agent.__file__)
NO_PROGRAM = 127  # of a shell: it knows no such command


class Agent:
    def __init__(self, folder: Folder, python: str = "python3") -> None:
        self.folder, self.python = folder, python
        self._there = ""

    def ask(self, do: str, timeout_s: float = 120, **words: Any) -> dict[str, Any]:
        """Its answer; an error over there is one here."""
        where = self.folder.transport.where
        nonce = secrets.token_hex(8)
        request = {"do": do, "nonce": nonce, **words}
        with tempfile.TemporaryDirectory(prefix="harness-request-") as made:
            path = Path(made) / "request.json"
            path.write_text(json.dumps(request), encoding="utf-8")
            self._there = self._there or self.folder.push(FILE, FILE.name)
            asked = self.folder.push(path, f"request-{nonce}.json")
        done = self.folder.transport.run([self.python, self._there, asked], timeout_s)
        self.folder.remove(f"request-{nonce}.json")
        answers = [line for line in done.out.splitlines() if line.startswith(agent.ANSWER)]
        if not answers:
            raise self._silent(where, done.code, done.said)
        answer = json.loads(answers[-1].removeprefix(agent.ANSWER))
        if answer.pop("nonce") != nonce:
            raise HarnessError(f"{where} answered something else than it was asked", "the same command again continues")
        if "error" in answer:
            raise HarnessError(f"{where}: {answer['error']}: {answer['said']}")
        return answer

    def _silent(self, where: str, code: int, said: str) -> HarnessError:
        if code == NO_PROGRAM:
            return EnvironmentFault(f"{where} has no {self.python}", "name its Python in the device's file")
        if code == NOTHING_CAME:
            return Lost(where, said)
        if code > 128:
            name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
            hint = ", as a machine does that is out of memory" if name == "SIGKILL" else ""
            return HarnessError(f"{where}: the agent was ended by {name}{hint}", "the same command again continues")
        return HarnessError(f"{where}: the agent ended with {code}: {said}")
