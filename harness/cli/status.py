"""`harness status`: list the cells and sweeps of this folder, and how cells differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from harness.cli.json_output import print_json
from harness.errors import UsageError, one_line
from harness.records.store import Store

MAX_COMPARED = 1000  # cells, each of which --why compares with every other


@click.command("status")
@click.argument("cell", required=False)
@click.option("--why", is_flag=True, help="For each cell, show the most similar one and what differs.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: cells and sweeps.")
def command(cell: str | None, why: bool, as_json: bool) -> None:
    """List the cells of this folder: finished, running, interrupted or failed. CELL may be the beginning of an id.

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
    if why and len(rows) > MAX_COMPARED:
        raise UsageError(f"{len(rows)} cells are too many to compare with each other", "harness status --why CELL")
    if why:
        components = store.components("cell")
        flattened = {
            cell_id: {path: canonical(value) for path, value in flat(tree).items()}
            for cell_id, tree in components.items()
        }
        for row in rows:
            row["nearest"], row["differs"] = nearest(row["id"], components, flattened)
    sweep_rows = sweeps(store, rows) if cell is None else []
    for notice in store.notices:
        click.echo(f"note: {one_line(notice)}", err=True)
    if as_json:
        print_json({"cells": rows, "sweeps": sweep_rows})
        return
    if not rows:
        click.echo(f"no cells in {one_line(str(store.root))}; harness run --pruner magnitude makes one")
    for row in rows:
        state = click.style(f"{one_line(row['status']):11}", bold=True)
        click.echo(f"{one_line(row['id'])[:12]}  {state}  {one_line(row['what'])}  {one_line(row['detail'])}")
        if why and row["nearest"]:
            for path, value, nearest_value in row["differs"]:
                line = f"{path}: {value!r}, in {row['nearest'][:12]}: {nearest_value!r}"
                click.echo(f"              {one_line(line)}")
        elif why:
            click.echo("              no other cell to compare with")
    for sweep in sweep_rows:
        states = ", ".join(f"{count} {state}" for state, count in sorted(sweep["states"].items()))
        click.echo(one_line(f"sweep {sweep['sweep']}: {sweep['cells']} cells: {states}"))
        for state, reasons in sweep["reasons"].items():
            for reason in reasons:
                click.echo(f"    {one_line(f'{state}: {reason}')}")


def cells(store: Store) -> list[dict[str, Any]]:
    """One row per cell that has a record, is running, or was interrupted."""
    from harness.records.index import rows

    by_id, leases = rows(store, row), store.leases()
    started = {path.stem for path in store.files("stages", "cell")}
    for cell in started - set(by_id) | (started & set(leases)):
        lease = leases.get(cell)
        if lease is not None and lease["alive"]:
            state = {"status": "running", "detail": f"{lease['stage']}, pid {lease['pid']} on {lease['host']}"}
        elif cell not in by_id:
            state = {"status": "interrupted", "detail": "the same command continues it"}
        else:
            continue
        by_id[cell] = {"id": cell, "what": request_text(store.stage("cell", cell)), **state}
    return [by_id[cell] for cell in sorted(by_id)]


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a cell with a record."""
    return {
        "id": record["id"],
        "status": record["status"],
        "what": request_text(record["spec"]),
        "detail": record["reason"] or record["finished"],
    }


def sweeps(store: Store, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per sweep: how many of its cells have each status, and the reasons of those without a record."""
    status_by_id = {row["id"]: row["status"] for row in rows}
    result = []
    for path in store.files("sweeps"):
        cells = sweep_cells(store, path)
        if cells is None:
            continue
        states = Counter(status_by_id.get(cell["id"]) or cell["status"] for cell in cells)
        reasons: dict[str, set[str]] = {}
        for cell in cells:
            has_record = status_by_id.get(cell["id"], "interrupted") != "interrupted"
            if cell["reason"] and not has_record:
                reasons.setdefault(cell["status"], set()).add(cell["reason"])
        ordered = {state: sorted(reasons[state]) for state in sorted(reasons)}
        result.append({"sweep": path.stem, "cells": len(cells), "states": dict(states), "reasons": ordered})
    return result


def sweep_cells(store: Store, path: Path) -> list[dict[str, str]] | None:
    """The cells of a sweep's file; None if the file is something else."""
    content = store.read(path)
    cells = content.get("cells") if isinstance(content, dict) else None
    if isinstance(cells, list) and all(map(is_sweep_cell, cells)):
        return cells
    if content is not None:
        store.notice(f"{path} is not the file of a sweep; ignored")
    return None


def is_sweep_cell(cell: Any) -> bool:
    return isinstance(cell, dict) and all(isinstance(cell.get(name), str) for name in ("id", "status", "reason"))


def request_text(spec: Any) -> str:
    """The settings of a cell in one line; `(unreadable)` if they are not in the expected form."""
    try:
        budget = spec["budget"]
        text = f"{spec['pruner']} {spec['model']} {budget['kind']} {budget['value']:g}{budget['unit']}"
        recovery = f", {spec['recovery']}" if spec["recovery"] != "none" else ""
        return f"{text} on {spec['device']}{recovery}" + (f", seed {spec['seed']}" if spec["seed"] else "")
    except (KeyError, TypeError, ValueError, OverflowError):
        return "(unreadable)"


def nearest(
    cell: str, components: dict[str, Any], flattened: dict[str, dict[str, str]]
) -> tuple[str, list[tuple[str, Any, Any]]]:
    """The other cell with the fewest differing components, and these: path, value, the other cell's value."""
    from harness.records.keys import differing_components

    if cell not in flattened or len(flattened) < 2:
        return "", []
    own = flattened[cell].items()
    distance = {
        candidate: len({path for path, _ in own ^ values.items()})
        for candidate, values in flattened.items()
        if candidate != cell
    }
    best = min(distance, key=lambda candidate: (distance[candidate], candidate))
    return best, list(differing_components(components[cell], components[best]))
