"""Shared importances of units: magnitude, activation, Taylor. Each returns site -> one score per unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness import walk
from harness.anatomy import Anatomy, Member, Site


def per_unit(element_scores: Tensor, member: Member) -> Tensor:
    """Element scores of a tensor summed to one per unit of the site that cuts its `dim`."""
    others = [d for d in range(element_scores.dim()) if d != member.dim]
    lines = element_scores.sum(dim=others) if others else element_scores
    return lines.reshape(-1, member.block).sum(dim=1)


def grouped(anatomy: Anatomy, elements: Mapping[str, Tensor], layer: int | None = None) -> dict[str, Tensor]:
    """Element scores summed over the coupled group, of one layer or all; tensors without scores count nothing."""
    found = {}
    for site in anatomy.blocks():
        if layer in (None, site.layer):
            parts = [per_unit(elements[m.tensor].float(), m) for m in site.members if m.tensor in elements]
            found[site.name] = torch.stack(parts).sum(dim=0).cpu()
    return found


def magnitude(anatomy: Anatomy, state: Mapping[str, Tensor], p: int = 2) -> dict[str, Tensor]:
    """Sum of |w|^p over the weights of the coupled group."""
    found = {}
    for site in anatomy.blocks():
        elements = ((m, state[m.tensor].detach()) for m in site.members if m.tensor.endswith(".weight"))
        parts = [per_unit(weight.float().abs().pow(p), m) for m, weight in elements]
        found[site.name] = torch.stack(parts).sum(dim=0).cpu()
    return found


def output_member(site: Site) -> Member:
    """The linear that carries a site back into the residual stream."""
    return next(m for m in site.members if m.dim == 1)


def output_magnitude(anatomy: Anatomy, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """L2 norms of the output projection's columns, summed over a unit's columns."""
    found = {}
    for site in anatomy.blocks():
        member = output_member(site)
        norms = state[member.tensor].detach().float().norm(dim=0)
        found[site.name] = norms.reshape(-1, member.block).sum(dim=1).cpu()
    return found


def taylor(model: Any, anatomy: Anatomy, batches: Iterable[Tensor], second_order: bool = False) -> dict[str, Tensor]:
    """|w g| per element, g from the mean loss of all batches; or |w^2 a|, a the mean of squared gradients."""
    found: dict[str, Tensor] = {}
    for gradients in walk.backward(model, batches, squares=second_order):
        slopes = gradients.squares if second_order else gradients.mean
        elements = {
            name: (model.get_parameter(name).detach().float().pow(2 if second_order else 1) * slope).abs()
            for name, slope in slopes.items()
            if name.endswith("_proj.weight")
        }
        found |= grouped(anatomy, elements, gradients.index)
    return found


def activation(model: Any, anatomy: Anatomy, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """|W| times the norm of its input, averaged over rows, at the output side of each site."""
    found: dict[str, Tensor] = {}
    for layer in walk.forward(model, batches):
        norms = walk.by_linear(layer.index, layer.squares(settled=True))
        found |= output_activation(anatomy, layer.index, model.get_parameter, norms)
    return found


def output_activation(
    anatomy: Anatomy, layer: int, weight_of: Callable[[str], Tensor], squares: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The same for one layer whose inputs' squares are known."""
    found = {}
    for site in anatomy.blocks():
        if site.layer == layer:
            member = output_member(site)
            weight = weight_of(member.tensor).detach().float().abs()
            columns = (weight * squares[member.tensor].sqrt()).mean(dim=0)
            found[site.name] = columns.reshape(-1, member.block).sum(dim=1).cpu()
    return found
