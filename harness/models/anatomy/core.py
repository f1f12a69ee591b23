"""How a model is put together: its sites, the units of each, and the tensors that move with a unit.

An anatomy is made from the words of a config.json alone. It needs no weights and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.api import Shape
from harness.errors import BadCut


@dataclass(frozen=True)
class Member:
    """Unit `u` of a site owns the indices [u * block, (u + 1) * block) of this tensor's dimension."""

    tensor: str
    dim: int
    block: int = 1


@dataclass(frozen=True)
class Site:
    """A place that can be cut. `owned` tensors vanish with the site when it keeps no unit."""

    name: str
    kind: str
    units: int
    members: tuple[Member, ...]
    owned: tuple[str, ...] = ()
    layer: int | None = None


@dataclass(frozen=True)
class Anatomy:
    """All tensors of a model with their shapes, and the sites that cut them.

    `head` names the tensors outside the prunable parameters: embedding, head, final norm.
    """

    family: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    sites: Mapping[str, Site]
    head: frozenset[str]
    cuts: Mapping[str, tuple[tuple[str, Member], ...]] = field(init=False, repr=False)
    owners: Mapping[str, str] = field(init=False, repr=False)
    costs: Mapping[str, tuple[int, int]] = field(init=False, repr=False)  # per site: of a unit, of what no unit owns

    def __post_init__(self) -> None:
        cuts: dict[str, list[tuple[str, Member]]] = {}
        for site in self.sites.values():
            for member in site.members:
                cuts.setdefault(member.tensor, []).append((site.name, member))
        object.__setattr__(self, "cuts", {name: tuple(found) for name, found in cuts.items()})
        object.__setattr__(self, "owners", {t: s.name for s in self.sites.values() for t in s.owned})
        costs = {}
        for site in self.sites.values():
            unit = sum(
                math.prod(self.tensors[m.tensor]) // self.tensors[m.tensor][m.dim] * m.block for m in site.members
            )
            whole = sum(math.prod(self.tensors[name]) for name in site.owned)
            costs[site.name] = (unit, whole - unit * site.units)
        object.__setattr__(self, "costs", costs)

    # --- sites ---

    def blocks(self) -> Iterator[Site]:
        """The sites inside the blocks, in order; the width of the residual stream is not one of them."""
        return (site for site in self.sites.values() if site.layer is not None)

    def empty(self) -> dict[str, int]:
        """The shape without any layer, at the full width of the residual stream."""
        return {site.name: 0 for site in self.blocks()}

    def full(self) -> dict[str, int]:
        return {name: site.units for name, site in self.sites.items()}

    def complete(self, shape: Shape) -> dict[str, int]:
        """The shape with every site named, checked."""
        for name, units in shape.items():
            if name not in self.sites:
                raise BadCut(f"this model has no site {name!r}", f"its sites look like {next(iter(self.sites))!r}")
            if not 0 <= units <= self.sites[name].units:
                raise BadCut(f"{name} has {self.sites[name].units} units, not {units}")
        return {**self.full(), **shape}

    # --- tensors of a shape ---

    def tensor_shapes(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """What every remaining tensor looks like, under its dense name."""
        shape = self.complete(shape)
        remaining = {}
        for name, dims in self.tensors.items():
            owner = self.owners.get(name)
            if owner is not None and shape[owner] == 0:
                continue
            sizes = list(dims)
            for site, member in self.cuts.get(name, ()):
                sizes[member.dim] = shape[site] * member.block
            remaining[name] = tuple(sizes)
        return remaining

    def params(self, shape: Shape | None = None, *, prunable: bool = False) -> int:
        """Parameters of a shape; `prunable` leaves embedding, head and final norm out."""
        left = self.tensors if not shape else self.tensor_shapes(shape)
        return sum(math.prod(dims) for name, dims in left.items() if not (prunable and name in self.head))

    def unit_params(self, site: Site) -> int:
        """Parameters that go with one unit while the others stay."""
        return self.costs[site.name][0]

    def site_params(self, site: Site, units: int) -> int:
        """Parameters of a site at so many units: an empty site loses its norm and biases too."""
        unit, fixed = self.costs[site.name]
        return unit * units + fixed if units else 0
