"""Opens a saved model in a fresh process: its logits on fixed inputs, and the memory that it takes to run.

`python -m harness.models.saved.reload_check FOLDER OUT [--dtype fp32] [--workload prefill:1x128]` writes
OUT.safetensors and OUT.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from harness.api import Workload
from harness.errors import EnvironmentFault, HarnessError
from harness.models.architectures.lookup import task_for
from harness.system import process

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}  # of the largest logit


def logits(model: Any) -> Any:
    """What a model answers to its task's fixed inputs."""
    import torch

    task = task_for(model)
    with torch.inference_mode():
        return task.logits(model, task.probe(model)).float().cpu()


def run_in_fresh_process(folder: Path, out: Path, dtype: str, workload: Workload) -> dict[str, Any]:
    """Run this module in a fresh process and read what it wrote."""
    command = [sys.executable, "-m", "harness.models.saved.reload_check", str(folder), str(out)]
    done = subprocess.run(
        [*command, "--dtype", dtype, "--workload", str(workload)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = process.last_line(done.stderr, f"it ended with {done.returncode}")
        cause = f"a fresh process could not prove the saved model: {last}"
        if done.returncode == EnvironmentFault.exit_code:
            raise EnvironmentFault(cause, "make room, or write elsewhere: HARNESS_RUNS=DIR")
        raise HarnessError(cause, "the machine may have run out of memory" if done.returncode < 0 else "")
    return json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def check(model: Any, folder: Path, out: Path, dtype: str, workload: Workload) -> dict[str, int]:
    """Check that a saved folder is the model in memory. Returns the memory that it takes to run."""
    from safetensors.torch import load_file

    expected = logits(model)
    answer = run_in_fresh_process(folder, out, dtype, workload)
    reloaded = load_file(out.with_suffix(".safetensors"))["logits"]
    difference = float((reloaded - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE[dtype]:  # also when it is not a number
        raise HarnessError(
            f"the saved model differs from the one in memory: {difference:.2g} of the largest logit",
            "this is a bug of harness; please report it with cut.json",
        )
    return answer["memory"]


class Watch:
    """Resident memory above a base, sampled while something runs."""

    def __init__(self, interval_s: float = 0.005) -> None:
        import psutil

        self.process = psutil.Process()
        self.base = self.process.memory_info().rss
        self.interval_s, self.samples = interval_s, [0]
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self.stop.wait(self.interval_s):
            self.samples.append(self.process.memory_info().rss - self.base)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def measured(folder: Path, dtype: str, workload: Workload) -> tuple[Any, dict[str, int]]:
    """A folder's model, and the resident memory, average and peak, that loading and running it added."""
    from harness.models.architectures.modeling import smallest
    from harness.models.saved import folders
    from harness.models.workloads import runner

    runner(smallest(), Workload("prefill", 1, 8))()  # so that no library is imported while memory is watched
    with Watch() as loading:
        model = folders.read(folder, dtype, check_values=False)  # checking would read all weights into memory
        run = runner(model, workload)
        run()
    with Watch() as running:
        start = time.monotonic()
        for _ in range(20):
            run()
            if time.monotonic() - start > 2:
                break
    offset = running.base - loading.base
    during = [offset + sample for sample in running.samples]
    return model, {"average": int(sum(during) / len(during)), "peak": max(*loading.samples, *during)}


def write_answer(folder: Path, out: Path, dtype: str, workload: Workload, logits_only: bool = False) -> None:
    """Write OUT.safetensors and OUT.json."""
    from safetensors.torch import save_file

    if logits_only:
        from harness.models.saved import folders

        model = folders.read(folder, dtype, check_values=False)
        memory: dict[str, int] = {}
    else:
        model, memory = measured(folder, dtype, workload)
    save_file({"logits": logits(model)}, out.with_suffix(".safetensors"))
    out.with_suffix(".json").write_text(json.dumps({"memory": memory}), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--workload", type=Workload.parse, default="prefill:1x128")
    parser.add_argument("--logits-only", action="store_true", help="leave the memory out, which takes seconds")
    options = parser.parse_args()
    process.prepare(options.dtype, keep=False)  # memory is measured as in a process of a user
    try:
        write_answer(options.folder, options.out, options.dtype, options.workload, options.logits_only)
    except HarnessError as error:
        sys.exit(report(error.cause, error.exit_code))
    except (OSError, SafetensorError) as error:  # the disk
        sys.exit(report(str(error), EnvironmentFault.exit_code))


def report(cause: str, code: int) -> int:
    print(cause, file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
