"""What methods and recoveries that train have in common: chance, batches, a schedule, adapters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.pruning.layerwise import forward, language_loss

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Chance that depends on the seed alone (dropout, initial values), and leaves the caller's as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def drawn(windows: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """So many batches of windows, every window once before any comes again."""
    order = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < size:
            waiting += torch.randperm(len(windows), generator=order).tolist()
        now, waiting = waiting[:size], waiting[size:]
        yield windows[now]


def cosine(step: int, steps: int, warmup: int = 0, floor: float = 0.0) -> float:
    """The share of the learning rate at a step: a linear rise, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def optimiser(parameters: Iterable[Tensor], lr: float, decay: float = 0.0, **more: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(parameters), lr=lr, weight_decay=decay, **more)


def at_rate(optim: torch.optim.Optimizer, lr: float) -> None:
    for group in optim.param_groups:
        group["lr"] = lr


def model_loss(model: Any, ids: Tensor) -> Tensor:
    ids = ids.to(model.device)
    return language_loss(model(ids, use_cache=False).logits, ids)


def stop_if_lost(loss: float, step: int, model: Any = None, ids: Tensor | None = None) -> None:
    """A loss that is not finite ends a training; with the model and its last batch the first bad layer is named."""
    if math.isfinite(loss):
        return
    where = first_bad_layer(model, ids) if model is not None and ids is not None else ""
    raise HarnessError(
        f"training lost its way at step {step}: the loss is {loss}{where}",
        "try a smaller learning rate, or --dtype fp32; if it is so from the first step on, the weights are bad",
    )


def first_bad_layer(model: Any, ids: Tensor) -> str:
    """The end of a sentence about a loss that is not finite, where a layer is to blame."""
    try:
        for _ in forward(model, [ids]):
            pass
    except HarnessError as found:
        return f"; {found.cause}"
    return ""


class Adapters:
    """LoRA on some of a model's linears, by way of peft. All other weights are frozen.

    The model is changed in place: work on one that is lent, or take the adapters out again with `merge`.
    """

    def __init__(
        self,
        model: Any,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        targets: Sequence[str] = PROJECTIONS,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        model.requires_grad_(False)
        self.model, self.scaling = model, alpha / rank
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules=list(targets),
        )
        inject_adapter_in_model(config, model)
        self.linears: dict[str, Any] = {
            f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }
        for parameter in self.parameters():  # bf16 would swallow small steps
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def a(self, name: str) -> Tensor:
        return self.linears[name].lora_A["default"].weight

    def b(self, name: str) -> Tensor:
        return self.linears[name].lora_B["default"].weight

    def base(self, name: str) -> Tensor:
        return self.linears[name].base_layer.weight

    def parameters(self) -> list[Tensor]:
        return [weight for name in self.linears for weight in (self.a(name), self.b(name))]

    def merged(self, name: str) -> Tensor:
        """The weight with its adapter in it."""
        base = self.base(name).detach()
        return (base.float() + self.scaling * self.b(name).detach().float() @ self.a(name).detach().float()).to(base)

    def merge(self) -> None:
        """Write the adapters into the weights and take them out of the model."""
        for name, layer in self.linears.items():
            base = layer.base_layer
            base.weight.data.copy_(self.merged(name))
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            setattr(self.model.get_submodule(parent), child, base)
        self.linears = {}
        vars(self.model).pop("peft_config", None)  # or peft warns when it comes to this model again
