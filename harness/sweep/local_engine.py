"""One piece of work at a time on this machine, each in a process of its own that gives all memory back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.resolve import prepare_for
from harness.sweep import steps
from harness.system import process
from harness.system.fork_server import ending


class Died(HarnessError):
    """A piece of work that did not come back."""

    def __init__(self, cause: str, status: str) -> None:
        super().__init__(cause)
        self.status = status


class Local:
    """Forks of a process that has the libraries already."""

    def __init__(self, scratch: Path, log: Path, timeout_s: float | None = None) -> None:
        self.scratch, self.log, self.timeout_s, self.made = scratch, log, timeout_s, 0
        self.server: Any = None
        self.child = 0
        self.isa: str | None = None

    def probe(self, device: str, runtime: str | None) -> None:
        """Planning asks the devices of this machine itself."""

    def do(self, work: str, timeout_s: float | None = None, **given: Any) -> Any:
        """The work's answer; Died if it was killed, failed of itself or took too long."""
        if steps.light(work, given):  # a suite that is done needs no libraries
            return steps.WORK[work](**given)
        if words := given.get("words"):
            prepare_for(words["device"], words["dtype"])
        server = self._server()
        self.made += 1
        out = self.scratch / f"{self.made}.json"
        job = {"work": work, "with": given, "out": str(out), "log": str(self.log)}
        print(json.dumps(job), file=server.stdin, flush=True)
        self.child = self._reply()
        late = threading.Event()

        def end() -> None:
            late.set()
            self._kill(signal.SIGKILL)

        timer = threading.Timer(timeout_s, end) if timeout_s else None
        try:
            if timer:
                timer.start()
            code = self._reply()
        finally:
            if timer:
                timer.cancel()
        self.child = 0
        if late.is_set():
            raise Died(f"took longer than {timeout_s:g} s", "timeout")
        if code or not out.exists():  # a method may also end the process as if all were well
            raise Died(f"{ending(code)}; see {self.log}", "failed")
        return json.loads(out.read_text(encoding="utf-8"))

    def _reply(self) -> int:
        line = self.server.stdout.readline()
        if not line:
            self.child, self.server = 0, None
            raise Died(f"the process that works was ended; see {self.log}", "failed")
        return int(line)

    def cells(self, items: Sequence[Any], root: str, command: str) -> Iterator[tuple[Any, str, dict[str, Any]]]:
        """Every step of every cell, one after the other."""
        for item in items:
            started = ""
            for until in steps.steps_of(item.ask.request):
                yield item, until, {"status": "", "reason": "", "id": item.id}
                try:
                    given = {"words": item.words, "until": until, "root": root, "command": command}
                    answer = self.do("step", self.timeout_s, started=started, **given)
                    started = answer["started"]
                except Died as error:
                    why = f"{until}: {error.cause}"
                    told: Any = {"words": item.words, "root": root, "status": error.status, "reason": why}
                    try:
                        answer = self.do("fail", command=command, **told)
                    except Died:  # not even its row
                        answer = {"id": item.id, "status": error.status, "reason": why}
                if answer["status"]:
                    yield item, "", answer
                    break

    def _server(self) -> Any:
        isa = os.environ.get(process.ISA)
        if self.server is not None and self.isa != isa:  # torch heeds it when it is imported
            self.close()
        if self.server is None:
            self.isa = isa
            self.scratch.mkdir(parents=True, exist_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            words = [sys.executable, "-m", "harness.sweep.fork_worker"]
            self.server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self.server.stdout.readline().strip() != "ready":
                raise HarnessError("the process that works did not start", "what it said stands above")
        return self.server

    def _kill(self, how: int) -> None:
        """The child and what it started: it leads a group of its own."""
        if self.child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child, how)

    def close(self) -> None:
        self._kill(signal.SIGKILL)
        if self.server is not None:
            self.server.stdin.close()
            self.server.kill()
            self.server.wait()
            self.server = None
