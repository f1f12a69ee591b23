"""Markdown pages: one per model, device and workload, with rows at equal budgets together, and an index of them."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import stats
from harness.leaderboard.entries import Entry
from harness.leaderboard.reported import Reported
from harness.leaderboard.rows import Board, Column, Group, Place, Row, settings
from harness.leaderboard.standing import MEAN, answers, better, mean_accuracy, tasks
from harness.records import Artefact, Latency, Record
from harness.stats import figure
from harness.words import figures

Table = list[dict[str, str]]
LEGEND = (
    "± is a standard error over documents, brackets hold 95 %. Rows of one table that share a letter cannot be told "
    "apart on the same documents (paired, Holm-corrected, 5 %). Several seeds are one row, with the range of their "
    "values. A speed-up closer to 1 than the noise floor is none."
)


def file_of(place: Place) -> str:
    """Where a page lies below the leaderboards."""
    plain = [re.sub(r"[^\w.-]+", "-", word) for word in (place.model, f"{place.device}-{place.workload}")]
    return f"{plain[0]}/{plain[1]}.md"


def page(
    boards: Sequence[Board], reported: Sequence[Reported], home: Path | None, plots: Sequence[Sequence[str]] = ()
) -> str:
    """All boards of one model, device and workload, each with its plots; links are relative to `home`, if any."""
    place = boards[0].place
    parts = [f"# {place.model} on {place.device}, {place.workload}"]
    special = differing([board.place for board in boards])
    for at, board in enumerate(boards):
        parts += [f"![{name}]({name})" for name in (plots[at] if plots else ())]
        parts.append(setting(board))
        if words := taken_words(board):
            parts.append("\n".join(f"- {line}" for line in words))
        for group in board.groups:
            parts += [f"## {', '.join([_capital(group.title), *special[at]])}"]
            if len(main := tasks(group)) > 1:
                parts.append(f"Mean accuracy: over {', '.join(column.name for column in main)}.")
            if group.rows:
                parts.append(markdown(table(board, group, reported, home)))
            if group.failures:
                parts.append("\n".join(failed(entry, home) for entry in group.failures))
    if found := [one for one in reported if one.model == place.model]:
        parts += ["## Reported, not re-run", markdown([one.row() for one in found])]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def reported_page(known: Sequence[Reported]) -> str:
    """All that others reported, by model."""
    parts = ["# Reported, not re-run", "From `reported.json`: what papers and repositories say, in their own settings."]
    for model in sorted({one.model for one in known}):
        parts += [f"## {model}", markdown([one.row() for one in known if one.model == model])]
    return "\n\n".join(parts) + "\n"


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
    return ", ".join([told.get("model") or place.device, *threads])


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
    """Names alone where they are enough."""
    names = [column.name for column in columns]
    again: dict[str, int] = defaultdict(int)
    found = {}
    for column in columns:
        again[column.name] += 1
        found[column] = column.name if names.count(column.name) == 1 else f"{column.name} ({again[column.name]})"
    return found


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
        line = {
            "method": f"`{spec.pruner}`",
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
            **on_device(row.timings[0]),
        }
        for column in sorted(known, key=lambda column: not answers(row, column)):
            line[known[column]] = value(row, column)
        if main:
            found = mean_accuracy(row, main)
            line[MEAN.name] = f"{stats.spread(*found)} {row.letters.get(MEAN, '')}".strip() if found else ""
        line[best] = "" if row is group.rows[0] else to_best(row, group)
        line["to the paper"] = ", ".join(gap for one in reported if (gap := one.gap(row)))
        line |= {"trust": row.trust, "record": " ".join(link(entry, home) for entry in row.entries)}
        lines.append(line)
    names = dict.fromkeys(name for line in sorted(lines, key=len, reverse=True) for name in line)
    used = [name for name in names if any(line.get(name) for line in lines)]
    return [{name: line.get(name, "") for name in used} for line in lines]


def on_device(timing: Latency) -> dict[str, str]:
    """What the device tells of its form of the pruned model, and of work that lasts."""
    found = figures(timing.told.get("pruned", {}))
    if lasting := timing.sustained:
        found["sustained"] = f"{figure(lasting.last_ns / 1e6)} ms after {lasting.seconds:.0f} s"
    return found


def nonzero(artefact: Artefact) -> int | None:
    """Where masks zeroed much of what is stored, as the command line draws the line: every model has a few zeros."""
    return artefact.params_nonzero if artefact.params_nonzero < 0.99 * artefact.params else None


def value(row: Row, column: Column) -> str:
    values, middle = row.values(column), row.value(column)
    if middle is None:
        return ""
    score = row.scores[column]
    if len(values) > 1:
        text = f"{figure(middle)} ({figure(min(values))} to {figure(max(values))})"
    else:
        text = stats.spread(score.value, score.stderr)
    return f"{text} {row.letters.get(column, '')}".strip()


def _range(values: Sequence[float], words: str) -> str:
    """Of one seed its figure, of several what lies between them."""
    if not values:
        return ""
    low, high = words.format(min(values)), words.format(max(values))
    return low if low == high else f"{low} to {high}"


def to_best(row: Row, group: Group) -> str:
    """How far from the first row, by the figure that the rows are sorted by."""
    columns = group.sorted_by
    found = better(row, group.rows[0], columns) if columns and set(columns) <= row.scores.keys() else None
    if found is None:
        return ""
    scale = row.scores[columns[0]].scale
    ratio = scale == "exp-mean"
    shown = (lambda x: figure(stats.scaled(x, scale), 3)) if ratio else (lambda x: f"{x:+.3g}")
    bounds = f" [{shown(found.ci95[0])}, {shown(found.ci95[1])}]" if found.ci95 else ""
    return f"{shown(found.value)}{'x' if ratio else ''}{bounds}"


def speedup(row: Row) -> str:
    timings = row.timings
    if len(timings) > 1:
        values = [timing.speedup for timing in timings]
        return f"{row.speedup:.2f}x ({min(values):.2f} to {max(values):.2f})"
    bounds = timings[0].speedup_ci95
    return f"{row.speedup:.2f}x" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")


def _ms(timings: Sequence[Latency]) -> str:
    values = [timing.pruned.median_ns / 1e6 for timing in timings]
    if len(values) > 1:
        return f"{figure(min(values))} to {figure(max(values))}"
    bounds = timings[0].pruned.ci95_ns
    return figure(values[0]) + (f" [{figure(bounds[0] / 1e6)}, {figure(bounds[1] / 1e6)}]" if bounds else "")


def failed(entry: Entry, home: Path | None) -> str:
    record = entry.record
    return f"- {asked(record)}: **{record.status}**: {record.reason} ({link(entry, home)})"


def asked(record: Record) -> str:
    """What tells a row without figures from its neighbours."""
    spec = record.spec
    words = [f"`{spec.pruner}`", *(f"{name}={value}" for name, value in settings(record).items())]
    words += [f"+ {spec.recovery}"] if spec.recovery != "none" else []
    words += [f"preset {spec.preset}"] if spec.preset != "quick" else []
    return " ".join([*words, *([f"seed {spec.seed}"] if spec.seed else [])])


def link(entry: Entry, home: Path | None) -> str:
    short = entry.record.id[:8]
    return short if home is None else f"[{short}]({Path(os.path.relpath(entry.path, home)).as_posix()})"


def markdown(table: Table) -> str:
    """As GitHub reads it. Not by tabulate, whose widths follow what else is installed: committed pages are compared."""
    cells = [[name, *(row[name].replace("|", "\\|") for row in table)] for name in table[0]]
    widths = [max(map(len, column)) for column in cells]
    padded = [[cell.ljust(width) for cell in column] for column, width in zip(cells, widths, strict=True)]
    head, *lines = (f"| {' | '.join(line)} |" for line in zip(*padded, strict=True))
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines])


def index(pages: Mapping[str, Sequence[Board]], outside: Sequence[Entry], home: Path, more: str = "") -> str:
    """What pages there are, and what has none."""
    lines = []
    for file, boards in pages.items():
        place, rows = boards[0].place, [row for board in boards for row in board.rows]
        lines.append(
            {
                "page": f"[{place.model}]({file})",
                "device": place.device,
                "workload": place.workload,
                "methods": str(len({row.spec.pruner for row in rows})),
                "budgets": str(len({group.budget for board in boards for group in board.groups})),
                "rows": str(len(rows)),
                "failed": str(sum(len(group.failures) for board in boards for group in board.groups)),
            }
        )
    parts = ["# Leaderboards", "Made by `harness leaderboard leaderboards` from the records below `results/`."]
    parts += [markdown(lines)] if lines else ["No records yet."]
    parts += [f"What papers say of these methods, not re-run: [reported]({more})."] if more else []
    if outside:
        parts.append(outside_words(outside, home))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def outside_words(entries: Sequence[Entry], home: Path | None) -> str:
    return "In no table:\n\n" + "\n".join(sorted(_outside(entry, home) for entry in entries)) + "\n"


def _outside(entry: Entry, home: Path | None) -> str:
    record = entry.record
    if record.status != "ok":
        return failed(entry, home)
    kinds = sorted({record.environment.device.get("provenance", t.provenance) for t in record.latency.values()})
    who = f"- `{record.spec.pruner}` on {record.spec.model}"
    return f"{who}: {', '.join(kinds)}, not measured on a device ({link(entry, home)})"
