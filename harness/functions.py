"""The public functions run, load, evaluate and measure: what the commands do, for use from Python."""

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
from harness.cell.scoring import score_payload
from harness.errors import UsageError
from harness.latency import timing
from harness.latency.fresh_process import openers
from harness.models.architectures.lookup import anatomy_of
from harness.models.saved.contents import read_config
from harness.plugins import registry
from harness.records.schema import Latency, Record, ScoreRecord
from harness.records.store import Store
from harness.resolve import prepare_process
from harness.system import process, seeds
from harness.system.isolation import plugin_code


def run(
    pruner: str, *, out: Path | str | None = None, reporter: Reporter | None = None, command: str = "", **options: Any
) -> Record:
    """Prune, measure and evaluate one model, or return the stored record of a finished run.

    The other keywords are the fields of `harness.cell.request.Request`. `out` is the runs folder, `command` the command
    line that the record keeps.

    >>> record = harness.run("magnitude", model="tiny", ratio=0.2, limit=5)
    """
    for name in ("evaluators", "workloads"):
        if isinstance(options.get(name), str):
            options[name] = options[name].split(",")
    request = Request(pruner=pruner, **options)
    prepare_process(request.device, request.dtype)
    return Cell(planning.make_plan(request), Store(Path(out) if out else None), reporter or Reporter(), command).run()


def load(path: Path | str, dtype: str | None = None) -> Any:
    """Load the model of a folder, pruned or not. No code from the folder is run."""
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
    """Score a saved model; the result maps names of scores to scores. There is no comparison with a dense model."""
    from harness.models.saved import folders

    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves nothing to evaluate", "give 1 or more")
    folder, store = Path(path), Store(Path(out) if out else None)
    model, tokenizer = load(folder, dtype), folders.tokenizer(folder)
    names = evaluators.split(",") if isinstance(evaluators, str) else evaluators
    evaluations, missing = resolve.resolve_evaluators(names, preset)
    if missing:
        raise next(iter(missing.values()))
    records = {}
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
                records[evaluation.score_name(name)] = ScoreRecord(**score_payload(score, store))
    return records


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
    """Time a saved model in alternation with the dense one, `against`.

    Without `against` the model is timed against itself, which shows the noise. The preset sets the number of rounds.
    """
    choices = resolve.timing_choices(device, preset, runtime, dtype, [workload] if workload else [])
    runtime, dtype = choices.runtime, choices.dtype
    process.prepare(dtype)
    info = registry().device(device, runtime).probe()
    resolve.check_usable(device, info)
    spec = choices.device.on_machine(info)
    timed = choices.workloads[0] if choices.workloads else Workload.parse(spec.workload)
    protocol = timing.protocol(preset, spec, runtime)
    with openers((Path(against or path), Path(path)), device, runtime, dtype, timed, protocol) as (dense, pruned):
        rounds = timing.interleave(dense, pruned, protocol, spec.clock)
    return timing.latency(rounds, spec.clock, protocol, spec.provenance)
