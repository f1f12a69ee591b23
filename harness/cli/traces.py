"""A look into a run's models: which operators and layers take the time, dense and pruned side by side."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from rich import box
from rich.table import Table

from harness.cell import tracing
from harness.cell.lifecycle import Cell
from harness.cli.output import Terminal, console
from harness.records.schema import Record
from harness.system import process

MOST = 15


def show(cell: Cell, record: Record, as_json: bool) -> None:
    """Trace both models and print what was found; beside a record in JSON only notes, on stderr."""
    reporter = Terminal(quiet=as_json)
    try:
        with process.stdout_kept() if as_json else nullcontext():
            traced = tracing.trace(cell, record, reporter)
    finally:
        reporter.close()
    if traced is None:
        return
    folder, found = traced
    out = console()
    files = [str(folder / name) for words in found["workloads"].values() for name in words["files"].values()]
    if as_json:
        for file in [*files, str(folder / "operators.json")]:
            reporter.notice(f"trace: {file}")
        return
    for workload, words in found["workloads"].items():
        out.print()
        out.print(table(workload, words, found))
    for file in files:
        out.print(f"trace:  {file}", soft_wrap=True)
    out.print(f"table:  {folder / 'operators.json'}", soft_wrap=True)
    out.print("open a trace at https://ui.perfetto.dev or in chrome://tracing", soft_wrap=True)


def table(workload: str, words: dict[str, Any], found: dict[str, Any]) -> Table:
    on_cpu = found["place"] == "cpu"
    where = f"the CPU, {found['threads']} thread{'s' * (found['threads'] > 1)}" if on_cpu else "the GPU"
    title = f"where the time goes: {workload} on {where}, each at its least of {found['passes']} profiled passes"
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    made.add_column("operator, by itself", no_wrap=True)
    for name in ("dense ms", "pruned ms", "ratio", "calls"):
        made.add_column(name, justify="right", no_wrap=True)
    rows, spans = words["operators"], {row["name"]: row for row in words["spans"]}
    for row in rows[:MOST]:
        made.add_row(*line(row["name"], row))
    if rows[MOST:]:
        made.add_row(*line(f"{len(rows) - MOST} more", total(rows[MOST:])))
    whole = spans[tracing.PASS]
    if on_cpu:
        between = {side: whole[side] - total(rows)[side] for side in ("dense_us", "pruned_us")}
        made.add_row(*line("between operators: Python, waiting", between))
    made.add_section()
    made.add_row(*line("a pass", whole))
    for kind in kinds_of(spans):
        made.add_row(*line(f"of it in {kind}", total(row for name, row in spans.items() if name.endswith(kind))))
    return made


def kinds_of(spans: Iterable[str]) -> list[str]:
    """The kinds of sub-layer that have spans, in the order of the layers: `layers.0.mlp` is of kind `mlp`."""
    return list(dict.fromkeys(name.split(".")[2] for name in spans if name.count(".") == 2))


def total(rows: Any) -> dict[str, float]:
    rows = list(rows)
    return {name: sum(row[name] for row in rows) for name in ("dense_us", "pruned_us", "dense_calls", "pruned_calls")}


def line(name: str, row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    dense, pruned = row["dense_us"], row["pruned_us"]
    ratio = f"{pruned / dense:.2f}x" if dense else "-"
    calls = f"{row['dense_calls']} / {row['pruned_calls']}" if "dense_calls" in row else ""
    return name, f"{dense / 1e3:.3f}", f"{pruned / 1e3:.3f}", ratio, calls
