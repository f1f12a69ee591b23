"""From learned positions to whole units: an exact knapsack on the staircase, then swaps that keep the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import Shape
from harness.pruning.allocate import knapsack
from harness_dilap.gates import Gates, Worth

GRAIN, MANY = 16, 256  # a site of many units keeps a multiple of so many: what kernels take best anywhere
SLIGHT = 1e-6  # of the dearest unit
STIFFNESS = 0.25  # of a site's units: so far from the learned position a unit is worth e times less, or more


def levels(units: int, least: int = 0) -> np.ndarray:
    """How many units a site may keep."""
    found = range(0, units, GRAIN) if units >= MANY else range(units)
    return np.array([count for count in sorted({*found, least}) if count >= least] + [units])


def values(units: int, position: float, slope: float) -> np.ndarray:
    """What so many units of a site are worth, in time: at the learned position another one is just worth its cost."""
    at = np.arange(units) + 0.5
    each = slope * np.exp((position * units - at) / (STIFFNESS * units))
    return np.concatenate([[0.0], np.cumsum(each)])


def project(cost: Any, gates: Gates, positions: Tensor, limit: float, least: int = 0) -> dict[str, int]:
    """The best whole units within a limit, in nanoseconds, on the staircase as it was measured."""
    at = (positions.double() * torch.tensor(list(gates.units.values()))).requires_grad_()
    time = cost.smooth(dict(zip(gates.units, at, strict=True)), convex=1.0)
    slopes = torch.autograd.grad(time, at)[0].tolist()
    slight = SLIGHT * max(slopes)  # what costs nothing is worth a little, or it would go for nothing
    slopes = [max(slope, slight) for slope in slopes]
    sites = list(zip(gates.units, gates.units.values(), positions.tolist(), slopes, strict=True))
    may = [levels(units, least) for _, units, _, _ in sites]
    worth = [values(units, position, slope)[at] for at, (_, units, position, slope) in zip(may, sites, strict=True)]
    times = [cost.site_times(site)[at] for at, (site, *_) in zip(may, sites, strict=True)]
    chosen = knapsack(worth, times, limit - cost.floor)
    return {site: int(at[level]) for at, level, (site, *_) in zip(may, chosen, sites, strict=True)}


def rounded(cost: Any, gates: Gates, positions: Tensor, limit: float, least: int = 0) -> dict[str, int]:
    """The positions in whole units, all moved alike until they fit: what a method that knows no stairs would do."""

    def at(shift: float) -> dict[str, int]:
        return {site: max(least, count) for site, count in gates.counts(positions + shift).items()}

    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost.time(at(middle)) <= limit else (low, middle)
    return at(low)


def largest_step(cost: Any, sites: Iterable[str]) -> float:
    """What one unit more may take at most, in nanoseconds: so much time changes hands."""
    return float(max(np.diff(cost.site_times(site)).max() for site in sites))


def edges(
    cost: Any, shape: Mapping[str, int], gates: Gates, worth: Worth, tokens: int
) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """What a step of time more is worth to each site, the most first, and what one less costs it, the least first."""
    step = largest_step(cost, gates.units)
    gains, losses, open_ = [], [], gates.shut(shape)
    for site, count in shape.items():
        times, order = np.asarray(cost.site_times(site)), torch.argsort(gates.ranks[site])
        value = worth.now(site, open_[site], tokens)[order]
        if count < len(value):
            more = max(count + 1, within(times, times[count] + step))
            gains.append((float(value[count:more].sum()) / max(times[more] - times[count], 1e-9), site))
        if count:
            less = min(count - 1, within(times, times[count] - step))
            losses.append((float(value[less:count].sum()) / max(times[count] - times[less], 1e-9), site))
    return sorted(gains, reverse=True), sorted(losses)


def swaps(cost: Any, shape: Mapping[str, int], gates: Gates, worth: Worth, tokens: int) -> Iterator[tuple[str, str]]:
    """Who should get time from whom, by what the units at their edges are worth: the most promising pairs first."""
    gains, losses = edges(cost, shape, gates, worth, tokens)
    for total in range(len(gains) + len(losses)):
        for at in range(total + 1):
            if at < len(gains) and total - at < len(losses) and gains[at][1] != losses[total - at][1]:
                yield gains[at][1], losses[total - at][1]


def swapped(
    cost: Any, shape: Mapping[str, int], gets: str, gives: str, limit: float, least: int = 0
) -> dict[str, int] | None:
    """The shape after one gave about a step of time and the other took what that left, or None if it can take none."""
    step = largest_step(cost, shape)
    given, taken = np.asarray(cost.site_times(gives)), np.asarray(cost.site_times(gets))
    may = levels(len(given) - 1, least)
    less = min(within(given, given[shape[gives]] - step, least), int(may[may < shape[gives]].max(initial=least)))
    spare = limit - cost.time({**shape, gives: less})
    more = within(taken, taken[shape[gets]] + spare, least)
    return {**shape, gives: less, gets: more} if more > shape[gets] else None


def filled(cost: Any, shape: Mapping[str, int], wanting: Iterable[str], limit: float) -> dict[str, int]:
    """What time swaps left over goes to the sites that want it most, until no step of any fits."""
    shape = dict(shape)
    for site in wanting:
        times = np.asarray(cost.site_times(site))
        more = within(times, times[shape[site]] + limit - cost.time(shape))
        shape[site] = max(more, shape[site])
    return shape


def within(times: np.ndarray, limit: float, least: int = 0) -> int:
    """The most units that take no longer; the least if even those do."""
    may = levels(len(times) - 1, least)
    return int(may[times[may] <= limit + 1e-6].max(initial=least))


def polish(
    cost: Any,
    shape: dict[str, int],
    loss: float,
    pairs: Iterator[tuple[str, str]],
    limit: float,
    judge: Callable[[Shape], float],
    tries: int,
    least: int = 0,
) -> tuple[dict[str, int], list[float]]:
    """Swaps that the held-out text accepts, one after the other, and the losses of all that were tried."""
    losses: list[float] = []
    for gets, gives in pairs:
        if len(losses) >= tries:
            break
        if shape[gives] <= least or (changed := swapped(cost, shape, gets, gives, limit, least)) is None:
            continue
        losses.append(judge(changed))
        if losses[-1] < loss:
            loss, shape = losses[-1], changed
    return shape, losses
