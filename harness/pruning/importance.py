"""Importance scores that methods share: magnitude, activation, Taylor, compensated. Each maps a site to unit scores."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.models.anatomy.core import Anatomy, Member, Site
from harness.pruning import layerwise

__all__ = [
    "activation",
    "by_unit",
    "compensated",
    "grouped",
    "magnitude",
    "output_activation",
    "output_magnitude",
    "output_member",
    "per_unit",
    "taylor",
]

DAMPING, TINY = 0.01, 1e-30  # of the mean squared input; and the damping where all inputs are zero
THIN = 0.05  # the same, times inputs per token: with few tokens every input is nearly a sum of others
EVERY = 2  # the products of inputs take every so many-th token


def per_unit(element_scores: Tensor, member: Member) -> Tensor:
    """Element scores of a tensor, summed to one per unit of the site that cuts it."""
    others = [d for d in range(element_scores.dim()) if d != member.dim]
    lines = element_scores.sum(dim=others) if others else element_scores
    return by_unit(lines, member).sum(dim=1)


def by_unit(lines: Tensor, member: Member) -> Tensor:
    """One row per unit, with the values of the unit's indices."""
    if member.at is not None:
        lines = lines[member.rows(range(len(member.at)))]
    return lines.reshape(-1, member.block)


def grouped(anatomy: Anatomy, elements: Mapping[str, Tensor], layer: int | None = None) -> dict[str, Tensor]:
    """Element scores summed over each unit's tensors, of one layer or all. Tensors without scores count as zero."""
    scores = {}
    for site in anatomy.blocks():
        if layer in (None, site.layer):
            parts = [per_unit(elements[m.tensor].float(), m) for m in site.members if m.tensor in elements]
            scores[site.name] = torch.stack(parts).sum(dim=0).cpu()
    return scores


def magnitude(anatomy: Anatomy, state: Mapping[str, Tensor], p: int = 2) -> dict[str, Tensor]:
    """Sum of |w|^p over all weights of a unit."""
    scores = {}
    for site in anatomy.blocks():
        elements = ((m, state[m.tensor].detach()) for m in site.members if m.tensor.endswith(".weight"))
        parts = [per_unit(weight.float().abs().pow(p), m) for m, weight in elements]
        scores[site.name] = torch.stack(parts).sum(dim=0).cpu()
    return scores


def output_member(site: Site) -> Member:
    """The weight that reads a site's units. In a decoder its outputs enter the residual stream."""
    return site.readers[0]


def output_magnitude(anatomy: Anatomy, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """L2 norms of the columns that read a unit, summed."""
    scores = {}
    for site in anatomy.blocks():
        member = output_member(site)
        norms = state[member.tensor].detach().float().norm(dim=0)
        scores[site.name] = by_unit(norms, member).sum(dim=1).cpu()
    return scores


def taylor(model: Any, anatomy: Anatomy, batches: Iterable[Tensor], second_order: bool = False) -> dict[str, Tensor]:
    """Sum of |w g|, g the gradient of the mean loss over all batches; or of |w^2 a|, a the mean squared gradient."""
    scores: dict[str, Tensor] = {}
    for gradients in layerwise.backward(model, batches, squares=second_order):
        slopes = gradients.squares if second_order else gradients.mean
        elements = {
            name: (model.get_parameter(name).detach().float().pow(2 if second_order else 1) * slope).abs()
            for name, slope in slopes.items()
            if name in anatomy.cuts and slope.dim() > 1
        }
        scores |= grouped(anatomy, elements, gradients.index)
    return scores


def activation(model: Any, anatomy: Anatomy, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """|W| times the norm of its input, averaged over rows, for the weight that reads each site."""
    scores: dict[str, Tensor] = {}
    for layer in layerwise.forward(model, batches):
        norms = layer.by_weight(layer.squares(settled=True))
        scores |= output_activation(anatomy, layer.index, model.get_parameter, norms)
    return scores


def output_activation(
    anatomy: Anatomy, layer: int, weight_of: Callable[[str], Tensor], squares: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The same for one layer, given the squares of its inputs."""
    scores = {}
    for site in anatomy.blocks():
        if site.layer == layer:
            member = output_member(site)
            weight = weight_of(member.tensor).detach().float().abs()
            columns = (weight * squares[member.tensor].sqrt()).mean(dim=0)
            scores[site.name] = by_unit(columns, member).sum(dim=1).cpu()
    return scores


def compensated(model: Any, anatomy: Anatomy, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The error of a sub-layer's output when a unit is removed and the best linear map of all others replaces it.

    With H the products of the inputs of the last linear, it is the trace of W_u (H^-1_uu)^-1 W_u', as in ZipLM.
    """
    scores: dict[str, Tensor] = {}
    for layer in layerwise.forward(model, batches):
        members = {site.name: output_member(site) for site in anatomy.blocks() if site.layer == layer.index}
        grams = products(layer, {member.tensor for member in members.values()})
        tokens = sum(x.flatten(0, -2)[::EVERY].shape[0] for x in layer.inputs)
        for site, member in members.items():
            gram = grams.pop(member.tensor).double()
            damping = max(DAMPING, THIN * len(gram) / tokens)
            gram.diagonal().add_(damping * gram.diagonal().mean() + TINY)
            weight = model.get_parameter(member.tensor).detach().double()
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
            if member.at is not None:
                rows = member.rows(range(len(member.at)))
                weight, inverse = weight[:, rows], inverse[rows][:, rows]
            scores[site] = uncompensated(weight, inverse, member.block)
    return scores


def products(layer: layerwise.Layer, tensors: Container[str]) -> dict[str, Tensor]:
    """X'X of the inputs of these linears, over every other token: the products are most of the work."""
    grams: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        (tensor,) = layer.by_weight({name: x})
        if tensor in tensors:
            with torch.autocast(x.device.type, enabled=False):
                flat = x.flatten(0, -2)[::EVERY].float()
                if tensor not in grams:
                    grams[tensor] = flat.new_zeros(flat.shape[1], flat.shape[1])
                grams[tensor].addmm_(flat.T, flat)

    layer.run_unchanged(add)
    return grams


def uncompensated(weight: Tensor, inverse: Tensor, block: int) -> Tensor:
    """The error per unit of `block` inputs, from the inverse of H."""
    parts = inverse.unflatten(0, (-1, block)).unflatten(2, (-1, block))  # unit, in unit, unit, in unit
    own = torch.diagonal(parts, dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.T.unflatten(0, (-1, block))  # unit, in unit, rows
    root = torch.linalg.cholesky(own)
    return torch.linalg.solve_triangular(root, columns, upper=False).pow(2).sum((1, 2)).float().cpu()
