"""Allocations that methods share: how many units each site keeps under a budget. No weights, no torch.

The budget rule: at least `ratio` of the prunable parameters is removed, and the excess is less than one unit of the
coarsest kind that is removed. numpy is imported inside the functions: plug-ins import this module to register.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.errors import Unsupported
from harness.models.anatomy.core import Anatomy, Site

__all__ = ["best", "cap", "distribute", "knapsack", "open_layers", "out_of_reach", "ranked", "to_remove", "uniform"]

KINDS = ("attention", "mlp")


def to_remove(anatomy: Anatomy, ratio: float) -> int:
    """The number of parameters that a ratio removes."""
    return math.ceil(round(ratio * anatomy.params(prunable=True), 6))


def distribute(sizes: Mapping[str, int], goal: int) -> dict[str, int]:
    """Whole numbers that add up to the goal, each in proportion to its size."""
    total = sum(sizes.values())
    exact = {name: goal * size / total for name, size in sizes.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in rest[: goal - sum(counts.values())]:
        counts[name] += 1
    return counts


def open_layers(anatomy: Anatomy, first: float, last: float) -> list[int]:
    """The layers between the protected ones at either end. `first` and `last` are shares below 1, else counts."""
    layers = sorted({site.layer for site in anatomy.blocks() if site.layer is not None})
    ends = [round(end * len(layers)) if end < 1 else int(end) for end in (first, last)]
    return layers[ends[0] : max(ends[0], len(layers) - ends[1])]


def cap(anatomy: Anatomy, kinds: Iterable[str] = KINDS, layers: Iterable[int] | None = None, least: int = 0) -> float:
    """The largest share of the prunable parameters that these sites can lose."""
    removable = sum(
        _removed(anatomy, s, s.units - min(max(least, s.least), s.units)) for s in _sites(anatomy, kinds, layers)
    )
    return removable / anatomy.params(prunable=True)


def out_of_reach(
    anatomy: Anatomy, ratio: float, kinds: Iterable[str] = KINDS, layers: Iterable[int] | None = None, least: int = 0
) -> Unsupported:
    """The error for a ratio that these sites cannot lose, with the largest that they can."""
    kinds, most = tuple(kinds), cap(anatomy, kinds, layers, least)
    whole = {site.layer for site in anatomy.blocks()} - set(layers if layers is not None else ())
    named = ", ".join(_runs(layer for layer in whole if layer is not None)) if layers is not None else ""
    keeping = f", keeping {least} unit in each" if least else ""
    return Unsupported(
        f"{ratio:g} of the prunable parameters cannot be removed from the {' and '.join(kinds)} sites"
        + (f" while layers {named} are protected" if named else "")
        + f"{keeping}: at most {math.floor(most * 1e4) / 1e4:g} can",
        "ask for a smaller ratio" + (", or protect fewer layers (harness info shows the parameter)" if named else ""),
    )


def _runs(numbers: Iterable[int]) -> list[str]:
    """Numbers as ranges: 1, 2, 3, 7 as 1-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def _sites(anatomy: Anatomy, kinds: Iterable[str], layers: Iterable[int] | None) -> list[Site]:
    allowed = None if layers is None else set(layers)
    return [s for s in anatomy.blocks() if s.kind in kinds and (allowed is None or s.layer in allowed)]


def _removed(anatomy: Anatomy, site: Site, units: int) -> int:
    return anatomy.site_params(site, site.units) - anatomy.site_params(site, site.units - units)


def uniform(
    anatomy: Anatomy, ratio: float, kinds: Iterable[str] = KINDS, layers: Iterable[int] | None = None
) -> dict[str, int]:
    """Units per site after the same share of each was removed.

    Counts of coarse units (KV groups) are rounded down and the finest (MLP channels) make up the difference, so that
    layers remain equal.
    """
    layers = None if layers is None else list(layers)
    sites = _sites(anatomy, kinds, layers)
    step = {kind: max(anatomy.unit_params(s) for s in sites if s.kind == kind) for kind in {s.kind for s in sites}}
    groups = [[s for s in sites if s.kind == kind] for kind in sorted(step, key=lambda k: -step[k])]
    counts: dict[str, int] = {}
    remaining = to_remove(anatomy, ratio)
    for i, group in enumerate(groups):
        finer = sum(anatomy.site_params(s, s.units) for group_of_sites in groups[i + 1 :] for s in group_of_sites)
        # without norms, which stay until a site is empty: a quarter of the heads is then a quarter of this sum
        units = sum(anatomy.unit_params(s) * s.units for group_of_sites in groups[i:] for s in group_of_sites)
        most = max(s.units for s in group)

        def chosen(count: int, group: list[Site] = group, most: int = most) -> dict[str, int]:
            return {s.name: min(math.ceil(count / most * s.units), s.units - s.least) for s in group}

        def enough(count: int, group: list[Site] = group, need: int = remaining - finer) -> bool:
            """Whether this kind loses all that the finer kinds cannot."""
            taken = chosen(count, group)
            return sum(_removed(anatomy, s, taken[s.name]) for s in group) >= need

        first = min(most, max(remaining, 0) * most // units) if finer else 0
        count = min(first + bisect.bisect_left(range(first, most + 1), True, key=enough), most)
        taken = chosen(count)
        removed = sum(_removed(anatomy, s, taken[s.name]) for s in group)
        counts |= taken
        remaining -= removed
    if remaining > 0:
        raise out_of_reach(anatomy, ratio, kinds, layers)
    # Equal layers may exceed the goal by a unit each; restore units while the excess is a coarse unit or more.
    coarsest = max(step.values(), default=0)
    for site in [s for group in reversed(groups) for s in reversed(group)]:
        while counts[site.name] and -remaining >= coarsest:
            restored = _removed(anatomy, site, counts[site.name]) - _removed(anatomy, site, counts[site.name] - 1)
            if restored > -remaining:
                break
            counts[site.name] -= 1
            remaining += restored
            if site in groups[-1]:
                break
    return {s.name: s.units - counts[s.name] for s in sites}


def ranked(
    anatomy: Anatomy,
    ratio: float,
    scores: Mapping[str, Sequence[float]],
    kinds: Iterable[str] = KINDS,
    layers: Iterable[int] | None = None,
    least: int = 1,
) -> dict[str, list[int]]:
    """The global allocation: units of all sites compete by score per parameter; each site keeps `least`."""
    import numpy as np

    layers = None if layers is None else list(layers)
    sites = _sites(anatomy, kinds, layers)
    if not sites:
        if to_remove(anatomy, ratio):
            raise out_of_reach(anatomy, ratio, kinds, layers, least)
        return {}
    worth = [np.asarray(scores[s.name], dtype=np.float64) / anatomy.unit_params(s) for s in sites]
    owner = np.concatenate([np.full(s.units, i) for i, s in enumerate(sites)])
    unit = np.concatenate([np.arange(s.units) for s in sites])
    order = np.argsort(np.concatenate(worth), kind="stable")
    keep = [np.ones(s.units, dtype=bool) for s in sites]
    count = [s.units for s in sites]
    remaining = to_remove(anatomy, ratio)
    for at in order:
        if remaining <= 0:
            break
        i = int(owner[at])
        if count[i] <= max(least, sites[i].least):
            continue
        remaining -= anatomy.site_params(sites[i], count[i]) - anatomy.site_params(sites[i], count[i] - 1)
        count[i] -= 1
        keep[i][unit[at]] = False
    if remaining > 0:
        raise out_of_reach(anatomy, ratio, kinds, layers, least)
    return {s.name: np.flatnonzero(k).tolist() for s, k in zip(sites, keep, strict=True)}


def best(shape: Mapping[str, int], scores: Mapping[str, Sequence[float]]) -> dict[str, list[int]]:
    """The highest scoring units of each site, as many as the shape keeps; ties go to the lower index."""
    import numpy as np

    chosen = {}
    for site, units in shape.items():
        order = np.argsort(-np.asarray(scores[site], dtype=np.float64), kind="stable")
        chosen[site] = sorted(order[:units].tolist())
    return chosen


def knapsack(values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> list[int]:
    """One level of every group: the largest sum of values whose sum of costs does not exceed the budget.

    Exact for any costs, by branch and bound. The Lagrangian price of a unit of cost bounds what the remaining groups
    can add. A partial choice is dropped if another has no less value at no more cost, or if its bound does not exceed
    the best complete choice.
    """
    import numpy as np

    value = [np.asarray(row, dtype=np.float64) for row in values]
    cost = [np.asarray(row, dtype=np.float64) for row in costs]
    budget += 1e-12 * abs(budget)  # sums in another order differ by as much
    if math.fsum(row.min() for row in cost) > budget:
        raise Unsupported("even the cheapest level of every group exceeds the budget", "ask for a larger one")
    price, first_choice = _relaxed(value, cost, budget)
    # sums over the remaining groups: least cost, largest gain at that price, gain and cost of the first choice
    least = _suffix_sums(row.min() for row in cost)
    most = _suffix_sums((row - price * spent).max() for row, spent in zip(value, cost, strict=True))
    gained = _suffix_sums(row[level] for row, level in zip(value, first_choice, strict=True))
    paid = _suffix_sums(row[level] for row, level in zip(cost, first_choice, strict=True))
    record, choice = gained[0], list(first_choice)
    slack = 1e-12 * (1 + float(np.abs(np.concatenate(value)).sum()))
    total, spent = np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for at, (row, price_of) in enumerate(zip(value, cost, strict=True), 1):
        grown, spends = (total[:, None] + row).ravel(), (spent[:, None] + price_of).ravel()
        bound = grown + most[at] + price * (budget - spends)
        fits = np.flatnonzero((spends + least[at] <= budget) & (bound > record + slack))
        order = fits[np.lexsort((-grown[fits], spends[fits]))]
        best_yet = np.maximum.accumulate(np.append(-np.inf, grown[order]))
        order = order[grown[order] > best_yet[:-1]]
        if not len(order):
            return choice
        total, spent = grown[order], spends[order]
        trail.append((order // len(row), order % len(row)))
        finished = np.where(spent + paid[at] <= budget, total + gained[at], -np.inf)
        if finished.max() > record:
            record, state = finished.max(), int(finished.argmax())
            choice = _traced(trail, state) + first_choice[at:]
    return choice


def _suffix_sums(parts: Iterable[float]) -> Any:
    """The sums from each group to the last, then zero."""
    import numpy as np

    return np.append(np.cumsum(list(parts)[::-1])[::-1], 0.0)


def _relaxed(value: list, cost: list, budget: float) -> tuple[float, list[int]]:
    """The price per unit of cost at which the best levels fit the budget, and those levels."""

    def best_levels(price: float) -> list[int]:
        return [_first_best(row - price * spent, spent) for row, spent in zip(value, cost, strict=True)]

    def total(levels: list[int]) -> float:
        return math.fsum(row[level] for row, level in zip(cost, levels, strict=True))

    if total(best := best_levels(0.0)) <= budget:
        return 0.0, best
    low, high = 0.0, 1.0
    while total(best := best_levels(high)) > budget and math.isfinite(2 * high):
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        levels = best_levels(middle)
        if total(levels) <= budget:
            high, best = middle, levels
        else:
            low = middle
    return high, best


def _first_best(row: Any, spent: Any) -> int:
    """The highest of a row, the cheapest of equal ones."""
    import numpy as np

    return int(np.lexsort((spent, -row))[0])


def _traced(trail: list, state: int) -> list[int]:
    levels = []
    for parents, chosen in reversed(trail):
        levels.append(int(chosen[state]))
        state = int(parents[state])
    return levels[::-1]
