"""Ordered gates: one number per sub-layer says how many of its units are open, the most valuable first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Gates:
    """`positions` are shares of units open, one per site; `ranks` say which units open first.

    Forward a unit is open or closed. Backward the step between them is a sigmoid, `softness` of all units wide, so
    that the units near the edge tell which way it should move.
    """

    units: dict[str, int]
    ranks: dict[str, Tensor]
    positions: Tensor
    softness: float

    def edge(self, site: str, position: Tensor) -> Tensor:
        """How far each unit lies inside, in widths of the sigmoid."""
        return (position * self.units[site] - self.ranks[site] - 0.5) / self.width(site)

    def width(self, site: str) -> float:
        """Of the sigmoid, in units."""
        return max(self.softness * self.units[site], 0.5)

    def open(self) -> dict[str, Tensor]:
        """1 for what is open, 0 for the rest, ready for gradients."""
        pairs = zip(self.units, self.positions, strict=True)
        return {site: (self.edge(site, at) > 0).float().requires_grad_() for site, at in pairs}

    def slopes(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The loss by each position, from the loss by each unit's gate."""
        found = []
        for site, at in zip(self.units, self.positions, strict=True):
            share = torch.sigmoid(self.edge(site, at))
            found.append((gradients[site] * share * (1 - share)).sum() * self.units[site] / self.width(site))
        return torch.stack(found)

    def whole(self, positions: Tensor) -> Tensor:
        """The shares that are open in truth at these positions, with the gradient of the positions themselves."""
        units = torch.tensor(list(self.units.values()))
        counts = torch.ceil(positions.detach() * units - 0.5).clamp(min=0).minimum(units)
        return positions + (counts / units - positions.detach())

    def counts(self, positions: Tensor) -> dict[str, int]:
        """Units open at these positions."""
        counts = self.whole(positions.detach()) * torch.tensor(list(self.units.values()))
        return dict(zip(self.units, counts.round().int().tolist(), strict=True))

    def kept(self, shape: Mapping[str, int]) -> dict[str, list[int]]:
        """The units themselves, as many as the shape says."""
        return {site: torch.nonzero(self.ranks[site] < count).flatten().tolist() for site, count in shape.items()}

    def shut(self, shape: Mapping[str, int]) -> dict[str, Tensor]:
        """Gates of a shape, without gradients."""
        return {site: (self.ranks[site] < shape[site]).float() for site in self.units}


def ranked(worth: Tensor) -> Tensor:
    """0 for the unit worth most."""
    order = torch.argsort(worth, descending=True, stable=True)
    ranks = torch.empty(len(worth))
    ranks[order] = torch.arange(len(worth), dtype=torch.float32)
    return ranks


@dataclass
class Worth:
    """What closing a unit would cost, as its gate's own gradients tell: moving averages over the steps.

    Closing an open one costs minus its gradient and half the curvature, opening a closed one gains minus its gradient.
    Squares of a batch's mean gradient, times the tokens in it, stand for the curvature.
    """

    slope: dict[str, Tensor]
    square: dict[str, Tensor]
    memory: float  # how much of the means a step leaves
    weight: float = 0.0

    @staticmethod
    def of(units: Mapping[str, int], memory: float) -> Worth:
        return Worth(*({site: torch.zeros(count) for site, count in units.items()} for _ in range(2)), memory)

    def learn(self, gradients: Mapping[str, Tensor]) -> None:
        keep = self.memory
        self.weight = keep * self.weight + 1 - keep
        for site, gradient in gradients.items():
            self.slope[site] = keep * self.slope[site] + (1 - keep) * gradient
            self.square[site] = keep * self.square[site] + (1 - keep) * gradient**2

    def now(self, site: str, open_: Tensor, tokens: int) -> Tensor:
        curvature = tokens * self.square[site] / self.weight
        return -self.slope[site] / self.weight + 0.5 * curvature * open_
