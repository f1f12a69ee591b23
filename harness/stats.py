"""Confidence intervals of means, and how figures are written. No torch, no numpy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]
_T95 += [2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def t95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t.

    Beyond 30 degrees of freedom it is the next smaller value of the table, so that intervals are up to 3 % too wide.
    """
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    return 2.021 if freedom >= 40 else _T95[-1]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half_width = t95(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return mean - half_width, mean + half_width


def variance(values: Sequence[float]) -> float:
    """Sample variance. `statistics.variance` computes with fractions, which takes fifty times as long."""
    mean = statistics.fmean(values)
    return math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1)
