"""Pictures of latency against quality, with dominated rows drawn hollow."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from harness.evaluation.score_stats import MOST
from harness.formatting import figure
from harness.leaderboard.ranking import MEAN, compare_rows, mean_accuracy, shared_accuracies
from harness.leaderboard.rows import Board, Column, Row
from harness.leaderboard.scatter import Bounds, Point, scatter
from harness.records.schema import LARGEST

EDGE = 12  # times the best perplexity; rows beyond it are drawn above the plot


def pictures(board: Board) -> dict[str, str]:
    """One SVG for each perplexity that several rows have, and one for the mean accuracy."""
    svgs, rows = {}, board.rows
    for column in board.columns:
        scored = [row for row in rows if column in row.scores]
        if len(scored) > 1 and "." not in column.name and scored[0].scores[column].scale == "exp-mean":
            dense = scored[0].scores[column].dense
            svgs[column.name] = _plot(board, scored, [column], dense, f"{column.name}, perplexity")
    shared = sorted({column for group in board.groups for column in shared_accuracies(group)})
    scored = [row for row in rows if shared and all(column in row.scores for column in shared)]
    if len(scored) > 1:
        dense_scores = [scored[0].scores[column].dense for column in shared]
        values = [value for value in dense_scores if value is not None]
        dense = statistics.fmean(values) if len(values) == len(dense_scores) else None
        svgs["mean-accuracy"] = _plot(board, scored, shared, dense, MEAN.name)
    return svgs


def _plot(board: Board, rows: Sequence[Row], columns: Sequence[Column], dense: float | None, label: str) -> str:
    setup, up = board.setup, rows[0].scores[columns[0]].higher_is_better
    recoveries = {row.recovery for row in rows}
    dominated = {id(row) for recovery in recoveries for row in dominated_rows(rows, recovery, columns)}
    points = [_point(row, columns, id(row) in dominated) for row in rows]
    edge = math.inf if up else EDGE * min(point.y for point in points)
    mark = None
    if dense is not None and dense <= edge:
        mark = Point("dense", "", 1.0, dense, tooltip=f"dense: {figure(dense)}")
    title = f"{setup.model} on {setup.device}, {setup.workload}; hollow: dominated by a row with the same recovery"
    x = f"{setup.clock} time, share of dense"
    return scatter(points, title, x, label, log=not up, edge=edge, mark=mark)


def _point(row: Row, columns: Sequence[Column], hollow: bool) -> Point:
    spec, score = row.spec, row.scores[columns[0]]
    recovery = "" if row.recovery == "none" else f" + {row.recovery}"
    if score.scale == "exp-mean":
        y, error = row.value(columns[0]) or math.nan, (score.stderr or 0.0) / score.value
        factor = math.exp(min(1.96 * abs(error), MOST))
        y95 = (max(y / factor, 1 / LARGEST), min(y * factor, LARGEST))
    else:
        y, error = mean_accuracy(row, columns) or (math.nan, 0.0)
        y95 = (y - 1.96 * error, y + 1.96 * error)
    name, x = spec.pruner + recovery, 1 / row.speedup
    tooltip = f"{name} {row.settings}: {x:.3f}x of dense, {figure(y)}"
    series = f"{row.settings} {spec.recovery} {spec.preset}"
    return Point(name, series, x, y, time_share_ci95(row), y95 if error else None, hollow, tooltip)


def time_share_ci95(row: Row) -> Bounds | None:
    """The interval of a row's share of the dense time; over several seeds, one that holds all their intervals."""
    bounds = [timing.speedup_ci95 for timing in row.timings if timing.speedup_ci95]
    return (1 / max(high for _, high in bounds), 1 / min(low for low, _ in bounds)) if bounds else None


def dominated_rows(rows: Sequence[Row], recovery: str, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows with this recovery that another one beats significantly in time or score, and does not lose to in the
    other of the two.

    Scores differ if they do so among all rows with this recovery, Holm-corrected.
    """
    scored, different = compare_rows([row for row in rows if row.recovery == recovery], columns)
    pairs, times = set(different), [time_share_ci95(row) for row in scored]
    for first, second in itertools.permutations(range(len(scored)), 2):
        time, other_time = times[first], times[second]
        if time is None or other_time is None:
            continue
        faster, slower = time[1] < other_time[0], time[0] > other_time[1]
        better, worse = (first, second) in pairs, (second, first) in pairs
        if (better and not slower) or (faster and not worse):
            yield scored[second]
