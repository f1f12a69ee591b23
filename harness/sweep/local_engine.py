"""The local engine: one job at a time on this machine, each in a forked process that frees all its memory at exit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.resolve import prepare_process
from harness.sweep import steps
from harness.sweep.steps import CellState
from harness.system import process
from harness.system.fork_server import ChildEnded, ForkServer, ServerEnded, describe_exit

if TYPE_CHECKING:
    from harness.sweep.sweep import SweepCell


class JobDied(HarnessError):
    """A job whose process ended without a result."""

    def __init__(self, cause: str, status: str) -> None:
        super().__init__(cause)
        self.status = status


class LocalEngine:
    """Runs jobs in forks of a server process that has already imported the libraries."""

    def __init__(self, log: Path, timeout_s: float | None = None) -> None:
        self.log = log
        self.timeout_s = timeout_s
        self._server: ForkServer | None = None
        self._isa: str | None = None

    def probe(self, device: str, runtime: str | None) -> None:
        """None: planning probes the devices of this machine itself."""

    def run(self, job: str, timeout_s: float | None = None, **arguments: Any) -> Any:
        """The result of a job. Raises JobDied if its process was killed, failed or ran out of time."""
        if steps.is_light(job, arguments):  # so that a finished suite starts no server and imports no libraries
            return steps.JOBS[job](**arguments)
        if fields := arguments.get("fields"):
            prepare_process(fields["device"], fields["dtype"])
        server = self._start_server()
        try:
            server.start(log=str(self.log), call={"job": job, "arguments": arguments})
            end = server.wait(timeout_s)
        except TimeoutError:
            raise JobDied(f"took longer than {timeout_s:g} s", "timeout") from None
        except ChildEnded as error:
            raise JobDied(f"{error.cause}; see {self.log}", "failed") from None
        except ServerEnded:
            self.close()
            raise JobDied(f"the server process of the local engine died; see {self.log}", "failed") from None
        if end.code or not end.has_result:  # a plug-in may also exit with code 0 before there is a result
            raise JobDied(f"{describe_exit(end.code)}; see {self.log}", "failed")
        return end.result

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
            failure: dict[str, Any] = {"fields": cell.fields, "status": status, "reason": reason}
            state: CellState = self.run("fail", command=command, root=root, **failure)
        except JobDied:
            return {"id": cell.id, "status": status, "reason": reason}
        return state

    def _start_server(self) -> ForkServer:
        """The server process, started anew if torch in a running one has read another value of its variable."""
        isa = os.environ.get(process.ISA)
        if self._server is not None and self._isa != isa:
            self.close()
        if self._server is None:
            self._isa = isa
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._server = ForkServer("harness.sweep.fork_worker")
            try:
                self._server.wait_until_ready()
            except ServerEnded:
                self.close()
                raise HarnessError(
                    "the server process of the local engine did not start", "see its output above"
                ) from None
        return self._server

    def close(self) -> None:
        """End the server, and the running job with whatever it started."""
        if self._server is not None:
            self._server.close()
            self._server = None
