"""Masks for N:M sparsity: N zeros in every M neighbouring weights of a row.

torch is imported inside the functions, because plug-ins import this module to describe themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PATTERNS", "check_columns", "check_ratio", "group_mask", "sort_groups"]

PATTERNS = {"2:4": (2, 4), "4:8": (4, 8), "1:4": (1, 4)}  # name -> zeros (N) and group size (M)


def check_ratio(pattern: str, ratio: float) -> None:
    """Raise Unsupported unless `ratio` is the share of weights that the pattern zeroes."""
    zeros, group = PATTERNS[pattern]
    if not math.isclose(ratio, zeros / group):
        raise Unsupported(
            f"{pattern} zeroes {zeros / group:g} of the weights, not {ratio:g}", f"give --ratio {zeros / group:g}"
        )


def check_columns(name: str, columns: int, group: int, remedy: str = "") -> None:
    """Raise Unsupported unless the rows of the tensor `name` divide into groups of `group` weights."""
    if columns % group:
        raise Unsupported(f"rows of {name} have {columns} weights, not a multiple of {group}", remedy)


def sort_groups(scores: Tensor, group: int) -> Tensor:
    """Positions within each group of neighbours, lowest score first; equal scores keep their order.

    `scores` has the shape of a weight, rows by columns. The result has one row per group.
    """
    return scores.reshape(-1, group).argsort(dim=1, stable=True)


def group_mask(order: Tensor, zeros: int) -> Tensor:
    """The mask that is False at the first `zeros` positions of each group, in the shape of `order`."""
    import torch

    return torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :zeros], False)
