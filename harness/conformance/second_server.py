"""The kit's second process: reads a saved model, computes its logits, and runs the method again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.system import fork_server, process

LIBRARIES = (
    "harness.conformance.pruner_bench",
    "harness.models.saved.reload_check",
    "transformers.models.llama.modeling_llama",
)


def run_job(job: Any) -> None:
    from harness.conformance import pruner_bench
    from harness.models.saved import reload_check

    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    work = Path(job["work"])
    try:
        reload_check.answer(Path(job["folder"]), work / "fresh", "fp32", pruner_bench.WORKLOAD, logits_only=True)
        repeat_cut(job, work)
    except HarnessError as error:
        sys.exit(error.cause)


def repeat_cut(job: dict[str, Any], work: Path) -> None:
    """Run the method with the same arguments and write its cut to `work/again`.

    Writes nothing where the method is not installed, as for one that only a test registers.
    """
    from harness.conformance import pruner_bench, tiny_models
    from harness.models.saved import folders
    from harness.plugins import registry

    if job["name"] not in registry().specs["pruner"]:
        return
    inner = work / "second"
    inner.mkdir()
    bench = pruner_bench.PrunerBench(job["name"], {}, inner)
    bench.parameters = job["parameters"]
    cut = bench.trial(job["ratio"], job["model"]).cut
    if cut is not None:
        (work / "again").mkdir()
        _, anatomy = tiny_models.tiny(job["model"])
        dense = {name: list(anatomy.tensors[name]) for name in {*cut.masks, *cut.rewrites}}
        folders.write_cut(cut, {"dense_tensors": dense}, work / "again")


if __name__ == "__main__":
    fork_server.bound()
    process.prepare()
    fork_server.serve(LIBRARIES, run_job)
