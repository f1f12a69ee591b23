"""ShortGPT: removes the decoder layers that change their input least, all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Unsupported, hookimpl, to_remove

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.anatomy.core import Anatomy

HARNESS_API = 2
BATCH = 8  # windows in one pass


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="shortgpt",
            architectures=("decoder",),
            target="harness_shortgpt:ShortGPT",
            summary="drops the decoder layers whose output is most like their input",
            paper="Men et al. 2024, arXiv:2403.03853",
            kinds=("depth",),
            needs=("calibration",),
            differs=(
                "windows of --calibration instead of the 50 books of PG19",
                "the last layer's output is compared before the final norm",
            ),
            parameters={
                "samples": Param(
                    64,
                    "calibration windows; paper: 12 for each of the 50 books that the authors read in full",
                    paper=600,
                    least=1,
                ),
                "length": Param(256, "tokens in each window; windows do not overlap", least=2),
            },
            check_with={"samples": 8, "length": 64},
        )
    ]


@dataclass
class ShortGPT:
    samples: int = 64
    length: int = 256

    def prepare(self, model: Any, ctx: Context) -> dict[str, Tensor]:
        assert ctx.calibration
        windows = ctx.calibration(self.samples, self.length)
        return {"influence": influence(model, windows.split(BATCH), ctx.progress)}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        layers = least_influence(ctx.anatomy, budget.value, state["influence"].tolist())
        if not layers:
            return Cut(why="nothing is asked to go")
        sites = [site.name for site in ctx.anatomy.blocks() if site.layer in layers]
        scores = ", ".join(f"{layer} ({state['influence'][layer]:.3g})" for layer in sorted(layers))
        return Cut(keep={site: [] for site in sites}, why=f"layers of least block influence: {scores}")


def influence(model: Any, batches: Iterable[Tensor], progress: Callable[..., None] = lambda *_: None) -> Tensor:
    """Block influence of each layer: one minus the mean cosine between a token's states before and after it."""
    import torch

    from harness.pruning import layerwise

    scores = []
    for layer in layerwise.forward(model, batches):
        similarities = [cosines(x, y) for x, y in zip(layer.inputs, layer.run_unchanged(), strict=True)]
        scores.append(1 - torch.cat(similarities).double().mean())
        progress(layer.index + 1, len(model.model.layers))
    return torch.stack(scores).cpu()


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """The cosine of the two states of each token. A state of norm zero has none and counts as 0.5."""
    x, y = x.float(), y.float()
    return ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).nan_to_num(nan=0.5).flatten()


def least_influence(anatomy: Anatomy, ratio: float, scores: list[float]) -> set[int]:
    """The layers to remove: from the lowest score up, until they hold enough parameters. At least one layer stays."""
    size = dict.fromkeys(range(len(scores)), 0)
    for site in anatomy.blocks():
        size[site.layer] += anatomy.site_params(site, site.units)
    missing = to_remove(anatomy, ratio)
    layers: set[int] = set()
    *order, last = sorted(size, key=lambda layer: scores[layer])
    for layer in order:
        if missing <= 0:
            break
        missing -= size[layer]
        layers.add(layer)
    if missing > 0:
        most = math.floor((1 - size[last] / sum(size.values())) * 1e4) / 1e4
        raise Unsupported(
            f"{ratio:g} of the prunable parameters cannot go: one layer must stay (layer {last}, of most influence), "
            f"and the others hold {most:g}",
            "ask for a smaller ratio",
        )
    return layers
