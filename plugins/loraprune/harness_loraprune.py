"""LoRAPrune: ranks units by the gradients of low-rank adapters and prunes them step by step during training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import Budget, Context, Cut, Param, PrunerSpec, Shape, Unsupported, best, hookimpl, uniform
from harness.pruning.allocate import open_layers

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.anatomy.core import Anatomy, Site

PROTECT_FIRST, PROTECT_LAST = 0.1, 1.0
REST = 0.1  # share of the steps at either end in which the masks do not change
MEMORY = 0.9  # weight of the previous importance in the moving average
TINY = 1e-8  # avoids a division by zero


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="loraprune",
            architectures=("decoder",),
            target="harness_loraprune:LoraPrune",
            summary="prunes step by step while low-rank adapters train, by their gradients",
            paper="Zhang et al. 2024, arXiv:2305.18403",
            needs=("calibration", "gradients", "training"),
            updates_weights=True,
            differs=(
                "text from --calibration instead of LaMini-instruction, all tokens counted",
                "the paper preset takes 4096 windows, the release some 2.6 million examples",
                "the last masks and the cut meet the ratio exactly; the released schedule stops just short of it",
                "units are KV groups, not pseudo-heads; only the LoRA score, not the options grad and magnitude",
                "no validation and no choice of a best checkpoint",
            ),
            parameters={
                "samples": Param(256, "windows of training text", paper=4096, least=1),
                "length": Param(64, "tokens in each window", paper=512, least=2),
                "batch": Param(4, "windows in one optimiser step", paper=128, least=1),
                "micro": Param(4, "windows in one pass; fewer save memory and change nothing else", paper=2, least=1),
                "epochs": Param(1, "passes over the training text", paper=2, least=1),
                "lr": Param(1e-3, "learning rate of the first step; it falls linearly to zero", paper=1e-4, above=0),
                "rank": Param(8, "rank of the adapters", least=1),
                "alpha": Param(16, "the adapters are scaled by alpha / rank", above=0),
                "dropout": Param(0.05, "dropout rate at the input of the adapters", least=0, most=0.9),
                "every": Param(10, "optimiser steps between two updates of the masks", least=1),
                "square": Param(
                    False, "square the importances, as the paper does; otherwise absolute values, as its code does"
                ),
                "protect_first": Param(
                    PROTECT_FIRST, "layers kept whole at the start: a share below 1, else a count", least=0
                ),
                "protect_last": Param(
                    PROTECT_LAST, "layers kept whole at the end: a share below 1, else a count", least=0
                ),
            },
            check_with={"samples": 8, "length": 16, "batch": 2, "micro": 1, "every": 2},
        )
    ]


@dataclass
class LoraPrune:
    samples: int = 256
    length: int = 64
    batch: int = 4
    micro: int = 4
    epochs: int = 1
    lr: float = 1e-3
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    every: int = 10
    square: bool = False
    protect_first: float = PROTECT_FIRST
    protect_last: float = PROTECT_LAST

    def shape(self, anatomy: Anatomy, ratio: float) -> Shape:
        return uniform(anatomy, ratio, layers=prunable_layers(anatomy, self.protect_first, self.protect_last))

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        from harness.pruning.gates import gated
        from harness.pruning.training import loop

        shape = self.shape(ctx.anatomy, budget.value)
        if all(units == ctx.anatomy.sites[name].units for name, units in shape.items()):
            return Cut(why="nothing was to go")
        steps = self.samples * self.epochs // self.batch
        if steps < 1:
            raise Unsupported(
                f"{self.samples} windows are too few for a batch of {self.batch}", "set samples higher, or batch lower"
            )
        assert ctx.calibration
        windows = ctx.calibration(self.samples, self.length)
        with loop.seeded(ctx.seed("adapters")):
            run = Run(model, ctx.anatomy, shape, self)
            with gated(model, ctx.anatomy, run.alive):  # units that are not alive output zero, as if removed
                for step, batch in enumerate(loop.random_batches(windows, self.batch, steps, ctx.seed("order")), 1):
                    run.step(batch, step, steps)
                    ctx.trained(batch.numel())
                    if step % self.every == 0:
                        run.update_masks(removed_share(step, steps))
                    ctx.progress(step, steps)
        return run.cut(f"least importance to adapters that trained {steps} steps")


class Run:
    """The state of one training: the adapters, the importance of each unit, and which units are alive."""

    def __init__(self, model: Any, anatomy: Anatomy, shape: Shape, settings: LoraPrune) -> None:
        import torch

        from harness.pruning.training import loop
        from harness.pruning.training.adapters import Adapters

        self.model = model.train()
        self.anatomy = anatomy
        self.shape = shape
        self.settings = settings
        self.adapters = Adapters(model, settings.rank, settings.alpha, settings.dropout)
        self.optimiser = loop.optimiser(self.adapters.parameters(), settings.lr)
        self.sites: list[Site] = [anatomy.sites[name] for name in shape]
        self.importance = {site.name: torch.zeros(site.units) for site in self.sites}
        self.alive = {site.name: torch.ones(site.units, dtype=torch.bool) for site in self.sites}

    def step(self, batch: Tensor, step: int, steps: int) -> None:
        """One optimiser step. Its gradients update the importance of each unit before they update the adapters."""
        from harness.pruning.training import loop

        self.optimiser.zero_grad()
        total = 0.0
        for part in batch.split(self.settings.micro):
            loss = loop.model_loss(self.model, part) * len(part) / len(batch)
            loss.backward()
            total += float(loss.detach())
        loop.check_loss(total, step, self.model, batch)
        self.importance = moving_average(self.importance, self.scores())
        loop.set_learning_rate(self.optimiser, self.settings.lr * (1 - (step - 1) / steps))
        self.optimiser.step()

    def scores(self) -> dict[str, Tensor]:
        """One score per unit of each site: the sum over its modules, each divided by its L2 norm."""
        from harness.pruning.importance import per_unit

        scores = {}
        for site in self.sites:
            modules = [member for member in site.members if member.tensor in self.adapters.linears]
            parts = [per_unit(self.elements(member.tensor), member) for member in modules]
            scores[site.name] = sum(part / (part.norm() + TINY) for part in parts).cpu()
        return scores

    def elements(self, name: str) -> Tensor:
        """The importance of each element of a weight, its adapter included."""
        import torch

        a, b = self.adapters.a(name), self.adapters.b(name)
        with torch.no_grad():
            weight = torch.addmm(self.adapters.base(name).float(), b, a, alpha=self.adapters.scaling)
            products = weight * surrogate_gradient(a, b, a.grad, b.grad)
        return products.pow(2) if self.settings.square else products.abs()

    def update_masks(self, share: float) -> None:
        """Mask the least important units, `share` of all that must go. A masked unit stays masked."""
        import torch

        ranking = self.ranking()
        counts = {site.name: site.units - int(share * (site.units - self.shape[site.name])) for site in self.sites}
        for name, units in best(counts, ranking).items():
            self.alive[name] = torch.zeros_like(self.alive[name])
            self.alive[name][units] = True

    def ranking(self) -> dict[str, Tensor]:
        """The importances, with masked units below all others, so that no tie revives one."""
        return {name: scores.masked_fill(~self.alive[name], -1.0) for name, scores in self.importance.items()}

    def cut(self, why: str) -> Cut:
        """A cut to exactly the requested shape, with the adapters merged into the remaining weights."""
        merged = {
            member.tensor: self.adapters.merged(member.tensor).cpu()
            for site in self.anatomy.blocks()
            for member in site.members
            if self.shape.get(site.name, site.units) and member.tensor in self.adapters.linears
        }
        return Cut(keep=best(self.shape, self.ranking()), rewrites=merged, why=why)


def surrogate_gradient(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> Tensor:
    """An estimate of the gradient of a frozen weight from its adapter: dB A + B dA - dB dA."""
    return grad_b @ (a - grad_a) + b @ grad_a


def moving_average(before: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The importances after a step. A step with any value that is not finite changes nothing."""
    if not all(bool(score.isfinite().all()) for score in scores.values()):
        return dict(before)
    return {name: MEMORY * before[name] + (1 - MEMORY) * score for name, score in scores.items()}


def removed_share(step: int, steps: int) -> float:
    """The share of the units to remove that is masked at a step: from 0 to 1 along a cubic curve."""
    rest = REST * steps
    progress = (step - rest) / (steps - 2 * rest)
    return 1 - (1 - min(1.0, max(0.0, progress))) ** 3


def prunable_layers(anatomy: Anatomy, first: float = PROTECT_FIRST, last: float = PROTECT_LAST) -> list[int]:
    """The layers that are not protected. A share is rounded down, as published; `open_layers` alone would round it."""
    layers = len({site.layer for site in anatomy.blocks()})
    return open_layers(anatomy, *(int(end * layers) if end < 1 else int(end) for end in (first, last)))
