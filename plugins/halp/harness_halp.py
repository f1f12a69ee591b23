"""HALP: groups of units compete by importance for the time they cost, in steps that tighten the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, Param, PrunerSpec, hookimpl

if TYPE_CHECKING:
    import numpy as np

    from harness.models.anatomy.core import Site

RESOLUTION = 100_000  # the dense model's time in whole numbers, as the knapsack's program counts
SOLVERS = ("augmented", "mckp")


def parameters(solver: str, steps: int, paper: int) -> dict[str, Param]:
    return {
        "solver": Param(solver, "HALP's own program, or the exact multiple-choice knapsack", choices=SOLVERS),
        "steps": Param(steps, "prunings, each at a budget nearer to the asked one", paper=paper, least=1),
        "batches": Param(4, "passes that the importance of each step averages", paper=40, least=1),
        "windows": Param(2, "calibration windows in a pass", least=1),
        "length": Param(128, "tokens in each", least=2),
        "group": Param(64, "units that go together where the device shows no larger step", least=1),
        "balance": Param(True, "whether each kind of site is worth the time it takes, or its plain sums", paper=False),
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
        "decoders: KV groups and MLP channels, whose times add up; HALP prunes convolutions, one beside the other",
        "importance from the weights, |sum of w times gradient|; decoders have no BatchNorm scale to take it from",
        "steps between prunings average gradients and train nothing",
        "each kind of site is worth together the time it takes (balance; not with the paper preset)",
    )
    return [
        PrunerSpec(
            name="halp",
            summary="groups of units compete by importance for their latency, by HALP's augmented knapsack",
            differs=differs,
            parameters=parameters("augmented", 5, 30),
            **common,
        ),
        PrunerSpec(
            name="halp-mckp",
            summary="HALP with an exact multiple-choice knapsack in place of its own",
            differs=(*differs, "the exact solver of harness chooses"),
            parameters=parameters("mckp", 5, 30),
            **common,
        ),
        PrunerSpec(
            name="halp-oneshot",
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
        size = {site.name: group_size(times[site.name], self.group) for site in sites}
        alive = {site.name: torch.ones(site.units) for site in sites}
        text = self._text(ctx)
        for step in range(1, self.steps + 1):
            limit = cost.dense ** (1 - step / self.steps) * target ** (step / self.steps)
            with gated(model, ctx.anatomy, alive):
                worth = unit_importance(model, ctx, [next(text) for _ in range(self.batches)])
            if self.balance:
                worth = balanced(worth, sites, alive, times)
            groups = [ranked_groups(worth[s.name], alive[s.name], size[s.name]) for s in sites]
            values = [
                [float(worth[s.name][list(g)].sum()) for g in found] for s, found in zip(sites, groups, strict=True)
            ]
            costs = [marginal(times[s.name], found) for s, found in zip(sites, groups, strict=True)]
            kept = solve(self.solver, values, costs, limit - cost.floor, cost.dense / RESOLUTION)
            for site, found, count in zip(sites, groups, kept, strict=True):
                for gone in found[count:]:
                    alive[site.name][list(gone)] = 0
            ctx.progress(step, self.steps)
        keep = {name: torch.nonzero(units).flatten().tolist() for name, units in alive.items()}
        return Cut(keep=keep, why=f"HALP, {self.solver} knapsack, {self.steps} steps")

    def _text(self, ctx: Context) -> Iterator[Any]:
        """The batches of all steps, each window once."""
        from harness.pruning.training import loop

        assert ctx.calibration is not None
        total = self.steps * self.batches
        windows = ctx.calibration(total * self.windows, self.length)
        return loop.drawn(windows, self.windows, total, ctx.seed("batches"))


def group_size(times: Sequence[float], least: int) -> int:
    """The device's step: so many units in a row cost the same, or more, in half of the site; or `least`, where it shows
    none. A dip or two are noise."""
    import numpy as np

    from harness.latency.cost_table.smoothing import isotonic, treads

    units = len(times) - 1
    lengths = np.sort(treads(isotonic(np.asarray(times))))[::-1]
    step = int(lengths[np.searchsorted(np.cumsum(lengths), len(times) / 2)])
    return min(units, max(step, min(least, max(1, units // 4))))


def unit_importance(model: Any, ctx: Context, batches: Sequence[Any]) -> dict[str, Any]:
    """Per unit the mean over batches of |sum of weight times gradient| over all its weights."""
    from harness.pruning import importance, layerwise

    found: dict[str, Any] = {}
    for batch in batches:
        for gradients in layerwise.backward(model, [batch]):
            products = {
                name: model.get_parameter(name).detach().float() * slope
                for name, slope in gradients.mean.items()
                if name.endswith("_proj.weight")
            }
            for name, sums in importance.grouped(ctx.anatomy, products, gradients.index).items():
                found[name] = found.get(name, 0) + sums.abs() / len(batches)
    return found


def balanced(
    worth: Mapping[str, Any], sites: Sequence[Site], alive: Mapping[str, Any], times: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Each kind of site worth together what it takes together: sums over few large units and over many small ones
    do not compare."""
    value, time = dict.fromkeys((site.kind for site in sites), 0.0), dict.fromkeys((site.kind for site in sites), 0.0)
    for site in sites:
        value[site.kind] += float((worth[site.name] * alive[site.name]).sum())
        time[site.kind] += times[site.name][int(alive[site.name].sum())]
    scale = {kind: time[kind] / value[kind] if value[kind] > 0 else 1.0 for kind in value}
    return {site.name: worth[site.name] * scale[site.kind] for site in sites}


def ranked_groups(worth: Any, alive: Any, size: int) -> list[tuple[int, ...]]:
    """The units that are left in groups, the most important first.

    Where they do not divide the least important group is the small one, so that what stays is whole steps.
    """
    import torch

    left = torch.nonzero(alive).flatten()
    order = left[torch.argsort(worth[left], descending=True, stable=True)].tolist()
    return [tuple(order[at : at + size]) for at in range(0, len(order), size)]


def marginal(times: Sequence[float], groups: Sequence[Sequence[int]]) -> list[float]:
    """What each further group adds to the site's time; the first carries what the site costs at all."""
    count, found = 0, []
    for group in groups:
        found.append(times[count + len(group)] - times[count])
        count += len(group)
    return found


def solve(
    solver: str, values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float, unit: float
) -> list[int]:
    """How many groups of each site stay, from the most important on."""
    if solver == "augmented":
        return augmented(values, costs, budget, unit)
    from itertools import accumulate

    from harness.pruning.allocate import knapsack

    return knapsack(
        [list(accumulate(row, initial=0.0)) for row in values],
        [list(accumulate(row, initial=0.0)) for row in costs],
        budget,
    )


def augmented(
    values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float, unit: float
) -> list[int]:
    """HALP's program: all sites' items in turn, one kept only if the one before it is, at the capacity that is left.

    Exact for costs in a line, a heuristic for steps. A negative cost (a dip) makes room beyond the budget for the time
    in between. Whole numbers of `unit`: what a site costs up to an item is rounded up, so that no budget is exceeded.
    """
    import numpy as np

    ends = [np.ceil(np.cumsum([0.0, *row]) / unit - 1e-9).astype(int) for row in costs]
    whole = [np.diff(row).tolist() for row in ends]
    room = sum(-cost for row in whole for cost in row if cost < 0)
    capacity = math.floor(budget / unit + 1e-9)
    best = np.zeros(capacity + room + 1)
    taken: list[list[np.ndarray]] = []
    for row_values, row_costs in zip(values, whole, strict=True):
        marks: list[np.ndarray] = []
        for value, cost in zip(row_values, row_costs, strict=True):
            before = moved(best, cost, -np.inf)
            if marks:
                before = np.where(moved(marks[-1], cost, False), before, -np.inf)
            keep = before + value >= best  # ties are kept
            best = np.where(keep, before + value, best)
            marks.append(keep)
        taken.append(marks)
    at, kept = capacity, []
    for marks, row_costs in zip(reversed(taken), reversed(whole), strict=True):
        count = 0
        for item in range(len(marks) - 1, -1, -1):
            if marks[item][at]:
                count = max(count, item + 1)
                at -= row_costs[item]
        kept.append(count)
    return kept[::-1]


def moved(row: np.ndarray, by: int, fill: Any) -> np.ndarray:
    """A row as seen by one who has paid `by`."""
    import numpy as np

    found = np.full_like(row, fill)
    if by >= 0:
        found[by:] = row[: max(0, len(row) - by)]
    else:
        found[:by] = row[-by:]
    return found
