"""Statistics of timings: ratios over rounds, noise floors, quantiles and their bounds, rank correlation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from harness.stats import t95

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 400
CONFIDENCE = 0.99  # of upper bounds of quantiles


# --- ratios of two models over the same rounds ---


def faster_half_mean(rounds: np.ndarray) -> np.ndarray:
    """The mean of the faster half of the visits. Whatever else a machine does only adds to a time, in bursts.

    The last two axes of `rounds` are rounds and visits, its values logarithms of times. The array is sorted in place.
    """
    import numpy as np

    count, visits = rounds.shape[-2:]
    ordered = rounds.reshape(*rounds.shape[:-2], count * visits)
    ordered.sort(axis=-1)
    half = math.ceil(count / 2) * visits
    return np.add.reduce(ordered[..., :half], axis=-1) / half  # np.mean is slower on few numbers


@cache
def _resampled_rounds(count: int) -> np.ndarray:
    """Indices of rounds: first all of them in order, then bootstrap samples. Equal counts give equal samples."""
    import numpy as np

    generator = random.Random(0)
    samples = [generator.choices(range(count), k=count) for _ in range(RESAMPLES)]
    return np.array([range(count), *samples])


def ratio(
    over: Sequence[Sequence[float]], under: Sequence[Sequence[float]]
) -> tuple[float, tuple[float, float] | None]:
    """How many times longer one model takes than another, and the 95 % interval. None for the interval of one round.

    Each argument has the times of a model's visits by round. A model counts with the faster half of its visits. The
    interval comes from resampled rounds, and is as wide as a t interval of as many visits as count.
    """
    import numpy as np

    first, second = (np.log(np.asarray(rounds, dtype=np.float64)) for rounds in (over, under))
    count = len(over)
    samples = _resampled_rounds(count)
    differences = faster_half_mean(first.take(samples, axis=0)) - faster_half_mean(second.take(samples, axis=0))
    middle = float(differences[0])
    if count < 2:
        return math.exp(middle), None
    half_width = t95(math.ceil(count / 2)) * float(differences[1:].std())
    return math.exp(middle), (math.exp(middle - half_width), math.exp(middle + half_width))


def noise_floor(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The largest relative difference that two visits to one model explain at 95 %."""
    _, bounds = ratio([(time,) for time in second], [(time,) for time in first])
    return bounds and max(abs(bounds[0] - 1), abs(bounds[1] - 1))


# --- quantiles, and which of them a sample is large enough to bound ---


def quantile(values: Sequence[float], share: float) -> float:
    """Interpolated linearly between order statistics."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def smallest_sample(share: float, confidence: float = CONFIDENCE) -> int:
    """The smallest sample whose maximum is an upper bound of this quantile."""
    return math.ceil(math.log(1 - confidence) / math.log(share))


def quantile_bound(values: Sequence[float], share: float, confidence: float = CONFIDENCE) -> float | None:
    """An upper bound of a quantile, from order statistics alone; None if the sample is too small for one."""
    index = _bounding_index(len(values), share, confidence)
    return None if index is None else sorted(values)[index]


@cache
def _bounding_index(count: int, share: float, confidence: float) -> int | None:
    """The index, in a sorted sample of this size, of the smallest value that bounds the quantile from above."""
    below = 0.0  # how likely at most k values lie below the quantile: a binomial distribution
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


def missing_bound_reason(count: int, share: float) -> str:
    """Why this quantile has no bound: the sample is too small. Empty if it has one."""
    need = smallest_sample(share)
    return f"p{share * 100:g}: n/a (n={count} < {need})" if count < need else ""


# --- predictions ---


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one of the sequences is constant."""
    from scipy.stats import spearmanr

    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    return float(spearmanr(first, second).statistic)
