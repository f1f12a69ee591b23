"""`harness validate`: check that records are unedited, complete and consistent."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.json_output import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store
from harness.system.parallel import without_garbage_collection


@click.command("validate")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: one object per record.")
@without_garbage_collection()
def command(folder: Path | None, as_json: bool) -> None:
    """Check every record of this folder: its seal, and each figure that can be recomputed. Exit code 1 if one is wrong.

    With FOLDER, check the records published in FOLDER/results, which must also meet the rules for publication.

    \b
    harness validate
    harness validate leaderboards
    """
    from harness.leaderboard import entries
    from harness.leaderboard.audit import validate

    if folder is not None and not (folder / "results").is_dir():
        raise UsageError(f"no folder {folder / 'results'}", "give a leaderboard folder; harness publish creates one")
    store = Store() if folder is None else None
    root = store.root if store is not None else folder
    assert root is not None
    readable, verdicts = [], []
    for path in entries.paths(root) if store is None else store.files("records"):
        try:
            readable.append(entries.Entry(path, path.parent / "samples" if folder else root / "samples"))
        except entries.BadRecord as error:
            verdicts.append(validate.Verdict(path, (error.why,), ()))
    verdicts += validate.verdicts(readable, root)
    records = len(verdicts)
    without = sum(not verdict.components for verdict in verdicts)
    verdicts += [
        validate.Verdict(path, ("no record names it",), ()) for path in (validate.orphans(readable) if folder else ())
    ]
    wrong = sum(bool(verdict.faults or (folder and verdict.reservations)) for verdict in verdicts)
    if as_json:
        payload = [
            {
                "record": str(v.path.relative_to(root)),
                "faults": v.faults,
                "reservations": v.reservations,
                "components": v.components,
            }
            for v in verdicts
        ]
        print_json(payload)
    else:
        for verdict in verdicts:
            name = one_line(str(verdict.path.relative_to(root)))
            for fault in verdict.faults:
                click.echo(f"{click.style('wrong', bold=True)}  {name}: {one_line(fault)}")
            for reservation in verdict.reservations:
                click.echo(f"{'wrong' if folder else 'not publishable'}  {name}: {one_line(reservation)}")
        unchecked = f"; {without} published without cells/, so their pruner, device and seed could not be checked"
        summary = f"{records} records, {wrong} wrong{unchecked if without else ''}"
        click.echo(summary if records else one_line(f"no records in {root}"))
    if wrong:
        click.get_current_context().exit(1)
