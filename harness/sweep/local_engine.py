"""The local engine: one job at a time on this machine, each in a forked process that frees all its memory at exit."""

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
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.resolve import prepare_for
from harness.sweep import steps
from harness.sweep.steps import CellState
from harness.system import process
from harness.system.fork_server import ending

if TYPE_CHECKING:
    from harness.sweep.sweep import SweepCell


class JobDied(HarnessError):
    """A job whose process ended without a result."""

    def __init__(self, cause: str, status: str) -> None:
        super().__init__(cause)
        self.status = status


class LocalEngine:
    """Runs jobs in forks of a server process that has already imported the libraries."""

    def __init__(self, scratch: Path, log: Path, timeout_s: float | None = None) -> None:
        self.scratch, self.log = scratch, log
        self.timeout_s = timeout_s
        self.job_count = 0
        self.server: Any = None
        self.child = 0
        self.isa: str | None = None

    def probe(self, device: str, runtime: str | None) -> None:
        """None: planning probes the devices of this machine itself."""

    def run(self, job: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        """The result of a job. Raises JobDied if its process was killed, failed or ran out of time."""
        if steps.is_light(job, arguments):  # so that a finished suite starts no server and imports no libraries
            return steps.JOBS[job](**arguments)
        if fields := arguments.get("fields"):
            prepare_for(fields["device"], fields["dtype"])
        server = self._server()
        self.job_count += 1
        out = self.scratch / f"{self.job_count}.json"
        line = json.dumps({"job": job, "arguments": arguments, "out": str(out), "log": str(self.log)})
        print(line, file=server.stdin, flush=True)
        self.child = self._reply()
        timed_out = threading.Event()

        def kill_late_child() -> None:
            timed_out.set()
            self._kill(signal.SIGKILL)

        timer = threading.Timer(timeout_s, kill_late_child) if timeout_s else None
        try:
            if timer:
                timer.start()
            code = self._reply()
        finally:
            if timer:
                timer.cancel()
        self.child = 0
        if timed_out.is_set():
            raise JobDied(f"took longer than {timeout_s:g} s", "timeout")
        if code or not out.exists():  # a plug-in may also exit with code 0 before there is a result
            raise JobDied(f"{ending(code)}; see {self.log}", "failed")
        return json.loads(out.read_text(encoding="utf-8"))

    def _reply(self) -> int:
        line = self.server.stdout.readline()
        if not line:
            self.child, self.server = 0, None
            raise JobDied(f"the server process of the local engine died; see {self.log}", "failed")
        return int(line)

    def run_cells(
        self, cells: Sequence[SweepCell], root: str, command: str
    ) -> Iterator[tuple[SweepCell, str, CellState]]:
        """Run the cells one after the other; yield each step as it starts, and each cell's final state."""
        for cell in cells:
            started = ""
            for until in steps.steps_of(cell.request):
                yield cell, until, {"status": "", "reason": "", "id": cell.id}
                try:
                    step = {"fields": cell.fields, "until": until, "root": root, "command": command}
                    state: CellState = self.run("step", self.timeout_s, started=started, **step)
                    started = state["started"]
                except JobDied as error:
                    state = self._fail(cell, root, error.status, f"{until}: {error.cause}", command)
                if state["status"]:
                    yield cell, "", state
                    break

    def _fail(self, cell: SweepCell, root: str, status: str, reason: str, command: str) -> CellState:
        """Record that a cell's process died; the state of the cell even if that record cannot be written."""
        try:
            failure: dict[str, Any] = {"fields": cell.fields, "root": root, "status": status, "reason": reason}
            state: CellState = self.run("fail", command=command, **failure)
        except JobDied:
            return {"id": cell.id, "status": status, "reason": reason}
        return state

    def _server(self) -> Any:
        isa = os.environ.get(process.ISA)
        if self.server is not None and self.isa != isa:  # torch reads this variable once, when it is imported
            self.close()
        if self.server is None:
            self.isa = isa
            self.scratch.mkdir(parents=True, exist_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "harness.sweep.fork_worker"]
            self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self.server.stdout.readline().strip() != "ready":
                raise HarnessError("the server process of the local engine did not start", "see its output above")
        return self.server

    def _kill(self, signal_number: int) -> None:
        """Signal the child's process group, which includes whatever the child started."""
        if self.child:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child, signal_number)

    def close(self) -> None:
        self._kill(signal.SIGKILL)
        if self.server is not None:
            self.server.stdin.close()
            self.server.kill()
            self.server.wait()
            self.server = None
