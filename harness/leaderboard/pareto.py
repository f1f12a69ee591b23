"""Latency against quality: which rows are worth a look, and a picture of all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from harness.leaderboard.rows import LEVEL, Board, Column, Row
from harness.leaderboard.standing import MEAN, better, mean_accuracy, tasks
from harness.leaderboard.svg import Bounds, Point, scatter

FAR = 12  # times the best perplexity: what is beyond stands at the edge


def pictures(board: Board) -> dict[str, str]:
    """One per figure that several rows have: each perplexity, and the mean accuracy."""
    found, rows = {}, board.rows
    for column in board.columns:
        known = [row for row in rows if column in row.scores]
        if len(known) > 1 and "." not in column.name and known[0].scores[column].scale == "exp-mean":
            dense = known[0].scores[column].dense
            found[column.name] = _drawn(board, known, [column], dense, f"{column.name}, perplexity")
    shared = sorted({column for group in board.groups for column in tasks(group)})
    known = [row for row in rows if shared and all(column in row.scores for column in shared)]
    if len(known) > 1:
        each = [known[0].scores[column].dense for column in shared]
        values = [value for value in each if value is not None]
        dense = statistics.fmean(values) if len(values) == len(each) else None
        found["mean-accuracy"] = _drawn(board, known, shared, dense, MEAN.name)
    return found


def _drawn(board: Board, rows: Sequence[Row], columns: Sequence[Column], dense: float | None, label: str) -> str:
    place, up = board.place, rows[0].scores[columns[0]].higher_is_better
    points = [_point(row, columns, any(beats(other, row, columns) for other in rows)) for row in rows]
    edge = math.inf if up else FAR * min(point.y for point in points)
    mark = None
    if dense is not None and dense <= edge:
        mark = Point("dense", "", 1.0, dense, told=f"dense: {dense:.4g}")
    title = f"{place.model} on {place.device}, {place.workload}; hollow: another row is better"
    x = f"{place.clock} time, share of dense"
    return scatter(points, title, x, label, log=not up, edge=edge, mark=mark)


def _point(row: Row, columns: Sequence[Column], beaten: bool) -> Point:
    spec, score = row.spec, row.scores[columns[0]]
    healed = "" if spec.recovery == "none" else f" + {spec.recovery.partition(':')[0]}"
    if score.scale == "exp-mean":
        y, error = row.value(columns[0]) or math.nan, (score.stderr or 0.0) / score.value
        y95 = (y * math.exp(-1.96 * error), y * math.exp(1.96 * error))
    else:
        y, error = mean_accuracy(row, columns) or (math.nan, 0.0)
        y95 = (y - 1.96 * error, y + 1.96 * error)
    name, x = spec.pruner + healed, 1 / row.speedup
    told = f"{name} {row.settings}: {x:.3f}x of dense, {y:.4g}"
    series = f"{row.settings} {spec.recovery} {spec.preset}"
    return Point(name, series, x, y, takes95(row), y95 if error else None, beaten, told)


def takes95(row: Row) -> Bounds | None:
    """The share of dense that it takes: over several seeds what holds all their intervals."""
    known = [timing.speedup_ci95 for timing in row.timings if timing.speedup_ci95]
    return (1 / max(high for _, high in known), 1 / min(low for low, _ in known)) if known else None


def beats(one: Row, other: Row, columns: Sequence[Column]) -> bool:
    """Known to be better at one thing and not known to be worse at the other."""
    ours, theirs = takes95(one), takes95(other)
    if one is other or ours is None or theirs is None:
        return False
    faster, slower = ours[1] < theirs[0], ours[0] > theirs[1]
    gap = better(one, other, columns)
    if gap is None:
        return False
    told = gap.p < LEVEL
    good = told and (gap.value > 0) == one.scores[columns[0]].higher_is_better
    return (good and not slower) or (faster and not (told and not good))
