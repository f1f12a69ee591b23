"""The server of the second process: runs a method again and answers with its cut."""

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


def answer(asked: Any) -> None:
    from harness.conformance import pruner_bench
    from harness.models.saved import reload_check

    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    work = Path(asked["work"])
    try:
        reload_check.answer(Path(asked["folder"]), work / "fresh", "fp32", pruner_bench.WORKLOAD, logits_only=True)
        again(asked, work)
    except HarnessError as error:
        sys.exit(error.cause)


def again(asked: dict[str, Any], work: Path) -> None:
    """The method's cut for the same question, in `work/again`; none where it is not installed."""
    from harness.conformance import pruner_bench, tiny_models
    from harness.models.saved import folders
    from harness.plugins import registry

    if asked["name"] not in registry().specs["pruner"]:
        return
    inner = work / "second"
    inner.mkdir()
    bench = pruner_bench.PrunerBench(asked["name"], {}, inner)
    bench.parameters = asked["parameters"]
    cut = bench.ask(asked["ratio"], asked["model"]).cut
    if cut is not None:
        (work / "again").mkdir()
        _, anatomy = tiny_models.tiny(asked["model"])
        dense = {name: list(anatomy.tensors[name]) for name in {*cut.masks, *cut.rewrites}}
        folders.write_cut(cut, {"dense_tensors": dense}, work / "again")


if __name__ == "__main__":
    fork_server.bound()
    process.prepare()
    fork_server.serve(LIBRARIES, answer)
