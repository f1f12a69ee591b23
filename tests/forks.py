"""The command, in forks of one process that has the libraries: a fresh interpreter takes ten seconds to import them.

Run as a script, this is that process: each line it reads is a command, each line it writes an exit code.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

LIBRARIES = (
    "harness.cell.lifecycle",
    "harness.cell.planning",
    "harness.models.architectures.modeling",
    "harness.cli.record",
    "transformers.models.llama.modeling_llama",
)


def command(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """`harness WORDS`, in a process of its own that saves, proves and times in that same process."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {"words": words, "cwd": str(cwd or Path.cwd()), "env": {**os.environ, **env}, "folder": folder}
        server = _server()
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(words, code, out, err)


_known: list[Any] = []


def _server() -> Any:
    if not _known:
        made = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(made.kill)
        _known.append(made)
    return _known[0]


def in_one_process(patch: Any) -> None:
    """What a fresh interpreter would do is done in this one, where a test is not about that."""
    from harness.latency import timing
    from harness.models.saved import reload_check

    for preset, protocol in timing.PROTOCOLS.items():
        patch.setitem(timing.PROTOCOLS, preset, replace(protocol, fresh=False))

    def run_here(folder: Path, out: Path, dtype: str, workload: Any) -> Any:
        reload_check.write_answer(folder, out, dtype, workload)
        return json.loads(out.with_suffix(".json").read_text())

    patch.setattr(reload_check, "run_in_fresh_process", run_here)


def _answer(words: list[str], cwd: str, env: dict[str, str], folder: str) -> None:
    import pytest

    atexit._clear()  # what was registered before the fork is not this command's
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", *sys.path)]
    for number, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT), number)
    sys.argv = ["harness", *words]
    in_one_process(pytest.MonkeyPatch())
    from harness.cli import main

    try:
        main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(bool(code)))


def _read_passages() -> None:
    """Read the text that most commands are about: what is kept of it reaches every fork."""
    from harness.errors import EnvironmentFault
    from harness.evaluation import texts
    from harness.models.loading.tiny import byte_tokenizer

    tokenizer = byte_tokenizer()
    with suppress(EnvironmentFault):  # not on this machine
        for role in (texts.EVALUATE, texts.CALIBRATE):
            text = texts.read("passages", role)
            texts.tokenize(tokenizer, text.documents, text.join)


def _serve() -> None:
    sys.path[0] = ""  # as with `python -c`
    for name in LIBRARIES:
        importlib.import_module(name)
    _read_passages()
    for line in sys.stdin:
        if not (child := os.fork()):
            try:
                _answer(**json.loads(line))
            finally:
                os._exit(70)  # what it could not even begin
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
