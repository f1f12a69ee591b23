"""Figures and their intervals, from raw samples. No torch, no numpy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]
_T95 += [2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def t95(freedom: int) -> float:
    """Beyond 30 degrees the next smaller tabled value errs on the wide side by less than 2 %."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    return 2.021 if freedom >= 40 else _T95[-1]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    middle = statistics.fmean(values)
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return middle - half, middle + half


def ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Geometric mean of round-paired ratios, with its interval."""
    logs = [math.log(a / b) for a, b in zip(over, under, strict=True)]
    bounds = interval(logs)
    return math.exp(statistics.fmean(logs)), bounds and (math.exp(bounds[0]), math.exp(bounds[1]))


def noise_floor(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The largest relative difference that two visits to one model explain at 95 %."""
    _, bounds = ratio(second, first)
    return bounds and max(abs(bounds[0] - 1), abs(bounds[1] - 1))


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between order statistics."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    middle = statistics.fmean(values)
    return middle, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
