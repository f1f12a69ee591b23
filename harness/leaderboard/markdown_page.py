"""Markdown pages of leaderboards: an index, and a page per model, device and workload with a table per budget."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from harness.evaluation import score_stats
from harness.formatting import display_texts, figure, figure_with_error
from harness.leaderboard.entries import Entry
from harness.leaderboard.ranking import MEAN, gap_between, is_accuracy, mean_accuracy, shared_accuracies
from harness.leaderboard.reported import Reported
from harness.leaderboard.rows import Board, Column, Group, Row, Setup, settings
from harness.markup import Cell, Code, Figures, Link, Strong, Table, link, markdown, markdown_line, markdown_table
from harness.records.schema import Artefact, Latency, Record

RESERVED_COLUMNS = (  # a score or a device's figure with such a name gets another label
    "method",
    "settings",
    "preset",
    "recovery",
    "calibration",
    "speed-up",
    "ms",
    "removed",
    "parameters",
    "parameters, non-zero",
    "FLOPs",
    "memory, peak",
    "mJ per token",
    "sustained",
    MEAN.name,
    "vs. paper",
    "trust",
    "record",
)
REPORTED_NOTE = "From `reported.json`: figures from papers and repositories, each in its own setting."
LEGEND = (
    "± is a standard error over documents; square brackets hold 95 % confidence intervals. Rows of a table that share "
    "a letter do not differ significantly on the same documents (paired t-test, Holm-corrected, 5 %). Several seeds "
    "are one row, which shows their range. A speed-up closer to 1x than the noise floor cannot be told from noise."
)


def page(
    boards: Sequence[Board], reported: Sequence[Reported], home: Path | None, plots: Sequence[Sequence[str]] = ()
) -> str:
    """The page of all boards of one model, device and workload. Links are relative to `home`; None makes no links."""
    setup = boards[0].setup
    parts = [f"# {markdown(f'{setup.model} on {setup.device}, {setup.workload}')}"]
    distinctions = differing([board.setup for board in boards])
    for index, board in enumerate(boards):
        # The board's pictures, its setup, and how its scores were taken.
        parts += [markdown(Link(name, name, picture=True)) for name in (plots[index] if plots else ())]
        parts.append(markdown_line(setup_text(board)))
        if lines := score_notes(board):
            parts.append(markdown_list(lines))
        # One section per budget and kind of recovery.
        for group in board.groups:
            heading = ", ".join([_capital(group.title), *distinctions[index]])
            parts.append(f"## {markdown(heading)}")
            if len(main := shared_accuracies(group)) > 1:
                parts.append(markdown_line(f"Mean accuracy: over {', '.join(column.name for column in main)}."))
            if group.rows:
                parts.append(markdown_table(table(board, group, reported, home)))
            if group.failures:
                parts.append(markdown_list([failed(entry, home) for entry in group.failures]))
    if same_model := [item for item in reported if item.model == setup.model]:
        parts += ["## Reported, not re-run", markdown_table([reported_row(item) for item in same_model])]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def reported_page(reported: Sequence[Reported]) -> str:
    """The page of all figures that others reported, by model."""
    parts = ["# Reported, not re-run", REPORTED_NOTE]
    for model in sorted({item.model for item in reported}):
        rows = [reported_row(item) for item in reported if item.model == model]
        parts += [f"## {markdown(model)}", markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def reported_row(item: Reported) -> dict[str, Cell]:
    return {**item.row(), "method": Code(item.pruner)}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def setup_text(board: Board) -> str:
    """The sentence above a board's tables: dtype, runtime, machine, clock, noise floor and calibration."""
    setup = board.setup
    floors = [t.noise_floor for row in board.rows for t in row.timings if t.noise_floor is not None]
    floor = (
        f" Noise floor of the noisiest row: {max(floors):.1%}. Two measurements of the same dense model can differ "
        "by this much (95 %)."
        if floors
        else ""
    )
    sources = calibrations(board)
    calibration = f" Calibrated on {sources[0]}." if len(sources) == 1 else ""
    return f"{setup.dtype}, {setup.runtime}, on {machine(setup)}; ranked by {setup.clock} time.{floor}{calibration}"


def differing(setups: Sequence[Setup]) -> list[list[str]]:
    """For each board of a page, the parts of its setup that are not the same for all of them."""
    described = [(s.dtype, s.runtime, f"on {machine(s)}", f"by {s.clock} time", s.revision[:12]) for s in setups]
    differs = [len(set(values)) > 1 for values in zip(*described, strict=True)]
    return [[part for part, show in zip(parts, differs, strict=True) if show] for parts in described]


def machine(setup: Setup) -> str:
    """The machine's own name, and its number of threads where it is recorded."""
    fingerprint = json.loads(setup.machine)
    count = fingerprint.get("threads")
    threads = [f"{count} thread{'s' * (count != 1)}"] if "threads" in fingerprint else []
    return ", ".join([str(fingerprint.get("model") or setup.device), *threads])


def calibrations(board: Board) -> list[str]:
    return sorted({row.spec.calibration for row in board.rows if row.spec.calibration})


def score_notes(board: Board) -> list[str]:
    """For each score, how it was taken and the dense model's value."""
    lines = []
    for column, label in labels(board.columns).items():
        row = next(row for row in board.rows if column in row.scores)
        score = row.scores[column]
        dense = f"; dense {figure_with_error(score.dense, score.dense_stderr)}" if score.dense is not None else ""
        lines.append(f"{label}: {column.protocol}{dense}")
    return lines


def labels(columns: Sequence[Column]) -> dict[Column, str]:
    """A heading for each score: its name, with a number where another column has the same name."""
    names = [column.name for column in columns]
    numbers: dict[str, int] = defaultdict(int)
    label_of: dict[Column, str] = {}
    for column in columns:
        label = column.name
        while (
            label in RESERVED_COLUMNS or label in label_of.values() or (label == column.name and names.count(label) > 1)
        ):
            numbers[column.name] += 1
            label = f"{column.name} ({numbers[column.name]})"
        label_of[column] = label
    return label_of


def table(board: Board, group: Group, reported: Sequence[Reported], home: Path | None) -> Table:
    """The rows of a group as cells. Columns that no row fills are left out."""
    label_of = labels(board.columns)
    main = shared_accuracies(group)
    several_calibrations = len(calibrations(board)) > 1
    sorted_by = label_of[group.sorted_by[0]] if len(group.sorted_by) == 1 else MEAN.name
    best = f"{sorted_by} vs. best"
    lines = []
    for row in group.rows:
        spec, records = row.spec, [entry.record for entry in row.entries]
        artefacts = [record.artefact for record in records if record.artefact]
        flops = [record.flops[row.workload].pruned for record in records if row.workload in record.flops]
        memory = [record.memory.pruned.peak for record in records if record.memory.pruned]
        # What was run, and what it costs.
        line: dict[str, Cell] = {
            "method": Code(spec.pruner),
            "settings": row.settings,
            "preset": spec.preset,
            "recovery": "" if spec.recovery == "none" else spec.recovery,
            "calibration": spec.calibration if several_calibrations else "",
            "speed-up": speedup(row),
            "ms": _ms(row.timings),
            "removed": _range([artefact.ratio_blocks for artefact in artefacts], "{:.1%}"),
            "parameters": _range([artefact.params / 1e6 for artefact in artefacts], "{:,.1f} M"),
            "parameters, non-zero": _range([count / 1e6 for count in map(nonzero, artefacts) if count], "{:,.1f} M"),
            "FLOPs": _range([count / 1e9 for count in flops if count is not None], "{:,.1f} G"),
            "memory, peak": _range([count / 1e6 for count in memory], "{:,.0f} MB"),
            "mJ per token": figure(row.energy) if row.energy is not None else "",
        }
        line |= device_figures(row.timings[0], {*RESERVED_COLUMNS, *label_of.values(), best})
        # The scores, accuracies first.
        for column in sorted(label_of, key=lambda column: not is_accuracy(row, column)):
            line[label_of[column]] = value(row, column)
        if main:
            mean = mean_accuracy(row, main)
            line[MEAN.name] = Figures(f"{figure_with_error(*mean)} {row.letters.get(MEAN, '')}".strip() if mean else "")
        line[best] = "" if row is group.rows[0] else gap_to_best(row, group)
        line["vs. paper"] = ", ".join(filter(None, (item.gap(row) for item in reported)))
        # Where the evidence is.
        links = [piece for entry in row.entries for piece in (" ", record_link(entry, home))]
        line |= {"trust": row.trust, "record": tuple(links[1:])}
        lines.append(line)
    names = dict.fromkeys(name for line in sorted(lines, key=len, reverse=True) for name in line)
    used = [name for name in names if any(line.get(name) for line in lines)]
    return [{name: line.get(name, "") for name in used} for line in lines]


def device_figures(timing: Latency, other_columns: Collection[str]) -> dict[str, Cell]:
    """What the device reports about its form of the pruned model, and its time after sustained work."""
    cells: dict[str, Cell] = {}
    for name, text in display_texts(timing.told.get("pruned", {})).items():
        cells[f"{name} (device)" if name in other_columns else name] = text
    if sustained := timing.sustained:
        cells["sustained"] = f"{figure(sustained.last_ns / 1e6)} ms after {sustained.seconds:.0f} s"
    return cells


def nonzero(artefact: Artefact) -> int | None:
    """How many parameters are not zero, where masks zeroed at least 1 % of them: every model has a few zeros.

    The command line uses the same threshold.
    """
    return artefact.params_nonzero if artefact.params_nonzero < 0.99 * artefact.params else None


def value(row: Row, column: Column) -> Figures:
    """A score with its standard error, or its range over several seeds, and its letter."""
    values, middle = row.values(column), row.value(column)
    if middle is None:
        return Figures()
    score = row.scores[column]
    if len(values) > 1:
        text = f"{figure(middle)} ({figure(min(values))} to {figure(max(values))})"
    else:
        text = figure_with_error(score.value, score.stderr)
    return Figures(f"{text} {row.letters.get(column, '')}".strip())


def _range(values: Sequence[float], template: str) -> Figures:
    """The range of the values, or one figure where all of them print the same."""
    if not values:
        return Figures()
    low, high = template.format(min(values)), template.format(max(values))
    return Figures(low if low == high else f"{low} to {high}")


def gap_to_best(row: Row, group: Group) -> Figures:
    """The distance to the group's first row, in the score that the rows are sorted by."""
    columns = group.sorted_by
    gap = gap_between(row, group.rows[0], columns) if columns and set(columns) <= row.scores.keys() else None
    if gap is None:
        return Figures()
    scale = row.scores[columns[0]].scale
    is_ratio = scale == "exp-mean"
    shown = (lambda x: figure(score_stats.scaled(x, scale), 3)) if is_ratio else (lambda x: f"{x:+.3g}")
    bounds = f" [{shown(gap.ci95[0])}, {shown(gap.ci95[1])}]" if gap.ci95 else ""
    return Figures(f"{shown(gap.value)}{'x' if is_ratio else ''}{bounds}")


def speedup(row: Row) -> Figures:
    timings = row.timings
    if len(timings) > 1:
        values = [timing.speedup for timing in timings]
        return Figures(f"{row.speedup:.2f}x ({min(values):.2f} to {max(values):.2f})")
    bounds = timings[0].speedup_ci95
    return Figures(f"{row.speedup:.2f}x" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else ""))


def _ms(timings: Sequence[Latency]) -> Figures:
    values = [timing.pruned.median_ns / 1e6 for timing in timings]
    if len(values) > 1:
        return Figures(f"{figure(min(values))} to {figure(max(values))}")
    bounds = timings[0].pruned.ci95_ns
    interval = f" [{figure(bounds[0] / 1e6)}, {figure(bounds[1] / 1e6)}]" if bounds else ""
    return Figures(f"{figure(values[0])}{interval}")


def failed(entry: Entry, home: Path | None) -> Cell:
    """A line for a run without figures: its request, status, reason and record."""
    record = entry.record
    method, settings = request_text(record)
    return method, f"{settings}: ", Strong(record.status), ": ", record.reason, " (", record_link(entry, home), ")"


def request_text(record: Record) -> tuple[Code, str]:
    """The request of a run that has no figures: its method, and all else that is not the default.

    The second text has a space before each setting.
    """
    spec = record.spec
    parts = [f"{name}={value}" for name, value in settings(record).items()]
    parts += [f"+ {spec.recovery}"] if spec.recovery != "none" else []
    parts += [f"preset {spec.preset}"] if spec.preset != "quick" else []
    parts += [f"seed {spec.seed}"] if spec.seed else []
    return Code(spec.pruner), "".join(f" {part}" for part in parts)


def record_link(entry: Entry, home: Path | None) -> str | Link:
    short = entry.record.id[:8]
    return short if home is None else link(short, entry.path, home)


def markdown_list(lines: Sequence[Cell]) -> str:
    return "\n".join(f"- {markdown_line(line)}" for line in lines)


def index(pages: Mapping[str, Sequence[Board]], outside: Sequence[Entry], home: Path, reported: str = "") -> str:
    """The index page: a table of all pages, and the records that are on none. `reported` names the reported page."""
    lines: list[dict[str, Cell]] = []
    for file, boards in pages.items():
        setup, rows = boards[0].setup, [row for board in boards for row in board.rows]
        lines.append(
            {
                "page": Link(setup.model, file),
                "device": setup.device,
                "workload": setup.workload,
                "methods": str(len({row.spec.pruner for row in rows})),
                "budgets": str(len({group.budget for board in boards for group in board.groups})),
                "rows": str(len(rows)),
                "failed": str(sum(len(group.failures) for board in boards for group in board.groups)),
            }
        )
    parts = ["# Leaderboards", "Made by `harness leaderboard leaderboards` from the records below `results/`."]
    parts += [markdown_table(lines)] if lines else ["No table has a record yet."]
    if reported:
        parts.append(markdown(("Figures that papers report for these methods: ", Link("reported", reported), ".")))
    if outside:
        parts.append(outside_text(outside, home))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def outside_text(entries: Sequence[Entry], home: Path | None) -> str:
    """A list of the records that are in no table, each with its reason."""
    lines = sorted(markdown_list([_outside(entry, home)]) for entry in entries)
    return "Records in no table:\n\n" + "\n".join(lines) + "\n"


def _outside(entry: Entry, home: Path | None) -> Cell:
    record = entry.record
    if record.status != "ok":
        return failed(entry, home)
    kinds = sorted({str(record.environment.device.get("provenance", t.provenance)) for t in record.latency.values()})
    why = f" on {record.spec.model}: {', '.join(kinds)}, not measured on a device ("
    return Code(record.spec.pruner), why, record_link(entry, home), ")"
