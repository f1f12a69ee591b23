"""Terminal output of a run: its plan and its progress. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness.cell.lifecycle import Reporter
from harness.cell.plan import Plan
from harness.cli.json_output import print_json
from harness.evaluation import texts
from harness.models import counting
from harness.system import process
from harness.system.interrupts import interrupts


def console(**options: Any) -> Console:
    """A console for stdout, or with `stderr=True` for stderr. In a pipe its width is 110 columns instead of 80."""
    if "stderr" not in options:
        options["file"] = process.answer_stream()
    result = Console(highlight=False, **options)
    if not result.is_terminal:
        result.width = 110
    return result


class Terminal(Reporter):
    """Shows the plan, and then one line per stage, with a progress bar if the stage counts its steps."""

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
        interrupts.stop()
        self._done()
        if not self.progress_bar.live.is_started:
            self.progress_bar.start()
        self.task = self.progress_bar.add_task(escape(f"{name:28}"), total=None, count="")

    def progress(self, done: int, total: int) -> None:
        interrupts.stop()
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


def print_events() -> None:
    """Print every event of this process on stderr."""
    from harness.api import hookimpl
    from harness.plugins import registry

    class EventPrinter:
        @hookimpl
        def harness_event(self, event: Any) -> None:
            print(f"event: {event.name} {event.stage} {event.seconds:.2f} s {event.status}".rstrip(), file=sys.stderr)

    registry().manager.register(EventPrinter(), name="event-printer")


def plan_payload(plan: Plan) -> dict[str, Any]:
    """The plan as data: what `--dry-run --json` prints."""
    anatomy, predicted = plan.anatomy, plan.predicted
    return {
        "spec": plan.spec.model_dump(),
        "params": anatomy.params(),
        "params_prunable": anatomy.params(prunable=True),
        "params_after": anatomy.params(predicted) if predicted is not None else None,
        "flops": {str(w): counting.flops(anatomy, {}, w) for w in plan.workloads},
        "flops_after": {
            str(w): counting.flops(anatomy, predicted, w) if predicted is not None else None for w in plan.workloads
        },
        "estimate_cpu_s": estimate(plan),
    }


def estimate(plan: Plan) -> float:
    """Estimated CPU seconds of a run, from its FLOPs and the speed of a small matrix product on this machine."""
    import numpy as np

    a = np.ones((384, 384), dtype=np.float32)
    seconds: list[float] = []
    while len(seconds) < 10 or sum(seconds) < 0.05:
        start = time.process_time()
        a @ a
        seconds.append(time.process_time() - start)
    flops_per_s = 2 * 384**3 / max(min(seconds), 1e-6)  # the fastest one: slower ones include waiting threads
    # Imports, saving and the fresh processes take about half a minute. A model is slower than a single large product.
    return 30 + 1.5 * plan.work_flops() / flops_per_s


def print_plan(plan: Plan, as_json: bool) -> None:
    """Print what a run will do. The sizes and the estimate are left out if the run is impossible."""
    payload = plan_payload(plan) if plan.obstacle is None else None
    if as_json:
        print_json(payload, sort_keys=True)
        return
    spec = plan.spec
    settings = ", ".join(f"{k}={v}" for k, v in spec.parameters.items())
    rows = [
        ("pruner", spec.pruner + (f" ({settings})" if settings else "")),
        ("model", f"{spec.model} {spec.revision}".strip() + f", {spec.dtype}"),
        ("budget", budget_text(plan)),
    ]
    if payload is not None:
        params_after = payload["params_after"]
        parameters = f"{payload['params']:,} ({payload['params_prunable']:,} prunable)"
        parameters += f" -> {params_after:,}" if params_after is not None else ""
        rows.append(("parameters", parameters))
        for workload, dense in payload["flops"].items():
            pruned = payload["flops_after"][workload]
            flops = f"{dense / 1e9:,.4g} G" + (f" -> {pruned / 1e9:,.4g} G" if pruned else "")
            rows.append((f"FLOPs {workload}", flops))
    if spec.calibration:
        rows.append(("calibration", spec.calibration))
    if plan.recovery.spec.name != "none":
        rows.append(("recovery", spec.recovery))
    rows += [
        ("device", f"{spec.device}, {spec.runtime}, {', '.join(spec.workloads)}"),
        ("evaluate", ", ".join(spec.evaluators) + (f", limit {spec.limit}" if spec.limit else ", all documents")),
    ]
    if plan.grid is not None:
        rows.append(("grid", f"{plan.grid.grams_per_kwh:g} g CO2e per kWh ({plan.grid.source})"))
    rows += [("not scored", f"{label}: {reason}") for label, reason in plan.missing.items()]
    rows += [("note", note) for note in plan.info.notes]
    notes = {e.label: texts.overlap_note(spec.calibration, e.spec.name) for e in plan.evaluations}
    rows += [("note", f"{label}: {note}") for label, note in notes.items() if note]
    if payload is not None:
        minutes = max(1, round(payload["estimate_cpu_s"] / 60))
        rows.append(("estimate", f"about {minutes} CPU-minute{'s' * (minutes > 1)}, less if results are cached"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console().print(table)


def budget_text(plan: Plan) -> str:
    if plan.budget.kind == "ratio":
        return f"{plan.budget} of the prunable parameters removed"
    reference = "of dense " if plan.budget.unit == "x" else ""
    return f"{plan.budget} {reference}at most, {plan.spec.workloads[0]} on {plan.spec.device} by {plan.clock} time"
