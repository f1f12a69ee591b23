"""Applies a cut. The only place that changes shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from harness.api import Cut
from harness.errors import BadCut, describe, one_line
from harness.models.anatomy.core import Anatomy
from harness.models.architectures.decoder import FAMILIES, config_of, embedding_scale, norm_scale, rename, survivors
from harness.models.saved.modeling import fill
from harness.system.paths import plain_name


@dataclass(frozen=True)
class CheckedCut:
    """A cut whose every index, mask and rewrite belongs to this model."""

    keep: Mapping[str, list[int]]
    masks: Mapping[str, Tensor]
    rewrites: Mapping[str, Tensor]
    why: str
    told: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> dict[str, int]:
        return {site: len(units) for site, units in self.keep.items()}


def check_cut(anatomy: Anatomy, cut: Cut) -> CheckedCut:
    """The cut in canonical form: sorted indices, only sites that lose something."""
    if not isinstance(cut, Cut):
        raise BadCut(f"the pruner returned {type(cut).__name__}, not a Cut")
    keep = _kept_units(anatomy, cut)
    for what, tensors in (("mask", cut.masks), ("rewrite", cut.rewrites)):
        for name, tensor in tensors.items():
            if name not in anatomy.tensors:
                raise BadCut(f"the cut has a {what} for {_shown(name)}, which this model has not")
            if not isinstance(tensor, Tensor):
                raise BadCut(f"the {what} of {name} is {type(tensor).__name__}, not a tensor")
            if tuple(tensor.shape) != anatomy.tensors[name]:
                raise BadCut(f"the {what} of {name} is {tuple(tensor.shape)}, the tensor {anatomy.tensors[name]}")
    if not survivors(anatomy, {name: len(units) for name, units in keep.items()}):
        raise BadCut("the cut leaves no layer", "ask for a smaller ratio")
    if keep.get("hidden") == []:
        raise BadCut("the cut leaves no residual stream")
    masks = {name: mask.bool() for name, mask in cut.masks.items()}
    for name, text in cut.files.items():
        plain_name(str(name), "a file of the cut", BadCut)
        if not _is_text(text):
            raise BadCut(f"the cut's file {name!r} is {type(text).__name__}, not text that can be written")
    if not _is_text(cut.why):
        raise BadCut(f"the cut's reason is {type(cut.why).__name__}, not text that can be written")
    try:
        json.dumps(cut.told, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadCut(f"what the cut tells is not JSON: {describe(error, most=300)}") from None
    return CheckedCut(keep, masks, dict(cut.rewrites), cut.why, dict(cut.told), dict(cut.files))


def _kept_units(anatomy: Anatomy, cut: Cut) -> dict[str, list[int]]:
    keep = {}
    for name, units in cut.keep.items():
        if name not in anatomy.sites:
            raise BadCut(f"the cut names site {_shown(name)}, which this model has not")
        most = anatomy.sites[name].units
        try:
            chosen = [int(u) for u in islice(units, most + 1)]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadCut(f"the cut keeps no list of whole numbers of {name}: {describe(error, most=300)}") from None
        if wrong := [u for u in chosen if not 0 <= u < most]:
            raise BadCut(f"the cut keeps unit {wrong[0]} of {name}, which has units 0 to {most - 1}")
        if len(set(chosen)) != len(chosen):
            raise BadCut(f"the cut keeps a unit of {name} twice")
        if len(chosen) < most:
            keep[name] = sorted(chosen)
    return keep


def _is_text(value: Any) -> bool:
    """Text that UTF-8 can hold, which lone surrogates are not."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _shown(name: Any) -> str:
    return one_line(repr(name), 100)


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
