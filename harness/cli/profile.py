"""`harness profile`: a device's cost table for one model and workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.answer import print_json
from harness.errors import EnvironmentFault, HarnessError, UsageError, one_line


@click.command("profile")
@click.option("--model", default="smollm2-135m", show_default=True, help="Alias, hub id, folder or GGUF file.")
@click.option("--device", default="cpu", show_default=True, help="Where latency is measured.")
@click.option("--runtime", help="How the device runs the model.")
@click.option("--dtype", help="fp32, bf16 or fp16.")
@click.option("--workload", help="prefill:BxS or decode:BxC.")
@click.option("--preset", default="quick", show_default=True, help="quick: minutes; paper: every step, more shapes.")
@click.option("--weights", default="random", show_default=True, help="random: latency needs shapes, not weights.")
@click.option("--export", "target", type=click.Path(path_type=Path), help="Write the table to this file as well.")
@click.option(
    "--import", "source", type=click.Path(path_type=Path), help="Take a table from this file; measure nothing."
)
@click.option("--again", is_flag=True, help="Replace the table that is there.")
@click.option("--json", "as_json", is_flag=True, help="The table on stdout and nothing else.")
def command(target: Path | None, source: Path | None, again: bool, as_json: bool, **asked: Any) -> None:
    """Measure what each sub-layer costs at each width, and how well that predicts whole models.

    \b
    harness profile --model smollm2-135m --workload prefill:1x128
    harness profile --model llama3.2-1b --weights random --device cuda --export llama.json
    """
    from harness.resolve import prepare_for

    prepare_for(asked["device"], asked["dtype"])
    from harness.cli.output import Terminal, console
    from harness.latency.cost_table import table_store
    from harness.records.store import Store

    if target is not None:
        table_store.must_be_writable(target)
    store = Store()
    reporter = Terminal(quiet=as_json)
    if source is not None:
        store.prepare()
        table = table_store.read(source)
        path = table_store.Shelf(store).put(table, again)
    else:
        wanted, device = resolve(**asked)
        store.prepare()
        stages: dict[str, None] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                reporter.stage(f"profile: {stage}")
                stages[stage] = None
            reporter.progress(done, total)

        try:
            table = table_store.Shelf(store).fill(wanted, device, on_progress, again)
        finally:
            reporter.close()
        path = table_store.Shelf(store).path(table.key)
        for text in store.notices:
            reporter.notice(text)
    if target is not None:
        table_store.export(table, target)
    if as_json:
        print_json(table.words(), sort_keys=True)
    else:
        print_table(table, path, console())


def resolve(
    model: str,
    device: str,
    runtime: str | None,
    dtype: str | None,
    workload: str | None,
    preset: str,
    weights: str,
) -> tuple[Any, Any]:
    """What a table is asked for, and the device that can fill it."""
    from harness.api import Workload
    from harness.latency.cost_table.profile import EFFORTS, Target
    from harness.latency.cost_table.table_store import device_words
    from harness.models import counting
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.loading.cards import card as find_card
    from harness.plugins import registry

    if weights != "random":
        raise UsageError(f"weights {weights!r} are not known", "give random: the time depends on the shape alone")
    if preset not in EFFORTS:
        raise UsageError(f"no preset {preset!r}", f"give {' or '.join(EFFORTS)}")
    spec = registry().get("device", device)
    runtime, dtype = runtime or spec.runtimes[0], dtype or spec.dtype
    if runtime not in spec.runtimes:
        raise UsageError(f"device {device} has no runtime {runtime!r}", f"known: {', '.join(spec.runtimes)}")
    if dtype not in counting.BYTES:
        raise UsageError(f"no dtype {dtype!r}", f"known: {', '.join(counting.BYTES)}")
    card = find_card(model)
    anatomy = anatomy_of(card.config)
    if workload:
        counting.flops(anatomy, {}, Workload.parse(workload))  # one that this family cannot have is said now
    made = registry().device(device, runtime)
    info = made.probe()
    if not info.usable:
        raise EnvironmentFault(f"device {device} is not usable: {info.reason}", f"harness doctor {device}")
    spec = spec.on_machine(info)
    asked = Workload.parse(workload or spec.workload)
    counting.flops(anatomy, {}, asked)
    return Target(card.name, anatomy, device_words(spec, info), runtime, dtype, asked, preset), made


def print_table(table: Any, path: Path, out: Any) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    device, judged = table.device, table.validation
    machine = device["fingerprint"].get("model") or device["fingerprint"].get("name") or device["name"]
    title = f"{table.model} on {device['name']} ({machine}), {table.runtime}, {table.dtype}, {table.workload}"
    rows = Table(title=Text(one_line(title)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in ("one of", "units", "measured", "25 %", "50 %", "75 %", "whole, us"):
        rows.add_column(name, justify="left" if name == "one of" else "right")
    for name, curve in table.curves.items():
        units = curve.units[-1]
        shares = [_at(curve, round(share * units)) / 1e3 for share in (0.25, 0.5, 0.75, 1)]
        figures = [f"{share:,.1f}" for share in shares]
        rows.add_row(Text(one_line(name.split()[0])), f"{units:,}", f"{len(curve.units) - 1} widths", *figures)
    rows.add_row("no layer", "", "", "", "", "", f"{table.fixed_ns / 1e3:,.1f}")
    out.print(rows)
    if judged is None:
        raise HarnessError("nobody has judged this table yet", "the same without --import judges it")
    out.print(
        f"by {device['clock']} time; {judged.shapes} unseen whole shapes predicted within {judged.mape:.1%} on average"
        f" (another measurement of the same shape: {judged.repeatability:.1%}, "
        f"{judged.repeatability_corrected:.1%} without drift); rank correlation {judged.spearman:.3f};"
        f" {judged.within_5:.0%} within 5 %, {judged.within_10:.0%} within 10 %",
        soft_wrap=True,
    )
    flat = [name.split()[0] for name, curve in table.curves.items() if _flat(curve)]
    if flat:
        out.print(f"[yellow]width alone changes little[/] in {', '.join(flat)}: a quarter of it costs nearly the whole")
    bias = ", ".join(f"{name} {value:+.1%}" for name, value in judged.bias.items())
    out.print(Text(one_line(f"bias:  {bias}")), soft_wrap=True)
    if device["provenance"] != "device":
        out.print(f"       {device['provenance']}, not a measurement")
    out.print(f"cost:  {table.probes} shapes, {table.seconds:.0f} CPU-seconds")
    out.print(f"table: {path}", soft_wrap=True)


def _at(curve: Any, units: int) -> float:
    import numpy as np

    return float(np.interp(units, curve.units, curve.ns))


def _flat(curve: Any) -> bool:
    whole = curve.ns[-1]
    return bool(whole - _at(curve, round(curve.units[-1] / 4)) < max(0.05, 3 * curve.noise) * whole)
