"""Pairwise comparisons of rows on shared documents, Holm-corrected: the order of rows and their letters."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from harness.leaderboard import significance
from harness.leaderboard.rows import LEVEL, Column, Group, Row

T_STEP = 1.05  # factor between the t values that `_critical_t` tries
MEAN = Column("mean accuracy", "", "")


def is_accuracy(row: Row, column: Column) -> bool:
    """Whether each document of a score is right or wrong.

    The scores of documents need not be read for it: the standard error of such a mean follows from the mean alone.
    """
    score = row.scores.get(column)
    if score is None or not score.higher_is_better or score.n < 2 or score.stderr is None or "." in column.name:
        return False
    return math.isclose(
        score.stderr, math.sqrt(max(0.0, score.value * (1 - score.value) / (score.n - 1))), abs_tol=1e-9
    )


def shared_accuracies(group: Group) -> list[Column]:
    """The accuracies that every scored row of a group has. If there are several, their mean is another score."""
    scored = [row for row in group.rows if row.scores]
    accuracies = [{column for column in row.scores if is_accuracy(row, column)} for row in scored]
    shared = sorted(set.intersection(*accuracies)) if accuracies else []
    return shared if len(shared) > 1 else []


def mean_accuracy(row: Row, columns: Sequence[Column]) -> tuple[float, float] | None:
    """The mean over tasks and its standard error over documents."""
    values = [row.value(column) for column in columns]
    if not values or None in values:
        return None
    errors = [row.scores[column].stderr or 0.0 for column in columns]
    return statistics.fmean(v for v in values if v is not None), math.hypot(*errors) / len(errors)


def gap_between(row: Row, other: Row, columns: Sequence[Column]) -> significance.Gap | None:
    """The difference of two rows by document. All tasks have equal weight; perplexities are compared by logarithms."""
    strata = []
    for column in columns:
        values, reference = aligned([row.documents.get(column, {}), other.documents.get(column, {})])
        if not values:
            return None
        strata.append(list(map(operator.sub, values, reference)))
    return significance.gap(strata)


def rank_group(group: Group, columns: Sequence[Column], by: Sequence[Column] = ()) -> None:
    """Sort a group and give its rows letters in every score.

    The rows are sorted by the scores `by`, else by their mean accuracy, else by the most important score they have.
    """
    main = shared_accuracies(group)
    group.sorted_by = list(by) or main or by_importance(columns, group.rows)[:1]
    first = MEAN if len(group.sorted_by) > 1 else next(iter(group.sorted_by), None)
    group.rows.sort(key=lambda row: _sort_key(row, first, main))
    for column in columns:
        _set_letters(group.rows, column, [column])
    if main:
        _set_letters(group.rows, MEAN, main)


def by_importance(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The scores that any row has: perplexities before other scores, whole scores before their parts."""
    scales = {column: score.scale for row in rows for column, score in row.scores.items()}
    scored = [column for column in columns if column in scales]
    return sorted(scored, key=lambda column: ("." in column.name, scales[column] != "exp-mean", column))


def _sort_key(row: Row, first: Column | None, main: Sequence[Column]) -> tuple[bool, float, str]:
    """The best row comes first, rows without the score last."""
    if first is None:
        return False, -row.speedup, row.spec.pruner
    if first == MEAN:
        mean = mean_accuracy(row, main)
        return mean is None, -mean[0] if mean else 0.0, row.spec.pruner
    value = row.value(first)
    up = first in row.scores and row.scores[first].higher_is_better
    return value is None, 0.0 if value is None else -value if up else value, row.spec.pruner


def _set_letters(rows: Sequence[Row], name: Column, columns: Sequence[Column]) -> None:
    """Give each row its letters. Rows that do not differ significantly share one."""
    ordered, different = compare_rows(rows, columns)
    for row, letters in zip(ordered, significance.letters(len(ordered), different), strict=True):
        row.letters[name] = letters


def compare_rows(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[Row], list[tuple[int, int]]]:
    """The rows that have all these scores, the best first, and the pairs that differ significantly.

    A pair holds positions in the list, the better row first. Holm's correction is over all pairs.
    """
    scored = [row for row in rows if all(row.documents.get(column) for column in columns)]
    if len(scored) < 2:
        return [], []
    strata = [list(aligned([row.documents[column] for row in scored])) for column in columns]
    if not all(part[0] for part in strata):
        return [], []
    # Sort the rows by their mean over all tasks.
    up = scored[0].scores[columns[0]].higher_is_better
    means = [statistics.fmean(statistics.fmean(part[i]) for part in strata) for i in range(len(scored))]
    order = sorted(range(len(scored)), key=lambda i: -means[i] if up else means[i])
    rank_of = {i: rank for rank, i in enumerate(order)}
    # Name each pair by the rows' ranks.
    different = []
    for first, second in different_pairs(strata):
        low, high = sorted((rank_of[first], rank_of[second]))
        different.append((low, high))
    return [scored[i] for i in order], different


def aligned(tables: Sequence[Mapping[str, float]]) -> Iterator[list[float]]:
    """For each table, the values of the names that all tables have, in the same order."""
    first = list(tables[0])
    if all(list(table) == first for table in tables):  # the usual case, and much faster
        return (list(table.values()) for table in tables)
    shared = set.intersection(*(set(table) for table in tables))
    return ([table[name] for name in first if name in shared] for table in tables)


def different_pairs(strata: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, int]]:
    """The pairs of rows that differ significantly. It is what `gap` and `holm` give, for all pairs at once.

    Each stratum is a task: a list of scores by document for each row.
    """
    import numpy as np

    # Differences of all pairs, their squared standard errors and their degrees of freedom (Welch-Satterthwaite).
    value, error = np.zeros((1, 1)), np.zeros((1, 1))
    freedom = np.zeros((1, 1))
    for part in strata:
        table = np.asarray(part, dtype=np.float64)
        documents = table.shape[1]
        if documents < 2:
            return []
        means = table.mean(axis=1)
        covariance = np.cov(table)
        variances = covariance.diagonal()
        square = np.maximum(np.add.outer(variances, variances) - 2 * covariance, 0) / documents / len(strata) ** 2
        square[square < 1e-12 * np.abs(covariance).max()] = 0  # rows are equal, and the rest is rounding
        value = value + np.subtract.outer(means, means) / len(strata)
        error = error + square
        freedom = freedom + square**2 / (documents - 1)
    upper = np.triu_indices(len(value), 1)
    gaps, square = np.abs(value[upper]), error[upper]
    freedom = freedom[upper]
    with np.errstate(divide="ignore", invalid="ignore"):
        ts, degrees = gaps / np.sqrt(square), square**2 / freedom

    # Exact p-values are slow. They are computed only where they decide; elsewhere 0 or 1 gives the same answer.
    ps = np.where(square == 0, gaps < 1e-12, 1.0)
    for whole in np.unique(np.floor(degrees[square > 0])):
        of_degree = (square > 0) & (np.floor(degrees) == whole)
        ps[of_degree & (ts > _critical_t(int(whole), LEVEL / len(ps)))] = 0.0  # significant by the strictest level
        undecided = of_degree & (ps > 0) & (ts > _critical_t(int(whole) + 1, LEVEL) / T_STEP)
        ps[undecided] = [
            significance.t_tail(t, d) for t, d in zip(ts[undecided].tolist(), degrees[undecided].tolist(), strict=True)
        ]
    pairs = zip(*(part.tolist() for part in upper), strict=True)
    return [pair for pair, p in zip(pairs, significance.holm(ps.tolist()), strict=True) if p < LEVEL]


@cache
def _critical_t(degrees: int, level: float) -> float:
    """A t value just above the critical one: significant at this level, and not if divided by T_STEP."""
    t = 1.0
    while significance.t_tail(t, degrees) > level:
        t *= T_STEP
    return t
