"""Applies a cut to a model. No other file changes the shape of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.models.anatomy.core import Anatomy, Member
from harness.models.architectures.lookup import architecture, architecture_for
from harness.models.cut import CheckedCut


def dense_state(model: Any) -> dict[str, Tensor]:
    """A model's tensors under the anatomy's names, tied ones once."""
    return architecture_for(model).tensors(model)


def written(state: Mapping[str, Tensor], cut: CheckedCut) -> dict[str, Tensor]:
    """The dense tensors after rewrites and masks, before anything is sliced."""
    state = dict(state)
    for name, value in cut.rewrites.items():
        state[name] = value.to(state[name])
    for name, mask in cut.masks.items():
        state[name] = state[name] * mask.to(state[name])
    return state


def apply(model: Any, anatomy: Anatomy, cut: CheckedCut) -> Any:
    """A new, smaller model. The dense model does not change."""
    kind, shape = architecture(anatomy.architecture), anatomy.complete(cut.shape)
    remaining = sliced(anatomy, cut, written(dense_state(model), cut))
    kind.rescale(anatomy, remaining, shape)
    names = kind.rename(anatomy, shape)
    tensors = {names[name]: tensor.detach().clone() for name, tensor in remaining.items()}
    smaller = kind.build(kind.config_of(anatomy, shape), tensors)
    if hasattr(model, "generation_config"):
        smaller.generation_config = model.generation_config
    return smaller


def sliced(anatomy: Anatomy, cut: CheckedCut, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the cut leaves of these tensors, without those of empty sites."""
    removed = removed_units(anatomy, cut)
    kept_by_cut: dict[tuple, Tensor] = {}  # most tensors are cut like another one
    remaining = {}
    for name in anatomy.tensor_shapes(cut.shape):
        if name not in tensors:
            continue
        tensor = tensors[name]
        members: dict[int, list[tuple[str, Member]]] = {}
        for site, member in anatomy.cuts.get(name, ()):
            if site in removed:
                members.setdefault(member.dim, []).append((site, member))
        for dim, cuts in members.items():
            size = tensor.shape[dim]
            key = (size, *((site, member.block, member.at) for site, member in cuts))
            if key not in kept_by_cut:
                kept_by_cut[key] = _kept_indices(size, [member.rows(removed[site]) for site, member in cuts])
            tensor = tensor.index_select(dim, kept_by_cut[key].to(tensor.device))
        remaining[name] = tensor
    return remaining


def removed_units(anatomy: Anatomy, cut: CheckedCut) -> dict[str, list[int]]:
    """The units that the cut removes, by site."""
    return {site: sorted(set(range(anatomy.sites[site].units)) - set(units)) for site, units in cut.keep.items()}


def _kept_indices(size: int, removed: list[list[int]]) -> Tensor:
    remains = torch.ones(size, dtype=torch.bool)
    for rows in removed:
        remains[rows] = False
    return remains.nonzero().flatten()


def masked_elements(anatomy: Anatomy, cut: CheckedCut) -> int:
    """The number of prunable elements that the cut zeroes and does not remove."""
    masks = sliced(anatomy, cut, {name: mask for name, mask in cut.masks.items() if name not in anatomy.head})
    return sum(int((~mask).sum()) for mask in masks.values())


def zeroed(model: Any, anatomy: Anatomy, cut: CheckedCut) -> dict[str, Tensor]:
    """The dense tensors with the removed units set to zero. The sliced model must compute the same."""
    state = {name: tensor.clone() for name, tensor in written(dense_state(model), cut).items()}
    for name, units in removed_units(anatomy, cut).items():
        site = anatomy.sites[name]
        for member in site.members:
            state[member.tensor].movedim(member.dim, 0)[member.rows(units)] = 0
        if not cut.keep[name]:
            for owned in site.owned:
                state[owned].zero_()
    return state
