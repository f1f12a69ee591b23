"""A process of its own: reads a saved model, and asks the method again where sets and hashes are in another order.

It is started before it has anything to do, so that its imports run beside the first checks. A line on stdin says what.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness import process
from harness.errors import HarnessError


def main() -> None:
    process.prepare()
    from harness.checkpoints import folders, fresh, modeling  # noqa: F401
    from harness.conformance import pruners

    line = sys.stdin.readline()
    if not line:
        return
    asked = json.loads(line)
    work = Path(asked["work"])
    try:
        fresh.answer(Path(asked["folder"]), work / "fresh", "fp32", pruners.WORKLOAD, logits_only=True)
        again(asked, work)
    except HarnessError as error:
        sys.exit(error.cause)


def again(asked: dict[str, Any], work: Path) -> None:
    """The method's cut for the same question, in `work/again`; none where it is not installed."""
    from harness.checkpoints import folders
    from harness.conformance import models, pruners
    from harness.plugins import registry

    if asked["name"] not in registry().specs["pruner"]:
        return
    inner = work / "second"
    inner.mkdir()
    bench = pruners.PrunerBench(asked["name"], {}, inner)
    bench.parameters = asked["parameters"]
    cut = bench.ask(asked["ratio"], asked["model"]).cut
    if cut is not None:
        (work / "again").mkdir()
        _, anatomy = models.tiny(asked["model"])
        dense = {name: list(anatomy.tensors[name]) for name in {*cut.masks, *cut.rewrites}}
        folders.write_cut(cut, {"dense_tensors": dense}, work / "again")


if __name__ == "__main__":
    main()
