"""Significance of differences: paired tests over documents, corrected for many comparisons, as compact letters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.stats import t95, variance


@dataclass(frozen=True)
class Gap:
    """The difference of two means over the same documents."""

    value: float
    ci95: tuple[float, float] | None
    p: float  # the probability of a difference at least as large if there were none


def gap(strata: Sequence[Sequence[float]]) -> Gap | None:
    """The gap from differences by document, one list per task. None if a task has no documents.

    Tasks have equal weight, however many documents each has. Their variances may
    differ, so the degrees of freedom are Welch's.
    """
    if not strata or any(not differences for differences in strata):
        return None
    value = statistics.fmean(statistics.fmean(differences) for differences in strata)
    # each task's part of the variance of the mean, with its degrees of freedom
    parts = [(variance(part) / len(part) / len(strata) ** 2, len(part) - 1) for part in strata if len(part) > 1]
    error = math.sqrt(sum(part for part, _ in parts))
    if len(parts) < len(strata):
        return Gap(value, None, 1.0)
    if error == 0:  # all differences of a task are equal: fall back to a two-sided sign test
        return Gap(value, None, 1.0 if value == 0 else 2 * 0.5 ** sum(map(len, strata)))
    freedom = error**4 / sum(part**2 / degrees for part, degrees in parts)
    half_width = t95(max(1, math.floor(freedom))) * error
    return Gap(value, (value - half_width, value + half_width), t_tail(value / error, freedom))


def t_tail(t: float, freedom: float) -> float:
    """The two-sided tail probability of Student's t."""
    if not math.isfinite(t):
        return 0.0
    x = freedom / (freedom + t * t)
    return _incomplete_beta(x, freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 300):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + step * d), 1 + step / c
            fraction *= d * c
        if abs(d * c - 1) < 1e-13:
            break
    return front * fraction / a


def holm(ps: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values."""
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, ps[index] * (len(ps) - rank)))
        adjusted[index] = largest
    return adjusted


def letters(count: int, differ: Iterable[tuple[int, int]]) -> list[str]:
    """A compact letter display: two rows share a letter exactly if they are not in `differ`.

    The first rows get the first letters.
    """
    columns = [(1 << count) - 1]  # a bit for each row that has this letter
    for first, second in differ:
        both = 1 << first | 1 << second
        # a letter that both rows have becomes two letters, each without one of them, unless another letter has its rows
        for column in [column for column in columns if column & both == both]:
            columns.remove(column)
            for row in (first, second):
                remaining = column & ~(1 << row)
                if all(remaining & ~other for other in columns):
                    columns.append(remaining)
    groups = sorted([row for row in range(count) if column >> row & 1] for column in columns if column)
    return ["".join(_letter(at) for at, rows in enumerate(groups) if row in rows) for row in range(count)]


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"({index})"
