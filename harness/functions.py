"""The commands as functions: run, load, evaluate, measure."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import resolve
from harness.api import Context, Workload
from harness.cell import planning
from harness.cell.lifecycle import Cell, Reporter
from harness.cell.request import Request
from harness.cell.scoring import score_words
from harness.errors import EnvironmentFault, UsageError
from harness.latency import timing
from harness.latency.fresh_process import openers
from harness.models.architectures.lookup import anatomy_of
from harness.models.saved.contents import read_config
from harness.plugins import registry
from harness.records.schema import Latency, Record, ScoreRecord
from harness.records.store import Store
from harness.resolve import prepare_for
from harness.system import process, seeds
from harness.system.isolation import plugin_code


def run(
    pruner: str, *, out: Path | str | None = None, reporter: Reporter | None = None, command: str = "", **asked: Any
) -> Record:
    """Run one cell, or answer from the store. Keywords are those of `harness.cell.planning.Request`.

    >>> record = harness.run("magnitude", model="tiny", ratio=0.2, limit=5)
    """
    for name in ("evaluators", "workloads"):
        if isinstance(asked.get(name), str):
            asked[name] = asked[name].split(",")
    request = Request(pruner=pruner, **asked)
    prepare_for(request.device, request.dtype)
    return Cell(planning.make(request), Store(Path(out) if out else None), reporter or Reporter(), command).run()


def load(path: Path | str, dtype: str | None = None) -> Any:
    """The model of a folder, pruned or not, without running code from the folder."""
    process.prepare(dtype or "fp32")
    from harness.models.saved import folders

    return folders.read(Path(path), dtype)


def evaluate(
    path: Path | str,
    evaluators: str | Sequence[str] = ("smoke",),
    *,
    limit: int | None = None,
    dtype: str = "fp32",
    preset: str = "quick",
    workloads: Sequence[str] = ("prefill:1x128",),
    seed: int = 0,
    out: Path | str | None = None,
) -> dict[str, ScoreRecord]:
    """Scores of a saved model, without a dense one beside it."""
    from harness.models.saved import folders

    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves nothing to evaluate", "give 1 or more")
    folder, store, found = Path(path), Store(Path(out) if out else None), {}
    model, tokenizer = load(folder, dtype), folders.tokenizer(folder)
    asked = evaluators.split(",") if isinstance(evaluators, str) else evaluators
    evaluations, missing = resolve.evaluations(asked, preset)
    if missing:
        raise next(iter(missing.values()))
    for evaluation in evaluations:
        with tempfile.TemporaryDirectory() as work_dir:
            ctx = Context(
                anatomy=anatomy_of(read_config(folder)),
                tokenizer=tokenizer,
                work_dir=Path(work_dir),
                seed=lambda *axis: seeds.seed(seed, *axis),
                calibration=None,
                workloads=[Workload.parse(text) for text in workloads],
                limit=limit,
                folder=folder,
            )
            with plugin_code(f"evaluator {evaluation.label}"):
                scores = evaluation.build().evaluate(model, ctx)
            for name, score in scores.items():
                found[evaluation.score_name(name)] = ScoreRecord(**score_words(score, store))
    return found


def measure(
    path: Path | str,
    workload: str | None = None,
    *,
    against: Path | str | None = None,
    device: str = "cpu",
    runtime: str = "",
    dtype: str | None = None,
    preset: str = "quick",
) -> Latency:
    """Time a saved model by the preset's protocol, beside the dense one (or itself, which shows the noise)."""
    if preset not in timing.PROTOCOLS:
        raise UsageError(f"no preset {preset!r}", "give quick or paper")
    spec = registry().get("device", device)
    dtype, runtime = dtype or spec.dtype, runtime or spec.runtimes[0]
    process.prepare(dtype)
    info = registry().device(device, runtime).probe()
    if not info.usable:
        raise EnvironmentFault(f"device {device} is not usable: {info.reason}", f"harness doctor {device}")
    spec, protocol = spec.on_machine(info), timing.protocol(preset, spec, runtime)
    asked = Workload.parse(workload or spec.workload)
    with openers((Path(against or path), Path(path)), device, runtime, dtype, asked, protocol) as (dense, pruned):
        rounds = timing.interleave(dense, pruned, protocol, spec.clock)
    return timing.latency(rounds, spec.clock, protocol, spec.provenance)
