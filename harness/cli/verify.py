"""`harness verify`: random rows made again."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path

import click

from harness.errors import UsageError
from harness.store import Store


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
    equal machine. With FOLDER, rows published there; a row that agrees gets its new trust written.

    \b
    harness verify --sample 2
    harness verify leaderboards --cell b1ca
    """
    from harness.environment import git
    from harness.leaderboard import entries
    from harness.trust import verify

    state = git()
    if trust == "verified" and (state is None or state.dirty):
        raise UsageError(
            "verified needs a clean checkout to say which code agreed", "commit, or give --trust reproduced"
        )
    store = Store()
    known = entries.read(folder) if folder is not None else entries.of_runs(store)
    if cells:
        chosen = [entry for entry in known if entry.path.stem.startswith(cells)]
        known, count = chosen, len(chosen) or 1
    rows = []
    for entry in verify.drawn(known, count, seed if seed is not None else int.from_bytes(__import__("os").urandom(4))):
        with tempfile.TemporaryDirectory(prefix="harness-verify-") as scratch:
            found = verify.again(entry, Path(scratch), lambda words: click.echo(words, err=True))
        rows.append(found)
        if not found.differences:
            record = verify.trusted(found, trust, shlex.join(["harness", *sys.argv[1:]]))
            store.write(entry.path, record.words())
        if not as_json:
            verdict = "differs" if found.differences else trust
            click.echo(f"{click.style(verdict, bold=True)}  {entry.record.id[:12]}  {entry.record.spec.pruner}")
            for line in [*found.differences, *found.notes]:
                click.echo(f"    {line}")
    if as_json:
        words = [{"id": r.entry.record.id, "differences": r.differences, "notes": r.notes} for r in rows]
        click.echo(json.dumps(words, indent=2))
    if any(row.differences for row in rows):
        click.get_current_context().exit(1)
