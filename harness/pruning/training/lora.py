"""LoRA: low-rank adapters on all projections learn the language loss and are then merged into the weights.

This is LLM-Pruner's recipe with the run's calibration text in place of instructions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.api import Context
from harness.errors import UsageError
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.lookup import architecture

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.cut import CheckedCut
    from harness.pruning.training.adapters import Adapters

MICRO = 4  # windows in memory at once
HELD = 16  # one window in so many validates
CHECKS = 8  # evaluations of the validation loss, evenly spread
LONGEST = 1.0  # the norm that gradients are clipped to


@dataclass
class Lora:
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    lr: float = 3e-3
    samples: int = 128
    length: int = 128
    batch: int = 2
    epochs: int = 1
    warmup: int = 3

    def __post_init__(self) -> None:
        if self.warmup >= self.steps:
            raise UsageError(
                f"all {self.steps} steps would be warm-up ({self.warmup})", "give fewer (warmup=…), or more samples"
            )

    @property
    def held(self) -> int:
        return max(1, self.samples // HELD)

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * (self.samples - self.held) / self.batch)

    def recover(self, model: Any, teacher: Any, ctx: Context) -> None:
        from harness.pruning.training.adapters import Adapters
        from harness.pruning.training.loop import seeded

        assert ctx.calibration is not None
        windows = ctx.calibration(self.samples, self.length)
        masks = {name: mask.to(model.device) for name, mask in remaining_masks(ctx.anatomy, ctx.cut).items()}
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        with seeded(ctx.seed("recovery", "lora")):
            adapters = Adapters(model, self.rank, self.alpha, self.dropout)
            keep_zeros(adapters, masks)
            self._train(adapters, windows[self.held :], windows[: self.held], ctx)
        adapters.merge()
        for name, mask in masks.items():
            model.get_parameter(name).data.masked_fill_(~mask, 0)
        for parameter, required in before:
            parameter.requires_grad_(required)
        model.eval()

    def _train(self, adapters: Adapters, windows: Tensor, held: Tensor, ctx: Context) -> None:
        """Train, then restore the adapters that had the least validation loss, which may be the untrained ones."""
        import torch

        from harness.pruning.training import loop

        model, weights = adapters.model, adapters.parameters()
        optim = loop.optimiser(weights, self.lr)
        least, best = validation_loss(model, held), [weight.detach().clone() for weight in weights]
        every = math.ceil(self.steps / CHECKS)
        order = ctx.seed("recovery", "lora", "order")
        for step, rows in enumerate(loop.random_batches(windows, self.batch, self.steps, order), 1):
            loop.set_learning_rate(optim, self.lr * loop.cosine(step - 1, self.steps, self.warmup))
            model.train()
            total = 0.0
            for part in rows.split(MICRO):
                loss = loop.model_loss(model, part) * len(part) / len(rows)
                loss.backward()
                total += loss.item()
            loop.check_loss(total, step, model, rows)
            ctx.trained(rows.numel())
            torch.nn.utils.clip_grad_norm_(weights, LONGEST)
            optim.step()
            optim.zero_grad()
            if step % every == 0 or step == self.steps:
                loss_now = validation_loss(model, held)
                if loss_now < least:
                    least, best = loss_now, [weight.detach().clone() for weight in weights]
            ctx.progress(step, self.steps)
        for weight, value in zip(weights, best, strict=True):
            weight.data.copy_(value)


def validation_loss(model: Any, windows: Tensor) -> float:
    import torch

    from harness.pruning.training.loop import model_loss

    model.eval()
    with torch.no_grad():
        return sum(model_loss(model, part).item() * len(part) for part in windows.split(MICRO)) / len(windows)


def remaining_masks(anatomy: Anatomy, cut: CheckedCut) -> dict[str, Tensor]:
    """The cut's masks with the shapes and names of the pruned model's tensors."""
    from harness.models.surgery import sliced

    names = architecture(anatomy.architecture).rename(anatomy, cut.shape)
    return {names[name]: mask for name, mask in sliced(anatomy, cut, cut.masks).items()}


def keep_zeros(adapters: Adapters, masks: Mapping[str, Tensor]) -> None:
    """Mask the adapters of masked weights, so that training sees the weights as they will be merged."""
    for name, mask in masks.items():
        if name in adapters.linears:
            layer = adapters.linears[name]
            layer.forward = partial(_masked, layer, adapters.a(name), adapters.b(name), adapters.scaling, mask)


def _masked(layer: Any, a: Tensor, b: Tensor, scaling: float, mask: Tensor, x: Tensor) -> Tensor:
    change = (scaling * (b @ a) * mask).to(x.dtype)
    return layer.base_layer(x) + layer.lora_dropout["default"](x) @ change.T
