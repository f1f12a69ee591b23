"""`harness run --trace`: print which operators and layers take the time, for dense and pruned."""

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

MAX_OPERATORS = 15  # rows of the table; the others are added up in one more


def show(cell: Cell, record: Record, as_json: bool) -> None:
    """Trace both models and print a table per workload; with `as_json` only the names of the files, on stderr."""
    reporter = Terminal(quiet=as_json)
    try:
        with process.stdout_for_answers() if as_json else nullcontext():
            result = tracing.trace(cell, record, reporter)
    finally:
        reporter.close()
    if result is None:
        return
    folder, profile = result
    workloads = profile["workloads"]
    out = console()
    files = [str(folder / name) for traces in workloads.values() for name in traces["files"].values()]
    if as_json:
        for file in [*files, str(folder / "operators.json")]:
            reporter.notice(f"trace: {file}")
        return
    for workload, traces in workloads.items():
        out.print()
        out.print(table(workload, traces, profile))
    for file in files:
        out.print(f"trace:  {file}", soft_wrap=True)
    out.print(f"table:  {folder / 'operators.json'}", soft_wrap=True)
    out.print("open a trace at https://ui.perfetto.dev or in chrome://tracing", soft_wrap=True)


def table(workload: str, traces: dict[str, Any], profile: dict[str, Any]) -> Table:
    """The operators with the longest times, and the whole pass with its share of each kind of sub-layer."""
    on_cpu = profile["place"] == "cpu"
    threads = profile["threads"]
    device = f"the CPU, {threads} thread{'s' * (threads > 1)}" if on_cpu else "the GPU"
    title = f"time by operator: {workload} on {device}, the fastest of {profile['passes']} profiled passes"
    result = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    result.add_column("operator (self time)", no_wrap=True)
    for name in ("dense ms", "pruned ms", "ratio", "calls"):
        result.add_column(name, justify="right", no_wrap=True)
    rows, spans = traces["operators"], {row["name"]: row for row in traces["spans"]}
    for row in rows[:MAX_OPERATORS]:
        result.add_row(*line(row["name"], row))
    if rows[MAX_OPERATORS:]:
        result.add_row(*line(f"{len(rows) - MAX_OPERATORS} more", total(rows[MAX_OPERATORS:])))
    whole = spans[tracing.PASS]
    if on_cpu:
        between = {model: whole[model] - total(rows)[model] for model in ("dense_us", "pruned_us")}
        result.add_row(*line("between operators: Python, waiting", between))
    result.add_section()
    result.add_row(*line("whole pass", whole))
    for kind in kinds_of(spans):
        result.add_row(*line(f"of which {kind}", total(row for name, row in spans.items() if name.endswith(kind))))
    return result


def kinds_of(spans: Iterable[str]) -> list[str]:
    """The kinds of sub-layer that have spans, in the order of the layers: `layers.0.mlp` is of kind `mlp`."""
    sublayers = [name.split(".") for name in spans if name.count(".") == 2]
    return list(dict.fromkeys(kind for _, _, kind in sorted(sublayers, key=lambda parts: (int(parts[1]), parts[2]))))


def total(rows: Any) -> dict[str, float]:
    rows = list(rows)
    return {name: sum(row[name] for row in rows) for name in ("dense_us", "pruned_us", "dense_calls", "pruned_calls")}


def line(name: str, row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    dense, pruned = row["dense_us"], row["pruned_us"]
    ratio = f"{pruned / dense:.2f}x" if dense else "-"
    calls = f"{row['dense_calls']} / {row['pruned_calls']}" if "dense_calls" in row else ""
    return name, f"{dense / 1e3:.3f}", f"{pruned / 1e3:.3f}", ratio, calls
