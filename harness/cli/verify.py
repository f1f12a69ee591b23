"""`harness verify`: run random records again, and compare the results."""

from __future__ import annotations

import random
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.json_output import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store

if TYPE_CHECKING:
    from harness.leaderboard.entries import Entry


@click.command("verify")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--sample", "count", default=1, show_default=True, type=click.IntRange(1), help="How many records.")
@click.option("--seed", default=None, type=int, help="Seed of the random choice.  [default: a new one]")
@click.option("--cell", "cells", multiple=True, help="A record, by the beginning of its id; repeat for several.")
@click.option(
    "--trust",
    type=click.Choice(["reproduced", "verified"]),
    default="reproduced",
    show_default=True,
    help="Trust of records that agree; verified is for maintainers, from a clean checkout.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: one object per record.")
def command(
    folder: Path | None, count: int, seed: int | None, cells: tuple[str, ...], trust: str, as_json: bool
) -> None:
    """Run random finished records again from scratch, and check whether the results agree. Exit code 1 if they differ.

    Scores are compared on the same documents, speed-ups by their intervals and the noise floor, and milliseconds only
    on an equal machine. With FOLDER, take the records published there. The outcome is added to the record's history,
    and raises or lowers its trust. Exit code 3 if a record cannot be run here.

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
            "--trust verified needs a clean checkout, which identifies the code", "commit, or give --trust reproduced"
        )
    store = Store()
    if folder is None:
        candidates = entries.runs_entries(store)
    else:
        candidates = entries.read(folder, on_bad=lambda error: store.notice(error.cause))
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if cells:
        candidates = [entry for entry in candidates if entry.path.stem.startswith(cells)]
        count = len(candidates) or 1
    seed = random.randrange(2**31) if seed is None else seed
    if not cells:
        click.echo(f"chosen with --seed {seed}", err=True)
    command_line = shlex.join(["harness", *sys.argv[1:]])
    rows = []
    for entry in rerun.sample_entries(candidates, count, seed):
        row = run_again(entry, trust, command_line)
        rows.append(row)
        if not as_json:
            pruner = one_line(entry.payload["spec"]["pruner"])
            click.echo(f"{click.style(row['verdict'], bold=True)}  {one_line(row['id'][:12])}  {pruner}")
            for text in [*row["differences"], *row["notes"]]:
                click.echo(f"    {one_line(text)}")
    if as_json:
        print_json(rows)
    verdicts = {row["verdict"] for row in rows}
    if verdicts & {"differs", "cannot be made"}:
        click.get_current_context().exit(1 if "differs" in verdicts else 3)


def run_again(entry: Entry, trust: Any, command_line: str) -> dict[str, Any]:
    """Run one record again, and write the outcome into its history."""
    from harness.leaderboard.audit import rerun
    from harness.leaderboard.entries import BadRecord

    with tempfile.TemporaryDirectory(prefix="harness-verify-") as scratch:
        try:
            outcome = rerun.rerun_record(entry, Path(scratch), lambda text: click.echo(one_line(text), err=True))
            record = rerun.save_outcome(outcome, trust, command_line)
        except (rerun.CannotRerun, BadRecord) as error:
            return {"id": entry.path.stem, "verdict": "cannot be made", "differences": [], "notes": [error.line]}
    verdict = "differs" if outcome.differences else record.trust
    return {"id": record.id, "verdict": verdict, "differences": outcome.differences, "notes": outcome.notes}
