"""Client of the kit's second process, which reads a saved model and repeats the cut under another hash seed.

The process is started before it has a job, so that its imports run beside the first checks. It forks one child per
job and serves one bench after another.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.system import fork_server
from harness.system.process import last_line

LOG = "second.log"
HASH_SEED = "1"  # sets and hashes then have another order than in this process


class SecondProcess:
    """Runs one job at a time, while this process does something else."""

    def __init__(self) -> None:
        self.server: Any = subprocess.Popen(
            [sys.executable, "-m", "harness.conformance.second_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": HASH_SEED},
        )
        self.ready, self.child = False, 0
        self.work = Path()  # folder of the bench whose job is running
        atexit.register(self.close)

    def start_job(self, work: Path, **job: Any) -> None:
        self.cancel(self.work)
        if not self.ready:
            self.ready = self._reply() == fork_server.READY
        job = {"work": str(work), "log": str(work / LOG), "env": dict(os.environ), "cwd": os.getcwd(), **job}
        print(json.dumps(job), file=self.server.stdin, flush=True)
        self.child, self.work = int(self._reply()), work

    def wait_for_error(self) -> str:
        """Wait until the job has ended; return its error message, or an empty text if it succeeded."""
        code, self.child = int(self._reply()), 0
        if not code:
            return ""
        return last_line((self.work / LOG).read_text(encoding="utf-8"), f"it ended with {code}")

    def cancel(self, work: Path) -> None:
        """Kill the running job if it belongs to the bench with this folder."""
        if self.child and work == self.work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
            self._reply()
            self.child = 0

    def close(self) -> None:
        if self.server.poll() is None:
            self.server.kill()
        self.server.communicate()

    def _reply(self) -> str:
        line = self.server.stdout.readline().strip()
        if not line:
            self.child = 0
            stop_shared_process()
            raise HarnessError("the second process of the kit has ended", "run the check again")
        return line


@cache
def shared_process() -> SecondProcess:
    return SecondProcess()


def stop_shared_process() -> None:
    """End the second process, so that its memory is free for others."""
    if shared_process.cache_info().currsize:
        shared_process().close()
        shared_process.cache_clear()
