"""Magnitude pruning: removes the units, or zeroes the weights, with the smallest absolute values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import (
    Budget,
    Context,
    Cut,
    Param,
    PrunerSpec,
    Shape,
    Unsupported,
    best,
    hookimpl,
    ranked,
    to_remove,
    uniform,
)
from harness.pruning.allocate import distribute
from harness.pruning.masks import PATTERNS, check_columns, check_ratio, group_mask, sort_groups

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.anatomy.core import Anatomy


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="magnitude",
            architectures=("decoder",),
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

    def shape(self, anatomy: Anatomy, ratio: float) -> Shape | None:
        if self.granularity != "structured":
            return {}
        return uniform(anatomy, ratio) if self.allocation == "uniform" else None

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor] | None:
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
        check_ratio(self.granularity, budget.value)
        zeros, group = PATTERNS[self.granularity]
        return Cut(masks=n_of_m(weights, zeros, group, goal), why=f"least magnitude, {self.granularity} along rows")


def shares(weights: Mapping[str, Tensor], goal: int) -> dict[str, int]:
    """How many weights each matrix loses: the same share of each, rounded so that they add up to `goal`."""
    total = sum(weight.numel() for weight in weights.values())
    if goal > total:
        raise Unsupported(
            f"{goal} weights cannot become zero: the matrices hold {total}, and norms and biases are not pruned",
            "give a smaller ratio",
        )
    return distribute({name: weight.numel() for name, weight in weights.items()}, goal)


def smallest(weights: Mapping[str, Tensor], goal: int) -> dict[str, Tensor]:
    """Masks that zero the smallest weights of each matrix, `goal` of them in all."""
    import torch

    masks = {}
    for name, count in shares(weights, goal).items():
        order = weights[name].abs().flatten().argsort(stable=True)
        mask = torch.ones(order.numel(), dtype=torch.bool)
        mask[order[:count].cpu()] = False
        masks[name] = mask.view(weights[name].shape)
    return masks


def n_of_m(weights: Mapping[str, Tensor], zeros: int, group: int, goal: int) -> dict[str, Tensor]:
    """Masks with at least `zeros` zeros in every `group` neighbours of a row, and `goal` zeros in all.

    Norms count as prunable but stay whole, so the pattern alone zeroes slightly fewer weights than `goal`. The
    smallest of the remaining weights make up the difference; no pattern forbids more zeros.
    """
    import torch

    masks = {}
    for name, weight in weights.items():
        check_columns(name, weight.shape[1], group)
        masks[name] = group_mask(sort_groups(weight.abs(), group), zeros).view(weight.shape).cpu()
    missing = goal - sum(int((~mask).sum()) for mask in masks.values())
    if missing > 0:
        for name, count in shares(weights, missing).items():
            remaining = weights[name].abs().cpu().masked_fill(~masks[name], torch.inf)
            masks[name].view(-1)[remaining.flatten().argsort(stable=True)[:count]] = False
    return masks
