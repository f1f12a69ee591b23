"""`harness compare A B`: two records on the same documents, and their latencies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.cli.answer import print_json
from harness.errors import one_line
from harness.records.store import Store

if TYPE_CHECKING:
    from harness.records.schema import Latency, Record


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--remeasure", is_flag=True, help="Time both models in the same rounds, now.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(first: str, second: str, remeasure: bool, as_json: bool) -> None:
    """How B differs from A: each score on the documents that both saw, and the latency.

    A and B are beginnings of ids (harness status) or files of records.

    \b
    harness compare 2c6f 81ab
    harness compare 2c6f 81ab --remeasure
    """
    from harness.leaderboard import compare

    store = Store()
    one, other = compare.find(first, store), compare.find(second, store)
    words = compare.compared(one, other)
    if remeasure:
        from harness.resolve import prepare_for
        from harness.system import process

        prepare_for(other.record.spec.device, other.record.spec.dtype)
        with process.stdout_kept():
            timings = compare.remeasured(one.record, other.record, store.root)
        words["remeasured"] = {workload: timing.model_dump(mode="json") for workload, timing in timings.items()}
    if as_json:
        print_json(words, sort_keys=True)
        return
    _print(words, one.record, other.record)
    if remeasure:
        for workload, timing in timings.items():
            click.echo(one_line(_together(workload, timing)))


def _print(words: dict[str, Any], one: Record, other: Record) -> None:
    from tabulate import tabulate

    for name, record in (("A", one), ("B", other)):
        spec = record.spec
        budget = f"{spec.budget.kind} {spec.budget.value:g}{spec.budget.unit}"
        cell = f"{spec.pruner} {spec.model} {budget} on {spec.device}, recovery {spec.recovery}, seed {spec.seed}"
        status = "" if record.status == "ok" else f"  {record.status}"
        click.echo(f"{name}  {one_line(record.id[:12])}  {one_line(cell)}{status}")
    click.echo()
    rows = []
    for name, score in words["scores"].items():
        verdict = "differ" if score.get("differ") else "not told apart" if score["p"] is not None else ""
        rows.append((name, f"{score['first']:.4g}", f"{score['second']:.4g}", _change(score), verdict, score["note"]))
    for workload, timing in words["latency"].items():
        latency = {**timing, "what": "ratio", "change": timing.get("ratio")}
        name = f"speed-up, {workload}, {timing['clock']}"
        rows.append((name, f"{timing['first']:.3f}x", f"{timing['second']:.3f}x", _change(latency), "", timing["note"]))
    lines = [tuple(map(one_line, row)) for row in rows]
    head = ("", "A", "B", "B against A [95 %]", "", "")
    click.echo(tabulate(lines, headers=head, tablefmt="plain", disable_numparse=True))
    click.echo("\nScores by document, Holm-corrected at 5 %. A latency below 1x says that B takes less time than A.")
    if not words["same_machine"]:
        click.echo("The machines differ: only speed-ups over their own dense models compare.")
    for at, name in enumerate("AB"):
        if kinds := {str(timing["provenance"][at]) for timing in words["latency"].values()} - {"device"}:
            click.echo(f"The latency of {name} is {_unmeasured(*kinds)}.")


def _change(words: dict[str, Any]) -> str:
    if words["change"] is None:
        return ""
    shown = (lambda x: f"{x:.3f}x") if words["what"] == "ratio" else (lambda x: f"{x:+.4f}")
    bounds = words["ci95"]
    return shown(words["change"]) + (f" [{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else "")


def _together(workload: str, timing: Latency) -> str:
    bounds = timing.speedup_ci95
    ci = f" [{1 / bounds[1]:.3f}, {1 / bounds[0]:.3f}]" if bounds else ""
    floor = "" if timing.noise_floor is None else f", noise floor {timing.noise_floor:.1%}"
    kind = "" if timing.provenance == "device" else f"; {_unmeasured(timing.provenance)}"
    return f"together, {workload}: B takes {1 / timing.speedup:.3f}x{ci} of A's {timing.clock} time{floor}{kind}"


def _unmeasured(*kinds: str) -> str:
    return f"{one_line(', '.join(sorted(kinds)))}, not measured on a device"
