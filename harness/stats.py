"""Figures and their intervals, from raw samples. No torch; numpy where hundreds of redrawn samples are judged."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

RESAMPLES = 400
MOST = 700.0  # whose exponential is still a number

# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]
_T95 += [2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def t95(freedom: int) -> float:
    """Beyond 30 degrees the next smaller tabled value errs on the wide side, by 3 % at most."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    return 2.021 if freedom >= 40 else _T95[-1]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    middle = statistics.fmean(values)
    half = t95(len(values) - 1) * math.sqrt(_variance(values) / len(values))
    return middle - half, middle + half


def calm(rounds: Any) -> Any:
    """Mean logarithm of the faster half of the visits: what else a machine does only adds to a time, by bursts.

    Logarithms of times, by round and visit; what is before is done for each.
    """
    import numpy as np

    count, visits = rounds.shape[-2:]
    ordered = rounds.reshape(*rounds.shape[:-2], count * visits)
    ordered.sort(axis=-1)  # where it lies: what was drawn is nobody else's
    half = math.ceil(count / 2) * visits  # by hand: of few numbers numpy's mean is mostly its own preparations
    return np.add.reduce(ordered[..., :half], axis=-1) / half


@cache
def _drawn(count: int) -> Any:
    """The rounds as they came, then drawn anew, the same for all that have so many."""
    import numpy as np

    chance = random.Random(0)
    return np.array([range(count), *(chance.choices(range(count), k=count) for _ in range(RESAMPLES))])


def ratio(
    over: Sequence[Sequence[float]], under: Sequence[Sequence[float]]
) -> tuple[float, tuple[float, float] | None]:
    """How many times longer one takes, each by the faster half of its visits, which come by round.

    The interval is of rounds drawn anew, as wide as a t of so many visits as count.
    """

    import numpy as np

    first, second = (np.log(np.asarray(rounds, dtype=np.float64)) for rounds in (over, under))
    count = len(over)
    drawn = _drawn(count)
    apart = calm(first.take(drawn, axis=0)) - calm(second.take(drawn, axis=0))
    middle = float(apart[0])
    if count < 2:
        return math.exp(middle), None
    half = t95(math.ceil(count / 2)) * float(apart[1:].std())
    return math.exp(middle), (math.exp(middle - half), math.exp(middle + half))


def noise_floor(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The largest relative difference that two visits to one model explain at 95 %."""
    _, bounds = ratio([(time,) for time in second], [(time,) for time in first])
    return bounds and max(abs(bounds[0] - 1), abs(bounds[1] - 1))


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between order statistics."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def estimate(documents: Sequence[float], scale: str) -> tuple[float, float | None]:
    """A score and its standard error, from its documents."""
    mean, stderr = mean_stderr(documents)
    value = scaled(mean, scale)
    return value, stderr * value if stderr is not None and scale == "exp-mean" else stderr


def change(
    ours: Mapping[str, float], theirs: Mapping[str, float], scale: str
) -> tuple[float | None, tuple[float, float] | None]:
    """How far one is from the other on the documents that both saw, as the score has it, and its 95 % interval."""
    shared = [name for name in ours if name in theirs]
    if not shared:
        return None, None
    value, bounds = paired([ours[name] for name in shared], [theirs[name] for name in shared])
    return scaled(value, scale), bounds and (scaled(bounds[0], scale), scaled(bounds[1], scale))


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    middle = statistics.fmean(values)
    return middle, math.sqrt(_variance(values) / len(values)) if len(values) > 1 else None


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """How far the mean of the first lies above that of the second, over the same documents, and its 95 % interval.

    No interval where every document agrees: that says that differences are rare, not that there are none.
    """
    apart = [one - other for one, other in zip(first, second, strict=True)]
    return statistics.fmean(apart), interval(apart) if len(set(apart)) > 1 else None


# --- which of many differ ---


def t_tail(t: float, freedom: float) -> float:
    """How often Student's t lies at least so far from zero, on either side."""
    if not math.isfinite(t):
        return 0.0
    x = freedom / (freedom + t * t)
    return _beta(x, freedom / 2, 0.5)


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, 300):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + step * d), 1 + step / c
            found *= d * c
        if abs(d * c - 1) < 1e-13:
            break
    return front * found / a


def _variance(values: Sequence[float]) -> float:
    """As exact as anyone needs; that of the standard library takes fifty times as long."""
    middle = statistics.fmean(values)
    return math.fsum([(value - middle) ** 2 for value in values]) / (len(values) - 1)


@dataclass(frozen=True)
class Gap:
    """How far two means over the same documents are apart."""

    value: float
    ci95: tuple[float, float] | None
    p: float  # how often chance alone shows such a gap


def gap(strata: Sequence[Sequence[float]]) -> Gap | None:
    """From the differences by document; several tasks count alike, however many documents each has."""
    if not strata or any(not part for part in strata):
        return None
    value = statistics.fmean(statistics.fmean(part) for part in strata)
    parts = [(_variance(part) / len(part) / len(strata) ** 2, len(part) - 1) for part in strata if len(part) > 1]
    error = math.sqrt(sum(variance for variance, _ in parts))
    if len(parts) < len(strata):
        return Gap(value, None, 1.0)
    if error == 0:  # every document says the same: as often by chance as signs that fall alike
        return Gap(value, None, 1.0 if value == 0 else 2 * 0.5 ** sum(map(len, strata)))
    freedom = error**4 / sum(variance**2 / degrees for variance, degrees in parts)
    half = t95(max(1, math.floor(freedom))) * error
    return Gap(value, (value - half, value + half), t_tail(value / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """The same chances once it counts that many were looked at."""
    found, most = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        most = max(most, min(1.0, ps[at] * (len(ps) - rank)))
        found[at] = most
    return found


def letters(count: int, differ: Iterable[tuple[int, int]]) -> list[str]:
    """Compact letters: two share one exactly if they are not known to differ. The first get the first letters."""
    columns = [(1 << count) - 1]  # a bit for each row that has this letter
    for one, other in differ:
        both = 1 << one | 1 << other
        for column in [column for column in columns if column & both == both]:
            columns.remove(column)
            for gone in (one, other):
                left = column & ~(1 << gone)
                if all(left & ~known for known in columns):
                    columns.append(left)
    rows = sorted([row for row in range(count) if column >> row & 1] for column in columns if column)
    return ["".join(_letter(at) for at, having in enumerate(rows) if row in having) for row in range(count)]


def _letter(at: int) -> str:
    return chr(ord("a") + at) if at < 26 else f"({at})"


# --- quantiles that a sample can and cannot bound ---

CONFIDENCE = 0.99


def fewest(share: float, confidence: float = CONFIDENCE) -> int:
    """So many samples it takes before the largest of them bounds this quantile from above."""
    return math.ceil(math.log(1 - confidence) / math.log(share))


def quantile_bound(values: Sequence[float], share: float, confidence: float = CONFIDENCE) -> float | None:
    """What the quantile does not exceed, from order statistics alone; None where the sample is too small to say."""
    at = _bounding(len(values), share, confidence)
    return None if at is None else sorted(values)[at]


@cache
def _bounding(count: int, share: float, confidence: float) -> int | None:
    """Which of so many values, from the least."""
    below = 0.0
    for k in range(count):
        below += math.exp(
            math.lgamma(count + 1)
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * math.log(share)
            + (count - k) * math.log1p(-share)
        )
        if below >= confidence:
            return k
    return None


def tail(count: int, share: float) -> str:
    """Why there is no figure for this quantile; empty if there is one."""
    need = fewest(share)
    return f"p{share * 100:g}: n/a (n={count} < {need})" if count < need else ""


# --- predictions ---


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank."""

    def ranks(values: Sequence[float]) -> list[float]:
        order = sorted(range(len(values)), key=lambda i: values[i])
        found = [0.0] * len(values)
        start = 0
        for end in range(1, len(order) + 1):
            if end == len(order) or values[order[end]] != values[order[start]]:
                for i in order[start:end]:
                    found[i] = (start + end - 1) / 2
                start = end
        return found

    try:
        return statistics.correlation(ranks(first), ranks(second))
    except statistics.StatisticsError:  # one of them is constant
        return 0.0


def scaled(value: float, scale: str) -> float:
    """A difference of means as its score has it: of perplexities, how many times the one is the other."""
    return math.exp(min(value, MOST)) if scale == "exp-mean" else value


def spread(value: float | None, stderr: float | None) -> str:
    """A figure with its standard error, short; nothing where there is none."""
    return "" if value is None else figure(value) + ("" if stderr is None else f" ± {figure(stderr, 2)}")


def figure(value: float, digits: int = 4) -> str:
    """To so many digits; thousands as 10,700, not as 1.07e+04."""
    near = float(f"{value:.{digits}g}")
    return f"{near:,.0f}" if min(1000, 10**digits) <= abs(near) < 1e12 else f"{value:.{digits}g}"
