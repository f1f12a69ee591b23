"""ShortGPT: the decoder layers that change their input least go, all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Unsupported, hookimpl, to_remove

HARNESS_API = 1
BATCH = 8  # windows in one pass


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="shortgpt",
            target="harness_shortgpt:ShortGPT",
            summary="drops the decoder layers whose output is most like their input",
            paper="Men et al. 2024, arXiv:2403.03853",
            kinds=("depth",),
            needs=("calibration",),
            differs=(
                "windows of --calibration instead of 50 books of PG19",
                "the last layer's output is compared before the final norm",
            ),
            parameters={
                "samples": Param(
                    64,
                    "calibration windows; paper: 12 for each of the 50 books that the authors read whole",
                    paper=600,
                    least=1,
                ),
                "length": Param(256, "tokens in each, not overlapping", least=2),
            },
            check_with={"samples": 8, "length": 64},
        )
    ]


@dataclass
class ShortGPT:
    samples: int = 64
    length: int = 256

    def prepare(self, model: Any, ctx: Context) -> dict[str, Any]:
        assert ctx.calibration
        windows = ctx.calibration(self.samples, self.length)
        return {"influence": influence(model, windows.split(BATCH), ctx.progress)}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        gone = least_influence(ctx.anatomy, budget.value, state["influence"].tolist())
        if not gone:
            return Cut(why="nothing is asked to go")
        sites = [site.name for site in ctx.anatomy.blocks() if site.layer in gone]
        told = ", ".join(f"{layer} ({state['influence'][layer]:.3g})" for layer in sorted(gone))
        return Cut(keep={site: [] for site in sites}, why=f"layers of least block influence: {told}")


def influence(model: Any, batches: Any, progress: Any = lambda *_: None) -> Any:
    """Per layer one minus the mean cosine between what enters a token's position and what leaves it."""
    import torch

    from harness.pruning import layerwise

    found = []
    for layer in layerwise.forward(model, batches):
        alike = [cosines(x, y) for x, y in zip(layer.inputs, layer.settled(), strict=True)]
        found.append(1 - torch.cat(alike).double().mean())
        progress(layer.index + 1, len(model.model.layers))
    return torch.stack(found).cpu()


def cosines(x: Any, y: Any) -> Any:
    """One per token; a state of length zero has none and counts as one half."""
    x, y = x.float(), y.float()
    return ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).nan_to_num(nan=0.5).flatten()


def least_influence(anatomy: Any, ratio: float, scores: list[float]) -> set[int]:
    """The fewest layers from the lowest score up that hold what has to go; at least one layer stays."""
    size = dict.fromkeys(range(len(scores)), 0)
    for site in anatomy.blocks():
        size[site.layer] += anatomy.site_params(site, site.units)
    left, gone = to_remove(anatomy, ratio), set()
    *order, last = sorted(size, key=lambda layer: scores[layer])
    for layer in order:
        if left <= 0:
            break
        left -= size[layer]
        gone.add(layer)
    if left > 0:
        most = math.floor((1 - size[last] / sum(size.values())) * 1e4) / 1e4
        raise Unsupported(
            f"{ratio:g} of the prunable parameters cannot go: one layer stays, number {last} of most influence, "
            f"and the others hold {most:g}",
            "ask for a smaller ratio",
        )
    return gone
