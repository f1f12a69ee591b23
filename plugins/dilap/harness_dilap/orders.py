"""What the units of a site are worth before the search: the order in which its gates open them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness import scores, walk
from harness.anatomy import Anatomy

DAMPING, TINY = 0.01, 1e-30  # of the mean squared input, and where all inputs are zero
THIN = 0.05  # the same, times inputs per token: few tokens make any input look like a sum of others
EVERY = 2  # so many-th token counts in the products of inputs


def compensated(model: Any, anatomy: Anatomy, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """What is lost of a sub-layer's output when a unit goes and a linear map of all others stands in for it.

    With H the products of the inputs of the last linear: the trace of W_u (H^-1_uu)^-1 W_u', as ZipLM has it.
    """
    found: dict[str, Tensor] = {}
    for layer in walk.forward(model, batches):
        members = {site.name: scores.output_member(site) for site in anatomy.blocks() if site.layer == layer.index}
        grams = products(layer, {member.tensor for member in members.values()})
        tokens = sum(x.flatten(0, -2)[::EVERY].shape[0] for x in layer.inputs)
        for site, member in members.items():
            gram = grams.pop(member.tensor).double()
            damping = max(DAMPING, THIN * len(gram) / tokens)
            gram.diagonal().add_(damping * gram.diagonal().mean() + TINY)
            weight = model.get_parameter(member.tensor).detach().double()
            found[site] = lost(weight, torch.cholesky_inverse(torch.linalg.cholesky(gram)), member.block)
    return found


def products(layer: walk.Layer, tensors: Container[str]) -> dict[str, Tensor]:
    """X'X of what enters these linears of a layer, by every other token: products are most of the work."""
    grams: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        (tensor,) = walk.by_linear(layer.index, {name: x})
        if tensor in tensors:
            with torch.autocast(x.device.type, enabled=False):
                flat = x.flatten(0, -2)[::EVERY].float()
                if tensor not in grams:
                    grams[tensor] = flat.new_zeros(flat.shape[1], flat.shape[1])
                grams[tensor].addmm_(flat.T, flat)

    layer.settled(add)
    return grams


def lost(weight: Tensor, inverse: Tensor, block: int) -> Tensor:
    """Per unit of `block` inputs, from the inverse of H."""
    parts = inverse.unflatten(0, (-1, block)).unflatten(2, (-1, block))  # unit, in unit, unit, in unit
    own = torch.diagonal(parts, dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.T.unflatten(0, (-1, block))  # unit, in unit, rows
    root = torch.linalg.cholesky(own)
    return torch.linalg.solve_triangular(root, columns, upper=False).pow(2).sum((1, 2)).float().cpu()


ORDERS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "activation": scores.activation,
    "taylor": scores.taylor,
    "compensated": compensated,
}
