"""Prints a record: a table of dense and pruned, how it was measured, and the command that repeats the run."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.api import Workload
from harness.cli.output import console
from harness.errors import one_line
from harness.formatting import display_texts
from harness.latency import timing_stats
from harness.models.saved.model_card import in_one_line
from harness.records.command_line import command_of
from harness.records.schema import Latency, Record, ScoreRecord, Sustained

MAX_LINE = 20_000  # characters


def print_record(record: Record, root: Path, cached: bool) -> None:
    """Print a record on stdout. Its texts are escaped: they are neither markup nor control codes of the terminal."""
    out, spec = console(), record.spec
    out.print()
    if record.status != "ok":
        _print_line(out, record.status, f": {record.reason}", "bold red")
    if record.status not in ("ok", "unstable") and not record.unscored:
        return
    artefact, budget = record.artefact, record.budget
    assert artefact is not None
    assert budget is not None
    title = f"{spec.pruner} on {spec.model}, {spec.preset}" + (" (from the store)" if cached else "")
    table = Table(title=_text(title, "bold"), box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("", "dense", "pruned", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for row in record_rows(record):
        table.add_row(*map(_text, row))
    out.print(table)
    for label, reason in record.unscored.items():
        if reason not in record.reason:
            _print_line(out, "not scored", f" {label}: {reason}", "yellow")
    for name, score in record.scores.items():
        if score.texts:
            out.print(_side_by_side(name, score))
    notes = [(name.split(".")[0], note) for name, score in record.scores.items() for note in score.notes]
    for name, note in dict.fromkeys(notes):
        _print_line(out, "note", f" {name}: {note}", "yellow")
    for workload, timing in record.latency.items():
        _print_line(out, f"{workload}: {timing_text(timing)}")
        if timing.sustained:
            _print_line(out, f"{workload}: {sustained_text(timing.sustained)}")
    for gate in record.gates:
        if not gate.ok:
            _print_line(out, f"gate {gate.name} failed", f", which guards {gate.guards} time: {gate.detail}", "yellow")
    _print_line(out, energy_text(record), style="dim")
    _print_line(out, f"budget: {budget_text(record)}")
    for label, value in (
        ("model:", str(root / artefact.path)),
        ("record:", str(root / "records" / f"{record.id}.json")),
        ("again:", command_of(record)),
    ):
        out.print(Text(f"{label:7} {one_line(value, MAX_LINE)}"), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    return Text(one_line(text), style=style)


def _print_line(out: Console, start: str, text: str = "", style: str = "") -> None:
    """Print one line; the style applies to its start."""
    line = Text(one_line(f"{start}{text}", MAX_LINE))
    line.stylize(style, 0, len(one_line(start)))
    out.print(line, soft_wrap=True)


def _side_by_side(name: str, score: ScoreRecord) -> Table:
    """The texts that dense and pruned generated, in one column each."""
    title = _text(f"generated texts of {name}", "italic")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", show_lines=True)
    for column in score.texts[0]:
        table.add_column(_text(column), overflow="fold", ratio=1)
    for texts in score.texts:
        table.add_row(*(Text(in_one_line(text)) for text in texts.values()))
    return table


def timing_text(timing: Latency) -> str:
    """How a latency was measured."""
    floor = f"{timing.noise_floor:.1%}" if timing.noise_floor is not None else "unknown"
    bound = timing.pruned.p99_bound_ns
    parts = [
        f"ranked by {timing.clock} time, {timing.rounds} rounds",
        "one process" if timing.processes == 1 else f"{timing.processes} processes",
        f"noise floor {floor} (dense against itself)",
        timing_stats.missing_bound_reason(timing.pruned.n, 0.99)
        if bound is None
        else f"p99 at most {bound / 1e6:.2f} ms",
    ]
    if timing.provenance != "device":
        parts.append(f"{timing.provenance}, not a measurement")
    return "; ".join(parts)


def sustained_text(sustained: Sustained) -> str:
    """How the latency changed while the model was kept running."""
    first_ms, last_ms = sustained.first_ns / 1e6, sustained.last_ns / 1e6
    ratio = sustained.last_ns / sustained.first_ns
    parts = [f"{last_ms:.2f} ms after running for {sustained.seconds:.0f} s, {ratio:.2f}x its first {first_ms:.2f} ms"]
    for name, (first, last) in sustained.temperatures_c.items():
        parts.append(f"{name} {first:.0f} to {last:.0f} °C")
    if sustained.throttle:
        parts.append(f"throttled by {', '.join(sustained.throttle)}")
    return "; ".join(parts)


def budget_text(record: Record) -> str:
    """What the budget was, and what the pruned model achieved."""
    budget, artefact = record.budget, record.artefact
    unit = record.spec.budget.unit
    assert artefact is not None
    assert budget is not None
    removed = f"{artefact.ratio_blocks:.3%} of the prunable parameters removed ({artefact.ratio_total:.3%} of all)"
    if record.spec.budget.kind == "ratio":
        return f"{budget.asked:.2%} requested; {removed}, {budget.unused:.3%} more than requested"
    bounds = budget.achieved_ci95
    spread = f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else ""
    return (
        f"{budget.asked:g}{unit} requested, {budget.achieved:.4g}{unit}{spread} measured, "
        f"{budget.unused:.2g}{unit} unused, {len(budget.probes)} probes; {removed}"
    )


def record_rows(record: Record) -> list[tuple[str, str, str, str]]:
    """The rows of the table: a name, dense, pruned, and the change."""
    artefact = record.artefact
    assert artefact is not None
    rows = []
    for workload, timing in record.latency.items():
        dense, pruned = timing.dense, timing.pruned
        bounds = timing.speedup_ci95
        change = f"{timing.speedup:.3f}x speed" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
        rows.append(
            (f"{workload} {timing.clock} ms", f"{dense.median_ns / 1e6:.2f}", f"{pruned.median_ns / 1e6:.2f}", change)
        )
        for name, clock in timing.other_clock.items():
            rows.append(
                (
                    f"{workload} {name} ms",
                    f"{clock.dense.median_ns / 1e6:.2f}",
                    f"{clock.pruned.median_ns / 1e6:.2f}",
                    f"{clock.speedup:.3f}x speed",
                )
            )
        dense_details, pruned_details = (display_texts(timing.told.get(model, {})) for model in ("dense", "pruned"))
        rows += [(f"{workload} {name}", text, pruned_details.get(name, ""), "") for name, text in dense_details.items()]
    for name, score in record.scores.items():
        if name.startswith("footprint"):
            continue
        dense_score = _with_stderr(score.dense, score.dense_stderr)
        pruned_score = _with_stderr(score.value, score.stderr)
        rows.append((f"{name} {_kind(score)}(n={score.n})", dense_score, pruned_score, _change(score)))
    rows.append(_count("parameters", artefact.params_dense, artefact.params))
    if artefact.params_nonzero < 0.99 * artefact.params:
        rows.append(_count("parameters, non-zero", artefact.params_dense, artefact.params_nonzero))
    for workload, pair in record.flops.items():
        if pair.dense and pair.pruned is not None:
            rows.append(_scaled(f"FLOPs {workload}, G", pair.dense, pair.pruned, 1e9))
            if (items := Workload.parse(workload).items) > 1:
                rows.append(_scaled(f"FLOPs {workload} per token, M", pair.dense / items, pair.pruned / items, 1e6))
    if (memory := record.memory).dense and memory.pruned:
        for name in ("average", "peak"):
            rows.append(_scaled(f"memory {name}, MB", getattr(memory.dense, name), getattr(memory.pruned, name), 1e6))
    first = record.spec.workloads[0]
    if (energy := record.energy).dense and energy.pruned is not None:
        items = Workload.parse(first).items
        rows.append(_scaled(f"energy {first} per token, mJ", energy.dense / items, energy.pruned / items, 1e-3))
    if (co2 := record.co2) and co2.dense and co2.pruned is not None:
        rows.append(_scaled(f"CO2e {first} per 1000 tokens, mg", co2.dense, co2.pruned, 1e-3))
    return rows


def _kind(score: ScoreRecord) -> str:
    exponential = score.scale == "exp-mean" or (not score.scale and not score.higher_is_better)  # older records
    return "perplexity " if exponential else ""


def _change(score: ScoreRecord) -> str:
    """The change from dense on the same documents, with its 95 % interval."""
    if score.change is None:
        return f"{_figure(score.value / score.dense)}x" if score.dense else ""
    is_ratio = score.scale == "exp-mean"
    change = f"{_figure(score.change)}x" if is_ratio else f"{score.change:+.3f}"
    if score.change_ci95 is None:
        return change
    low, high = (_figure(bound) if is_ratio else f"{bound:+.3f}" for bound in score.change_ci95)
    return f"{change} [{low}, {high}]"


def energy_text(record: Record) -> str:
    """What the energy was measured of, and the carbon intensity used for CO2e; or why energy could not be read."""
    energy, co2 = record.energy, record.co2
    grid = f"; CO2e at {co2.grams_per_kwh:g} g/kWh ({co2.source})" if co2 and energy.dense else ""
    return f"energy: {energy.what + grid if energy.dense else energy.reason}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _with_stderr(value: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    return _figure(value) + (f" ± {_figure(stderr)}" if stderr is not None else "")


def _count(name: str, dense: int, pruned: int) -> tuple[str, str, str, str]:
    return name, f"{dense:,}", f"{pruned:,}", f"{pruned / dense - 1:+.1%}"


def _scaled(name: str, dense: float, pruned: float, unit: float) -> tuple[str, str, str, str]:
    return name, _short(dense / unit), _short(pruned / unit), f"{pruned / dense - 1:+.1%}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
