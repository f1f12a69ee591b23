"""`harness verify`: random rows made again."""

from __future__ import annotations

import random
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.answer import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store

if TYPE_CHECKING:
    from harness.leaderboard.entries import Entry


@click.command("verify")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--sample", "count", default=1, show_default=True, type=click.IntRange(1), help="How many rows.")
@click.option("--seed", default=None, type=int, help="Which ones.  [default: another each time]")
@click.option("--cell", "cells", multiple=True, help="This row, by the beginning of its id; may be given again.")
@click.option(
    "--trust",
    type=click.Choice(["reproduced", "verified"]),
    default="reproduced",
    show_default=True,
    help="What rows that agree are called; verified is for maintainers, from a clean checkout.",
)
@click.option("--json", "as_json", is_flag=True, help="One object per row.")
def command(
    folder: Path | None, count: int, seed: int | None, cells: tuple[str, ...], trust: str, as_json: bool
) -> None:
    """Run random finished rows again from nothing, and judge whether both can be right; 1 if not.

    Scores are compared on the same documents, speed-ups by their intervals and the noise floor, milliseconds only on an
    equal machine. With FOLDER, rows published there. What came of it is written into the row's history, and its trust:
    that of one that agrees rises, that of one that does not falls. 3 where a row cannot be made here.

    \b
    harness verify --sample 2
    harness verify leaderboards --cell b1ca
    """
    from harness.leaderboard import entries
    from harness.leaderboard.audit import rerun
    from harness.records.environment import git

    state = git()
    if trust == "verified" and (state is None or state.dirty):
        raise UsageError(
            "verified needs a clean checkout to say which code agreed", "commit, or give --trust reproduced"
        )
    store = Store()
    if folder is None:
        known = entries.of_runs(store)
    else:
        known = entries.read(folder, on_bad=lambda error: store.notice(error.cause))
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if cells:
        known = [entry for entry in known if entry.path.stem.startswith(cells)]
        count = len(known) or 1
    seed = random.randrange(2**31) if seed is None else seed
    if not cells:
        click.echo(f"drawn with --seed {seed}", err=True)
    line, rows = shlex.join(["harness", *sys.argv[1:]]), []
    for entry in rerun.drawn(known, count, seed):
        words = judged(entry, trust, line)
        rows.append(words)
        if not as_json:
            pruner = one_line(entry.words["spec"]["pruner"])
            click.echo(f"{click.style(words['verdict'], bold=True)}  {one_line(words['id'][:12])}  {pruner}")
            for text in [*words["differences"], *words["notes"]]:
                click.echo(f"    {one_line(text)}")
    if as_json:
        print_json(rows)
    verdicts = {words["verdict"] for words in rows}
    if verdicts & {"differs", "cannot be made"}:
        click.get_current_context().exit(1 if "differs" in verdicts else 3)


def judged(entry: Entry, trust: Any, line: str) -> dict[str, Any]:
    """One row made again, and its file with what was learned."""
    from harness.leaderboard.audit import rerun
    from harness.leaderboard.entries import BadRecord

    with tempfile.TemporaryDirectory(prefix="harness-verify-") as scratch:
        try:
            found = rerun.again(entry, Path(scratch), lambda text: click.echo(one_line(text), err=True))
            record = rerun.note(found, trust, line)
        except (rerun.CannotBeMade, BadRecord) as error:
            return {"id": entry.path.stem, "verdict": "cannot be made", "differences": [], "notes": [error.line]}
    verdict = "differs" if found.differences else record.trust
    return {"id": record.id, "verdict": verdict, "differences": found.differences, "notes": found.notes}
