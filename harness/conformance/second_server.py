"""The kit's second process: reads a saved model, computes its logits, and runs the method again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.system import process
from harness.system.fork_server import Job, Message, die_with_parent, serve

LIBRARIES = (
    "harness.conformance.pruner_bench",
    "harness.models.saved.reload_check",
    "transformers.models.llama.modeling_llama",
)


def run_job(job: Job) -> None:
    """Check one saved model and repeat its cut, in this forked child. What went wrong is the last line of the log."""
    from harness.conformance import pruner_bench
    from harness.models.saved import reload_check

    request = job.request
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    work = Path(request["work"])
    try:
        reload_check.write_answer(
            Path(request["folder"]), work / "fresh", "fp32", pruner_bench.WORKLOAD, logits_only=True
        )
        repeat_cut(request, work)
    except HarnessError as error:
        sys.exit(error.cause)


def repeat_cut(request: Message, work: Path) -> None:
    """Run the method with the same arguments and write its cut to `work/again`.

    Writes nothing where the method is not installed, as for one that only a test registers.
    """
    from harness.conformance import pruner_bench, tiny_models
    from harness.models.saved import folders
    from harness.plugins import registry

    if request["name"] not in registry().specs["pruner"]:
        return
    inner = work / "second"
    inner.mkdir()
    bench = pruner_bench.PrunerBench(request["name"], {}, inner)
    bench.parameters = request["parameters"]
    cut = bench.trial(request["ratio"], request["model"]).cut
    if cut is not None:
        (work / "again").mkdir()
        _, anatomy = tiny_models.tiny(request["model"])
        dense = {name: list(anatomy.tensors[name]) for name in {*cut.masks, *cut.rewrites}}
        folders.write_cut(cut, {"dense_tensors": dense}, work / "again")


if __name__ == "__main__":
    die_with_parent()
    process.prepare()
    serve(LIBRARIES, run_job)
