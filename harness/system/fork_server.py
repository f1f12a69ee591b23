"""A server process that imports libraries once and forks a child per job: fresh memory without seconds of imports.

It prints a line when it is ready. It then reads one job per line of JSON from stdin, and answers each with two lines:
the child's pid, and the child's exit code.
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
    """Have the kernel kill this process when its parent dies, so that it does not disturb what is started next.

    If `parent` is given and has died before this call, this process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os._exit(1)


def ending(code: int) -> str:
    """Text that says how a process ended that should have answered."""
    if code >= 0:
        return f"the process ended with exit code {code} before it answered"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process was ended by {name}" + (" (probably out of memory)" if name == "SIGKILL" else "")


def check_fork_is_safe() -> None:
    """Raise RuntimeError if this process has initialised CUDA, which does not survive a fork."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("this process has initialised CUDA and must not fork")


def serve(libraries: Sequence[str], work: Callable[[Any], None]) -> None:
    """Serve jobs until stdin ends. A child leads its own process group, and prints to the job's `log` file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides what Ctrl-C ends
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
