"""Turns learned positions into whole units: an exact knapsack on the measured staircase, then swaps between sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import Shape
from harness.pruning.allocate import knapsack
from harness_dilap.gates import Gates, UnitValues

GRAIN, MANY = 16, 256  # a site of at least MANY units keeps a multiple of GRAIN, which suits most kernels
SMALLEST = 1e-6  # least value of a unit, as a share of the most expensive unit
STIFFNESS = 0.25  # at this share of a site's units from the learned position, a unit's value changes by a factor of e


def allowed_counts(units: int, least: int = 0) -> np.ndarray:
    """The numbers of units that a site may keep, in ascending order."""
    counts = range(0, units, GRAIN) if units >= MANY else range(units)
    return np.array([count for count in sorted({*counts, least}) if count >= least] + [units])


def values_of_counts(units: int, position: float, slope: float) -> np.ndarray:
    """The value of keeping 0, 1, ... units of a site, in time. At the learned position a unit is worth its cost."""
    centres = np.arange(units) + 0.5
    unit_values = slope * np.exp((position * units - centres) / (STIFFNESS * units))
    return np.concatenate([[0.0], np.cumsum(unit_values)])


def project(cost: Any, gates: Gates, positions: Tensor, limit: float, least: int = 0) -> dict[str, int]:
    """The shape of greatest value within a limit in nanoseconds, by an exact knapsack on the measured staircase."""
    widths = (positions.double() * torch.tensor(list(gates.units.values()))).requires_grad_()
    time = cost.smooth(dict(zip(gates.units, widths, strict=True)), convex=1.0)
    slopes = torch.autograd.grad(time, widths)[0].tolist()
    smallest = SMALLEST * max(slopes)  # or units that cost no time would be removed for nothing
    counts, values, times = [], [], []
    for (site, units), position, slope in zip(gates.units.items(), positions.tolist(), slopes, strict=True):
        site_counts = allowed_counts(units, least)
        counts.append(site_counts)
        values.append(values_of_counts(units, position, max(slope, smallest))[site_counts])
        times.append(cost.site_times(site)[site_counts])
    levels = knapsack(values, times, limit - cost.floor)
    return {site: int(site_counts[level]) for site, site_counts, level in zip(gates.units, counts, levels, strict=True)}


def round_to_limit(cost: Any, gates: Gates, positions: Tensor, limit: float, least: int = 0) -> dict[str, int]:
    """The positions rounded to whole units, after one shift of all positions that meets the limit.

    This is what a method without knowledge of the staircase would do.
    """

    def shape_at(shift: float) -> dict[str, int]:
        return {site: max(least, count) for site, count in gates.counts(positions + shift).items()}

    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost.time(shape_at(middle)) <= limit else (low, middle)
    return shape_at(low)


def largest_step(cost: Any, sites: Iterable[str]) -> float:
    """The most time that one further unit takes at any of the sites, in nanoseconds. Swaps exchange this much time."""
    return float(max(np.diff(cost.site_times(site)).max() for site in sites))


def marginal_values(
    cost: Any, shape: Mapping[str, int], gates: Gates, values: UnitValues, tokens: int
) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Gains and losses per time: of a step more for each site, highest first, and of a step less, lowest first."""
    step = largest_step(cost, gates.units)
    gains, losses, open_ = [], [], gates.of_shape(shape)
    for site, count in shape.items():
        times, order = np.asarray(cost.site_times(site)), torch.argsort(gates.ranks[site])
        unit_values = values.of_site(site, open_[site], tokens)[order]
        if count < len(unit_values):
            more = max(count + 1, most_units(times, times[count] + step))
            gains.append((float(unit_values[count:more].sum()) / max(times[more] - times[count], 1e-9), site))
        if count:
            less = min(count - 1, most_units(times, times[count] - step))
            losses.append((float(unit_values[less:count].sum()) / max(times[count] - times[less], 1e-9), site))
    return sorted(gains, reverse=True), sorted(losses)


def swap_pairs(
    cost: Any, shape: Mapping[str, int], gates: Gates, values: UnitValues, tokens: int
) -> Iterator[tuple[str, str]]:
    """Pairs of a site that should get time and a site that should give it, the most promising pairs first."""
    gains, losses = marginal_values(cost, shape, gates, values, tokens)
    for total in range(len(gains) + len(losses)):
        for at in range(total + 1):
            if at < len(gains) and total - at < len(losses) and gains[at][1] != losses[total - at][1]:
                yield gains[at][1], losses[total - at][1]


def swap(
    cost: Any, shape: Mapping[str, int], receiver: str, giver: str, limit: float, least: int = 0
) -> dict[str, int] | None:
    """The shape after `giver` gave about a step of time to `receiver`, or None if the receiver can use none of it."""
    step = largest_step(cost, shape)
    giver_times, receiver_times = np.asarray(cost.site_times(giver)), np.asarray(cost.site_times(receiver))
    counts = allowed_counts(len(giver_times) - 1, least)
    next_count = int(counts[counts < shape[giver]].max(initial=least))
    less = min(most_units(giver_times, giver_times[shape[giver]] - step, least), next_count)
    spare = limit - cost.time({**shape, giver: less})
    more = most_units(receiver_times, receiver_times[shape[receiver]] + spare, least)
    return {**shape, giver: less, receiver: more} if more > shape[receiver] else None


def fill(cost: Any, shape: Mapping[str, int], order: Iterable[str], limit: float) -> dict[str, int]:
    """The shape after the remaining time was given to the sites, in this order, as far as whole units fit."""
    shape = dict(shape)
    for site in order:
        times = np.asarray(cost.site_times(site))
        more = most_units(times, times[shape[site]] + limit - cost.time(shape))
        shape[site] = max(more, shape[site])
    return shape


def most_units(times: np.ndarray, limit: float, least: int = 0) -> int:
    """The largest allowed number of units that takes no longer than the limit, but never fewer than `least`."""
    counts = allowed_counts(len(times) - 1, least)
    return int(counts[times[counts] <= limit + 1e-6].max(initial=least))


def polish(
    cost: Any,
    shape: dict[str, int],
    loss: float,
    pairs: Iterator[tuple[str, str]],
    limit: float,
    held_out_loss: Callable[[Shape], float],
    tries: int,
    least: int = 0,
) -> tuple[dict[str, int], list[float]]:
    """Try swaps one after the other, and accept those that lower the held-out loss.

    Returns the shape and the losses of all swaps that were tried.
    """
    losses: list[float] = []
    for receiver, giver in pairs:
        if len(losses) >= tries:
            break
        if shape[giver] <= least or (changed := swap(cost, shape, receiver, giver, limit, least)) is None:
            continue
        losses.append(held_out_loss(changed))
        if losses[-1] < loss:
            loss, shape = losses[-1], changed
    return shape, losses
