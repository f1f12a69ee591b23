"""Checks the cut that a pruner returned against the anatomy of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor

from harness.api import Cut
from harness.errors import BadCut, describe, one_line
from harness.models.anatomy.core import Anatomy
from harness.system.paths import plain_name


@dataclass(frozen=True)
class CheckedCut:
    """A cut whose indices, masks and rewrites fit the model."""

    keep: Mapping[str, list[int]]
    masks: Mapping[str, Tensor]
    rewrites: Mapping[str, Tensor]
    why: str
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> dict[str, int]:
        return {site: len(units) for site, units in self.keep.items()}


def check_cut(anatomy: Anatomy, cut: Cut) -> CheckedCut:
    """The cut in canonical form: sorted indices, and only sites that lose units."""
    if not isinstance(cut, Cut):
        raise BadCut(f"the pruner returned {type(cut).__name__}, not a Cut")
    keep = _kept_units(anatomy, cut)
    for what, tensors in (("mask", cut.masks), ("rewrite", cut.rewrites)):
        for name, tensor in tensors.items():
            if name not in anatomy.tensors:
                raise BadCut(f"the cut has a {what} for {_shown(name)}, which this model does not have")
            if not isinstance(tensor, Tensor):
                raise BadCut(f"the {what} of {name} is {type(tensor).__name__}, not a tensor")
            if tuple(tensor.shape) != anatomy.tensors[name]:
                raise BadCut(f"the {what} of {name} is {tuple(tensor.shape)}, the tensor {anatomy.tensors[name]}")
    if all(keep.get(site.name) == [] for site in anatomy.blocks()):
        raise BadCut("the cut leaves no layer", "ask for a smaller ratio")
    for name, units in keep.items():
        if len(units) < (least := anatomy.sites[name].least):
            raise BadCut(f"the cut leaves {len(units)} of {name}, which needs at least {least}")
    masks = {name: mask.bool() for name, mask in cut.masks.items()}
    for name, text in cut.files.items():
        plain_name(str(name), "a file of the cut", BadCut)
        if not _is_text(text):
            raise BadCut(f"the cut's file {name!r} is {type(text).__name__}, not text that can be written")
    if not _is_text(cut.why):
        raise BadCut(f"the cut's reason is {type(cut.why).__name__}, not text that can be written")
    try:
        json.dumps(cut.details, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadCut(f"the cut's details are not JSON: {describe(error, most=300)}") from None
    return CheckedCut(keep, masks, dict(cut.rewrites), cut.why, dict(cut.details), dict(cut.files))


def _kept_units(anatomy: Anatomy, cut: Cut) -> dict[str, list[int]]:
    keep = {}
    for name, units in cut.keep.items():
        if name not in anatomy.sites:
            raise BadCut(f"the cut names site {_shown(name)}, which this model does not have")
        most = anatomy.sites[name].units
        try:
            chosen = [int(u) for u in islice(units, most + 1)]
        except (TypeError, ValueError, OverflowError) as error:
            problem = describe(error, most=300)
            raise BadCut(f"the cut does not keep a list of whole numbers of {name}: {problem}") from None
        if wrong := [u for u in chosen if not 0 <= u < most]:
            raise BadCut(f"the cut keeps unit {wrong[0]} of {name}, which has units 0 to {most - 1}")
        if len(set(chosen)) != len(chosen):
            raise BadCut(f"the cut keeps a unit of {name} twice")
        if len(chosen) < most:
            keep[name] = sorted(chosen)
    return keep


def _is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can encode; lone surrogates are not."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _shown(name: Any) -> str:
    return one_line(repr(name), 100)
