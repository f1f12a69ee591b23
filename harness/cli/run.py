"""`harness run`: prune, check, time and evaluate one model."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.json_output import print_json
from harness.errors import HarnessError, UsageError

if TYPE_CHECKING:
    from harness.system.supervisor import Ending

MAX_MINUTES = 100_000


@click.command("run")
@click.option("--pruner", required=True, help="Pruning method; see `harness list pruners`.")
@click.option("--model", default="smollm2-135m", show_default=True, help="Alias, hub id, folder or GGUF.")
@click.option("--ratio", help="Share of the prunable parameters to remove, e.g. 0.3.")
@click.option("--latency", help="Latency budget: 0.7x of the dense model's, or 25ms.")
@click.option("--device", default="cpu", show_default=True, help="Where latency is measured.")
@click.option("--runtime", help="What runs the model; see `harness info DEVICE`.")
@click.option("--dtype", help="fp32, bf16 or fp16.  [default: the device's own]")
@click.option("--workload", "workloads", multiple=True, help="prefill:BxS or decode:BxC; repeat for several.")
@click.option("--preset", default="quick", show_default=True, help="quick, or paper (published settings).")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the pruner; repeat for several."
)
@click.option("--calibration", default="passages", show_default=True, help="Text that the method learns from.")
@click.option("--recovery", default="none", show_default=True, help="How to regain quality after the cut.")
@click.option("--eval", "evaluators", default="smoke", show_default=True, help="Evaluators or groups, comma separated.")
@click.option("--limit", type=int, help="Documents per evaluator.  [quick: 40, paper: all]")
@click.option(
    "--sustain",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="Also run the pruned model this long; report slowdown.",
)
@click.option("--grid", help="For CO2e: grams per kWh, or a country code (DEU).")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--timeout", type=float, metavar="MINUTES", help="Stop the run after MINUTES; its status is timeout.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop; loads no weights.")
@click.option("--trace", is_flag=True, help="Afterwards profile both models by operator.")
@click.option("--events", is_flag=True, help="Print every event on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print only the record, as JSON.")
def command(
    dry_run: bool,
    trace: bool,
    events: bool,
    as_json: bool,
    timeout: float | None,
    settings: tuple[str, ...],
    evaluators: str,
    **options: Any,
) -> None:
    """Prune a model, check that the saved copy computes the same, time it, evaluate it, and record the results.

    \b
    harness run --pruner magnitude --ratio 0.2 --limit 20
    harness run --pruner magnitude --model llama3.2-1b --dry-run
    """
    from harness.resolve import prepare_process
    from harness.system import process, supervisor

    options["settings"] = dict(parse_setting(text) for text in settings)
    options["evaluators"] = [name.strip() for name in evaluators.split(",") if name.strip()]
    command_line = shlex.join(["harness", *(argument for argument in sys.argv[1:] if argument != "--json")])
    if timeout is not None and not 0 < timeout <= MAX_MINUTES:
        raise UsageError(f"a timeout of {timeout:g} minutes is not possible", f"give up to {MAX_MINUTES:,} minutes")
    prepare_process(options["device"], options["dtype"])
    from harness.cell import planning
    from harness.cell.request import Request
    from harness.cli import output
    from harness.records.store import Store

    request = Request(**options)
    store = Store()
    if not dry_run:
        # If this process dies, the supervisor writes the record of the failed cell from these.
        cell_report = {"request": asdict(request), "root": str(store.root), "command": command_line, "json": as_json}
        supervisor.report(cell=cell_report, stage="plan the run")
        if timeout is not None:
            supervisor.report(timeout_s=60 * timeout)
    plan = planning.make_plan(request, fetch=not dry_run)
    if dry_run:
        if plan.obstacle is not None:
            raise plan.obstacle
        output.print_plan(plan, as_json)
        return
    if events:
        output.print_events()
    from harness.cell.lifecycle import Cell
    from harness.cli.record import print_record

    reporter = output.Terminal(quiet=as_json)
    cell = Cell(plan, store, reporter, command_line)
    try:
        with process.stdout_for_answers() if as_json else nullcontext():
            record = cell.run()
    finally:
        reporter.close()
    if as_json:
        print_json(record.to_dict(), sort_keys=True)
    else:
        print_record(record, cell.store.root, cell.cached)
    supervisor.report(answered=record.id, stage="trace")
    if trace:
        from harness.cli.traces import show

        show(cell, record, as_json)
    if record.status != "ok":
        click.get_current_context().exit(1)


def record_failure(ending: Ending) -> int:
    """Write and print the record of a run whose process died before it could do so itself."""
    from harness.cli.record import print_record
    from harness.records.store import Store
    from harness.sweep import steps
    from harness.system import process

    cell = ending.reports["cell"]
    reason = f"{ending.reports['stage']}: {ending.reason}"
    if answered := ending.reports.get("answered"):
        raise HarnessError(f"{reason}; the record {answered[:12]} is complete", "the same command prints it")
    store = Store(Path(cell["root"]))
    with process.stdout_for_answers():
        state = steps.fail(cell["request"], cell["root"], ending.status, reason, cell["command"])
        record = store.record(state["id"])
    assert record is not None, "it was just written"
    if cell["json"]:
        print_json(record.to_dict(), sort_keys=True)
    else:
        print_record(record, store.root, cached=False)
    if record.status != ending.status:  # the cell was settled before the process ended
        raise HarnessError(reason, "an earlier record of this cell is kept unchanged")
    return 1


def parse_setting(text: str) -> tuple[str, str]:
    """The name and the value of `name=value`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text} is not a setting", "give --set name=value")
    return name, value
