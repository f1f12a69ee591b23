"""Times each visit to a model in a process of its own.

Where memory lies differs from process to process, and with it the time of a pass. Importing the libraries takes ten
times as long as a visit. So one server process imports them and forks a child per visit, which opens the model, times
it and ends. Where there is no fork, the server runs the visits itself.

The server is `python -m harness.latency.fresh_process DTYPE`. `harness.system.fork_server` describes its messages. The
request that starts a visit has `open`: folder, device, runtime, dtype and workload. Further requests have `plan`, which
times the model, or `close`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.api import Device, Samples, TimingPlan, Workload
from harness.errors import HarnessError
from harness.latency.timing import Opener, TimingProtocol, local_opener
from harness.system.fork_server import ChildEnded, ForkServer, Job, ServerEnded, die_with_parent, serve
from harness.system.host import OUR_PIDS
from harness.system.process import last_line

CLOSE_S = 30.0  # how long the server may take to end


class TimingServer:
    """The client of the server process. It runs one visit at a time."""

    def __init__(self, dtype: str) -> None:
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        pids = ",".join(filter(None, [os.environ.get(OUR_PIDS), str(os.getpid())]))
        self.fork_server = ForkServer(
            "harness.latency.fresh_process", dtype, environment={OUR_PIDS: pids}, stderr=self.stderr
        )

    def start_visit(self, opening: list[str]) -> None:
        """Start a visit and wait until its model is open."""
        with self._explain_end():
            self.fork_server.start(open=opening)
            self.fork_server.result()

    def request(self, **request: Any) -> Any:
        """Send a request to the running visit and return its reply."""
        with self._explain_end():
            return self.fork_server.request(**request)

    @contextmanager
    def _explain_end(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.fork_server.kill()  # a Ctrl-C does not reach the child, which leads a session of its own
            raise
        except ChildEnded as error:
            cause = f"timing in a fresh process failed: {error.cause}"
            raise HarnessError(cause, "make sure that memory is free") from error
        except ServerEnded as error:
            self.stderr.seek(0)
            reason = last_line(self.stderr.read(), "it printed no error")
            raise HarnessError(f"the process that times models ended: {reason}") from error

    def close(self) -> None:
        self.fork_server.close(CLOSE_S)
        self.stderr.close()


class Visit:
    """A session with one model in a process of its own."""

    def __init__(self, server: TimingServer, opening: list[str]) -> None:
        self.server = server
        server.start_visit(opening)

    def measure(self, plan: TimingPlan) -> Samples:
        return Samples(**self.server.request(plan=asdict(plan)))

    def close(self) -> None:
        """Close the model and wait until the process has ended, unless it has ended already."""
        fork_server = self.server.fork_server
        with contextlib.suppress(ChildEnded, ServerEnded):
            if fork_server.job:
                fork_server.request(close=True)
                fork_server.wait()


def visit_opener(
    server: TimingServer, folder: Path, device: str, runtime: str, dtype: str, workload: Workload
) -> Opener:
    """Opens a saved model in a new process for every visit."""
    return lambda: Visit(server, [str(folder), device, runtime, dtype, str(workload)])


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
    """Openers of two saved models: in a process per visit if the protocol says so, else in this process.

    `models` returns the model of a folder, where the caller has them in memory.
    """
    if protocol.fresh:
        server = TimingServer(dtype)
        try:
            dense, pruned = (visit_opener(server, folder, device, runtime, dtype, workload) for folder in folders)
            yield dense, pruned
        finally:
            server.close()
        return
    from harness.plugins import registry

    if models is None:
        from harness.models.saved.folders import read

        loaded = {folder: read(folder, dtype) for folder in dict.fromkeys(folders)}
        models = loaded.__getitem__
    timer = registry().device(device, runtime)
    dense, pruned = (local_opener(timer, models(folder), workload) for folder in folders)
    yield dense, pruned


# --- the server ---

LIBRARIES = ("torch", "harness.models.saved.folders")


def run_visit(job: Job) -> None:
    """Open a model and time it until the client closes it. An error is the reply to the request that caused it."""
    from harness.models.saved import folders
    from harness.plugins import registry

    try:
        folder, name, runtime, dtype, workload = job.request["open"]
        device: Device = registry().device(name, runtime)
        handle = device.prepare(folders.read(Path(folder), dtype), Workload.parse(workload))
        job.reply(None)
        for request in job.requests():
            if "close" in request:
                device.close(handle)
                job.reply(None)
                break
            job.reply(asdict(device.measure(handle, TimingPlan(**request["plan"]))))
    except HarnessError as error:
        job.reply_error(error.cause, error.remedy)
    except Exception as error:
        job.reply_error(f"{type(error).__name__}: {error}")


def run_tiny_models() -> None:
    """Run a pass of tiny models, so that libraries import before the fork what they import when they are first used."""
    import torch

    from harness.models.architectures import modeling
    from harness.models.workloads import runner

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    uneven = {"per_layer_config": {"1": {"intermediate_size": 4}}}
    for name, extra in (("llama", {}), ("pruned_llama", uneven)):
        config, model = modeling.classes(name)
        for kind in ("prefill", "decode"):
            runner(model(config(**sizes, num_attention_heads=1, **extra)).eval(), Workload(kind, 1, 4))()


def main() -> None:
    from harness.system import process

    die_with_parent()
    process.prepare(sys.argv[1])
    serve(LIBRARIES, run_visit, warm_up=run_tiny_models)


if __name__ == "__main__":
    main()
