"""`harness leaderboard`: records as Markdown, as a tree of pages or as one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from harness.cli.answer import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store
from harness.system.parallel import uncollected

if TYPE_CHECKING:
    from harness.leaderboard.entries import BadRecord, Entry

T = TypeVar("T")


@click.command("leaderboard")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing, say what would change; 1 where pages are not up to date.")
@click.option("--html", type=click.Path(path_type=Path), help="One page that sorts and filters.")
@click.option("--json", "as_json", is_flag=True, help="The records themselves, as an array.")
@uncollected()
def command(folder: Path | None, check: bool, html: Path | None, as_json: bool) -> None:
    """The records of this folder as tables; what failed stands with its reason.

    With FOLDER, the pages and pictures below it are made from the records in FOLDER/results. Only files that harness
    made are replaced or removed.

    \b
    harness leaderboard > results.md
    harness leaderboard leaderboards --check
    """
    from harness.leaderboard import entries, reported, site
    from harness.leaderboard.html_page import sheet
    from harness.records.files import put

    if check and folder is None:
        raise UsageError(
            "--check compares pages with records, and none are named", "harness leaderboard FOLDER --check"
        )
    if check and html is not None:
        raise UsageError("--check compares committed pages, and an HTML page is none", "leave one of the two out")
    if folder is not None and not (folder / "results").is_dir():
        raise UsageError(
            one_line(f"no folder {folder / 'results'}"), "give the folder of the leaderboards; publish makes one"
        )
    if html is not None and (why := site.foreign(html)):
        raise UsageError(one_line(why), "give --html the name of a new file")
    store = Store()
    bad: list[BadRecord] = []

    def leave_out(error: BadRecord) -> None:
        bad.append(error)
        click.echo(f"error: {one_line(error.cause)}; left out", err=True)
        if len(bad) == 1:
            click.echo(f"  try: harness validate {one_line(str(folder))} names all that is wrong with it", err=True)

    records = entries.of_runs(store) if folder is None else entries.read(folder, leave_out)

    def of_all(work: Callable[[list[Entry]], T]) -> T:
        if folder is None:
            return entries.despite_edits(store, records, work)
        return entries.without_bad(records, lambda sound: work(some(folder, sound)), leave_out)

    if as_json:
        payload = of_all(lambda sound: [entry.record.words() for entry in sound])
        print_json(payload)
    elif html is not None:
        known = reported.read(folder) if folder is not None else []
        put(html, of_all(lambda sound: sheet(sound, html.parent, known)).encode())
        click.echo(one_line(f"{html}: open it in a browser"))
    elif folder is None:
        none = f"no records in {store.root}; harness run --pruner magnitude makes one"
        click.echo(of_all(site.printed) or none)
    else:
        bring(folder, of_all(lambda sound: site.page_files(folder, sound)), check)
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if bad:
        click.get_current_context().exit(1)


def some(folder: Path, sound: list[Entry]) -> list[Entry]:
    """The records, of which a folder of leaderboards has at least one."""
    if not sound:
        raise UsageError(
            one_line(f"no record in {folder / 'results'}: this is no folder of leaderboards"),
            "harness publish NAME --to FOLDER puts records there",
        )
    return sound


def bring(folder: Path, files: dict[str, str], check: bool) -> None:
    """The folder's pages up to date, or what is not."""
    from harness.leaderboard import site

    changes = site.differing(folder, files) if check else site.write(folder, files)
    for name, what in changes.items():
        click.echo(f"{name} {what}: {site.WOULD[what]}" if check else f"{name} {what}")
    if check and changes:
        click.echo("harness leaderboard FOLDER brings them up to date", err=True)
        click.get_current_context().exit(1)
    click.echo(f"{len(files)} files, {'as their records' if check or not changes else 'brought up to date'}", err=True)
