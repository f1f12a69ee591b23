"""Hard-concrete gates on units: sampling, expected sparsity, the sparsity constraint, and masks in a model."""

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

BETA, LOW, HIGH = 2 / 3, -0.1, 1.1  # temperature and stretch of the hard-concrete distribution
EDGE = 1e-6  # distance of uniform samples and probabilities from 0 and 1
LEAST, MOST = math.log(0.01), math.log(100)  # limits of log alpha
DROP_AT_START = 0.01  # initial probability that a channel's gate is closed
START = {"attention": 10.0, "mlp": math.log((1 - DROP_AT_START) / DROP_AT_START), "hidden": 10.0}
SPREAD = 0.01  # standard deviation of the initial log alpha

Gates = Mapping[str, Tensor]  # site -> one value per unit


def initial_gates(anatomy: Anatomy, seed: int) -> dict[str, Tensor]:
    """The initial log alpha of every unit of every site. All gates are almost certainly open."""
    generator = torch.Generator().manual_seed(seed)
    return {
        site.name: START[site.kind] + SPREAD * torch.randn(site.units, generator=generator)
        for site in anatomy.sites.values()
    }


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Hard-concrete samples from uniform samples `u`."""
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def sample_gates(log_alpha: Gates, generator: torch.Generator) -> dict[str, Tensor]:
    """One sample of all gates. Random numbers come from the CPU, so that all devices get the same."""
    samples = {}
    for name, values in log_alpha.items():
        u = torch.empty(len(values)).uniform_(EDGE, 1 - EDGE, generator=generator)
        samples[name] = hard_concrete(values, u.to(values.device))
    return samples


def open_probability(log_alpha: Tensor) -> Tensor:
    """The probability that a gate is not zero."""
    return 1 - torch.sigmoid(BETA * math.log(-LOW / HIGH) - log_alpha).clamp(EDGE, 1 - EDGE)


def unit_weights(anatomy: Anatomy, site: Site) -> int:
    """The number of weights of a unit at full width, without biases: 3h for a channel, 2hd(g + 1) for a KV group."""
    return int(anatomy.config["hidden_size"]) * sum(m.block for m in site.members if len(anatomy.tensors[m.tensor]) > 1)


def sparsity(anatomy: Anatomy, share: Gates) -> Tensor:
    """The expected share of attention and MLP weights that is removed.

    `share` holds the probability that each unit stays. A weight stays if its unit and its hidden dimension stay.
    """
    sites = list(anatomy.blocks())
    weights = {site.name: unit_weights(anatomy, site) for site in sites}
    remaining = torch.stack([weights[site.name] * share[site.name].sum() for site in sites]).sum()
    if "hidden" in share:
        remaining = remaining * share["hidden"].mean()
    return 1 - remaining / sum(weights[site.name] * site.units for site in sites)


def target(step: int, ramp: int, ratio: float) -> float:
    """The target sparsity at a step: it rises linearly from zero to the ratio, then stays."""
    return ratio * min(1.0, step / ramp) if ramp else ratio


class Constraint:
    """Two Lagrange multipliers that grow while the sparsity is off its target."""

    def __init__(self, lr: float, device: Any = None) -> None:
        self.multipliers = torch.zeros(2, device=device, requires_grad=True)
        self.optimiser = optimiser([self.multipliers], lr, maximize=True)

    def penalty(self, difference: Tensor) -> Tensor:
        """The term to add to the loss, for this difference between the sparsity and its target."""
        return self.multipliers[0] * difference + self.multipliers[1] * difference**2


def clamp(log_alpha: Gates) -> None:
    """Clamp log alpha to its limits, in place."""
    with torch.no_grad():
        for values in log_alpha.values():
            values.clamp_(LEAST, MOST)


@contextmanager
def masked(model: Any, anatomy: Anatomy, gates: Gates) -> Iterator[None]:
    """Multiply the units of the model by these gates inside the block.

    A KV group is multiplied at the input of the output projection, and a channel at the outputs of the gate and up
    projections. The hidden width is multiplied at the embedding and at the output of each sub-layer. Norms still divide
    by the full width.
    """

    def scale(values: Tensor, factors: Tensor, block: int = 1) -> Tensor:
        return values * factors.repeat_interleave(block).to(values.dtype)

    def linear(tensor: str) -> Any:
        return model.get_submodule(tensor.removesuffix(".weight"))

    def scale_output(module: Any, factors: Tensor) -> Any:
        return module.register_forward_hook(lambda _, args, output: scale(output, factors))

    def scale_input(module: Any, factors: Tensor, block: int) -> Any:
        return module.register_forward_pre_hook(lambda _, args: (scale(args[0], factors, block),))

    hooks = []
    try:
        for site in anatomy.blocks():
            out = output_member(site)
            if site.kind == "attention" and site.name in gates:
                hooks.append(scale_input(linear(out.tensor), gates[site.name], out.block))
            if site.kind == "mlp" and site.name in gates:
                gate_and_up = [m for m in site.members if m.dim == 0 and m.tensor.endswith(".weight")]
                hooks += [scale_output(linear(member.tensor), gates[site.name]) for member in gate_and_up]
            if "hidden" in gates:
                hooks.append(scale_output(linear(out.tensor), gates["hidden"]))
        if "hidden" in gates:
            hooks.append(scale_output(model.get_input_embeddings(), gates["hidden"]))
        yield
    finally:
        for hook in hooks:
            hook.remove()
