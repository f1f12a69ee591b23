"""`harness leaderboard`: the records of this folder as Markdown."""

from __future__ import annotations

import json

import click

from harness.store import Store


@click.command("leaderboard")
@click.option("--json", "as_json", is_flag=True, help="The records themselves, as an array.")
def command(as_json: bool) -> None:
    """The records of this folder as tables; what failed stands below with its reason.

    \b
    harness leaderboard > results.md
    """
    store = Store()
    records = store.records()
    for notice in store.notices:
        click.echo(f"note: {notice}", err=True)
    if as_json:
        click.echo(json.dumps([record.words() for record in records], indent=2))
        return
    from harness.leaderboard.table import tables

    click.echo(tables(records) if records else f"no records in {store.root}; harness run --pruner magnitude makes one")
