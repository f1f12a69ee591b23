"""`harness run`: one cell."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.answer import print_json
from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.system.supervisor import Ending

LONGEST_MINUTES = 100_000


@click.command("run")
@click.option("--pruner", required=True, help="Method; see `harness list pruners`.")
@click.option("--model", default="smollm2-135m", show_default=True, help="Alias, hub id, folder or GGUF.")
@click.option("--ratio", help="Share of the prunable parameters to remove, e.g. 0.3.")
@click.option("--latency", help="Latency to reach: 0.7x of dense, or 25ms.")
@click.option("--device", default="cpu", show_default=True, help="Where latency is measured.")
@click.option("--runtime", help="How the device runs the model.")
@click.option("--dtype", help="fp32, bf16 or fp16.")
@click.option("--workload", "workloads", multiple=True, help="prefill:BxS or decode:BxC; may be given again.")
@click.option("--preset", default="quick", show_default=True, help="quick or paper.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the pruner.")
@click.option("--calibration", default="passages", show_default=True, help="Text for methods that need it.")
@click.option("--recovery", default="none", show_default=True, help="What follows the cut.")
@click.option("--eval", "evaluators", default="smoke", show_default=True, help="Evaluators or groups, comma separated.")
@click.option("--limit", type=int, help="Documents (windows) per evaluator.  [quick: 40, paper: all]")
@click.option("--sustain", type=float, default=0.0, metavar="SECONDS", help="Work that long too.")
@click.option("--grid", help="CO2e: grams per kWh, or a country (DEU).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
@click.option("--timeout", type=float, metavar="MINUTES", help="End a run that takes longer; its row says so.")
@click.option("--dry-run", is_flag=True, help="Print the plan; load nothing.")
@click.option("--trace", is_flag=True, help="Profile both models afterwards.")
@click.option("--events", is_flag=True, help="Tell every event on stderr.")
@click.option("--json", "as_json", is_flag=True, help="The record on stdout and nothing else.")
def command(
    dry_run: bool,
    trace: bool,
    events: bool,
    as_json: bool,
    timeout: float | None,
    settings: tuple[str, ...],
    evaluators: str,
    **asked: Any,
) -> None:
    """Prune a model, prove the result, time it, evaluate it, record it.

    \b
    harness run --pruner magnitude --ratio 0.2 --limit 20
    harness run --pruner magnitude --model llama3.2-1b --dry-run
    """
    from harness.resolve import prepare_for
    from harness.system import process, supervisor

    asked["settings"] = dict(pair(text) for text in settings)
    asked["evaluators"] = [name.strip() for name in evaluators.split(",") if name.strip()]
    command_line = shlex.join(["harness", *(word for word in sys.argv[1:] if word != "--json")])
    if timeout is not None and not 0 < timeout <= LONGEST_MINUTES:
        raise UsageError(f"a timeout of {timeout:g} minutes cannot be kept", f"give up to {LONGEST_MINUTES:,} minutes")
    prepare_for(asked["device"], asked["dtype"])
    from harness.cell import planning
    from harness.cell.request import Request
    from harness.cli import output
    from harness.records.store import Store

    request = Request(**asked)
    store = Store()
    if not dry_run:
        parts = {"request": asdict(request), "root": str(store.root), "command": command_line, "json": as_json}
        supervisor.report(cell=parts, stage="plan the run")
        if timeout is not None:
            supervisor.report(timeout_s=60 * timeout)
    plan = planning.make(request, fetch=not dry_run)
    if dry_run:
        if plan.obstacle is not None:
            raise plan.obstacle
        output.print_plan(plan, as_json)
        return
    if events:
        output.tell_events()
    from harness.cell.lifecycle import Cell
    from harness.cli.record import print_record

    reporter = output.Terminal(quiet=as_json)
    cell = Cell(plan, store, reporter, command_line)
    try:
        with process.stdout_kept() if as_json else nullcontext():
            record = cell.run()
    finally:
        reporter.close()
    if as_json:
        print_json(record.words(), sort_keys=True)
    else:
        print_record(record, cell.store.root, cell.cached)
    supervisor.report(answered=record.id, stage="trace")
    if trace:
        from harness.cli.traces import show

        show(cell, record, as_json)
    if record.status != "ok":
        click.get_current_context().exit(1)


def row_of(ending: Ending) -> int:
    """Write and print the row of a run whose process ended before it could do so itself."""
    from harness.cli.record import print_record
    from harness.records.store import Store
    from harness.sweep import steps
    from harness.system import process

    cell = ending.reports["cell"]
    reason = f"{ending.reports['stage']}: {ending.reason}"
    if answered := ending.reports.get("answered"):
        raise HarnessError(f"{reason}; the record {answered[:12]} is whole", "the same command again prints it")
    store = Store(Path(cell["root"]))
    with process.stdout_kept():
        row = steps.fail(cell["request"], cell["root"], ending.status, reason, cell["command"])
        record = store.record(row["id"])
    assert record is not None, "it was just written"
    if cell["json"]:
        print_json(record.words(), sort_keys=True)
    else:
        print_record(record, store.root, cached=False)
    if record.status != ending.status:  # the cell was settled before the process ended
        raise HarnessError(reason, "the record was there before and stays as it is")
    return 1


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text} is not a setting", "give --set name=value")
    return name, value
