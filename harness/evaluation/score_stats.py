"""Statistics of scores: a value and its standard error from documents, and the change from another model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from harness.stats import interval, variance

MOST = 700.0  # the largest logarithm whose exponential is finite


def estimate(documents: Sequence[float], scale: str) -> tuple[float, float | None]:
    """A score and its standard error, from its scores by document."""
    mean, stderr = mean_stderr(documents)
    value = scaled(mean, scale)
    return value, stderr * value if stderr is not None and scale == "exp-mean" else stderr


def change(
    pruned: Mapping[str, float], dense: Mapping[str, float], scale: str
) -> tuple[float | None, tuple[float, float] | None]:
    """How far the pruned score lies from the dense one on the documents that both have, and the 95 % interval.

    It is a difference of means, or, for perplexities, their ratio. None if the models share no document.
    """
    shared = [name for name in pruned if name in dense]
    if not shared:
        return None, None
    value, bounds = paired([pruned[name] for name in shared], [dense[name] for name in shared])
    return scaled(value, scale), bounds and (scaled(bounds[0], scale), scaled(bounds[1], scale))


def mean_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; None for the error of a single value."""
    mean = statistics.fmean(values)
    return mean, math.sqrt(variance(values) / len(values)) if len(values) > 1 else None


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """How far the mean of the first lies above that of the second, over the same documents, and the 95 % interval.

    There is no interval if all differences are equal: that shows that differences are rare, not that there are none.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return statistics.fmean(differences), interval(differences) if len(set(differences)) > 1 else None


def scaled(value: float, scale: str) -> float:
    """A mean, or a difference of means, on the scale of the score: for perplexities, its exponential."""
    return math.exp(min(value, MOST)) if scale == "exp-mean" else value
