"""Wanda: a weight matters as much as it is large and its input is loud. Single weights, N of M, or whole units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Shape, Unsupported, best, hookimpl, uniform
from harness.pruning.allocate import spread, to_remove

# The fewest zeros in so many neighbours of a row.
PATTERNS = {"unstructured": (0, 1), "2:4": (2, 4), "4:8": (4, 8), "1:4": (1, 4)}


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="wanda",
            target="harness_wanda:Wanda",
            summary="zeroes the weights of least magnitude times input norm in each row, layer after layer",
            paper="Sun et al. 2023, arXiv:2306.11695",
            kinds=("unstructured", "semi-structured"),
            needs=("calibration",),
            differs=(
                "text from --calibration, cut from joined documents, instead of C4 crops",
                "norms count as prunable: a few zeros beyond the source's rule make up for them",
                "4:8 and 1:4 (one of four goes) beside 2:4; no ratio per row (use_variant)",
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

    def shape(self, anatomy: Any, ratio: float) -> Shape:
        return {}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        from harness.pruning import layerwise

        if not budget.value:
            return Cut()
        fewest, of = PATTERNS[self.pattern]
        if fewest and not math.isclose(budget.value, fewest / of):
            raise Unsupported(
                f"{self.pattern} zeroes {fewest / of:g} of the weights, not {budget.value:g}",
                f"give --ratio {fewest / of:g}",
            )
        goals = zeros(ctx.anatomy, budget.value, of)
        masks = {}
        for layer in layerwise.forward(model, ctx.calibration(self.samples, self.length).split(1)):
            pruned = {}
            for name, squares in layer.by_weight(layer.squares()).items():
                weight = model.get_parameter(name).detach()
                worth, columns = weight.float().abs() * squares.sqrt(), weight.shape[1]
                group = (fewest, of) if fewest else (int(columns * budget.value), columns)
                pattern, masks[name] = kept(worth, *group, goals[name])
                pruned[name] = weight * pattern
            with replaced(model, pruned):  # the next layer learns from what the source makes of this one
                layer.outputs = layer.run()
            ctx.progress(layer.index + 1, len(model.model.layers))
        return Cut(masks=masks, why=f"least weight times input norm, {self.pattern} along rows")


@dataclass
class WandaSp:
    samples: int = 64
    length: int = 128

    def shape(self, anatomy: Any, ratio: float) -> Shape:
        return uniform(anatomy, ratio)

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        from harness.pruning import importance, layerwise

        if not budget.value:
            return Cut()
        shape, keep = uniform(ctx.anatomy, budget.value), {}
        for layer in layerwise.forward(model, ctx.calibration(self.samples, self.length).split(1)):
            squares = layer.by_weight(layer.squares())
            found = importance.output_activation(ctx.anatomy, layer.index, model.get_parameter, squares)
            chosen = best({site: shape[site] for site in found}, found)
            keep |= chosen
            with replaced(model, without(model, ctx.anatomy, chosen)):
                layer.outputs = layer.run()
            ctx.progress(layer.index + 1, len(model.model.layers))
        return Cut(keep=keep, why="least weight times input norm at the output projections, uniform allocation")


def zeros(anatomy: Any, ratio: float, of: int) -> dict[str, int]:
    """How many weights each matrix loses: the same share of each, adding up to the budget."""
    sizes = {}
    for member in (member for site in anatomy.blocks() for member in site.members):
        rows, *columns = anatomy.tensors[member.tensor]
        if not columns:
            continue
        if columns[0] % of:
            raise Unsupported(
                f"rows of {member.tensor} have {columns[0]} weights, not a multiple of {of}",
                "take pattern=unstructured",
            )
        sizes[member.tensor] = rows * columns[0]
    total = sum(sizes.values())
    goal = to_remove(anatomy, ratio)
    if goal > total:
        most = math.floor(1e4 * total / anatomy.params(prunable=True)) / 1e4
        raise Unsupported(
            f"{ratio:g} of the prunable parameters cannot become zero: norms and biases stay, at most {most:g} can",
            f"give --ratio {most:g} or less",
        )
    return spread(sizes, goal)


def kept(worth: Any, fewest: int, of: int, goal: int) -> tuple[Any, Any]:
    """What stays of a matrix without the `fewest` lowest of every `of` in a row; and without `goal` in all.

    Those beyond are as many in every row; what does not divide comes from the rows whose next one scores least.
    """
    import torch

    rows, columns = worth.shape
    order = worth.reshape(-1, of).argsort(dim=1, stable=True)
    pattern = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :fewest], False).view(rows, columns)
    left = worth.masked_fill(~pattern, torch.inf)
    following = order[:, fewest:] if of == columns else left.argsort(dim=1, stable=True)
    each, rest = divmod(goal - rows * columns // of * fewest, rows)
    stays = pattern.scatter(1, following[:, :each], False)
    if rest:
        after = left.gather(1, following[:, each : each + 1]).flatten()
        least = after.argsort(stable=True)[:rest]
        stays[least, following[least, each]] = False
    return pattern, stays.cpu()


def without(model: Any, anatomy: Any, keep: Mapping[str, list[int]]) -> dict[str, Any]:
    """The tensors that make these sites compute what they will once only these units are left."""
    import torch

    from harness.pruning.importance import output_member

    changed = {}
    for name, units in keep.items():
        site = anatomy.sites[name]
        if not units:  # its biases go too
            changed |= {owned: torch.zeros_like(model.get_parameter(owned)) for owned in site.owned}
            continue
        member = output_member(site)
        weight = model.get_parameter(member.tensor).detach().clone()
        gone = sorted(set(range(site.units)) - set(units))
        weight.unflatten(1, (site.units, member.block))[:, gone] = 0
        changed[member.tensor] = weight
    return changed


@contextmanager
def replaced(model: Any, tensors: Mapping[str, Any]) -> Iterator[None]:
    """These in the place of the model's own, which come back afterwards."""
    own = {name: model.get_parameter(name).data for name in tensors}
    try:
        for name, tensor in tensors.items():
            model.get_parameter(name).data = tensor
        yield
    finally:
        for name, tensor in own.items():
            model.get_parameter(name).data = tensor
