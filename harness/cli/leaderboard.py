"""`harness leaderboard`: show records as Markdown tables, as a folder of pages, or as one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from harness.cli.json_output import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store
from harness.system.parallel import without_garbage_collection

if TYPE_CHECKING:
    from harness.leaderboard.entries import BadRecord, Entry

T = TypeVar("T")


@click.command("leaderboard")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing; list outdated pages of FOLDER. Exit code 1 if any.")
@click.option(
    "--html", type=click.Path(path_type=Path), help="Write one HTML page whose rows can be sorted and filtered."
)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: an array of records.")
@without_garbage_collection()
def command(folder: Path | None, check: bool, html: Path | None, as_json: bool) -> None:
    """Print the records of this folder as tables. A failed cell is listed with its reason.

    With FOLDER, write its pages and pictures from the records in FOLDER/results. Only files that harness generated are
    replaced or removed.

    \b
    harness leaderboard > results.md
    harness leaderboard leaderboards --check
    """
    from harness.leaderboard import entries, reported, site
    from harness.leaderboard.html_page import render_page
    from harness.records.files import write_file

    if check and folder is None:
        raise UsageError(
            "--check compares the pages of a folder with its records, and no folder is given",
            "harness leaderboard FOLDER --check",
        )
    if check and html is not None:
        raise UsageError("--check does not compare HTML pages", "leave out --check or --html")
    if folder is not None and not (folder / "results").is_dir():
        raise UsageError(
            one_line(f"no folder {folder / 'results'}"), "give a leaderboard folder; harness publish creates one"
        )
    if html is not None and (reason := site.why_not_generated(html)):
        raise UsageError(one_line(reason), "give --html the name of a new file")
    store = Store()
    bad: list[BadRecord] = []

    def leave_out(error: BadRecord) -> None:
        bad.append(error)
        click.echo(f"error: {one_line(error.cause)}; this record is left out", err=True)
        if len(bad) == 1:
            click.echo(f"  try: harness validate {one_line(str(folder))} lists all faults", err=True)

    records = entries.runs_entries(store) if folder is None else entries.read(folder, leave_out)

    def from_valid(render: Callable[[list[Entry]], T]) -> T:
        """What `render` makes of all valid records."""
        if folder is None:
            return entries.without_edited(store, records, render)
        return entries.without_bad(records, lambda valid: render(require_some(folder, valid)), leave_out)

    if as_json:
        print_json(from_valid(lambda valid: [entry.record.to_dict() for entry in valid]))
    elif html is not None:
        published = reported.read(folder) if folder is not None else []
        write_file(html, from_valid(lambda valid: render_page(valid, html.parent, published)).encode())
        click.echo(one_line(f"{html}: open it in a browser"))
    elif folder is None:
        empty = f"no records in {store.root}; harness run --pruner magnitude makes one"
        click.echo(from_valid(site.terminal_pages) or empty)
    else:
        update_pages(folder, from_valid(lambda valid: site.page_files(folder, valid)), check)
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if bad:
        click.get_current_context().exit(1)


def require_some(folder: Path, entries: list[Entry]) -> list[Entry]:
    """These entries, or an error if there are none."""
    if not entries:
        raise UsageError(
            one_line(f"no record in {folder / 'results'}: this is not a leaderboard folder"),
            "harness publish NAME --to FOLDER copies records there",
        )
    return entries


def update_pages(folder: Path, files: dict[str, str], check: bool) -> None:
    """Write the pages that changed; with `check` only list them, and exit with 1 if there are any."""
    from harness.leaderboard import site

    changes = site.find_changes(folder, files) if check else site.write(folder, files)
    for name, change in changes.items():
        click.echo(f"{name} {change}: {site.WOULD[change]}" if check else f"{name} {change}")
    if check and changes:
        click.echo("harness leaderboard FOLDER updates them", err=True)
        click.get_current_context().exit(1)
    click.echo(f"{len(files)} files, {'now up to date' if changes else 'all up to date'}", err=True)
