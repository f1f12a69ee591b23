"""A staircase made monotone and smooth, with gradients: what a search can climb."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def isotonic(values: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence closest in least squares."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(values).x


def treads(rising: np.ndarray) -> np.ndarray:
    """How many units in a row cost the same, one such stretch after the other."""
    risers = np.flatnonzero(np.diff(rising) > 1e-9 * max(float(rising[-1]), 1e-30))
    return np.diff(np.concatenate([[-1], risers, [len(rising) - 1]]))


def hull(rising: np.ndarray) -> np.ndarray:
    """The largest convex function from nothing to the whole that lies nowhere above."""
    corners: list[int] = []
    for at in range(len(rising)):
        while len(corners) > 1:
            before, last = corners[-2:]
            if (rising[last] - rising[before]) * (at - last) < (rising[at] - rising[last]) * (last - before):
                break
            corners.pop()
        corners.append(at)
    return np.interp(np.arange(len(rising)), corners, rising[corners])


class Smooth:
    """f(units) of one site: isotonic, averaged over about one step, linear between whole units.

    Averaging over a window as long as the longest tread turns treads and risers into a slope, so that a gradient says
    which way a step lies. The window shrinks towards the ends, where the value is the staircase's own.
    `convex` is the share of its lower convex hull in it: whole, nothing but the way to the best corners can be seen,
    so that a site that pays only when it is empty has a slope everywhere.
    """

    def __init__(self, staircase: np.ndarray) -> None:
        rising = isotonic(np.asarray(staircase, dtype=np.float64))
        units = len(rising) - 1
        half = round(min(max(units / 12, treads(rising).max()), units / 3) / 2) + 1
        sums = np.concatenate([[0.0], np.cumsum(rising)])
        at = np.arange(len(rising))
        reach = np.minimum(half, np.minimum(at, len(rising) - 1 - at))
        averaged = (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)
        self.values = torch.from_numpy(isotonic(averaged))
        self.hull = torch.from_numpy(hull(rising))

    @property
    def top(self) -> float:
        return float(self.values[-1])

    def __call__(self, units: Any, convex: float = 0.0) -> Any:
        last = len(self.values) - 1
        low = units.detach().floor().clamp(0, max(last - 1, 0)).long()
        high = (low + 1).clamp(max=last)
        values = (self.values + convex * (self.hull - self.values)).to(units.device)
        return values[low] + (units - low) * (values[high] - values[low])
