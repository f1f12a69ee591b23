"""Latency against quality: which rows are worth a look, and a picture of all."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from harness.evaluation.score_stats import MOST
from harness.leaderboard.ranking import MEAN, compared, mean_accuracy, tasks
from harness.leaderboard.rows import Board, Column, Row
from harness.leaderboard.scatter import Bounds, Point, scatter
from harness.records.schema import LARGEST
from harness.stats import figure

FAR = 12  # times the best perplexity: what is beyond stands above the edge


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
    lost = [row for name in {row.recovery for row in rows} for row in beaten(rows, name, columns)]
    points = [_point(row, columns, any(row is other for other in lost)) for row in rows]
    edge = math.inf if up else FAR * min(point.y for point in points)
    mark = None
    if dense is not None and dense <= edge:
        mark = Point("dense", "", 1.0, dense, told=f"dense: {figure(dense)}")
    title = f"{place.model} on {place.device}, {place.workload}; hollow: another with the same recovery is better"
    x = f"{place.clock} time, share of dense"
    return scatter(points, title, x, label, log=not up, edge=edge, mark=mark)


def _point(row: Row, columns: Sequence[Column], hollow: bool) -> Point:
    spec, score = row.spec, row.scores[columns[0]]
    healed = "" if row.recovery == "none" else f" + {row.recovery}"
    if score.scale == "exp-mean":
        y, error = row.value(columns[0]) or math.nan, (score.stderr or 0.0) / score.value
        factor = math.exp(min(1.96 * abs(error), MOST))
        y95 = (max(y / factor, 1 / LARGEST), min(y * factor, LARGEST))
    else:
        y, error = mean_accuracy(row, columns) or (math.nan, 0.0)
        y95 = (y - 1.96 * error, y + 1.96 * error)
    name, x = spec.pruner + healed, 1 / row.speedup
    told = f"{name} {row.settings}: {x:.3f}x of dense, {figure(y)}"
    series = f"{row.settings} {spec.recovery} {spec.preset}"
    return Point(name, series, x, y, takes95(row), y95 if error else None, hollow, told)


def takes95(row: Row) -> Bounds | None:
    """The share of dense that it takes: over several seeds what holds all their intervals."""
    known = [timing.speedup_ci95 for timing in row.timings if timing.speedup_ci95]
    return (1 / max(high for _, high in known), 1 / min(low for low, _ in known)) if known else None


def beaten(rows: Sequence[Row], recovery: str, columns: Sequence[Column]) -> Iterator[Row]:
    """Those that another one with this recovery is known to be better than at one thing, and not worse at the other.

    Of scores letters' decision counts, over all rows with this recovery.
    """
    known, differ = compared([row for row in rows if row.recovery == recovery], columns)
    better, takes = set(differ), [takes95(row) for row in known]
    for one, other in itertools.permutations(range(len(known)), 2):
        ours, theirs = takes[one], takes[other]
        if ours is None or theirs is None:
            continue
        faster, slower = ours[1] < theirs[0], ours[0] > theirs[1]
        good, bad = (one, other) in better, (other, one) in better
        if (good and not slower) or (faster and not bad):
            yield known[other]
