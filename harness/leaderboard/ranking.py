"""Who is better than whom, on the same documents, once it counts how many are compared."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from harness.leaderboard import significance
from harness.leaderboard.rows import LEVEL, Column, Group, Row

STEP = 1.05
MEAN = Column("mean accuracy", "", "")


def answers(row: Row, column: Column) -> bool:
    """Whether each document is right or wrong, which a mean's standard error tells."""
    score = row.scores.get(column)
    if score is None or not score.higher_is_better or score.n < 2 or score.stderr is None or "." in column.name:
        return False
    return math.isclose(
        score.stderr, math.sqrt(max(0.0, score.value * (1 - score.value) / (score.n - 1))), abs_tol=1e-9
    )


def tasks(group: Group) -> list[Column]:
    """The accuracies that every scored row of a group has; their mean is one figure more if there are several."""
    scored = [row for row in group.rows if row.scores]
    each = [{column for column in row.scores if answers(row, column)} for row in scored]
    shared = sorted(set.intersection(*each)) if each else []
    return shared if len(shared) > 1 else []


def mean_accuracy(row: Row, columns: Sequence[Column]) -> tuple[float, float] | None:
    """The mean over tasks and its standard error over documents."""
    values = [row.value(column) for column in columns]
    if not values or None in values:
        return None
    errors = [row.scores[column].stderr or 0.0 for column in columns]
    return statistics.fmean(v for v in values if v is not None), math.hypot(*errors) / len(errors)


def better(row: Row, other: Row, columns: Sequence[Column]) -> significance.Gap | None:
    """How far one row is from another, by document, each task alike; perplexities by their logarithms."""
    strata = []
    for column in columns:
        ours, theirs = aligned([row.documents.get(column, {}), other.documents.get(column, {})])
        if not ours:
            return None
        strata.append(list(map(operator.sub, ours, theirs)))
    return significance.gap(strata)


def stand(group: Group, columns: Sequence[Column], by: Sequence[Column] = ()) -> None:
    """Sort a group by its first figure, or by another one, and give letters to all that it has."""
    main = tasks(group)
    group.sorted_by = list(by) or main or by_use(columns, group.rows)[:1]
    first = MEAN if len(group.sorted_by) > 1 else next(iter(group.sorted_by), None)
    group.rows.sort(key=lambda row: _rank(row, first, main))
    for column in columns:
        _letter(group.rows, column, [column])
    if main:
        _letter(group.rows, MEAN, main)


def by_use(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Perplexities before other scores, whole ones before their parts; those that no row has are left out."""
    scales = {column: score.scale for row in rows for column, score in row.scores.items()}
    known = [column for column in columns if column in scales]
    return sorted(known, key=lambda column: ("." in column.name, scales[column] != "exp-mean", column))


def _rank(row: Row, first: Column | None, main: Sequence[Column]) -> tuple[bool, float, str]:
    if first is None:
        return False, -row.speedup, row.spec.pruner
    if first == MEAN:
        found = mean_accuracy(row, main)
        return found is None, -found[0] if found else 0.0, row.spec.pruner
    value = row.value(first)
    up = first in row.scores and row.scores[first].higher_is_better
    return value is None, 0.0 if value is None else -value if up else value, row.spec.pruner


def _letter(rows: Sequence[Row], name: Column, columns: Sequence[Column]) -> None:
    """Rows that share a letter cannot be told apart."""
    known, differ = compared(rows, columns)
    for row, found in zip(known, significance.letters(len(known), differ), strict=True):
        row.letters[name] = found


def compared(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[Row], list[tuple[int, int]]]:
    """Those that were asked all the same, the best first, and which of them differ, the better one of each pair first.

    Holm's correction is over all pairs.
    """
    known = [row for row in rows if all(row.documents.get(column) for column in columns)]
    if len(known) < 2:
        return [], []
    strata = [list(aligned([row.documents[column] for row in known])) for column in columns]
    if not all(part[0] for part in strata):
        return [], []
    up = known[0].scores[columns[0]].higher_is_better
    means = [statistics.fmean(statistics.fmean(part[at]) for part in strata) for at in range(len(known))]
    order = sorted(range(len(known)), key=lambda at: -means[at] if up else means[at])
    place = {at: rank for rank, at in enumerate(order)}
    differ = [(p, q) for a, b in told_apart(strata) for p, q in [sorted((place[a], place[b]))]]
    return [known[at] for at in order], differ


def aligned(tables: Sequence[Mapping[str, float]]) -> Iterator[list[float]]:
    """The values of what all share, in one order."""
    first = list(tables[0])
    if all(list(table) == first for table in tables):  # almost always, and much faster
        return (list(table.values()) for table in tables)
    shared = set.intersection(*(set(table) for table in tables))
    return ([table[name] for name in first if name in shared] for table in tables)


def told_apart(strata: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, int]]:
    """The pairs of rows that differ. What `significance.gap` says of each pair, for all of them at once."""
    import numpy as np

    freedom = value = error = np.zeros((1, 1))
    for part in strata:
        table = np.asarray(part, dtype=np.float64)
        documents = table.shape[1]
        if documents < 2:
            return []
        middle = table.mean(axis=1)
        own = np.cov(table)
        square = np.maximum(np.add.outer(own.diagonal(), own.diagonal()) - 2 * own, 0) / documents / len(strata) ** 2
        square[square < 1e-12 * np.abs(own).max()] = 0  # of equal rows rounding is what is left
        value = value + np.subtract.outer(middle, middle) / len(strata)
        error = error + square
        freedom = freedom + square**2 / (documents - 1)
    upper = np.triu_indices(len(value), 1)
    gaps, square, freedom = np.abs(value[upper]), error[upper], freedom[upper]
    with np.errstate(divide="ignore", invalid="ignore"):
        ts, degrees = gaps / np.sqrt(square), square**2 / freedom
    ps = np.where(square == 0, gaps < 1e-12, 1.0)
    for whole in np.unique(np.floor(degrees[square > 0])):
        here = (square > 0) & (np.floor(degrees) == whole)
        ps[here & (ts > _rarer(int(whole), LEVEL / len(ps)))] = 0.0  # even the strictest correction leaves no doubt
        doubtful = here & (ps > 0) & (ts > _rarer(int(whole) + 1, LEVEL) / STEP)  # what is closer is no difference
        ps[doubtful] = [
            significance.t_tail(t, d) for t, d in zip(ts[doubtful].tolist(), degrees[doubtful].tolist(), strict=True)
        ]
    pairs = zip(*(part.tolist() for part in upper), strict=True)
    return [pair for pair, p in zip(pairs, significance.holm(ps.tolist()), strict=True) if p < LEVEL]


@cache
def _rarer(degrees: int, level: float) -> float:
    """A t that chance shows more rarely than that; one step before it does not."""
    t = 1.0
    while significance.t_tail(t, degrees) > level:
        t *= STEP
    return t
