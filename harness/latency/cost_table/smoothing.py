"""Turns a measured staircase into a monotone, smooth function with gradients, which a search can follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = ["isotonic", "step_lengths"]


def isotonic(values: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence closest in least squares."""
    from scipy.optimize import isotonic_regression

    return isotonic_regression(values).x


def step_lengths(rising: np.ndarray) -> np.ndarray:
    """The lengths of the steps: how many units in a row cost the same."""
    risers = np.flatnonzero(np.diff(rising) > 1e-9 * max(float(rising[-1]), 1e-30))
    return np.diff(np.concatenate([[-1], risers, [len(rising) - 1]]))


def hull(rising: np.ndarray) -> np.ndarray:
    """The lower convex hull: the largest convex function that lies nowhere above."""
    corners: list[int] = []
    for i in range(len(rising)):
        while len(corners) > 1:
            before, last = corners[-2:]
            if (rising[last] - rising[before]) * (i - last) < (rising[i] - rising[last]) * (last - before):
                break
            corners.pop()
        corners.append(i)
    return np.interp(np.arange(len(rising)), corners, rising[corners])


class Smooth:
    """The time of one site as a function of its units: monotone, averaged over one step, linear between whole units.

    Averaging over a window as long as the longest step turns the staircase into a slope, so that a gradient points to
    the next step down. The window shrinks towards the ends, where the value is that of the staircase.

    `convex` mixes in the lower convex hull. It has a slope everywhere, even for a site that saves time only when it is
    removed.
    """

    def __init__(self, staircase: np.ndarray) -> None:
        rising = isotonic(np.asarray(staircase, dtype=np.float64))
        units = len(rising) - 1
        half = round(min(max(units / 12, step_lengths(rising).max()), units / 3) / 2) + 1
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
