"""Markdown pages: one per model, device and workload, with rows at equal budgets together, and an index of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import tabulate

from harness import stats
from harness.leaderboard.entries import Entry
from harness.leaderboard.ranking import MEAN, answers, better, mean_accuracy, tasks
from harness.leaderboard.reported import Reported
from harness.leaderboard.rows import Board, Column, Group, Place, Row, settings
from harness.markup import Cell, Code, Figures, Link, Strong, link, markdown, markdown_line
from harness.quantities import figures
from harness.records.schema import Artefact, Latency, Record
from harness.stats import figure

Table = list[dict[str, Cell]]
OWN = (  # columns that no score and no figure of a device may replace
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
    "to the paper",
    "trust",
    "record",
)
LEGEND = (
    "± is a standard error over documents, brackets hold 95 %. Rows of one table that share a letter cannot be told "
    "apart on the same documents (paired, Holm-corrected, 5 %). Several seeds are one row, with the range of their "
    "values. A speed-up closer to 1 than the noise floor is none."
)


def page(
    boards: Sequence[Board], reported: Sequence[Reported], home: Path | None, plots: Sequence[Sequence[str]] = ()
) -> str:
    """All boards of one model, device and workload, each with its plots; links are relative to `home`, if any."""
    place = boards[0].place
    parts = [f"# {markdown(f'{place.model} on {place.device}, {place.workload}')}"]
    special = differing([board.place for board in boards])
    for at, board in enumerate(boards):
        parts += [markdown(Link(name, name, picture=True)) for name in (plots[at] if plots else ())]
        parts.append(markdown_line(setting(board)))
        if lines := taken_words(board):
            parts.append(listed(lines))
        for group in board.groups:
            parts += [f"## {markdown(', '.join([_capital(group.title), *special[at]]))}"]
            if len(main := tasks(group)) > 1:
                parts.append(markdown_line(f"Mean accuracy: over {', '.join(column.name for column in main)}."))
            if group.rows:
                parts.append(tabled(table(board, group, reported, home)))
            if group.failures:
                parts.append(listed([failed(entry, home) for entry in group.failures]))
    if same := [one for one in reported if one.model == place.model]:
        parts += ["## Reported, not re-run", tabled([reported_row(one) for one in same])]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def reported_page(known: Sequence[Reported]) -> str:
    """All that others reported, by model."""
    parts = ["# Reported, not re-run", "From `reported.json`: what papers and repositories say, in their own settings."]
    for model in sorted({one.model for one in known}):
        rows = [reported_row(one) for one in known if one.model == model]
        parts += [f"## {markdown(model)}", tabled(rows)]
    return "\n\n".join(parts) + "\n"


def reported_row(one: Reported) -> dict[str, Cell]:
    return {**one.row(), "method": Code(one.pruner)}


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def setting(board: Board) -> str:
    place = board.place
    floors = [t.noise_floor for row in board.rows for t in row.timings if t.noise_floor is not None]
    floor = (
        f" Noise floor {max(floors):.1%}: what dense may stray from itself (95 %), at the noisiest row."
        if floors
        else ""
    )
    texts = calibrations(board)
    text = f" Calibrated on {texts[0]}." if len(texts) == 1 else ""
    return f"{place.dtype}, {place.runtime}, on {machine(place)}; ranked by {place.clock} time.{floor}{text}"


def differing(places: Sequence[Place]) -> list[list[str]]:
    """What tells the boards of one page apart, for each."""
    words = [(p.dtype, p.runtime, f"on {machine(p)}", f"by {p.clock} time", p.revision[:12]) for p in places]
    apart = [len(set(column)) > 1 for column in zip(*words, strict=True)]
    return [[word for word, differs in zip(one, apart, strict=True) if differs] for one in words]


def machine(place: Place) -> str:
    """As it calls itself, and how many of its cores work."""
    told = json.loads(place.machine)
    threads = [f"{told['threads']} thread{'s' * (told['threads'] != 1)}"] if "threads" in told else []
    return ", ".join([str(told.get("model") or place.device), *threads])


def calibrations(board: Board) -> list[str]:
    return sorted({row.spec.calibration for row in board.rows if row.spec.calibration})


def taken_words(board: Board) -> list[str]:
    """How each score was taken, and what the dense model has."""
    lines = []
    for column, label in labels(board.columns).items():
        row = next(row for row in board.rows if column in row.scores)
        score = row.scores[column]
        dense = f"; dense {stats.spread(score.dense, score.dense_stderr)}" if score.dense is not None else ""
        lines.append(f"{label}: {column.how}{dense}")
    return lines


def labels(columns: Sequence[Column]) -> dict[Column, str]:
    """Names alone where they are enough, and are no other column's."""
    names = [column.name for column in columns]
    again: dict[str, int] = defaultdict(int)
    label_of: dict[Column, str] = {}
    for column in columns:
        label = column.name
        while label in OWN or label in label_of.values() or (label == column.name and names.count(label) > 1):
            again[column.name] += 1
            label = f"{column.name} ({again[column.name]})"
        label_of[column] = label
    return label_of


def table(board: Board, group: Group, reported: Sequence[Reported], home: Path | None) -> Table:
    """A group as cells of text; columns that no row fills are left out."""
    known, main, several = labels(board.columns), tasks(group), len(calibrations(board)) > 1
    best = f"{known[group.sorted_by[0]] if len(group.sorted_by) == 1 else MEAN.name} to the best"
    lines = []
    for row in group.rows:
        spec, records = row.spec, [entry.record for entry in row.entries]
        made = [record.artefact for record in records if record.artefact]
        flops = [record.flops[row.workload].pruned for record in records if row.workload in record.flops]
        memory = [record.memory.pruned.peak for record in records if record.memory.pruned]
        line: dict[str, Cell] = {
            "method": Code(spec.pruner),
            "settings": row.settings,
            "preset": spec.preset,
            "recovery": "" if spec.recovery == "none" else spec.recovery,
            "calibration": spec.calibration if several else "",
            "speed-up": speedup(row),
            "ms": _ms(row.timings),
            "removed": _range([artefact.ratio_blocks for artefact in made], "{:.1%}"),
            "parameters": _range([artefact.params / 1e6 for artefact in made], "{:,.1f} M"),
            "parameters, non-zero": _range([count / 1e6 for count in map(nonzero, made) if count], "{:,.1f} M"),
            "FLOPs": _range([count / 1e9 for count in flops if count is not None], "{:,.1f} G"),
            "memory, peak": _range([count / 1e6 for count in memory], "{:,.0f} MB"),
            "mJ per token": figure(row.energy) if row.energy is not None else "",
        }
        line |= on_device(row.timings[0], {*OWN, *known.values(), best})
        for column in sorted(known, key=lambda column: not answers(row, column)):
            line[known[column]] = value(row, column)
        if main:
            mean = mean_accuracy(row, main)
            line[MEAN.name] = Figures(f"{stats.spread(*mean)} {row.letters.get(MEAN, '')}".strip() if mean else "")
        line[best] = "" if row is group.rows[0] else to_best(row, group)
        line["to the paper"] = ", ".join(gap for one in reported if (gap := one.gap(row)))
        links = [piece for entry in row.entries for piece in (" ", record_link(entry, home))]
        line |= {"trust": row.trust, "record": tuple(links[1:])}
        lines.append(line)
    names = dict.fromkeys(name for line in sorted(lines, key=len, reverse=True) for name in line)
    used = [name for name in names if any(line.get(name) for line in lines)]
    return [{name: line.get(name, "") for name in used} for line in lines]


def on_device(timing: Latency, others: Collection[str]) -> dict[str, Cell]:
    """What the device tells of its form of the pruned model, and of work that lasts."""
    details: dict[str, Cell] = {}
    for name, value in figures(timing.told.get("pruned", {})).items():
        details[f"{name} (device)" if name in others else name] = value
    if lasting := timing.sustained:
        details["sustained"] = f"{figure(lasting.last_ns / 1e6)} ms after {lasting.seconds:.0f} s"
    return details


def nonzero(artefact: Artefact) -> int | None:
    """Where masks zeroed much of what is stored, as the command line draws the line: every model has a few zeros."""
    return artefact.params_nonzero if artefact.params_nonzero < 0.99 * artefact.params else None


def value(row: Row, column: Column) -> Figures:
    values, middle = row.values(column), row.value(column)
    if middle is None:
        return Figures()
    score = row.scores[column]
    if len(values) > 1:
        text = f"{figure(middle)} ({figure(min(values))} to {figure(max(values))})"
    else:
        text = stats.spread(score.value, score.stderr)
    return Figures(f"{text} {row.letters.get(column, '')}".strip())


def _range(values: Sequence[float], words: str) -> Figures:
    """Of one seed its figure, of several what lies between them."""
    if not values:
        return Figures()
    low, high = words.format(min(values)), words.format(max(values))
    return Figures(low if low == high else f"{low} to {high}")


def to_best(row: Row, group: Group) -> Figures:
    """How far from the first row, by the figure that the rows are sorted by."""
    columns = group.sorted_by
    found = better(row, group.rows[0], columns) if columns and set(columns) <= row.scores.keys() else None
    if found is None:
        return Figures()
    scale = row.scores[columns[0]].scale
    ratio = scale == "exp-mean"
    shown = (lambda x: figure(stats.scaled(x, scale), 3)) if ratio else (lambda x: f"{x:+.3g}")
    bounds = f" [{shown(found.ci95[0])}, {shown(found.ci95[1])}]" if found.ci95 else ""
    return Figures(f"{shown(found.value)}{'x' if ratio else ''}{bounds}")


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
    record = entry.record
    method, settings = request_text(record)
    return method, f"{settings}: ", Strong(record.status), ": ", record.reason, " (", record_link(entry, home), ")"


def request_text(record: Record) -> tuple[Code, str]:
    """What tells a row without figures from its neighbours: the method, and the rest with a space before each word."""
    spec = record.spec
    words = [f"{name}={value}" for name, value in settings(record).items()]
    words += [f"+ {spec.recovery}"] if spec.recovery != "none" else []
    words += [f"preset {spec.preset}"] if spec.preset != "quick" else []
    words += [f"seed {spec.seed}"] if spec.seed else []
    return Code(spec.pruner), "".join(f" {word}" for word in words)


def record_link(entry: Entry, home: Path | None) -> str | Link:
    short = entry.record.id[:8]
    return short if home is None else link(short, entry.path, home)


def listed(lines: Sequence[Cell]) -> str:
    return "\n".join(f"- {markdown_line(line)}" for line in lines)


def tabled(table: Table) -> str:
    """The table in GitHub's Markdown, the same bytes on every machine."""
    # Without this, widths would depend on whether wcwidth is installed, and committed pages are compared byte by byte.
    tabulate.WIDE_CHARS_MODE = False
    lines = [[markdown(row[name]) for name in table[0]] for row in table]
    headers = [markdown(name) for name in table[0]]
    return tabulate.tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def index(pages: Mapping[str, Sequence[Board]], outside: Sequence[Entry], home: Path, more: str = "") -> str:
    """What pages there are, and what has none."""
    lines: Table = []
    for file, boards in pages.items():
        place, rows = boards[0].place, [row for board in boards for row in board.rows]
        lines.append(
            {
                "page": Link(place.model, file),
                "device": place.device,
                "workload": place.workload,
                "methods": str(len({row.spec.pruner for row in rows})),
                "budgets": str(len({group.budget for board in boards for group in board.groups})),
                "rows": str(len(rows)),
                "failed": str(sum(len(group.failures) for board in boards for group in board.groups)),
            }
        )
    parts = ["# Leaderboards", "Made by `harness leaderboard leaderboards` from the records below `results/`."]
    parts += [tabled(lines)] if lines else ["No record in a table."]
    if more:
        parts.append(markdown(("What papers say of these methods, not re-run: ", Link("reported", more), ".")))
    if outside:
        parts.append(outside_words(outside, home))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def outside_words(entries: Sequence[Entry], home: Path | None) -> str:
    return "In no table:\n\n" + "\n".join(sorted(listed([_outside(entry, home)]) for entry in entries)) + "\n"


def _outside(entry: Entry, home: Path | None) -> Cell:
    record = entry.record
    if record.status != "ok":
        return failed(entry, home)
    kinds = sorted({str(record.environment.device.get("provenance", t.provenance)) for t in record.latency.values()})
    why = f" on {record.spec.model}: {', '.join(kinds)}, not measured on a device ("
    return Code(record.spec.pruner), why, record_link(entry, home), ")"
