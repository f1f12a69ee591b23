"""`harness publish`: copy validated records of this folder into a published leaderboard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.json_output import print_json
from harness.errors import one_line
from harness.records.store import Store

if TYPE_CHECKING:
    from harness.leaderboard.audit.publish import Published


@click.command("publish")
@click.argument("name")
@click.argument("cells", nargs=-1)
@click.option(
    "--to",
    "target",
    default="leaderboards",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Leaderboard folder.",
)
@click.option(
    "--check", is_flag=True, help="Change nothing; list what would be written or removed. Exit code 1 if any."
)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: what was published and what was refused.")
def command(name: str, cells: tuple[str, ...], target: Path, check: bool, as_json: bool) -> None:
    """Copy the records of this folder (or CELLS of it) and their samples to TO/results/NAME.

    A record is refused if it fails `harness validate`, was made from a checkout with uncommitted changes, evaluated
    fewer documents than its preset, or could not be measured stably. Records that newer ones replace are removed, and
    so are samples that no record names. Other files in that folder are left alone.

    \b
    harness publish smollm --check
    harness publish smollm
    harness publish smollm 2c6f --to ../boards
    """
    from harness.leaderboard.audit.publish import publish

    store = Store()
    published = publish(store, target, name, cells, check)
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if as_json:
        print_json({**asdict(published), "folder": str(published.folder)})
    else:
        folder = one_line(str(published.folder))
        for action, text in _lines(published, check):
            click.echo(f"{action:7}  {one_line(text)}")
        if check:
            click.echo(f"{len(published.written)} files would be written to {folder}, {len(published.removed)} removed")
        else:
            replaced = f", {len(published.replaced)} of them replacing older ones" if published.replaced else ""
            click.echo(f"{len(published.taken)} records published to {folder}{replaced}")
            if published.taken or published.older:
                click.echo(f"to update the pages: harness leaderboard {one_line(str(target))}")
    differs = check and (published.written or published.removed)
    nothing_to_publish = not (published.taken or published.older)
    if differs or published.refused or published.damaged or nothing_to_publish:
        click.get_current_context().exit(1)


def _lines(published: Published, check: bool) -> Iterator[tuple[str, str]]:
    """What happens to each record and file: an action, and the record or file with its reason."""
    for cell, reasons in published.refused.items():
        yield "refused", f"{cell[:12]}: {'; '.join(reasons)}"
    for cell, newer in published.older.items():
        yield "older", f"{cell[:12]}: {newer[:12]} has the same settings and is newer"
    for name, reason in published.damaged.items():
        yield "damaged", f"{published.folder / name} {reason}; it and all samples are kept: repair it or move it away"
    if check:
        for name in published.written:
            yield "replace" if (published.folder / name).exists() else "copy", name
        for name in published.removed:
            yield "remove", name
