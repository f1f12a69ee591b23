"""`harness publish`: sound records of this folder to where others read them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from harness.store import Store


@click.command("publish")
@click.argument("name")
@click.argument("cells", nargs=-1)
@click.option("--to", "target", default="leaderboards", show_default=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="What was taken and what was refused, as JSON.")
def command(name: str, cells: tuple[str, ...], target: Path, as_json: bool) -> None:
    """Copy the records of this folder (or CELLS of it) and their samples to TO/results/NAME.

    Refused is what fails `harness validate`, was made from a changed checkout, saw fewer documents than its preset has,
    or could not be measured stably.

    \b
    harness publish smollm
    harness publish smollm 2c6f --to ../boards
    """
    from harness.trust.publish import publish

    store = Store()
    done = publish(store, target, name, cells)
    for notice in store.notices:
        click.echo(f"note: {notice}", err=True)
    if as_json:
        words = {**asdict(done), "folder": str(done.folder)}
        click.echo(json.dumps(words, indent=2))
    else:
        for cell, why in done.refused.items():
            click.echo(f"refused  {cell[:12]}: {'; '.join(why)}")
        for cell, newer in done.older.items():
            click.echo(f"older    {cell[:12]}: {newer[:12]} answers the same question and is newer")
        click.echo(f"{len(done.taken)} records in {done.folder}, {len(done.replaced)} of them for an older one")
        click.echo(f"now the pages: harness leaderboard {target}")
    if done.refused or not (done.taken or done.older):
        click.get_current_context().exit(1)
