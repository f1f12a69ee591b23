"""The process that a sweep's pieces of work are forks of. What one returns lies in the file that its job names."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from harness.system.atomic import write_bytes
from harness.system.fork_server import bound, serve

LIBRARIES = (
    "harness.sweep.steps",
    "harness.models.architectures.modeling",
    "harness.pruning.training.lora",
    "transformers.models.llama.modeling_llama",
)


def answer(job: Any) -> None:
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")  # of a machine without memory this dies, not the sweep
    steps = importlib.import_module("harness.sweep.steps")
    found = steps.do(job)
    write_bytes(Path(job["out"]), json.dumps(found).encode())


if __name__ == "__main__":
    bound()
    serve(LIBRARIES, answer)
