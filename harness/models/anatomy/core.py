"""How a network is put together: its sites, the units of each, and the tensors that change with a unit.

An anatomy is computed from the fields of a config.json alone. It needs no weights and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.api import Shape
from harness.errors import BadCut

__all__ = ["Anatomy", "Member", "Op", "Site"]


@dataclass(frozen=True)
class Member:
    """One dimension of a tensor that a site cuts.

    Unit `u` owns the indices [u * block, (u + 1) * block) of the dimension. Where the indices of a unit do not lie side
    by side, as behind a concatenation or in a grouped convolution, `at[u]` lists its `block` indices.
    """

    tensor: str
    dim: int
    block: int = 1
    at: tuple[tuple[int, ...], ...] | None = None
    reads: bool = True  # false where dimension 1 is not multiplied with the units, as in an embedding

    def __post_init__(self) -> None:
        if self.at is not None and any(len(indices) != self.block for indices in self.at):
            raise ValueError(f"{self.tensor}: each unit must own {self.block} indices of dimension {self.dim}")

    def rows(self, units: Sequence[int]) -> list[int]:
        """The indices that these units own, unit by unit."""
        if self.at is not None:
            return [index for unit in units for index in self.at[unit]]
        return [unit * self.block + offset for unit in units for offset in range(self.block)]


@dataclass(frozen=True)
class Site:
    """A set of units that a cut may remove, each with all that depends on it.

    `owned` tensors vanish with the site when it keeps no unit. A cut must keep `least` units. `exact` says that a
    unit's output is multiplied by weights only, so that a network with the unit at zero computes what one without it
    does. `layer` is the number of the block that the site lies in; None for a site that runs through all of them.
    """

    name: str
    kind: str
    units: int
    members: tuple[Member, ...]
    owned: tuple[str, ...] = ()
    layer: int | None = None
    least: int = 0
    exact: bool = True

    @property
    def readers(self) -> tuple[Member, ...]:
        """The weights whose inputs are this site's units."""
        return tuple(member for member in self.members if member.dim == 1 and member.reads)


@dataclass(frozen=True)
class Op:
    """One product of a forward pass, from which FLOPs and activations are counted.

    `weight` is the tensor whose remaining shape gives the size of the product. A "linear" multiplies its whole weight
    with every position; an "attention" multiplies each row of its weight, the queries, with all positions that a query
    sees, twice. `positions` is how many an element of the batch has; None: as many as the workload says. `window` is
    how far back a query sees. The outputs of a `cached` op are held from one pass to the next.
    """

    weight: str
    kind: str = "linear"
    positions: int | None = None
    window: int | None = None
    cached: bool = False


@dataclass(frozen=True)
class Anatomy:
    """All tensors of a network with their shapes, and the sites that cut them.

    `head` names the tensors outside the prunable parameters: embedding, head, final norm. `buffers` names the tensors
    that are cut like the others and are no parameters, as the running means of a batch norm. `architecture` and `task`
    are names of registered ones.
    """

    family: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    sites: Mapping[str, Site]
    head: frozenset[str]
    ops: tuple[Op, ...] = ()
    buffers: frozenset[str] = frozenset()
    needs_bos: bool = False  # text without a first BOS is out of distribution
    architecture: str = "decoder"
    task: str = "text"
    cuts: Mapping[str, tuple[tuple[str, Member], ...]] = field(init=False, repr=False)
    owners: Mapping[str, str] = field(init=False, repr=False)
    spans: Mapping[str, int | None] = field(init=False, repr=False)  # per weight of queries: how far back they look
    costs: Mapping[str, tuple[int, int]] = field(init=False, repr=False)  # per site: of a unit, of what no unit owns

    def __post_init__(self) -> None:
        cuts: dict[str, list[tuple[str, Member]]] = {}
        for site in self.sites.values():
            for member in site.members:
                cuts.setdefault(member.tensor, []).append((site.name, member))
        object.__setattr__(self, "cuts", {name: tuple(members) for name, members in cuts.items()})
        object.__setattr__(self, "owners", {t: s.name for s in self.sites.values() for t in s.owned})
        spans = {op.weight: op.window for op in self.ops if op.kind == "attention"}
        object.__setattr__(self, "spans", spans)
        costs = {}
        for site in self.sites.values():
            unit = sum(
                math.prod(self.tensors[m.tensor]) // self.tensors[m.tensor][m.dim] * m.block
                for m in site.members
                if m.tensor not in self.buffers
            )
            whole = sum(math.prod(self.tensors[name]) for name in site.owned if name not in self.buffers)
            costs[site.name] = (unit, whole - unit * site.units)
        object.__setattr__(self, "costs", costs)

    # --- sites ---

    def blocks(self) -> Iterator[Site]:
        """The sites inside the blocks, in order; the width of the residual stream is not one of them."""
        return (site for site in self.sites.values() if site.layer is not None)

    def empty(self) -> dict[str, int]:
        """The smallest shape at the full width of the residual stream: in a decoder, the one without any layer."""
        return {site.name: site.least for site in self.blocks()}

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
                sizes[member.dim] -= (self.sites[site].units - shape[site]) * member.block
            remaining[name] = tuple(sizes)
        return remaining

    def outputs(self, shape: Shape) -> tuple[int, int]:
        """Numbers per position that a pass leaves in caches, and the most that one op inside the blocks gives out."""
        remaining = self.tensor_shapes(shape)
        rows = {op: remaining[op.weight][0] for op in self.ops if op.weight in remaining and op.weight not in self.head}
        return sum(count for op, count in rows.items() if op.cached), max(rows.values(), default=0)

    def params(self, shape: Shape | None = None, *, prunable: bool = False) -> int:
        """Parameters of a shape; `prunable` leaves embedding, head and final norm out."""
        remaining = self.tensors if not shape else self.tensor_shapes(shape)
        left_out = self.buffers | self.head if prunable else self.buffers
        return sum(math.prod(dims) for name, dims in remaining.items() if name not in left_out)

    def window(self, site: Site) -> int | None:
        """How far back the queries of a site look, None for all the way."""
        return next((self.spans[m.tensor] for m in site.members if m.tensor in self.spans), None)

    def unit_params(self, site: Site) -> int:
        """Parameters that go with one unit while the others stay."""
        return self.costs[site.name][0]

    def site_params(self, site: Site, units: int) -> int:
        """Parameters of a site at so many units: an empty site loses its norm and biases too."""
        unit, fixed = self.costs[site.name]
        return unit * units + fixed if units else 0
