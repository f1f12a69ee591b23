"""Hard-concrete gates on units: drawn, counted, held to a sparsity, and put into a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.models.anatomy.core import Anatomy, Site
from harness.pruning.importance import output_member
from harness.pruning.training.loop import optimiser

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
EDGE = 1e-6
LEAST, MOST = math.log(0.01), math.log(100)
DROP_AT_START = 0.01
START = {"attention": 10.0, "mlp": math.log((1 - DROP_AT_START) / DROP_AT_START), "hidden": 10.0}
SPREAD = 0.01

Gates = Mapping[str, Tensor]


def beginning(anatomy: Anatomy, seed: int) -> dict[str, Tensor]:
    """log alpha of every unit of every site, almost surely open."""
    chance = torch.Generator().manual_seed(seed)
    return {
        site.name: START[site.kind] + SPREAD * torch.randn(site.units, generator=chance)
        for site in anatomy.sites.values()
    }


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def drawn(log_alpha: Gates, chance: torch.Generator) -> dict[str, Tensor]:
    """One sample of all gates. Chance is drawn on the CPU, so that every device sees the same."""
    return {
        name: hard_concrete(found, torch.empty(len(found)).uniform_(EDGE, 1 - EDGE, generator=chance).to(found.device))
        for name, found in log_alpha.items()
    }


def alive(log_alpha: Tensor) -> Tensor:
    """The probability that a gate is not zero."""
    return 1 - torch.sigmoid(BETA * math.log(-LOW / HIGH) - log_alpha).clamp(EDGE, 1 - EDGE)


def unit_weights(anatomy: Anatomy, site: Site) -> int:
    """Weights of a unit at full width, biases left out: 3h of a channel, 2hd(g + 1) of a KV group."""
    return int(anatomy.config["hidden_size"]) * sum(m.block for m in site.members if len(anatomy.tensors[m.tensor]) > 1)


def sparsity(anatomy: Anatomy, share: Gates) -> Tensor:
    """The expected share of attention and MLP weights that is gone; a weight stays if its unit and its width do."""
    sites = list(anatomy.blocks())
    weights = {site.name: unit_weights(anatomy, site) for site in sites}
    left = torch.stack([weights[site.name] * share[site.name].sum() for site in sites]).sum()
    if "hidden" in share:
        left = left * share["hidden"].mean()
    return 1 - left / sum(weights[site.name] * site.units for site in sites)


def target(step: int, ramp: int, ratio: float) -> float:
    """The sparsity asked for at a step: a line from nothing to the ratio, then level."""
    return ratio * min(1.0, step / ramp) if ramp else ratio


class Constraint:
    """Two multipliers that climb while the sparsity is off its target."""

    def __init__(self, lr: float, device: Any = None) -> None:
        self.multipliers = torch.zeros(2, device=device, requires_grad=True)
        self.climb = optimiser([self.multipliers], lr, maximize=True)

    def penalty(self, off: Tensor) -> Tensor:
        return self.multipliers[0] * off + self.multipliers[1] * off**2


def clamp(log_alpha: Gates) -> None:
    with torch.no_grad():
        for found in log_alpha.values():
            found.clamp_(LEAST, MOST)


@contextmanager
def masked(model: Any, anatomy: Anatomy, gates: Gates) -> Iterator[None]:
    """While it lasts, the model computes with its units multiplied by these gates.

    A group where it enters the output projection, a channel at the gate's pre-activation and at the up projection, the
    width at the embedding and at what each sub-layer adds to the stream. Norms go on dividing by the full width.
    """

    def scale(values: Tensor, by: Tensor, block: int = 1) -> Tensor:
        return values * by.repeat_interleave(block).to(values.dtype)

    def linear(tensor: str) -> Any:
        return model.get_submodule(tensor.removesuffix(".weight"))

    def outputs(module: Any, by: Tensor) -> Any:
        return module.register_forward_hook(lambda _, args, found: scale(found, by))

    def inputs(module: Any, by: Tensor, block: int) -> Any:
        return module.register_forward_pre_hook(lambda _, args: (scale(args[0], by, block),))

    hooks = []
    try:
        for site in anatomy.blocks():
            out = output_member(site)
            if site.kind == "attention" and site.name in gates:
                hooks.append(inputs(linear(out.tensor), gates[site.name], out.block))
            if site.kind == "mlp" and site.name in gates:
                into = [m for m in site.members if m.dim == 0 and m.tensor.endswith(".weight")]
                hooks += [outputs(linear(member.tensor), gates[site.name]) for member in into]
            if "hidden" in gates:
                hooks.append(outputs(linear(out.tensor), gates["hidden"]))
        if "hidden" in gates:
            hooks.append(outputs(model.get_input_embeddings(), gates["hidden"]))
        yield
    finally:
        for hook in hooks:
            hook.remove()
