"""Ordered gates: one number per sub-layer says how many of its units are open, the most valuable first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Gates:
    """Gates of all sites. `positions` hold the share of open units of each site; `ranks` say which units open first.

    In the forward pass a unit is open or closed. In the backward pass the step between open and closed units is a
    sigmoid, `softness` of all units wide, so that the units near the edge decide where it moves.
    """

    units: dict[str, int]
    ranks: dict[str, Tensor]
    positions: Tensor
    softness: float

    def edge(self, site: str, position: Tensor) -> Tensor:
        """How far each unit lies on the open side of the edge, in widths of the sigmoid."""
        return (position * self.units[site] - self.ranks[site] - 0.5) / self.width(site)

    def width(self, site: str) -> float:
        """The width of the sigmoid, in units."""
        return max(self.softness * self.units[site], 0.5)

    def open(self) -> dict[str, Tensor]:
        """The gate of each unit: 1 if it is open, else 0. The gates collect gradients."""
        pairs = zip(self.units, self.positions, strict=True)
        return {site: (self.edge(site, position) > 0).float().requires_grad_() for site, position in pairs}

    def position_gradients(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The gradient of the loss to each position, from the gradients to the gates of the units."""
        sums = []
        for site, position in zip(self.units, self.positions, strict=True):
            share = torch.sigmoid(self.edge(site, position))
            sums.append((gradients[site] * share * (1 - share)).sum() * self.units[site] / self.width(site))
        return torch.stack(sums)

    def open_shares(self, positions: Tensor) -> Tensor:
        """The shares of whole open units at these positions, with the gradient of the positions themselves."""
        units = torch.tensor(list(self.units.values()))
        counts = torch.ceil(positions.detach() * units - 0.5).clamp(min=0).minimum(units)
        return positions + (counts / units - positions.detach())

    def counts(self, positions: Tensor) -> dict[str, int]:
        """The number of open units of each site at these positions."""
        counts = self.open_shares(positions.detach()) * torch.tensor(list(self.units.values()))
        return dict(zip(self.units, counts.round().int().tolist(), strict=True))

    def keep(self, shape: Mapping[str, int]) -> dict[str, list[int]]:
        """The indices of the units of first rank, as many in each site as the shape says."""
        return {site: torch.nonzero(self.ranks[site] < count).flatten().tolist() for site, count in shape.items()}

    def of_shape(self, shape: Mapping[str, int]) -> dict[str, Tensor]:
        """The gates of a shape, without gradients."""
        return {site: (self.ranks[site] < shape[site]).float() for site in self.units}


def ranks_of(scores: Tensor) -> Tensor:
    """The rank of each unit by its score: 0 for the highest."""
    order = torch.argsort(scores, descending=True, stable=True)
    ranks = torch.empty(len(scores))
    ranks[order] = torch.arange(len(scores), dtype=torch.float32)
    return ranks


@dataclass
class UnitValues:
    """The value of each unit to the loss, from moving averages of its gate's gradients.

    Closing an open unit costs minus its gradient plus half the curvature. Opening a closed unit gains minus its
    gradient. The curvature is estimated by the square of a batch's mean gradient times the tokens in the batch.
    """

    gradient: dict[str, Tensor]
    square: dict[str, Tensor]
    memory: float  # share of the averages that a step keeps
    weight: float = 0.0

    @staticmethod
    def of(units: Mapping[str, int], memory: float) -> UnitValues:
        """Averages of zero for these sites and their numbers of units."""
        return UnitValues(*({site: torch.zeros(count) for site, count in units.items()} for _ in range(2)), memory)

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients of a step to the averages."""
        keep = self.memory
        self.weight = keep * self.weight + 1 - keep
        for site, gradient in gradients.items():
            self.gradient[site] = keep * self.gradient[site] + (1 - keep) * gradient
            self.square[site] = keep * self.square[site] + (1 - keep) * gradient**2

    def of_site(self, site: str, open_: Tensor, tokens: int) -> Tensor:
        """The values of a site's units. `open_` is 1 for open units; `tokens` is the number of tokens in a batch."""
        curvature = tokens * self.square[site] / self.weight
        return -self.gradient[site] / self.weight + 0.5 * curvature * open_
