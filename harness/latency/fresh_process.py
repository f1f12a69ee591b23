"""A process of its own around each visit to a model.

Importing the libraries costs ten times what a visit does, so one process imports them and, per visit, forks another,
which opens the model, times it and is gone: its memory lies elsewhere each time, which is most of what differs between
processes. Where there is no fork, each visit starts from nothing.

`python -m harness.latency.fresh_process DTYPE` reads numbered requests, one JSON object a line: `open` a model (folder,
device, runtime, dtype, workload), time it by a `plan`, `close` it. Replies carry the number of their request; if the
child of a visit dies, the number of its reply is null.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan, Workload
from harness.errors import HarnessError
from harness.latency.timing import Opener, TimingProtocol, here
from harness.system.fork_server import bound, check_fork_is_safe
from harness.system.host import OUR_PIDS
from harness.system.process import last_line


class Host:
    """The process that imports, and forks for every visit. One visit at a time."""

    def __init__(self, dtype: str) -> None:
        self.asked = 0
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        pids = ",".join(filter(None, [os.environ.get(OUR_PIDS), str(os.getpid())]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.latency.fresh_process", dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, OUR_PIDS: pids},
        )

    def ask(self, what: str, words: Any) -> Any:
        """Send a request, read its answer; a process that ended says why."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.asked += 1
        try:
            self.process.stdin.write(json.dumps({"number": self.asked, what: words}) + "\n")
            self.process.stdin.flush()
            while answer := self.process.stdout.readline():
                found = json.loads(answer)
                if found["number"] in (self.asked, None):  # older ones answer who no longer waits
                    break
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            reason = last_line(self.errors.read(), "without a word")
            raise HarnessError(f"the process that times a model ended: {reason}")
        if "error" in found:
            raise HarnessError(found["error"], found["remedy"])
        return found["answer"]

    def close(self) -> None:
        """The end of its input ends it, and a visit that it left behind."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Visit:
    """One model in a process of its own."""

    def __init__(self, host: Host, words: list[str]) -> None:
        self.host = host
        host.ask("open", words)

    def measure(self, plan: TimingPlan) -> Samples:
        return Samples(**self.host.ask("plan", asdict(plan)))

    def close(self) -> None:
        if self.host.process.poll() is None:
            self.host.ask("close", None)


def visits(host: Host, folder: Path, device: str, runtime: str, dtype: str, workload: Workload) -> Opener:
    """Opens a saved model in a new process for every visit."""
    return lambda: Visit(host, [str(folder), device, runtime, dtype, str(workload)])


@contextmanager
def openers(
    folders: tuple[Path, Path],
    device: str,
    runtime: str,
    dtype: str,
    workload: Workload,
    protocol: TimingProtocol,
    models: Callable[[Path], Any] | None = None,
) -> Iterator[tuple[Opener, Opener]]:
    """Two saved models, to be opened as the protocol asks: in processes of their own, or here."""
    if protocol.fresh:
        host = Host(dtype)
        try:
            dense, pruned = (visits(host, folder, device, runtime, dtype, workload) for folder in folders)
            yield dense, pruned
        finally:
            host.close()
        return
    from harness.plugins import registry

    if models is None:
        from harness.models.saved.folders import read

        loaded = {folder: read(folder, dtype) for folder in dict.fromkeys(folders)}
        models = loaded.__getitem__
    made = registry().device(device, runtime)
    dense, pruned = (here(made, models(folder), workload) for folder in folders)
    yield dense, pruned


# --- the other side of the pipe ---


ANSWERS = 1
TOLD = 7  # a visit's exit code when its error was told already


def requests() -> Iterator[dict[str, Any]]:
    """Requests from a pipe that a fork may go on reading: nothing is read ahead."""
    while True:
        found = b""
        while not found.endswith(b"\n"):
            if not (byte := os.read(0, 1)):
                return
            found += byte
        # a visit that was killed as it was spoken to took the head of the line along; its end was told already
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(found)


def tell(number: int | None, **words: Any) -> None:
    os.write(ANSWERS, (json.dumps({"number": number, **words}) + "\n").encode())


def visit(first: dict[str, Any]) -> bool:
    """Open, time until told to close; whether all went well, or an error was told instead of an answer."""
    from harness.models.saved import folders
    from harness.plugins import registry

    number = first["number"]
    try:
        folder, name, runtime, dtype, workload = first["open"]
        device: Any = registry().device(name, runtime)
        handle = device.prepare(folders.read(Path(folder), dtype), Workload.parse(workload))
        tell(number, answer={})
        for request in requests():
            number = request["number"]
            if "close" in request:
                device.close(handle)
                tell(number, answer={})
                break
            tell(number, answer=asdict(device.measure(handle, TimingPlan(**request["plan"]))))
        return True
    except HarnessError as error:
        tell(number, error=error.cause, remedy=error.remedy)
    except Exception as error:
        tell(number, error=f"{type(error).__name__}: {error}", remedy="")
    return False


def fork_safely() -> int:
    check_fork_is_safe()
    return os.fork()


def imported() -> None:
    """What a visit would import, once for all of them; a pass of a tiny model finds what is imported late."""
    import torch

    import harness.models.saved.folders  # noqa: F401
    from harness.models.architectures import modeling
    from harness.models.workloads import runner

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    uneven = {"per_layer_config": {"1": {"intermediate_size": 4}}}
    for name, more in (("llama", {}), ("pruned_llama", uneven)):
        config, model = modeling.classes(name)
        for kind in ("prefill", "decode"):
            runner(model(config(**sizes, num_attention_heads=1, **more)).eval(), Workload(kind, 1, 4))()


def main() -> None:
    global ANSWERS
    from harness.system import process

    bound()
    process.prepare(sys.argv[1])
    ANSWERS = os.dup(1)  # libraries may print; the pipe is ours
    os.dup2(2, 1)
    imported()
    for request in requests():
        if "open" not in request:  # of a visit that is over
            gone = {} if "close" in request else {"error": "no model is open", "remedy": ""}
            tell(request["number"], **({"answer": {}} | gone))
        elif not hasattr(os, "fork"):
            visit(request)
        elif (child := fork_safely()) == 0:
            os._exit(0 if visit(request) else TOLD)
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code not in (0, TOLD):
                why = f"the process that times a model was ended ({code})"
                tell(None, error=why, remedy="is there memory left?")


if __name__ == "__main__":
    main()
