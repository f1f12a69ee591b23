"""`harness compare A B`: compare two records by document, and by latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.cli.json_output import print_json
from harness.errors import one_line
from harness.records.store import Store

if TYPE_CHECKING:
    from harness.records.schema import Latency, Record


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--remeasure", is_flag=True, help="Time both models again now, in the same rounds.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON.")
def command(first: str, second: str, remeasure: bool, as_json: bool) -> None:
    """Show how B differs from A: each score on the documents that both evaluated, and the latency.

    A and B are beginnings of ids (see harness status), or files of records.

    \b
    harness compare 2c6f 81ab
    harness compare 2c6f 81ab --remeasure
    """
    from harness.leaderboard import compare

    store = Store()
    entry_a, entry_b = compare.find(first, store), compare.find(second, store)
    comparison = compare.comparison(entry_a, entry_b)
    if remeasure:
        from harness.resolve import prepare_process
        from harness.system import process

        prepare_process(entry_b.record.spec.device, entry_b.record.spec.dtype)
        with process.stdout_for_answers():
            timings = compare.remeasure(entry_a.record, entry_b.record, store.root)
        comparison["remeasured"] = {workload: timing.model_dump(mode="json") for workload, timing in timings.items()}
    if as_json:
        print_json(comparison, sort_keys=True)
        return
    _print(comparison, entry_a.record, entry_b.record)
    if remeasure:
        for workload, timing in timings.items():
            click.echo(one_line(_remeasured_line(workload, timing)))


def _print(comparison: dict[str, Any], record_a: Record, record_b: Record) -> None:
    from tabulate import tabulate

    # One line about each record.
    for name, record in (("A", record_a), ("B", record_b)):
        spec = record.spec
        budget = f"{spec.budget.kind} {spec.budget.value:g}{spec.budget.unit}"
        cell = f"{spec.pruner} {spec.model} {budget} on {spec.device}, recovery {spec.recovery}, seed {spec.seed}"
        status = "" if record.status == "ok" else f"  {record.status}"
        click.echo(f"{name}  {one_line(record.id[:12])}  {one_line(cell)}{status}")
    click.echo()
    # A table with one row per score and per workload.
    rows = []
    for name, score in comparison["scores"].items():
        verdict = "differ" if score.get("differ") else "no significant difference" if score["p"] is not None else ""
        rows.append((name, f"{score['first']:.4g}", f"{score['second']:.4g}", _change(score), verdict, score["note"]))
    for workload, timing in comparison["latency"].items():
        latency = {**timing, "what": "ratio", "change": timing.get("ratio")}
        name = f"speed-up, {workload}, {timing['clock']}"
        rows.append((name, f"{timing['first']:.3f}x", f"{timing['second']:.3f}x", _change(latency), "", timing["note"]))
    lines = [tuple(map(one_line, row)) for row in rows]
    headers = ("", "A", "B", "B against A [95 %]", "", "")
    click.echo(tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True))
    click.echo(
        "\nScores are compared by document, Holm-corrected at 5 %. A latency below 1x means that B is faster than A."
    )
    if not comparison["same_machine"]:
        click.echo("The machines differ: only the speed-ups over the dense models can be compared, not the latencies.")
    for index, name in enumerate("AB"):
        kinds = {str(timing["provenance"][index]) for timing in comparison["latency"].values()} - {"device"}
        if kinds:
            click.echo(f"The latency of {name} is {_not_measured(*kinds)}.")


def _change(row: dict[str, Any]) -> str:
    """A ratio or a difference with its confidence interval."""
    if row["change"] is None:
        return ""
    template = "{:.3f}x" if row["what"] == "ratio" else "{:+.4f}"
    text = template.format(row["change"])
    if row["ci95"]:
        low, high = (template.format(bound) for bound in row["ci95"])
        text += f" [{low}, {high}]"
    return text


def _remeasured_line(workload: str, timing: Latency) -> str:
    bounds = timing.speedup_ci95
    ci = f" [{1 / bounds[1]:.3f}, {1 / bounds[0]:.3f}]" if bounds else ""
    floor = "" if timing.noise_floor is None else f", noise floor {timing.noise_floor:.1%}"
    kind = "" if timing.provenance == "device" else f"; {_not_measured(timing.provenance)}"
    return f"timed together, {workload}: B takes {1 / timing.speedup:.3f}x{ci} of A's {timing.clock} time{floor}{kind}"


def _not_measured(*kinds: str) -> str:
    return f"{one_line(', '.join(sorted(kinds)))}, not measured on a device"
