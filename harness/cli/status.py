"""`harness status`: the cells of this folder, and why two of them are not one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness.cli.answer import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store

MANY = 1000  # cells


@click.command("status")
@click.argument("cell", required=False)
@click.option("--why", is_flag=True, help="For each cell, the nearest other one and what differs.")
@click.option("--json", "as_json", is_flag=True, help="Cells and sweeps as JSON.")
def command(cell: str | None, why: bool, as_json: bool) -> None:
    """The cells of this folder: done, at work, interrupted, failed. CELL may be the beginning of an id.

    \b
    harness status
    harness status --why 2c6f
    """
    from harness.records.keys import canonical, flat

    store = Store()
    rows = cells(store)
    if cell is not None:
        rows = [row for row in rows if row["id"].startswith(cell)]
        if not rows:
            raise UsageError(f"no cell {cell!r} in {store.root}", "harness status lists them")
    if why and len(rows) > MANY:
        raise UsageError(f"{len(rows)} cells are too many to compare each with each", "harness status --why CELL")
    if why:
        parts = store.components("cell")
        known = {one: {path: canonical(value) for path, value in flat(words).items()} for one, words in parts.items()}
        for row in rows:
            row["nearest"], row["differs"] = nearest(row["id"], parts, known)
    ahead = sweeps(store, rows) if cell is None else []
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if as_json:
        print_json({"cells": rows, "sweeps": ahead})
        return
    if not rows:
        click.echo(f"no cells in {one_line(str(store.root))}; harness run --pruner magnitude makes one")
    for row in rows:
        state = click.style(f"{one_line(row['status']):11}", bold=True)
        click.echo(f"{one_line(row['id'])[:12]}  {state}  {one_line(row['what'])}  {one_line(row['detail'])}")
        if why and row["nearest"]:
            for path, ours, theirs in row["differs"]:
                line = f"{path}: {ours!r}, in {row['nearest'][:12]}: {theirs!r}"
                click.echo(f"              {one_line(line)}")
        elif why:
            click.echo("              the only cell here")
    for sweep in ahead:
        states = ", ".join(f"{count} {state}" for state, count in sorted(sweep["states"].items()))
        click.echo(one_line(f"sweep {sweep['sweep']}: {sweep['cells']} cells: {states}"))
        for state, reasons in sweep["reasons"].items():
            for reason in reasons:
                click.echo(f"    {one_line(f'{state}: {reason}')}")


def cells(store: Store) -> list[dict[str, Any]]:
    """One row per cell: from its record, from its lease, or from the trace of a run that was cut off."""
    from harness.records.index import rows

    found, leases = rows(store, row), store.leases()
    begun = {path.stem for path in store.files("stages", "cell")}
    for cell in begun - set(found) | (begun & set(leases)):
        lease = leases.get(cell)
        if lease is not None and lease["alive"]:
            state = {"status": "running", "detail": f"{lease['stage']}, pid {lease['pid']} on {lease['host']}"}
        elif cell not in found:
            state = {"status": "interrupted", "detail": "the same command continues it"}
        else:
            continue
        found[cell] = {"id": cell, "what": request_text(store.stage("cell", cell)), **state}
    return [found[cell] for cell in sorted(found)]


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": record["id"],
        "status": record["status"],
        "what": request_text(record["spec"]),
        "detail": record["reason"] or record["finished"],
    }


def sweeps(store: Store, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each sweep is: its cells by what became of them, and the reasons that stand in no row."""
    now = {row["id"]: row["status"] for row in rows}
    found = []
    for path in store.files("sweeps"):
        cells = sweep_cells(store, path)
        if cells is None:
            continue
        states = Counter(now.get(cell["id"]) or cell["status"] for cell in cells)
        reasons: dict[str, set[str]] = {}
        for cell in cells:
            if cell["reason"] and now.get(cell["id"], "interrupted") == "interrupted":
                reasons.setdefault(cell["status"], set()).add(cell["reason"])
        told = {state: sorted(reasons[state]) for state in sorted(reasons)}
        found.append({"sweep": path.stem, "cells": len(cells), "states": dict(states), "reasons": told})
    return found


def sweep_cells(store: Store, path: Path) -> list[dict[str, str]] | None:
    """The cells of a sweep's file; None where it is not the file of a sweep."""
    words = store.read(path)
    cells = words.get("cells") if isinstance(words, dict) else None
    if isinstance(cells, list) and all(map(is_sweep_cell, cells)):
        return cells
    if words is not None:
        store.notice(f"{path} is not the file of a sweep; ignored")
    return None


def is_sweep_cell(cell: Any) -> bool:
    return isinstance(cell, dict) and all(isinstance(cell.get(name), str) for name in ("id", "status", "reason"))


def request_text(spec: Any) -> str:
    """A request in one line; `(unreadable)` where the text is of another shape."""
    try:
        budget = spec["budget"]
        text = f"{spec['pruner']} {spec['model']} {budget['kind']} {budget['value']:g}{budget['unit']}"
        healed = f", {spec['recovery']}" if spec["recovery"] != "none" else ""
        return f"{text} on {spec['device']}{healed}" + (f", seed {spec['seed']}" if spec["seed"] else "")
    except (KeyError, TypeError, ValueError, OverflowError):
        return "(unreadable)"


def nearest(
    cell: str, parts: dict[str, Any], known: dict[str, dict[str, str]]
) -> tuple[str, list[tuple[str, Any, Any]]]:
    """The other cell with the fewest differing components."""
    from harness.records.keys import explain

    if cell not in known or len(known) < 2:
        return "", []
    ours = known[cell].items()
    apart = {other: len({path for path, _ in ours ^ words.items()}) for other, words in known.items() if other != cell}
    best = min(apart, key=lambda other: (apart[other], other))
    return best, list(explain(parts[cell], parts[best]))
