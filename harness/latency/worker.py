"""A process of its own around one model: reads a timing plan per line, answers with the samples.

`python -m harness.latency.worker FOLDER DEVICE RUNTIME DTYPE WORKLOAD`
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.api import Samples, TimingPlan, Workload
from harness.errors import HarnessError
from harness.latency.timing import Opener


class Worker:
    """The other end of the pipe."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.latency.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def measure(self, plan: TimingPlan) -> Samples:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(asdict(plan)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.kill()
            told = self.process.communicate()[1].strip().splitlines()
            raise HarnessError(f"the process that times a model ended: {told[-1] if told else 'without a word'}")
        return Samples(**json.loads(line))

    def close(self) -> None:
        try:
            self.process.communicate(timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.communicate()


def worker(folder: Path, device: str, runtime: str, dtype: str, workload: Workload) -> Opener:
    """Opens a saved model in a process of its own."""
    return lambda: Worker([str(folder), device, runtime, dtype, str(workload)])


def main() -> None:
    folder, name, runtime, dtype, workload = sys.argv[1:]
    from harness import process

    process.prepare(dtype)
    from harness.checkpoints import folders
    from harness.plugins import registry

    device: Any = registry().device(name, runtime)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the pipe is ours
    handle = device.prepare(folders.read(Path(folder), dtype), Workload.parse(workload))
    try:
        for line in sys.stdin:
            print(json.dumps(asdict(device.measure(handle, TimingPlan(**json.loads(line))))), file=answers, flush=True)
    finally:
        device.close(handle)


if __name__ == "__main__":
    try:
        main()
    except HarnessError as error:
        sys.exit(f"{error.cause} {error.remedy}")
