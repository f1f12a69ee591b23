"""`harness profile`: measure the cost table of a device, for one model and workload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.json_output import print_json
from harness.errors import HarnessError, UsageError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from harness.api import Device
    from harness.latency.cost_table.profile import ProfileTarget
    from harness.latency.cost_table.table import CostTable, Curve


@click.command("profile")
@click.option("--model", default="smollm2-135m", show_default=True, help="Alias, hub id, folder or GGUF file.")
@click.option("--device", default="cpu", show_default=True, help="Where latency is measured.")
@click.option("--runtime", help="What runs the model on the device; see harness info DEVICE.")
@click.option("--dtype", help="fp32, bf16 or fp16.  [default: the device's own]")
@click.option("--workload", help="prefill:BxS or decode:BxC.  [default: the device's own]")
@click.option(
    "--preset",
    default="quick",
    show_default=True,
    help="quick takes minutes; paper measures every width and more shapes.",
)
@click.option(
    "--weights", default="random", show_default=True, help="Only random: latency depends on shapes, not on weights."
)
@click.option("--export", "target", type=click.Path(path_type=Path), help="Also write the table to this file.")
@click.option(
    "--import", "source", type=click.Path(path_type=Path), help="Store the table of this file instead of measuring one."
)
@click.option("--again", is_flag=True, help="Replace the stored table, if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print only the table, as JSON.")
def command(target: Path | None, source: Path | None, again: bool, as_json: bool, **options: Any) -> None:
    """Measure the time of each kind of sub-layer at several widths, and how well it predicts the time of whole models.

    \b
    harness profile --model smollm2-135m --workload prefill:1x128
    harness profile --model llama3.2-1b --weights random --device cuda --export llama.json
    """
    from harness.resolve import prepare_process

    prepare_process(options["device"], options["dtype"])
    from harness.cli.output import Terminal, console
    from harness.latency.cost_table import table_store
    from harness.records.store import Store

    if target is not None:
        table_store.check_writable(target)
    store = Store()
    reporter = Terminal(quiet=as_json)
    if source is not None:
        store.prepare()
        table = table_store.load_table(source)
        path = table_store.TableStore(store).put(table, again)
    else:
        table_target, device = resolve(**options)
        store.prepare()
        stages: set[str] = set()

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                reporter.stage(f"profile: {stage}")
                stages.add(stage)
            reporter.progress(done, total)

        try:
            table = table_store.TableStore(store).fill(table_target, device, on_progress, again)
        finally:
            reporter.close()
        path = table_store.TableStore(store).path(table.key)
        for text in store.notices:
            reporter.notice(text)
    if target is not None:
        table_store.export(table, target)
    if as_json:
        print_json(table.to_dict(), sort_keys=True)
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
) -> tuple[ProfileTarget, Device]:
    """Check the options; returns what to measure, and the device to measure it on."""
    from harness.api import Workload
    from harness.latency.cost_table.profile import ProfileTarget
    from harness.latency.cost_table.table_store import device_payload
    from harness.models import counting
    from harness.models.architectures.lookup import anatomy_of
    from harness.models.loading.cards import card as find_card
    from harness.plugins import registry
    from harness.resolve import check_usable, timing_choices

    if weights != "random":
        raise UsageError(f"no weights {weights!r}", "give random: the time depends on the shape alone")
    choices = timing_choices(device, preset, runtime, dtype, [workload] if workload else [])
    card = find_card(model)
    anatomy = anatomy_of(card.config)
    for requested in choices.workloads:  # refuse one that the model does not support before the device is probed
        counting.flops(anatomy, {}, requested)
    table_device = registry().device(device, choices.runtime)
    info = table_device.probe()
    check_usable(device, info)
    spec = choices.device.on_machine(info)
    timed = choices.workloads[0] if choices.workloads else Workload.parse(spec.workload)
    counting.flops(anatomy, {}, timed)
    target = ProfileTarget(
        card.name, anatomy, device_payload(spec, info), choices.runtime, choices.dtype, timed, preset
    )
    return target, table_device


def print_table(table: CostTable, path: Path, out: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    device, validation = table.device, table.validation
    machine = device["fingerprint"].get("model") or device["fingerprint"].get("name") or device["name"]
    title = f"{table.model} on {device['name']} ({machine}), {table.runtime}, {table.dtype}, {table.workload}"
    # The time of one sub-layer of each class, by width.
    rows = Table(title=Text(one_line(title)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in ("class", "units", "measured", "25 %", "50 %", "75 %", "100 %, us"):
        rows.add_column(name, justify="left" if name == "class" else "right")
    for name, curve in table.curves.items():
        units = curve.units[-1]
        microseconds = [_at(curve, round(share * units)) / 1e3 for share in (0.25, 0.5, 0.75, 1)]
        figures = [f"{time:,.1f}" for time in microseconds]
        rows.add_row(Text(one_line(name.split()[0])), f"{units:,}", f"{len(curve.units) - 1} widths", *figures)
    rows.add_row("outside layers", "", "", "", "", "", f"{table.fixed_ns / 1e3:,.1f}")
    out.print(rows)
    # How well the table predicts whole models.
    if validation is None:
        raise HarnessError("this table has not been validated", "run the command without --import, which validates it")
    out.print(
        f"by {device['clock']} time; mean error of {validation.shapes} unseen whole shapes {validation.mape:.1%}"
        f" (repeated measurements of one shape differ by {validation.repeatability:.1%}, "
        f"{validation.repeatability_corrected:.1%} without drift); rank correlation {validation.spearman:.3f};"
        f" {validation.within_5:.0%} within 5 %, {validation.within_10:.0%} within 10 %",
        soft_wrap=True,
    )
    flat = [name.split()[0] for name, curve in table.curves.items() if _flat(curve)]
    if flat:
        out.print(
            f"[yellow]width changes little[/] in {', '.join(flat)}: a quarter of the units takes nearly as long as all"
        )
    bias = ", ".join(f"{name} {value:+.1%}" for name, value in validation.bias.items())
    out.print(Text(one_line(f"bias:  {bias}")), soft_wrap=True)
    if device["provenance"] != "device":
        out.print(f"       {device['provenance']}, not a measurement")
    out.print(f"cost:  {table.probes} shapes, {table.seconds:.0f} CPU-seconds")
    out.print(f"table: {path}", soft_wrap=True)


def _at(curve: Curve, units: int) -> float:
    """Nanoseconds at a width, interpolated."""
    import numpy as np

    return float(np.interp(units, curve.units, curve.ns))


def _flat(curve: Curve) -> bool:
    """Whether a quarter of the units takes nearly as long as all of them."""
    full = curve.ns[-1]
    return bool(full - _at(curve, round(curve.units[-1] / 4)) < max(0.05, 3 * curve.noise) * full)
