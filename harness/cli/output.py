"""What a run looks like in a terminal. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness import accounting, stats
from harness.cell import Reporter
from harness.plan import Plan
from harness.records import Record


def print_json(words: Any) -> None:
    print(json.dumps(words, indent=2, sort_keys=True))


def console(**options: Any) -> Console:
    """Tables keep their width in a pipe, where rich would assume 80 columns."""
    made = Console(highlight=False, **options)
    if not made.is_terminal:
        made.width = 110
    return made


class Terminal(Reporter):
    """The plan, then one line per stage with a bar where it counts."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.console = console(stderr=True)
        self.progress_bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=False,
        )
        self.task: Any = None

    def planned(self, plan: Plan) -> None:
        if not self.quiet:
            print_plan(plan, as_json=False)
            sys.stdout.flush()

    def stage(self, name: str) -> None:
        self._done()
        if not self.progress_bar.live.is_started:
            self.progress_bar.start()
        self.task = self.progress_bar.add_task(escape(f"{name:28}"), total=None, count="")

    def progress(self, done: int, total: int) -> None:
        if self.task is not None:
            self.progress_bar.update(self.task, completed=done, total=total, count=f"{done}/{total}")

    def notice(self, text: str) -> None:
        self.console.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)

    def _done(self) -> None:
        if self.task is not None:
            task = self.progress_bar.tasks[self.task]
            self.progress_bar.update(self.task, total=task.total or 1, completed=task.total or 1)
            self.progress_bar.stop_task(self.task)
            self.task = None

    def close(self) -> None:
        self._done()
        if self.progress_bar.live.is_started:
            self.progress_bar.stop()


def trace() -> None:
    """Every event of this process on stderr."""
    from harness.api import hookimpl
    from harness.plugins import registry

    class Trace:
        @hookimpl
        def harness_event(self, event: Any) -> None:
            print(f"trace: {event.name} {event.stage} {event.seconds:.2f} s {event.status}".rstrip(), file=sys.stderr)

    registry().manager.register(Trace(), name="trace")


def plan_words(plan: Plan) -> dict[str, Any]:
    """The plan as data: what `--dry-run --json` prints."""
    anatomy, spec = plan.anatomy, plan.spec
    predicted = plan.predicted
    after = anatomy.params(predicted) if predicted is not None else None
    return {
        "spec": spec.model_dump(),
        "params": anatomy.params(),
        "params_prunable": anatomy.params(prunable=True),
        "params_after": after,
        "flops": {str(w): accounting.flops(anatomy, {}, w) for w in plan.workloads},
        "flops_after": {
            str(w): accounting.flops(anatomy, predicted, w) if predicted is not None else None for w in plan.workloads
        },
        "estimate_cpu_s": estimate(plan),
    }


def estimate(plan: Plan) -> float:
    """CPU seconds ahead, from a short matrix product on this machine."""
    import numpy as np

    a = np.ones((384, 384), dtype=np.float32)
    a @ a
    cpu, done = time.process_time(), 0
    while (spent := time.process_time() - cpu) < 0.05:
        a @ a
        done += 1
    rate = 2 * 384**3 * done / spent
    # Imports, saving and the fresh processes cost about half a minute; a model is not quite a plain product.
    return 30 + 1.5 * plan.work_flops() / rate


def print_plan(plan: Plan, as_json: bool) -> None:
    words = plan_words(plan) if plan.obstacle is None else None
    if as_json:
        print_json(words)
        return
    spec = plan.spec
    settings = ", ".join(f"{k}={v}" for k, v in spec.parameters.items())
    rows = [
        ("pruner", spec.pruner + (f" ({settings})" if settings else "")),
        ("model", f"{spec.model} {spec.revision}".strip() + f", {spec.dtype}"),
        ("budget", budget_words(plan)),
    ]
    if words is not None:
        after = words["params_after"]
        rows.append(
            (
                "parameters",
                f"{words['params']:,} ({words['params_prunable']:,} prunable)"
                + (f" -> {after:,}" if after is not None else ""),
            )
        )
        for workload, dense in words["flops"].items():
            pruned = words["flops_after"][workload]
            rows.append(
                (f"FLOPs {workload}", f"{dense / 1e9:,.4g} G" + (f" -> {pruned / 1e9:,.4g} G" if pruned else ""))
            )
    rows += [
        ("device", f"{spec.device}, {spec.runtime}, {', '.join(spec.workloads)}"),
        ("evaluate", ", ".join(spec.evaluators) + (f", limit {spec.limit}" if spec.limit else ", all documents")),
    ]
    if words is not None:
        minutes = max(1, round(words["estimate_cpu_s"] / 60))
        rows.append(("estimate", f"about {minutes} CPU-minute{'s' * (minutes > 1)}, less what is already known"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console().print(table)


def budget_words(plan: Plan) -> str:
    if plan.budget.kind == "ratio":
        return f"{plan.budget} of the prunable parameters go"
    what = "of dense " if plan.budget.unit == "x" else ""
    return f"{plan.budget} {what}at most, {plan.spec.workloads[0]} on {plan.spec.device} by {plan.clock} time"


def print_record(record: Record, root: Path, cached: bool) -> None:
    out, spec = console(), record.spec
    out.print()
    if record.status != "ok":
        out.print(f"[bold red]{record.status}[/]: {escape(record.reason)}", soft_wrap=True)
    if record.status not in ("ok", "unstable"):
        return
    artefact, budget = record.artefact, record.budget
    assert artefact is not None
    assert budget is not None
    title = f"{spec.pruner} on {spec.model}, {spec.preset}" + (" (from the store)" if cached else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in ("", "dense", "pruned", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for name, dense, pruned, change in record_rows(record):
        table.add_row(escape(name), dense, pruned, change)
    out.print(table)
    for workload, timing in record.latency.items():
        floor = f"{timing.noise_floor:.1%}" if timing.noise_floor is not None else "unknown"
        out.print(
            f"{workload}: ranked by {timing.clock} time, {timing.rounds} rounds; noise floor {floor} "
            + "(dense against itself)"
            + ("" if timing.provenance == "device" else f"; {timing.provenance}, not a measurement")
            + f"; {stats.tail(timing.pruned.n, 0.99) or f'p99 at most {(timing.pruned.p99_bound_ns or 0) / 1e6:.2f} ms'}",
            soft_wrap=True,
        )
    for gate in record.gates:
        if not gate.ok:
            out.print(
                f"[yellow]gate {gate.name} failed[/], guards {gate.guards} time: {escape(gate.detail)}", soft_wrap=True
            )
    out.print(f"budget: {budget_result(record)}", soft_wrap=True)
    out.print(f"model:  {root / artefact.path}", soft_wrap=True)
    out.print(f"record: {root / 'records' / (record.id + '.json')}", soft_wrap=True)
    out.print(f"again:  {escape(reproduce(record))}", soft_wrap=True)


def budget_result(record: Record) -> str:
    budget, artefact, unit = record.budget, record.artefact, record.spec.budget.unit
    assert artefact is not None
    assert budget is not None
    gone = f"{artefact.ratio_blocks:.3%} of the prunable parameters gone ({artefact.ratio_total:.3%} of all)"
    if record.spec.budget.kind == "ratio":
        return f"{budget.asked:.2%} asked, {gone}, {budget.unused:.3%} beyond"
    bounds = budget.achieved_ci95
    spread = f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else ""
    return (
        f"{budget.asked:g}{unit} asked, {budget.achieved:.4g}{unit}{spread} measured, {budget.unused:.2g}{unit} unused,"
        f" {len(budget.probes)} probes; {gone}"
    )


def record_rows(record: Record) -> list[tuple[str, str, str, str]]:
    artefact = record.artefact
    assert artefact is not None
    rows = []
    for workload, timing in record.latency.items():
        dense, pruned = timing.dense, timing.pruned
        bounds = timing.speedup_ci95
        change = f"{timing.speedup:.3f}x speed" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
        rows.append(
            (f"{workload} {timing.clock} ms", f"{dense.median_ns / 1e6:.2f}", f"{pruned.median_ns / 1e6:.2f}", change)
        )
        for name, other in timing.other_clock.items():
            rows.append(
                (
                    f"{workload} {name} ms",
                    f"{other.dense.median_ns / 1e6:.2f}",
                    f"{other.pruned.median_ns / 1e6:.2f}",
                    f"{other.speedup:.3f}x speed",
                )
            )
    for name, score in record.scores.items():
        if name.startswith("footprint"):
            continue
        kind = "perplexity" if not score.higher_is_better else "score"
        change = f"{_figure(score.value / score.dense)}x" if score.dense else ""
        before, after = _spread(score.dense, score.dense_stderr), _spread(score.value, score.stderr)
        rows.append((f"{name} {kind} (n={score.n})", before, after, change))
    rows.append(_count("parameters", artefact.params_dense, artefact.params))
    if artefact.params_nonzero < 0.99 * artefact.params:
        rows.append(_count("parameters, non-zero", artefact.params_dense, artefact.params_nonzero))
    for workload, pair in record.flops.items():
        if pair.dense and pair.pruned is not None:
            rows.append(
                (
                    f"FLOPs {workload}, G",
                    f"{pair.dense / 1e9:,.4g}",
                    f"{pair.pruned / 1e9:,.4g}",
                    f"{pair.pruned / pair.dense - 1:+.1%}",
                )
            )
    memory = record.memory
    if memory.dense and memory.pruned:
        rows.append(_scaled("memory peak, MB", memory.dense.peak, memory.pruned.peak))
    energy = record.energy
    if energy.dense and energy.pruned is not None:
        change = f"{energy.pruned / energy.dense - 1:+.1%}"
        rows.append(("energy, J per pass", f"{energy.dense:.3g}", f"{energy.pruned:.3g}", change))
    else:
        rows.append(("energy", "-", "-", energy.reason))
    return rows


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _spread(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return _figure(value) + (f" ± {_figure(stderr)}" if stderr is not None else "")


def _count(name: str, dense: int, pruned: int) -> tuple[str, str, str, str]:
    return name, f"{dense:,}", f"{pruned:,}", f"{pruned / dense - 1:+.1%}"


def _scaled(name: str, dense: int, pruned: int) -> tuple[str, str, str, str]:
    return name, f"{dense / 1e6:,.1f}", f"{pruned / 1e6:,.1f}", f"{pruned / dense - 1:+.1%}"


def reproduce(record: Record) -> str:
    """The command that asks for this cell, nothing left to defaults."""
    spec = record.spec
    words = ["harness", "run", "--pruner", spec.pruner, "--model", spec.model, "--preset", spec.preset]
    if spec.pruner != "dense":
        flag = f"{spec.budget.value!r}{spec.budget.unit}"
        words += [f"--{spec.budget.kind}", flag]
    words += ["--device", spec.device, "--runtime", spec.runtime, "--dtype", spec.dtype]
    for workload in spec.workloads:
        words += ["--workload", workload]
    for name, value in spec.parameters.items():
        words += ["--set", f"{name}={value}"]
    if spec.calibration:
        words += ["--calibration", spec.calibration]
    words += ["--recovery", spec.recovery, "--eval", ",".join(spec.evaluators), "--seed", str(spec.seed)]
    if spec.limit:
        words += ["--limit", str(spec.limit)]
    return shlex.join(words)
