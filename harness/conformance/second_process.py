"""A process of its own: reads a saved model, and asks the method again where sets and hashes are in another order.

It is started before it has anything to do, so that its imports run beside the first checks, and serves one bench after
another by a fork each.
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

LOG = "second.log"
ORDER = "1"  # of hashes: another than that of whoever asks


class Second:
    """The other process, from this side. It does one thing at a time, while its caller does others."""

    def __init__(self) -> None:
        self.server: Any = subprocess.Popen(
            [sys.executable, "-m", "harness.conformance.second_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": ORDER},
        )
        self.ready, self.child = False, 0
        self.work = Path()  # of whom it works for
        atexit.register(self.close)

    def ask(self, work: Path, **asked: Any) -> None:
        self.leave(self.work)
        if not self.ready:
            self.ready = self._reply() == fork_server.READY
        job = {"work": str(work), "log": str(work / LOG), "env": dict(os.environ), "cwd": os.getcwd(), **asked}
        print(json.dumps(job), file=self.server.stdin, flush=True)
        self.child, self.work = int(self._reply()), work

    def complaint(self) -> str:
        """What it complained of, once it is done; nothing if all went well."""
        code, self.child = int(self._reply()), 0
        lines = (self.work / LOG).read_text(encoding="utf-8").strip().splitlines()
        return (lines or [f"it ended with {code}"])[-1] if code else ""

    def leave(self, work: Path) -> None:
        """What it still does for this bench is of no use any more."""
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
            end()
            raise HarnessError("the second process of the kit is gone", "check again")
        return line


@cache
def second() -> Second:
    return Second()


def end() -> None:
    """Its memory is given back."""
    if second.cache_info().currsize:
        second().close()
        second.cache_clear()
