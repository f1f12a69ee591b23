"""Client of the kit's second process, which reads a saved model and repeats the cut under another hash seed.

The process is started before it has a job, so that its imports run beside the first checks. It forks one child per
job and serves one bench after another.
"""

from __future__ import annotations

import atexit
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.system.fork_server import ForkServer, ServerEnded
from harness.system.process import last_line

LOG = "second.log"
HASH_SEED = "1"  # sets and hashes then have another order than in this process


class SecondProcess:
    """Runs one job at a time, while this process does something else."""

    def __init__(self) -> None:
        self.server = ForkServer(
            "harness.conformance.second_server",
            environment={"PYTHONHASHSEED": HASH_SEED},
            stderr=subprocess.DEVNULL,
        )
        self.work = Path()  # folder of the bench whose job is running
        atexit.register(self.close)

    def start_job(self, work: Path, **job: Any) -> None:
        """Start a job in a bench's folder and cancel the one before it."""
        self.cancel(self.work)
        with self._server_runs():
            self.server.start(work=str(work), log=str(work / LOG), env=dict(os.environ), cwd=os.getcwd(), **job)
        self.work = work

    def wait_for_error(self) -> str:
        """Wait until the job has ended; return its error message, or an empty text if it succeeded."""
        with self._server_runs():
            code = self.server.wait().code
        if not code:
            return ""
        return last_line((self.work / LOG).read_text(encoding="utf-8"), f"it ended with {code}")

    def cancel(self, work: Path) -> None:
        """Kill the running job if it belongs to the bench with this folder."""
        if self.server.job and work == self.work:
            self.server.kill()
            with self._server_runs():
                self.server.wait()

    def close(self) -> None:
        self.server.close()

    @contextmanager
    def _server_runs(self) -> Iterator[None]:
        """Stop the shared process if its server has ended, so that the next bench starts another."""
        try:
            yield
        except ServerEnded:
            stop_shared_process()
            raise HarnessError("the second process of the kit has ended", "run the check again") from None


@cache
def shared_process() -> SecondProcess:
    return SecondProcess()


def stop_shared_process() -> None:
    """End the second process, so that its memory is free for others."""
    if shared_process.cache_info().currsize:
        shared_process().close()
        shared_process.cache_clear()
