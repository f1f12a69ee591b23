"""LoRAPrune: units ranked by the gradients of low-rank adapters, pruned step by step while the adapters train."""

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
REST = 0.1  # of the steps at either end, where the masks stay as they are
MEMORY = 0.9  # of what an importance was before this step
TINY = 1e-8


@hookimpl
def harness_register_pruners():
    return [
        PrunerSpec(
            name="loraprune",
            target="harness_loraprune:LoraPrune",
            summary="prunes step by step while low-rank adapters train, by their gradients",
            paper="Zhang et al. 2024, arXiv:2305.18403",
            needs=("calibration", "gradients", "training"),
            updates_weights=True,
            differs=(
                "text from --calibration instead of LaMini-instruction, all tokens counted",
                "paper takes 4096 windows, the release some 2.6 million examples",
                "the last masks and the cut are exact, where the released schedule stops just short",
                "units are KV groups, not pseudo-heads; only the LoRA score, not its grad and magnitude options",
                "no validation, no choice of a best checkpoint",
            ),
            parameters={
                "samples": Param(256, "windows of text that are trained on", paper=4096, least=1),
                "length": Param(64, "tokens in each", paper=512, least=2),
                "batch": Param(4, "windows in one optimiser step", paper=128, least=1),
                "micro": Param(4, "of them at a time, which saves memory and changes nothing else", paper=2, least=1),
                "epochs": Param(1, "times that every window is seen", paper=2, least=1),
                "lr": Param(1e-3, "learning rate of the first step; it falls linearly to nothing", paper=1e-4, above=0),
                "rank": Param(8, "of the adapters", least=1),
                "alpha": Param(16, "of the adapters: they count alpha / rank", above=0),
                "dropout": Param(0.05, "in front of the adapters", least=0, most=0.9),
                "every": Param(10, "optimiser steps between two updates of the masks", least=1),
                "square": Param(
                    False, "importances squared, as the paper writes them; else absolute, as its code does"
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
                f"{self.samples} windows make no batch of {self.batch}", "set samples higher, or batch lower"
            )
        assert ctx.calibration
        windows = ctx.calibration(self.samples, self.length)
        with loop.seeded(ctx.seed("adapters")):
            run = Run(model, ctx.anatomy, shape, self)
            with gated(model, ctx.anatomy, run.alive):  # what the dead hand on is zero, as if they were gone
                for step, batch in enumerate(loop.drawn(windows, self.batch, steps, ctx.seed("order")), 1):
                    run.step(batch, step, steps)
                    ctx.trained(batch.numel())
                    if step % self.every == 0:
                        run.update_masks(ramp(step, steps))
                    ctx.progress(step, steps)
        return run.cut(f"least importance to adapters that trained {steps} steps")


class Run:
    """Adapters in training, the importances of units and which of them are alive."""

    def __init__(self, model: Any, anatomy: Anatomy, shape: Shape, settings: LoraPrune) -> None:
        import torch

        from harness.pruning.training import loop
        from harness.pruning.training.adapters import Adapters

        self.model, self.anatomy, self.shape, self.settings = model.train(), anatomy, shape, settings
        self.adapters = Adapters(model, settings.rank, settings.alpha, settings.dropout)
        self.optimiser = loop.optimiser(self.adapters.parameters(), settings.lr)
        self.sites: list[Site] = [anatomy.sites[name] for name in shape]
        self.importance = {site.name: torch.zeros(site.units) for site in self.sites}
        self.alive = {site.name: torch.ones(site.units, dtype=torch.bool) for site in self.sites}

    def step(self, batch: Tensor, step: int, steps: int) -> None:
        """One optimiser step; its gradients, before they are used, tell what each unit is worth."""
        from harness.pruning.training import loop

        self.optimiser.zero_grad()
        total = 0.0
        for part in batch.split(self.settings.micro):
            loss = loop.model_loss(self.model, part) * len(part) / len(batch)
            loss.backward()
            total += float(loss.detach())
        loop.stop_if_lost(total, step, self.model, batch)
        self.importance = remembered(self.importance, self.scores())
        loop.at_rate(self.optimiser, self.settings.lr * (1 - (step - 1) / steps))
        self.optimiser.step()

    def scores(self) -> dict[str, Tensor]:
        """Per site the sum of its modules' scores, each module's of length one."""
        from harness.pruning.importance import per_unit

        found = {}
        for site in self.sites:
            modules = [member for member in site.members if member.tensor in self.adapters.linears]
            parts = [per_unit(self.elements(member.tensor), member) for member in modules]
            found[site.name] = sum(part / (part.norm() + TINY) for part in parts).cpu()
        return found

    def elements(self, name: str) -> Tensor:
        """What each element of a weight with its adapter is worth."""
        import torch

        a, b = self.adapters.a(name), self.adapters.b(name)
        with torch.no_grad():
            weight = torch.addmm(self.adapters.base(name).float(), b, a, alpha=self.adapters.scaling)
            worth = weight * surrogate(a, b, a.grad, b.grad)
        return worth.pow(2) if self.settings.square else worth.abs()

    def update_masks(self, share: float) -> None:
        """The least important die, this share of all that have to go; who is dead stays dead."""
        import torch

        ranking = self.ranking()
        left = {site.name: site.units - int(share * (site.units - self.shape[site.name])) for site in self.sites}
        for name, kept in best(left, ranking).items():
            self.alive[name] = torch.zeros_like(self.alive[name])
            self.alive[name][kept] = True

    def ranking(self) -> dict[str, Tensor]:
        """Importances, the dead below all others, so that no tie revives them."""
        return {name: found.masked_fill(~self.alive[name], -1.0) for name, found in self.importance.items()}

    def cut(self, why: str) -> Cut:
        """Exactly the shape that was asked for, and the adapters merged into all that is left."""
        merged = {
            member.tensor: self.adapters.merged(member.tensor).cpu()
            for site in self.anatomy.blocks()
            for member in site.members
            if self.shape.get(site.name, site.units) and member.tensor in self.adapters.linears
        }
        return Cut(keep=best(self.shape, self.ranking()), rewrites=merged, why=why)


def surrogate(a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> Tensor:
    """The gradient of a frozen weight as its adapter knows it: dB A + B dA - dB dA."""
    return grad_b @ (a - grad_a) + b @ grad_a


def remembered(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A moving average; a step with anything that is not finite leaves no trace."""
    if not all(bool(found.isfinite().all()) for found in now.values()):
        return dict(before)
    return {name: MEMORY * before[name] + (1 - MEMORY) * found for name, found in now.items()}


def ramp(step: int, steps: int) -> float:
    """How much of what has to go is gone: nothing at first, all of it at last, in between along a cubic."""
    rest = REST * steps
    done = (step - rest) / (steps - 2 * rest)
    return 1 - (1 - min(1.0, max(0.0, done))) ** 3


def prunable_layers(anatomy: Anatomy, first: float = PROTECT_FIRST, last: float = PROTECT_LAST) -> list[int]:
    """The layers that are not protected. The published share is cut short, where `open_layers` would round it."""
    layers = len({site.layer for site in anatomy.blocks()})
    return open_layers(anatomy, *(int(end * layers) if end < 1 else int(end) for end in (first, last)))


def own_shape(
    anatomy: Anatomy, ratio: float, first: float = PROTECT_FIRST, last: float = PROTECT_LAST
) -> dict[str, int]:
    """What the published method leaves at its own ratio: that share of the units of every prunable layer."""
    layers = prunable_layers(anatomy, first, last)
    return {s.name: s.units - int(ratio * s.units) for s in anatomy.blocks() if s.layer in layers}
