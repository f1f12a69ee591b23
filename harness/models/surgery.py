"""Applies a cut. The only place that changes shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.models.anatomy.core import Anatomy
from harness.models.architectures.decoder import FAMILIES, config_of, embedding_scale, norm_scale, rename, survivors
from harness.models.architectures.modeling import fill
from harness.models.cut import CheckedCut


def dense_state(model: Any) -> dict[str, Tensor]:
    """A model's tensors under the anatomy's names, tied ones once."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def written(state: Mapping[str, Tensor], cut: CheckedCut) -> dict[str, Tensor]:
    """The dense tensors after rewrites and masks, before anything is sliced."""
    state = dict(state)
    for name, value in cut.rewrites.items():
        state[name] = value.to(state[name])
    for name, mask in cut.masks.items():
        state[name] = state[name] * mask.to(state[name])
    return state


def apply(model: Any, anatomy: Anatomy, cut: CheckedCut) -> Any:
    """A new, smaller model; the dense one is left as it was."""
    shape = anatomy.complete(cut.shape)
    left = sliced(anatomy, cut, written(dense_state(model), cut))
    if "hidden" in cut.keep:
        _narrow(anatomy, left, shape["hidden"])
    numbers = survivors(anatomy, shape)
    tensors = {rename(name, numbers): tensor.detach().clone() for name, tensor in left.items()}
    smaller = fill(config_of(anatomy, shape), tensors)
    smaller.generation_config = model.generation_config
    return smaller


def sliced(anatomy: Anatomy, cut: CheckedCut, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the cut leaves of these tensors; those of empty sites are gone."""
    indices: dict[tuple[str, int], Tensor] = {}
    left = {}
    for name in anatomy.tensor_shapes(cut.shape):
        if name not in tensors:
            continue
        tensor = tensors[name]
        for site, member in anatomy.cuts.get(name, ()):
            if site in cut.keep:
                key = (site, member.block)
                if key not in indices:
                    units = torch.tensor(cut.keep[site], dtype=torch.long)
                    indices[key] = (units[:, None] * member.block + torch.arange(member.block)).flatten()
                tensor = tensor.index_select(member.dim, indices[key].to(tensor.device))
        left[name] = tensor
    return left


def masked_elements(anatomy: Anatomy, cut: CheckedCut) -> int:
    """Prunable elements that stay in the file and are zero by decision."""
    left = sliced(anatomy, cut, {name: mask for name, mask in cut.masks.items() if name not in anatomy.head})
    return sum(int((~mask).sum()) for mask in left.values())


def _narrow(anatomy: Anatomy, state: dict[str, Tensor], kept: int) -> None:
    """Norms and embedding factors of a narrower residual stream."""
    offset = FAMILIES[anatomy.family].norm_offset
    for name in state:
        if name.endswith("norm.weight") and "self_attn" not in name:
            state[name] = (state[name] + offset) * norm_scale(anatomy, name, kept) - offset
    if (scale := embedding_scale(anatomy, kept)) != 1:
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"] * scale


def zeroed(model: Any, anatomy: Anatomy, cut: CheckedCut) -> dict[str, Tensor]:
    """The dense tensors with the cut units set to zero: what the sliced model must agree with."""
    state = {name: tensor.clone() for name, tensor in written(dense_state(model), cut).items()}
    for name, units in cut.keep.items():
        site = anatomy.sites[name]
        gone = sorted(set(range(site.units)) - set(units))
        for member in site.members:
            tensor = state[member.tensor].movedim(member.dim, 0)
            tensor.unflatten(0, (site.units, member.block))[gone] = 0
        if not units:
            for owned in site.owned:
                state[owned].zero_()
    return state
