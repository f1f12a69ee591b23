"""Magnitude pruning: the oldest criterion and the baseline that every other has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Shape, Unsupported, best, hookimpl, ranked, uniform
from harness.pruning.allocate import spread, to_remove

KINDS = ("attention", "mlp")
PATTERNS = {"2:4": (2, 4), "4:8": (4, 8), "1:4": (1, 4)}


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="magnitude",
            target="harness_magnitude:Magnitude",
            summary="removes the units, or zeroes the weights, of least magnitude",
            paper="Han et al. 2015, arXiv:1506.02626; structured forms as in LLM-Pruner (arXiv:2305.11627) and FLAP",
            kinds=("structured", "unstructured", "semi-structured"),
            parameters={
                "granularity": Param(
                    "structured",
                    "whole units, single weights per matrix, or N of M weights in a row",
                    choices=("structured", "unstructured", *PATTERNS),
                ),
                "score": Param(
                    "group",
                    "group: sum over the coupled tensors; output: column norms of the output projection",
                    choices=("group", "output"),
                ),
                "norm": Param(2, "p of the sum of |w|^p over a group", choices=(1, 2)),
                "allocation": Param(
                    "uniform", "the same share everywhere, or all units ranked together", choices=("uniform", "global")
                ),
            },
        )
    ]


@dataclass
class Magnitude:
    granularity: str = "structured"
    score: str = "group"
    norm: int = 2
    allocation: str = "uniform"

    def shape(self, anatomy: Any, ratio: float) -> Shape | None:
        if self.granularity != "structured":
            return {}
        return uniform(anatomy, ratio) if self.allocation == "uniform" else None

    def prepare(self, model: Any, ctx: Context) -> dict[str, Any] | None:
        if self.granularity != "structured":
            return None
        from harness.pruning import importance

        state = model.state_dict()
        if self.score == "output":
            return dict(importance.output_magnitude(ctx.anatomy, state))
        return dict(importance.magnitude(ctx.anatomy, state, p=self.norm))

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        if self.granularity == "structured":
            if self.allocation == "uniform":
                keep = best(uniform(ctx.anatomy, budget.value), state)
            else:
                keep = ranked(ctx.anatomy, budget.value, state)
            return Cut(keep=keep, why=f"least {self.score} magnitude, {self.allocation} allocation")
        weights = {
            member.tensor: model.get_parameter(member.tensor).detach()
            for site in ctx.anatomy.blocks()
            for member in site.members
            if member.tensor.endswith(".weight")
        }
        goal = to_remove(ctx.anatomy, budget.value)
        if self.granularity == "unstructured":
            return Cut(masks=smallest(weights, goal), why="least magnitude in each matrix")
        fewest, of = PATTERNS[self.granularity]
        if not math.isclose(budget.value, fewest / of):
            raise Unsupported(
                f"{self.granularity} zeroes {fewest / of:g} of the weights, not {budget.value:g}",
                f"give --ratio {fewest / of:g}",
            )
        return Cut(masks=n_of_m(weights, fewest, of, goal), why=f"least magnitude, {self.granularity} along rows")


def shares(weights: dict[str, Any], goal: int) -> dict[str, int]:
    """The same share of every matrix, rounded so that they add up to the goal."""
    total = sum(weight.numel() for weight in weights.values())
    if goal > total:
        raise Unsupported("norms and biases are not pruned: that many weights are not there", "give a smaller ratio")
    return spread({name: weight.numel() for name, weight in weights.items()}, goal)


def smallest(weights: dict[str, Any], goal: int) -> dict[str, Any]:
    """Masks that zero the smallest weights of each matrix, `goal` of them in all."""
    import torch

    masks = {}
    for name, count in shares(weights, goal).items():
        order = weights[name].abs().flatten().argsort(stable=True)
        mask = torch.ones(order.numel(), dtype=torch.bool)
        mask[order[:count].cpu()] = False
        masks[name] = mask.view(weights[name].shape)
    return masks


def n_of_m(weights: dict[str, Any], fewest: int, of: int, goal: int) -> dict[str, Any]:
    """At least `fewest` zeros in every `of` neighbours of a row.

    Norms stay whole, so the pattern alone falls a little short of its own share of the parameters; the missing few
    are the smallest weights left, which no pattern forbids.
    """
    import torch

    masks = {}
    for name, weight in weights.items():
        if weight.shape[1] % of:
            raise Unsupported(f"rows of {name} have {weight.shape[1]} weights, not a multiple of {of}")
        order = weight.abs().reshape(-1, of).argsort(dim=1, stable=True)
        mask = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :fewest], False)
        masks[name] = mask.view(weight.shape).cpu()
    short = goal - sum(int((~mask).sum()) for mask in masks.values())
    if short > 0:
        for name, count in shares(weights, short).items():
            left = weights[name].abs().cpu().masked_fill(~masks[name], torch.inf)
            masks[name].view(-1)[left.flatten().argsort(stable=True)[:count]] = False
    return masks
