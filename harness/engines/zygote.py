"""A process that has the libraries and forks one more for each piece of work: fresh memory without seconds of imports.

Run as a module it reads a line of JSON per piece of work from stdin and answers with two: the child's pid, and how it
ended. What the work returns lies in the file that the line names, what it prints in another.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback

LIBRARIES = (
    "harness.engines.steps",
    "harness.checkpoints.modeling",
    "harness.recovery.lora",
    "transformers.models.llama.modeling_llama",
)
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def bound() -> None:
    """Killed when the parent is, so that nothing works on, unseen, beside what is started next."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def answer(job: dict) -> None:
    os.setsid()
    bound()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(job["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # of a machine without memory this dies, not the sweep
    steps = importlib.import_module("harness.engines.steps")
    found = steps.do(job)
    scratch = f"{job['out']}.part"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(scratch, job["out"])


def serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep decides what a Ctrl-C ends
    bound()
    for name in LIBRARIES:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                answer(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
