"""LLM-Pruner: removes the coupled groups that matter least by a Taylor expansion of the loss."""

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

# The score of an element from its weight w, its gradient g and its mean squared gradient a. `vectorize` keeps the
# signs until a row or column is summed.
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
            architectures=("decoder",),
            target="harness_llm_pruner:LlmPruner",
            summary="removes the coupled groups whose weights times gradients are smallest",
            paper="Ma et al. 2023, arXiv:2305.11627",
            needs=("calibration", "gradients"),
            differs=(
                "windows of --calibration instead of BookCorpus",
                "query heads count for the KV group that they belong to; compat_fold=modulo does as the release",
                "scores are summed over a group, the release's default; its mean, max, prod and first are not offered",
                "block-wise, one step; no channel-wise mode, no dropping of layers",
                "the first eighth and the last sixteenth of the layers are protected at any depth",
            ),
            parameters={
                "importance": Param(
                    "param_first",
                    "per weight |w g|, |w^2 a| or |w g - w^2 a / 2|, a the mean squared gradient; vectorize: |sum w g|",
                    choices=tuple(ELEMENTS),
                ),
                "compat_fold": Param(
                    "contiguous",
                    "query heads of a KV group: those next to each other; modulo: as in the published Llama-3 runs",
                    choices=("contiguous", "modulo"),
                ),
                "allocation": Param(
                    "uniform", "the same share in every unprotected layer, or all ranked", choices=("uniform", "global")
                ),
                "samples": Param(10, "windows, one backward pass each; the paper takes BookCorpus", least=1),
                "length": Param(64, "tokens in each window", least=2),
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

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        from harness.pruning import layerwise

        assert ctx.calibration
        # One window per batch, because squared gradients are averaged over single samples.
        windows = ctx.calibration(self.samples, self.length).split(1)
        squares, layers = self.importance in SECOND_ORDER, len(model.model.layers)
        scores: dict[str, Tensor] = {}
        for done, gradients in enumerate(layerwise.backward(model, windows, squares), 1):
            for site in (s for s in ctx.anatomy.blocks() if s.layer == gradients.index):
                scores[site.name] = self.score(model, ctx.anatomy, site, gradients.mean, gradients.squares)
            ctx.progress(done, layers)
        return scores

    def score(
        self, model: Any, anatomy: Anatomy, site: Site, mean: Mapping[str, Tensor], squares: Mapping[str, Tensor]
    ) -> Tensor:
        """One score per unit of a site: elements are summed to rows or columns, these to units, units over the group.

        Biases count nothing.
        """
        total: Any = 0
        for member in (m for m in site.members if m.tensor.endswith(".weight")):
            weight = model.get_parameter(member.tensor).detach().float()
            elements = ELEMENTS[self.importance](weight, mean[member.tensor], squares.get(member.tensor))
            lines = elements.sum(dim=1 - member.dim).abs()
            total = total + lines.view(-1, site.units, self.width(anatomy, site, member)).sum(dim=(0, 2))
        return total.cpu()

    def width(self, anatomy: Anatomy, site: Site, member: Member) -> int:
        """How many consecutive rows or columns count for one unit before the next unit follows."""
        modulo = self.compat_fold == "modulo" and site.kind == "attention"
        return anatomy.config["head_dim"] if modulo else member.block

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        if self.allocation == "global":
            layers = open_layers(ctx.anatomy, self.protect_first, self.protect_last)
            keep = ranked(ctx.anatomy, budget.value, state, layers=layers)
        else:
            keep = best(self.shape(ctx.anatomy, budget.value) or {}, state)
        return Cut(keep=keep, why=f"least {self.importance} importance, {self.allocation} allocation")
