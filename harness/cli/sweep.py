"""`harness sweep SUITE.yaml`: a matrix of cells."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.answer import print_json

if TYPE_CHECKING:
    from harness.sweep.sweep import Item


@click.command("sweep")
@click.argument("suite", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", default=None, help="Of a Ray cluster; without it one is started here.")
@click.option("--dry-run", is_flag=True, help="Print cells, what waits, and the time it may take.")
@click.option("--json", "as_json", is_flag=True, help="The cells as JSON and nothing else on stdout.")
def command(suite: Path, engine: str, address: str | None, dry_run: bool, as_json: bool) -> None:
    """Run every cell of a suite; what is done already counts, and the same command continues after any interruption.

    A cell that fails is a row with its reason. What cannot be begun here (a device, a licence, a plug-in is missing)
    waits. Exit code 1 if a cell failed or waits.

    \b
    harness sweep benchmarks/suites/smoke.yaml --dry-run
    harness sweep benchmarks/suites/smoke.yaml
    harness status
    """
    from harness.sweep import suite as suites
    from harness.system import process

    process.prepare()
    from harness.models.loading.weights import on_this_machine
    from harness.records.schema import SETTLED
    from harness.records.store import Store
    from harness.sweep import sweep

    read = suites.read(suite)
    asks = suites.cells(read)
    store, name = Store(), sweep.name_of(suite, asks)
    if dry_run:
        found = sweep.items(asks)
        here = [item for item in found if item.plan is not None and on_this_machine(item.plan.card)[0]]
        sweep.Sweep(name, here, store, sweep.Nobody()).look()
        if as_json:
            print_json([words(item) for item in found])
        else:
            print_outlook(suite.stem, read.about, found, store)
        return
    asked = [Path(word).name if Path(word) == suite else word for word in sys.argv[1:] if word != "--json"]
    timeout = read.timeout_minutes and read.timeout_minutes * 60
    store.prepare()
    made = engines(engine, address, store, name, timeout)
    try:
        found = sweep.items(asks, made.probe)
        if not as_json:
            print_outlook(suite.stem, read.about, found, store)
        counts = sweep.Sweep(name, found, store, made, shlex.join(["harness", *asked])).run(Teller(as_json, len(found)))
    finally:
        made.close()
        store.sweep(mine=True)
    if as_json:
        print_json([words(item) for item in found])
    else:
        click.echo(f"{summary(counts)}; harness leaderboard shows them, harness status --why what differs")
    if any(status not in SETTLED for status in counts):
        click.get_current_context().exit(1)


def engines(name: str, address: str | None, store: Any, sweep: str, timeout_s: float | None) -> Any:
    log = store.path("logs", f"sweep-{sweep}.txt")
    if name == "ray":
        from harness.sweep.ray_engine import Ray

        return Ray(address, timeout_s)
    from harness.sweep.local_engine import Local

    return Local(store.scratch(f"sweep-{sweep}"), log, timeout_s)


def print_outlook(name: str, about: str, found: list[Item], store: Any) -> None:
    """The plan of it all, before any work."""
    from harness.cli.output import estimate as rough
    from harness.models.loading.weights import on_this_machine
    from harness.records.schema import SETTLED
    from harness.sweep.sweep import estimate

    click.echo(f"{name}: {about}" if about else name)
    ready = [item for item in found if item.status == "planned"]
    seconds, known = estimate(ready, store, rough)
    spread = Counter(item.ask.request.pruner for item in found)
    click.echo(f"  {len(found)} cells: {', '.join(f'{count} {pruner}' for pruner, count in sorted(spread.items()))}")
    for reason, count in Counter(item.reason for item in found if item.status == "waits").items():
        click.echo(f"  {count} wait: {reason}")
    for item in ready:
        if item.plan is not None and item.plan.obstacle is not None:
            click.echo(f"  no way: {item.ask.label}: {item.plan.obstacle.line}")
    for card in {item.plan.card.name: item.plan.card for item in ready if item.plan is not None}.values():
        there, how = on_this_machine(card)
        if not there:
            click.echo(f"  weights of {card.name}: {how}")
    if done := [item for item in found if item.status in SETTLED]:
        click.echo(f"  {len(done)} done already")
    if not ready:
        click.echo("  nothing is left to do" if done else "  nothing of it can be begun here")
        return
    by = f"{known} by earlier records, {len(ready) - known} by FLOPs" if known else "by FLOPs"
    click.echo(f"  about {duration(seconds)} for what is left, less what is known of it ({by})")


def duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def words(item: Item) -> dict[str, Any]:
    return {"label": item.ask.label, "id": item.id, "status": item.status, "reason": item.reason}


def summary(counts: Counter[str]) -> str:
    from harness.records.schema import SETTLED

    parts = [
        f"{counts[status]} {status}" for status in sorted(counts, key=lambda status: (status not in SETTLED, status))
    ]
    return f"{sum(counts.values())} cells: {', '.join(parts)}"


class Teller:
    """One line per cell as it ends; in a terminal also what is at work."""

    def __init__(self, quiet: bool, total: int) -> None:
        self.quiet, self.total, self.ended = quiet, total, 0
        self.live = sys.stderr.isatty() and not quiet

    def __call__(self, item: Item, step: str) -> None:
        if self.quiet:
            return
        if self.live:
            click.echo("\r\033[K", nl=False, err=True)
        if item.status in ("planned", "running"):
            if self.live:
                click.echo(f"  [{self.ended}/{self.total}] {item.ask.label}: {step}", nl=False, err=True)
            return
        self.ended += 1
        why = f": {item.reason}" if item.reason else ""
        click.echo(
            f"[{self.ended}/{self.total}] {click.style(item.status, bold=True)}  {item.ask.label}{why}", err=True
        )
