"""LLM-Pruner: coupled groups ranked by what a Taylor expansion of the loss says they are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Shape, best, hookimpl, ranked, uniform
from harness.pruning.allocate import open_layers

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.anatomy.core import Anatomy, Member, Site

# The published commands prune layers 4 to 29 of 32.
PROTECT_FIRST, PROTECT_LAST = 0.125, 0.0625

# An element's score from its weight, its gradient and its mean squared gradient. Vectors keep their signs until summed.
ELEMENTS: dict[str, Callable[..., Tensor]] = {
    "param_first": lambda w, g, a: (w * g).abs(),
    "param_second": lambda w, g, a: (w.pow(2) * a).abs(),
    "param_mix": lambda w, g, a: (w * g - 0.5 * w.pow(2) * a).abs(),
    "vectorize": lambda w, g, a: w * g,
}
SECOND_ORDER = ("param_second", "param_mix")


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="llm-pruner",
            target="harness_llm_pruner:LlmPruner",
            summary="removes the coupled groups whose weights times gradients are smallest",
            paper="Ma et al. 2023, arXiv:2305.11627",
            needs=("calibration", "gradients"),
            differs=(
                "windows of --calibration instead of BookCorpus",
                "heads folded onto KV groups as they lie; compat_fold=modulo is the release's",
                "groups are summed, as the release does by default; its mean, max, prod and first are not offered",
                "block-wise, one step; no channel-wise mode, no dropping of layers",
                "first eighth and last sixteenth of the layers protected, whatever the depth",
            ),
            parameters={
                "importance": Param(
                    "param_first",
                    "per weight |w g|, |w^2 a| or |w g - w^2 a / 2|, a the mean squared gradient; vectorize: |sum w g|",
                    choices=tuple(ELEMENTS),
                ),
                "compat_fold": Param(
                    "contiguous",
                    "query heads of a KV group as they lie in memory; modulo: as the published Llama-3 runs took them",
                    choices=("contiguous", "modulo"),
                ),
                "allocation": Param(
                    "uniform", "the same share in every open layer, or all ranked", choices=("uniform", "global")
                ),
                "samples": Param(10, "windows, each a backward pass of its own; the paper's are BookCorpus", least=1),
                "length": Param(64, "tokens in each", least=2),
                "protect_first": Param(
                    PROTECT_FIRST, "layers kept whole at the start: a share below 1, else a count", least=0
                ),
                "protect_last": Param(
                    PROTECT_LAST, "layers kept whole at the end: a share below 1, else a count", least=0
                ),
            },
        )
    ]


@dataclass
class LlmPruner:
    importance: str = "param_first"
    compat_fold: str = "contiguous"
    allocation: str = "uniform"
    samples: int = 10
    length: int = 64
    protect_first: float = PROTECT_FIRST
    protect_last: float = PROTECT_LAST

    def shape(self, anatomy: Anatomy, ratio: float) -> Shape | None:
        if self.allocation == "global":
            return None
        return uniform(anatomy, ratio, layers=open_layers(anatomy, self.protect_first, self.protect_last))

    def prepare(self, model: Any, ctx: Context) -> dict[str, Any]:
        from harness.pruning import layerwise

        assert ctx.calibration
        windows = ctx.calibration(self.samples, self.length).split(1)  # squares are per sample
        squares, layers = self.importance in SECOND_ORDER, len(model.model.layers)
        found: dict[str, Any] = {}
        for done, gradients in enumerate(layerwise.backward(model, windows, squares), 1):
            for site in (s for s in ctx.anatomy.blocks() if s.layer == gradients.index):
                found[site.name] = self.scored(model, ctx.anatomy, site, gradients.mean, gradients.squares)
            ctx.progress(done, layers)
        return found

    def scored(
        self, model: Any, anatomy: Anatomy, site: Site, mean: Mapping[str, Tensor], squares: Mapping[str, Tensor]
    ) -> Tensor:
        """One score per unit: elements summed to lines, lines to units, units over the group. Biases count nothing."""
        total: Any = 0
        for member in (m for m in site.members if m.tensor.endswith(".weight")):
            weight = model.get_parameter(member.tensor).detach().float()
            elements = ELEMENTS[self.importance](weight, mean[member.tensor], squares.get(member.tensor))
            lines = elements.sum(dim=1 - member.dim).abs()
            total = total + lines.view(-1, site.units, self.width(anatomy, site, member)).sum(dim=(0, 2))
        return total.cpu()

    def width(self, anatomy: Anatomy, site: Site, member: Member) -> int:
        """How many lines in a row go to one unit before the next has its turn."""
        folded = self.compat_fold == "modulo" and site.kind == "attention"
        return anatomy.config["head_dim"] if folded else member.block

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        if self.allocation == "global":
            layers = open_layers(ctx.anatomy, self.protect_first, self.protect_last)
            keep = ranked(ctx.anatomy, budget.value, state, layers=layers)
        else:
            keep = best(self.shape(ctx.anatomy, budget.value) or {}, state)
        return Cut(keep=keep, why=f"least {self.importance} importance, {self.allocation} allocation")


def own_shape(anatomy: Anatomy, rho: float, first: float = PROTECT_FIRST, last: float = PROTECT_LAST) -> dict[str, int]:
    """What the published code leaves at its own ratio: channels are cut short, then floored to whole heads."""
    layers, kept = open_layers(anatomy, first, last), {}
    for site in (s for s in anatomy.blocks() if s.layer in layers):
        width = anatomy.config["head_dim"] if site.kind == "attention" else 1
        channels = site.units * width
        kept[site.name] = site.units - (channels - int(channels * (1 - rho))) // width
    return kept
