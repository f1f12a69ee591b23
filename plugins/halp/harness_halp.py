"""HALP: chooses groups of units by importance and latency with a knapsack, in steps that tighten the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, Param, PrunerSpec, hookimpl

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from harness.models.anatomy.core import Site

RESOLUTION = 100_000  # the augmented knapsack counts time in this fraction of the dense model's time
SOLVERS = ("augmented", "mckp")


def parameters(solver: str, steps: int, paper: int) -> dict[str, Param]:
    """The parameters of one registered pruner. `paper` is the number of steps of the paper preset."""
    return {
        "solver": Param(solver, "HALP's own program, or the exact multiple-choice knapsack", choices=SOLVERS),
        "steps": Param(steps, "pruning steps, each with a tighter budget", paper=paper, least=1),
        "batches": Param(4, "passes over which each step averages the importance", paper=40, least=1),
        "windows": Param(2, "calibration windows in a pass", least=1),
        "length": Param(128, "tokens in each window", least=2),
        "group": Param(64, "units in a group where the device shows no larger step", least=1),
        "balance": Param(True, "scale the importance of each kind of site to the time it takes", paper=False),
    }


@hookimpl
def harness_register_pruners():
    common: dict[str, Any] = {
        "target": "harness_halp:Halp",
        "paper": "Shen et al. 2022, HALP, NeurIPS 2022, arXiv:2110.10811",
        "kinds": ("structured", "depth"),
        "budgets": ("latency",),
        "needs": ("calibration", "gradients", "latency"),
        "check_with": {"batches": 1, "length": 16, "group": 8},
    }
    differs = (
        "decoders: KV groups and MLP channels, whose times add up; HALP prunes convolutions, whose times depend on "
        "their neighbours",
        "importance from the weights, |sum of w times gradient|; decoders have no BatchNorm scale to take it from",
        "the steps average gradients and train nothing",
        "the importance of each kind of site is scaled to the time it takes (balance; not with the paper preset)",
    )
    return [
        PrunerSpec(
            name="halp",
            architectures=("decoder",),
            summary="groups of units compete by importance for their latency, by HALP's augmented knapsack",
            differs=differs,
            parameters=parameters("augmented", 5, 30),
            **common,
        ),
        PrunerSpec(
            name="halp-mckp",
            architectures=("decoder",),
            summary="HALP with an exact multiple-choice knapsack in place of its own",
            differs=(*differs, "uses the exact solver of harness"),
            parameters=parameters("mckp", 5, 30),
            **common,
        ),
        PrunerSpec(
            name="halp-oneshot",
            architectures=("decoder",),
            summary="HALP in a single step, the whole budget at once",
            differs=(*differs, "one step"),
            parameters=parameters("augmented", 1, 1),
            **common,
        ),
    ]


@dataclass
class Halp:
    solver: str = "augmented"
    steps: int = 5
    batches: int = 4
    windows: int = 2
    length: int = 128
    group: int = 64
    balance: bool = True

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        import torch

        from harness.pruning.gates import gated

        cost, sites = ctx.latency, list(ctx.anatomy.blocks())
        target = cost.limit(budget)
        if target >= cost.dense:
            return Cut(why="dense is fast enough")
        times = {site.name: cost.site_times(site.name) for site in sites}
        sizes = {site.name: group_size(times[site.name], self.group) for site in sites}
        alive = {site.name: torch.ones(site.units) for site in sites}
        batches = self._batches(ctx)
        for step in range(1, self.steps + 1):
            limit = cost.dense ** (1 - step / self.steps) * target ** (step / self.steps)
            with gated(model, ctx.anatomy, alive):
                scores = unit_importance(model, ctx, [next(batches) for _ in range(self.batches)])
            if self.balance:
                scores = balance_kinds(scores, sites, alive, times)
            groups = [ranked_groups(scores[s.name], alive[s.name], sizes[s.name]) for s in sites]
            values = [
                [float(scores[site.name][list(group)].sum()) for group in site_groups]
                for site, site_groups in zip(sites, groups, strict=True)
            ]
            costs = [marginal_costs(times[s.name], site_groups) for s, site_groups in zip(sites, groups, strict=True)]
            counts = solve(self.solver, values, costs, limit - cost.floor, cost.dense / RESOLUTION)
            for site, site_groups, count in zip(sites, groups, counts, strict=True):
                for removed in site_groups[count:]:
                    alive[site.name][list(removed)] = 0
            ctx.progress(step, self.steps)
        keep = {name: torch.nonzero(units).flatten().tolist() for name, units in alive.items()}
        return Cut(keep=keep, why=f"HALP, {self.solver} knapsack, {self.steps} steps")

    def _batches(self, ctx: Context) -> Iterator[Tensor]:
        """The batches of all steps. Each window appears once."""
        from harness.pruning.training import loop

        assert ctx.calibration is not None
        total = self.steps * self.batches
        windows = ctx.calibration(total * self.windows, self.length)
        return loop.random_batches(windows, self.windows, total, ctx.seed("batches"))


def group_size(times: Sequence[float], least: int) -> int:
    """The number of units in a group: the width of a step of the device's staircase, or `least` where it has no steps.

    Half of the site or more lies on steps of this width or wider. The times are first made monotone, because single
    dips are noise.
    """
    import numpy as np

    from harness.latency.cost_table.smoothing import isotonic, step_lengths

    units = len(times) - 1
    lengths = np.sort(step_lengths(isotonic(np.asarray(times))))[::-1]
    step = int(lengths[np.searchsorted(np.cumsum(lengths), len(times) / 2)])
    return min(units, max(step, min(least, max(1, units // 4))))


def unit_importance(model: Any, ctx: Context, batches: Sequence[Any]) -> dict[str, Any]:
    """The importance of each unit: |sum of weight times gradient| over its weights, averaged over the batches."""
    from harness.pruning import importance, layerwise

    scores: dict[str, Any] = {}
    for batch in batches:
        for gradients in layerwise.backward(model, [batch]):
            products = {
                name: model.get_parameter(name).detach().float() * gradient
                for name, gradient in gradients.mean.items()
                if name.endswith("_proj.weight")
            }
            for name, sums in importance.grouped(ctx.anatomy, products, gradients.index).items():
                scores[name] = scores.get(name, 0) + sums.abs() / len(batches)
    return scores


def balance_kinds(
    scores: Mapping[str, Tensor],
    sites: Sequence[Site],
    alive: Mapping[str, Tensor],
    times: Mapping[str, Sequence[float]],
) -> dict[str, Tensor]:
    """Scale the scores so that those of each kind of site add up to the time that the kind takes.

    Without this, sums over a few large units and over many small ones would not be comparable.
    """
    value = dict.fromkeys((site.kind for site in sites), 0.0)
    time = dict.fromkeys(value, 0.0)
    for site in sites:
        value[site.kind] += float((scores[site.name] * alive[site.name]).sum())
        time[site.kind] += times[site.name][int(alive[site.name].sum())]
    scale = {kind: time[kind] / value[kind] if value[kind] > 0 else 1.0 for kind in value}
    return {site.name: scores[site.name] * scale[site.kind] for site in sites}


def ranked_groups(scores: Tensor, alive: Tensor, size: int) -> list[tuple[int, ...]]:
    """The units that are alive, in groups of `size`, the most important first.

    If the units do not divide, the least important group is the small one, so that the others are whole steps.
    """
    import torch

    remaining = torch.nonzero(alive).flatten()
    order = remaining[torch.argsort(scores[remaining], descending=True, stable=True)].tolist()
    return [tuple(order[at : at + size]) for at in range(0, len(order), size)]


def marginal_costs(times: Sequence[float], groups: Sequence[Sequence[int]]) -> list[float]:
    """The time that each further group adds to the site. The first group carries the site's fixed cost."""
    count, costs = 0, []
    for group in groups:
        costs.append(times[count + len(group)] - times[count])
        count += len(group)
    return costs


def solve(
    solver: str, values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float, unit: float
) -> list[int]:
    """How many groups of each site stay. Groups are given from the most important on."""
    if solver == "augmented":
        return augmented_knapsack(values, costs, budget, unit)
    from itertools import accumulate

    from harness.pruning.allocate import knapsack

    return knapsack(
        [list(accumulate(row, initial=0.0)) for row in values],
        [list(accumulate(row, initial=0.0)) for row in costs],
        budget,
    )


def augmented_knapsack(
    values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float, unit: float
) -> list[int]:
    """HALP's dynamic program: items of all sites in turn, each kept only if the item before it in its site is kept.

    Whether the item before is kept depends on the remaining capacity. The program is exact for linear costs and a
    heuristic for costs with steps. An item of negative cost (a dip) frees capacity; until it is reached, the capacity
    may exceed the budget by that much. Costs are counted in whole multiples of `unit`. A site's cost up to an item is
    rounded up, so that no budget is exceeded.
    """
    import numpy as np

    ends = [np.ceil(np.cumsum([0.0, *row]) / unit - 1e-9).astype(int) for row in costs]
    whole = [np.diff(row).tolist() for row in ends]
    room = sum(-cost for row in whole for cost in row if cost < 0)
    capacity = math.floor(budget / unit + 1e-9)
    best = np.zeros(capacity + room + 1)
    # Forward: for every item, at which capacities it is kept.
    decisions: list[list[np.ndarray]] = []
    for row_values, row_costs in zip(values, whole, strict=True):
        keeps: list[np.ndarray] = []
        for value, cost in zip(row_values, row_costs, strict=True):
            before = shift(best, cost, -np.inf)
            if keeps:
                before = np.where(shift(keeps[-1], cost, False), before, -np.inf)
            keep = before + value >= best  # ties are kept
            best = np.where(keep, before + value, best)
            keeps.append(keep)
        decisions.append(keeps)
    # Backward: follow the decisions from the full capacity.
    at, counts = capacity, []
    for keeps, row_costs in zip(reversed(decisions), reversed(whole), strict=True):
        count = 0
        for item in range(len(keeps) - 1, -1, -1):
            if keeps[item][at]:
                count = max(count, item + 1)
                at -= row_costs[item]
        counts.append(count)
    return counts[::-1]


def shift(row: np.ndarray, by: int, fill: Any) -> np.ndarray:
    """The row moved to the right by `by` places (to the left if negative); free places get `fill`."""
    import numpy as np

    shifted = np.full_like(row, fill)
    if by >= 0:
        shifted[by:] = row[: max(0, len(row) - by)]
    else:
        shifted[:by] = row[-by:]
    return shifted
