"""Wanda: scores a weight by its magnitude times the norm of its input. Zeroes weights or removes whole units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Shape, Unsupported, best, hookimpl, to_remove, uniform
from harness.pruning import masks as n_of_m
from harness.pruning.allocate import distribute

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.anatomy.core import Anatomy

# Pattern -> the least number of zeros in each group of neighbours in a row, and the size of the group.
PATTERNS = {"unstructured": (0, 1), **n_of_m.PATTERNS}


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="wanda",
            architectures=("decoder",),
            target="harness_wanda:Wanda",
            summary="zeroes the weights of least magnitude times input norm in each row, layer after layer",
            paper="Sun et al. 2023, arXiv:2306.11695",
            kinds=("unstructured", "semi-structured"),
            needs=("calibration",),
            differs=(
                "text from --calibration, cut from joined documents, instead of C4 crops",
                "norms count as prunable: a few zeros beyond the source's rule make up for them",
                "offers 4:8 and 1:4 (one zero in four) beside 2:4; no ratio per row (use_variant)",
            ),
            parameters={
                "pattern": Param(
                    "unstructured", "single weights per row, or N of M neighbours in a row", choices=tuple(PATTERNS)
                ),
                "samples": Param(32, "calibration sequences", paper=128, least=1),
                "length": Param(
                    256, "tokens in each; the source takes the longest the model allows", paper=2048, least=2
                ),
            },
            check_with={"samples": 4, "length": 32},
        ),
        PrunerSpec(
            name="wanda-sp",
            architectures=("decoder",),
            target="harness_wanda:WandaSp",
            summary="removes the units whose outgoing weights score least by Wanda's measure, layer after layer",
            paper="the structured form of Wanda in the repository of FLAP (An et al. 2023, arXiv:2312.11983)",
            kinds=("structured",),
            needs=("calibration",),
            differs=(
                "text from --calibration instead of C4 crops",
                "a KV group goes with its query heads; groups round down, channels make up the difference",
            ),
            parameters={
                "samples": Param(64, "calibration sequences", paper=128, least=1),
                "length": Param(128, "tokens in each", least=2),
            },
            check_with={"samples": 4, "length": 32},
        ),
    ]


@dataclass
class Wanda:
    pattern: str = "unstructured"
    samples: int = 32
    length: int = 256

    def shape(self, anatomy: Anatomy, ratio: float) -> Shape:
        return {}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        from harness.pruning import layerwise

        if not budget.value:
            return Cut()
        if self.pattern != "unstructured":
            n_of_m.check_ratio(self.pattern, budget.value)
        pattern_zeros, group = PATTERNS[self.pattern]
        goals = zeros_per_matrix(ctx.anatomy, budget.value, group)
        masks: dict[str, Tensor] = {}
        for layer in layerwise.forward(model, ctx.calibration(self.samples, self.length).split(1)):
            pruned = {}
            for name, squares in layer.by_weight(layer.squares()).items():
                weight = model.get_parameter(name).detach()
                scores = weight.float().abs() * squares.sqrt()
                if self.pattern == "unstructured":  # the whole row is one group
                    group = weight.shape[1]
                    pattern_zeros = int(group * budget.value)
                pattern, masks[name] = row_masks(scores, pattern_zeros, group, goals[name])
                pruned[name] = weight * pattern
            # The next layer's statistics come from this layer as the source prunes it: without the additional zeros.
            with replaced(model, pruned):
                layer.outputs = layer.run()
            ctx.progress(layer.index + 1, len(model.model.layers))
        return Cut(masks=masks, why=f"least weight times input norm, {self.pattern} along rows")


@dataclass
class WandaSp:
    samples: int = 64
    length: int = 128

    def shape(self, anatomy: Anatomy, ratio: float) -> Shape:
        return uniform(anatomy, ratio)

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        from harness.pruning import importance, layerwise

        if not budget.value:
            return Cut()
        shape = uniform(ctx.anatomy, budget.value)
        keep: dict[str, list[int]] = {}
        for layer in layerwise.forward(model, ctx.calibration(self.samples, self.length).split(1)):
            squares = layer.by_weight(layer.squares())
            scores = importance.output_activation(ctx.anatomy, layer.index, model.get_parameter, squares)
            layer_keep = best({site: shape[site] for site in scores}, scores)
            keep |= layer_keep
            with replaced(model, pruned_tensors(model, ctx.anatomy, layer_keep)):
                layer.outputs = layer.run()
            ctx.progress(layer.index + 1, len(model.model.layers))
        return Cut(keep=keep, why="least weight times input norm at the output projections, uniform allocation")


def zeros_per_matrix(anatomy: Anatomy, ratio: float, group: int) -> dict[str, int]:
    """How many weights each matrix loses: the same share of each, adding up to the budget."""
    sizes = {}
    for member in (member for site in anatomy.blocks() for member in site.members):
        rows, *columns = anatomy.tensors[member.tensor]
        if not columns:  # a norm or a bias
            continue
        n_of_m.check_columns(member.tensor, columns[0], group, "take pattern=unstructured")
        sizes[member.tensor] = rows * columns[0]
    total = sum(sizes.values())
    goal = to_remove(anatomy, ratio)
    if goal > total:
        most = math.floor(1e4 * total / anatomy.params(prunable=True)) / 1e4
        raise Unsupported(
            f"{ratio:g} of the prunable parameters cannot become zero: norms and biases stay, at most {most:g} can",
            f"give --ratio {most:g} or less",
        )
    return distribute(sizes, goal)


def row_masks(scores: Tensor, zeros: int, group: int, goal: int) -> tuple[Tensor, Tensor]:
    """Two masks of a matrix: with `zeros` zeros in every `group` neighbours of a row, and with `goal` zeros in all.

    The second has the zeros of the first. The additional ones are spread evenly over the rows; those that do not
    divide go to the rows whose next weight scores least.
    """
    rows, columns = scores.shape
    order = n_of_m.sort_groups(scores, group)
    pattern = n_of_m.group_mask(order, zeros).view(rows, columns)
    remaining = scores.masked_fill(~pattern, math.inf)
    following = order[:, zeros:] if group == columns else remaining.argsort(dim=1, stable=True)
    per_row, rest = divmod(goal - rows * columns // group * zeros, rows)
    mask = pattern.scatter(1, following[:, :per_row], False)
    if rest:
        next_scores = remaining.gather(1, following[:, per_row : per_row + 1]).flatten()
        lowest_rows = next_scores.argsort(stable=True)[:rest]
        mask[lowest_rows, following[lowest_rows, per_row]] = False
    return pattern, mask.cpu()


def pruned_tensors(model: Any, anatomy: Anatomy, keep: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """New values of tensors with which the model computes as if only these units were present."""
    import torch

    from harness.pruning.importance import output_member

    changed = {}
    for name, units in keep.items():
        site = anatomy.sites[name]
        if not units:  # a removed site adds nothing, so its biases become zero too
            changed |= {tensor: torch.zeros_like(model.get_parameter(tensor)) for tensor in site.owned}
            continue
        member = output_member(site)
        weight = model.get_parameter(member.tensor).detach().clone()
        removed = sorted(set(range(site.units)) - set(units))
        weight.unflatten(1, (site.units, member.block))[:, removed] = 0
        changed[member.tensor] = weight
    return changed


@contextmanager
def replaced(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Use these tensors in place of the model's own inside the block; the model's own come back afterwards."""
    originals = {name: model.get_parameter(name).data for name in tensors}
    try:
        for name, tensor in tensors.items():
            model.get_parameter(name).data = tensor
        yield
    finally:
        for name, tensor in originals.items():
            model.get_parameter(name).data = tensor
