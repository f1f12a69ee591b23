"""`harness publish`: sound records of this folder to where others read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.answer import print_json
from harness.errors import one_line
from harness.records.store import Store

if TYPE_CHECKING:
    from harness.leaderboard.audit.publish import Published


@click.command("publish")
@click.argument("name")
@click.argument("cells", nargs=-1)
@click.option("--to", "target", default="leaderboards", show_default=True, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Change nothing, and say what would be written and removed; 1 if anything.")
@click.option("--json", "as_json", is_flag=True, help="What was taken and what was refused, as JSON.")
def command(name: str, cells: tuple[str, ...], target: Path, check: bool, as_json: bool) -> None:
    """Copy the records of this folder (or CELLS of it) and their samples to TO/results/NAME.

    Refused is what fails `harness validate`, was made from a changed checkout, saw fewer documents than its preset has,
    or could not be measured stably. Removed are records that newer ones replace, and samples that no record names.
    Other files in that folder are left alone.

    \b
    harness publish smollm --check
    harness publish smollm
    harness publish smollm 2c6f --to ../boards
    """
    from harness.leaderboard.audit.publish import publish

    store = Store()
    done = publish(store, target, name, cells, check)
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if as_json:
        print_json({**asdict(done), "folder": str(done.folder)})
    else:
        folder = one_line(str(done.folder))
        for word, text in _lines(done, check):
            click.echo(f"{word:7}  {one_line(text)}")
        if check:
            click.echo(f"{len(done.written)} files would be written to {folder}, {len(done.removed)} removed")
        else:
            replaced = f", {len(done.replaced)} of them replacing older ones" if done.replaced else ""
            click.echo(f"{len(done.taken)} records published to {folder}{replaced}")
            if done.taken or done.older:
                click.echo(f"now the pages: harness leaderboard {one_line(str(target))}")
    differs = check and (done.written or done.removed)
    if differs or done.refused or done.damaged or not (done.taken or done.older):
        click.get_current_context().exit(1)


def _lines(done: Published, check: bool) -> Iterator[tuple[str, str]]:
    """A word and what it is said of."""
    for cell, reasons in done.refused.items():
        yield "refused", f"{cell[:12]}: {'; '.join(reasons)}"
    for cell, newer in done.older.items():
        yield "older", f"{cell[:12]}: {newer[:12]} answers the same question and is newer"
    for name, why in done.damaged.items():
        yield "damaged", f"{done.folder / name} {why}; left as it is, with all samples: mend it or move it away"
    if check:
        for name in done.written:
            yield "replace" if (done.folder / name).exists() else "copy", name
        for name in done.removed:
            yield "remove", name
