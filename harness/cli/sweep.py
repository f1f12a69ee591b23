"""`harness sweep SUITE.yaml`: run every cell of a suite."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.json_output import print_json

if TYPE_CHECKING:
    from harness.records.store import Store
    from harness.sweep.sweep import Engine, SweepCell


@click.command("sweep")
@click.argument("suite", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run on this machine, or on a Ray cluster.",
)
@click.option("--address", default=None, help="Address of the Ray cluster.  [default: start one here]")
@click.option("--dry-run", is_flag=True, help="Show the cells, which of them wait, and the estimated time.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: one object per cell.")
def command(suite: Path, engine: str, address: str | None, dry_run: bool, as_json: bool) -> None:
    """Run every cell of a suite. Finished cells are kept; the same command continues an interrupted sweep.

    A cell that fails becomes a row with its reason. A cell that cannot start here (because a device, a licence or a
    plug-in is missing) waits. Exit code 1 if any cell failed or waits.

    \b
    harness sweep benchmarks/suites/smoke.yaml --dry-run
    harness sweep benchmarks/suites/smoke.yaml
    harness status
    """
    from harness.sweep.suite import cell_requests, load_suite
    from harness.system import process

    process.prepare()
    from harness.models.loading.weights import on_this_machine
    from harness.records.schema import SETTLED
    from harness.records.store import Store
    from harness.sweep.sweep import DryRunEngine, Sweep, plan_cells, sweep_name

    loaded = load_suite(suite)
    requests = cell_requests(loaded)
    store, name = Store(), sweep_name(suite, requests)
    if dry_run:
        cells = plan_cells(requests)
        with_weights = [cell for cell in cells if cell.plan is not None and on_this_machine(cell.plan.card)[0]]
        Sweep(name, with_weights, store, DryRunEngine()).prepare()
        if as_json:
            print_json([payload(cell) for cell in cells])
        else:
            print_outlook(suite.stem, loaded.about, cells, store)
        return
    # The command line as records keep it: without --json, and with the suite's file name in place of its path.
    arguments = [Path(word).name if Path(word) == suite else word for word in sys.argv[1:] if word != "--json"]
    command_line = shlex.join(["harness", *arguments])
    timeout_s = loaded.timeout_minutes and loaded.timeout_minutes * 60
    store.prepare()
    sweep_engine = open_engine(engine, address, store, name, timeout_s)
    try:
        cells = plan_cells(requests, sweep_engine.probe)
        if not as_json:
            print_outlook(suite.stem, loaded.about, cells, store)
        counts = Sweep(name, cells, store, sweep_engine, command_line).run(ProgressPrinter(as_json, len(cells)))
    finally:
        sweep_engine.close()
        store.sweep(mine=True)
    if as_json:
        print_json([payload(cell) for cell in cells])
    else:
        click.echo(f"{summary(counts)}; harness leaderboard shows the results, harness status --why how cells differ")
    if any(status not in SETTLED for status in counts):
        click.get_current_context().exit(1)


def open_engine(name: str, address: str | None, store: Store, sweep: str, timeout_s: float | None) -> Engine:
    log = store.path("logs", f"sweep-{sweep}.txt")
    if name == "ray":
        from harness.sweep.ray_engine import RayEngine

        return RayEngine(address, timeout_s)
    from harness.sweep.local_engine import LocalEngine

    return LocalEngine(log, timeout_s)


def print_outlook(name: str, about: str, cells: list[SweepCell], store: Store) -> None:
    """Print what a sweep will do: its cells, what prevents some of them, and the estimated time."""
    from harness.cli.output import estimate as by_flops
    from harness.models.loading.weights import on_this_machine
    from harness.records.schema import SETTLED
    from harness.sweep.sweep import estimate

    click.echo(f"{name}: {about}" if about else name)
    planned = [cell for cell in cells if cell.status == "planned"]
    seconds, from_records = estimate(planned, store, by_flops)
    by_pruner = Counter(cell.request.pruner for cell in cells)
    click.echo(f"  {len(cells)} cells: {', '.join(f'{count} {pruner}' for pruner, count in sorted(by_pruner.items()))}")
    for reason, count in Counter(cell.reason for cell in cells if cell.status == "waits").items():
        click.echo(f"  {count} {'waits' if count == 1 else 'wait'}: {reason}")
    for cell in planned:
        if cell.plan is not None and cell.plan.obstacle is not None:
            click.echo(f"  cannot run: {cell.label}: {cell.plan.obstacle.line}")
    for card in {cell.plan.card.name: cell.plan.card for cell in planned if cell.plan is not None}.values():
        present, detail = on_this_machine(card)
        if not present:
            click.echo(f"  weights of {card.name}: {detail}")
    settled = sum(cell.status in SETTLED for cell in cells)
    if settled:
        click.echo(f"  {settled} already done")
    if not planned:
        click.echo("  nothing left to do" if settled else "  no cell can start here")
        return
    basis = "FLOPs"
    if from_records:
        basis = f"earlier records for {from_records}, from FLOPs for {len(planned) - from_records}"
    click.echo(f"  about {duration(seconds)}, less if results are cached (estimated from {basis})")


def duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def payload(cell: SweepCell) -> dict[str, Any]:
    return {"label": cell.label, "id": cell.id, "status": cell.status, "reason": cell.reason}


def summary(counts: Counter[str]) -> str:
    """How many cells ended with each status: first those that are settled."""
    from harness.records.schema import SETTLED

    statuses = sorted(counts, key=lambda status: (status not in SETTLED, status))
    return f"{sum(counts.values())} cells: {', '.join(f'{counts[status]} {status}' for status in statuses)}"


class ProgressPrinter:
    """Prints one line per cell as it ends; in a terminal also the running step."""

    def __init__(self, quiet: bool, total: int) -> None:
        self.quiet = quiet
        self.total, self.ended = total, 0
        self.live = sys.stderr.isatty() and not quiet

    def __call__(self, cell: SweepCell, step: str) -> None:
        if self.quiet:
            return
        if self.live:  # erase the line of the running step
            click.echo("\r\033[K", nl=False, err=True)
        if cell.status in ("planned", "running"):
            if self.live:
                click.echo(f"  [{self.ended}/{self.total}] {cell.label}: {step}", nl=False, err=True)
            return
        self.ended += 1
        reason = f": {cell.reason}" if cell.reason else ""
        status = click.style(cell.status, bold=True)
        click.echo(f"[{self.ended}/{self.total}] {status}  {cell.label}{reason}", err=True)
