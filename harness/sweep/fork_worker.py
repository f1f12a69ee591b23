"""The server process of the local engine: forks one child per job, and writes each result to the job's `out` file."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from harness.system.fork_server import bound, serve

LIBRARIES = (
    "harness.sweep.steps",
    "harness.models.architectures.modeling",
    "harness.pruning.training.lora",
    "transformers.models.llama.modeling_llama",
)


def run_job(job: Any) -> None:
    """Run one job in this forked child and write its result atomically."""
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # when memory runs out, the kernel kills this child before the sweep
    steps = importlib.import_module("harness.sweep.steps")
    result = steps.run_job(job)
    scratch = f"{job['out']}.part"
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace(scratch, job["out"])


if __name__ == "__main__":
    bound()
    serve(LIBRARIES, run_job)
