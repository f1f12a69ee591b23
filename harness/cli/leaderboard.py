"""`harness leaderboard`: records as Markdown, as a tree of pages or as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import UsageError
from harness.spread import uncollected
from harness.store import Store

if TYPE_CHECKING:
    from harness.leaderboard.entries import Entry


@click.command("leaderboard")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing; 1 where pages differ from their records.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="One page that sorts and filters.")
@click.option("--json", "as_json", is_flag=True, help="The records themselves, as an array.")
@uncollected()
def command(folder: Path | None, check: bool, html: Path | None, as_json: bool) -> None:
    """The records of this folder as tables; what failed stands with its reason.

    With FOLDER, the pages and pictures below it are made from the records in FOLDER/results.

    \b
    harness leaderboard > results.md
    harness leaderboard leaderboards --check
    """
    from harness.files import put
    from harness.leaderboard import entries, reported, site
    from harness.leaderboard.sheet import sheet

    if check and folder is None:
        raise UsageError(
            "--check compares pages with records, and none are named", "harness leaderboard FOLDER --check"
        )
    if check and html is not None:
        raise UsageError("--check compares committed pages, and an HTML page is none", "leave one of the two out")
    if folder is not None and not (folder / "results").is_dir():
        raise UsageError(f"no folder {folder / 'results'}", "give the folder of the leaderboards; publish makes one")
    store = Store()
    found = entries.of_runs(store) if folder is None else entries.read(folder)

    def of_all(work: Callable[[list[Entry]], str]) -> str:
        return entries.despite_edits(store, found, work) if folder is None else work(found)

    if as_json:
        click.echo(json.dumps([entry.record.words() for entry in found], indent=2))
    elif html is not None:
        known = reported.read(folder) if folder is not None else []
        put(html, of_all(lambda entries: sheet(entries, html.parent, known)).encode())
        click.echo(f"{html}: open it in a browser")
    elif folder is None:
        none = f"no records in {store.root}; harness run --pruner magnitude makes one"
        click.echo(of_all(site.printed) or none)
    else:
        bring(folder, found, check)
    for notice in store.notices:
        click.echo(f"note: {notice}", err=True)


def bring(folder: Path, found: list[Entry], check: bool) -> None:
    """The folder's pages up to date, or what is not."""
    from harness.leaderboard import site

    files = site.made(folder, found)
    stale = site.differing(folder, files) if check else site.write(folder, files)
    for name, what in stale.items():
        click.echo(f"{name} {what}")
    if check and stale:
        click.echo("harness leaderboard FOLDER brings them up to date", err=True)
        click.get_current_context().exit(1)
    click.echo(f"{len(files)} files, {'as their records' if check or not stale else 'brought up to date'}", err=True)
