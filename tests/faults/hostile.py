"""A plug-in that misbehaves as the environment variable HOSTILE says, installed as pip would leave it."""

from __future__ import annotations

import os
from pathlib import Path

METHOD = r"""
import os, sys, signal, threading, time
from harness import Cut, EvaluatorSpec, PrunerSpec, RecoverySpec, Score, hookimpl, uniform

class Own(BaseException):
    pass

class Silent(Exception):
    def __str__(self):
        raise ValueError("no text")

def leave_folder():
    import tempfile
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)

def misbehave(where):
    place, _, deed = os.environ.get("HOSTILE", "").partition(":")
    if place == where:
        exec(compile(DEEDS[deed], deed, "exec"), {**globals()})

DEEDS = {
    "exit-0": "os._exit(0)",
    "exit-7": "os._exit(7)",
    "sys-exit-0": "sys.exit(0)",
    "sigkill": "os.kill(os.getpid(), signal.SIGKILL)",
    "sigterm": "os.kill(os.getpid(), signal.SIGTERM)",
    "sigsegv": "os.kill(os.getpid(), signal.SIGSEGV)",
    "sigabrt": "os.abort()",
    "sigalrm": "signal.alarm(1); time.sleep(30)",
    "base-exception": "raise Own('an exception of its own')",
    "generator-exit": "raise GeneratorExit",
    "cancelled": "import asyncio; raise asyncio.CancelledError",
    "keyboard-interrupt": "raise KeyboardInterrupt",
    "stop-iteration": "raise StopIteration",
    "memory-error": "raise MemoryError",
    "recursion": "f = lambda: f(); f()",
    "surrogate": "open(b'/nowhere/\\xff\\xfe'.decode(errors='surrogateescape'))",
    "surrogate-message": "raise ValueError(b'\\xff'.decode(errors='surrogateescape'))",
    "silent-message": "raise Silent",
    "long-message": "raise ValueError('x' * 5_000_000)",
    "escape-message": "raise ValueError('one\\n# two\\x1b]0;owned\\x07 \\u202e three')",
    "fork-returns": "os.fork()",
    "fork-raises": "if not os.fork(): raise ValueError('in the forked process')",
    "working-folder": "os.chdir('/')",
    "deleted-folder": "leave_folder()",
    "default-dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "threads": "import torch; torch.set_num_threads(torch.get_num_threads() + 3)",
    "grad-mode": "import torch; torch.set_grad_enabled(not torch.is_grad_enabled())",
    "signal-handler": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "stdout-closed": "os.close(1); sys.stdout.close()",
    "stdout-replaced": "import io; sys.stdout = io.StringIO()",
    "all-files-closed": "os.closerange(3, 1000); os._exit(0)",
    "hang": "time.sleep(600)",
    "hang-deaf": "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]; time.sleep(600)",
    "print": "print('garbage'); os.write(1, b'more garbage'); os.system('echo even more')",
    "thread-left": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "atexit": "import atexit; atexit.register(print, 'late garbage')",
    "atexit-exit": "import atexit; atexit.register(os._exit, 3)",
    "process-left": "import subprocess; subprocess.Popen(['sleep', '600'])",
}

class Hostile:
    def prepare(self, model, ctx):
        misbehave("prepare")
        return {"none": 0}
    def prune(self, model, budget, ctx, state):
        misbehave("prune")
        return Cut(keep={site: range(n) for site, n in uniform(ctx.anatomy, budget.value).items()})

class Shaped(Hostile):
    def shape(self, anatomy, ratio):
        misbehave("shape")
        return uniform(anatomy, ratio)

class Recovery:
    def recover(self, model, teacher, ctx):
        misbehave("recover")

class Evaluator:
    def evaluate(self, model, ctx):
        misbehave("evaluate")
        return {"": Score({"a": 1.0, "b": 2.0}, higher_is_better=True)}

@hookimpl
def harness_register_pruners():
    misbehave("register")
    return [
        PrunerSpec(name="hostile", target="harness_hostile:Hostile", summary="does harm"),
        PrunerSpec(name="shaped", target="harness_hostile:Shaped", summary="does harm while planning"),
    ]

@hookimpl
def harness_register_recoveries():
    return [RecoverySpec(name="hostile", target="harness_hostile:Recovery", summary="does harm")]

@hookimpl
def harness_register_evaluators():
    return [EvaluatorSpec(name="hostile", target="harness_hostile:Evaluator", summary="does harm")]

@hookimpl
def harness_event(event):
    misbehave("event")

misbehave("import")
"""


def install(site: Path, name: str = "hostile", source: str = METHOD) -> dict[str, str]:
    """The plug-in in this folder, and the environment that finds it."""
    site.mkdir(exist_ok=True)
    (site / f"harness_{name}.py").write_text(source, encoding="utf-8")
    info = site / f"prune_harness_{name}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prune-harness-{name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[harness]\n{name} = harness_{name}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))}
