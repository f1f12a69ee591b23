"""The server process of the local engine: forks one child per job, which replies with the job's result."""

from __future__ import annotations

import importlib

from harness.system.fork_server import Job, die_with_parent, serve

LIBRARIES = (
    "harness.sweep.steps",
    "harness.models.architectures.modeling",
    "harness.pruning.training.lora",
    "transformers.models.llama.modeling_llama",
)
OOM_SCORE = 500  # when memory runs out, the kernel kills the child before the sweep


def run_job(job: Job) -> None:
    """Run one job of a sweep in this forked child."""
    steps = importlib.import_module("harness.sweep.steps")
    job.reply(steps.run_job(job.request["call"]))


if __name__ == "__main__":
    die_with_parent()
    serve(LIBRARIES, run_job, oom_score=OOM_SCORE)
