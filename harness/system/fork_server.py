"""A process that has the libraries and forks one more for each piece of work: fresh memory without seconds of imports.

It reads a line of JSON per piece of work from stdin and answers with two: the child's pid, and how it ended. Before, it
says that it is ready.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from harness.system.interrupts import interrupts

READY = "ready"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def bound(parent: int | None = None) -> None:
    """Killed when the parent is, so that nothing works on, unseen, beside what is started next.

    A `parent` that was gone before this call ends the process too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def ending(code: int) -> str:
    """How a process that should have answered ended, in words."""
    if code >= 0:
        return f"the process ended with exit code {code} before it answered"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process was ended by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def check_fork_is_safe() -> None:
    """CUDA does not survive a fork, so a process that has started it must not fork for work."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("this process has initialised CUDA and must not fork")


def serve(libraries: Sequence[str], work: Callable[[Any], None]) -> None:
    """Until stdin ends. A child leads a group of its own and prints to the file that its job calls `log`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asked decides what a Ctrl-C ends
    for name in libraries:
        importlib.import_module(name)
    print(READY, flush=True)
    for line in sys.stdin:
        check_fork_is_safe()
        child = os.fork()
        if not child:
            os._exit(_child(json.loads(line), work))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _child(job: Any, work: Callable[[Any], None]) -> int:
    code = 1
    try:
        os.setsid()
        bound()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.heed()
        with open(job["log"], "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        work(job)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
