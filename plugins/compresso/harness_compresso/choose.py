"""Chooses units from learned gates: first as many in each site as the gates expect, then exactly the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness import Unsupported
from harness.models.anatomy.core import Anatomy, Site

from .gates import open_probability


def least_units(anatomy: Anatomy, site: Site) -> int:
    """The units that a site keeps at any budget: one, or for the hidden width the width of a head."""
    return min(int(anatomy.config["head_dim"]), site.units) if site.kind == "hidden" else 1


def expected_units(anatomy: Anatomy, log_alpha: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which units stay: in each site as many as the gates expect to be open, those of highest log alpha."""
    keep = {}
    for name, values in log_alpha.items():
        site = anatomy.sites[name]
        zeros = round(site.units - float(open_probability(values.double()).sum()))
        zeros = min(zeros, site.units - least_units(anatomy, site))
        keep[name] = torch.ones(site.units, dtype=torch.bool)
        keep[name][values.argsort(stable=True)[:zeros]] = False
    return keep


class Tally:
    """Counts the prunable parameters that a choice of units removes, as the harness counts them."""

    def __init__(self, anatomy: Anatomy, keep: dict[str, Tensor]) -> None:
        self.anatomy, self.keep = anatomy, keep
        self.counts = {name: int(units.sum()) for name, units in keep.items()}
        self.dense = anatomy.params(prunable=True)
        self.removed = self._count_removed()

    def _count_removed(self) -> int:
        return self.dense - self.anatomy.params(self.counts, prunable=True)

    def unit_params(self, name: str) -> int:
        """The number of parameters that the next unit of a site removes."""
        if name == "hidden":
            fewer = {**self.counts, name: self.counts[name] - 1}
            return self.dense - self.anatomy.params(fewer, prunable=True) - self.removed
        width = self.counts.get("hidden", self.anatomy.config["hidden_size"])
        tensors = self.anatomy.tensors
        return sum(m.block * (width if len(tensors[m.tensor]) > 1 else 1) for m in self.anatomy.sites[name].members)

    def change(self, name: str, unit: int, stay: bool) -> None:
        """Keep or remove one unit."""
        if name != "hidden":
            self.removed += self.unit_params(name) * (-1 if stay else 1)
        self.keep[name][unit] = stay
        self.counts[name] += 1 if stay else -1
        if name == "hidden":  # the size of every other unit has changed
            self.removed = self._count_removed()


def to_budget(
    anatomy: Anatomy, log_alpha: Mapping[str, Tensor], keep: dict[str, Tensor], goal: int
) -> dict[str, Tensor]:
    """Change the choice so that at least `goal` parameters are removed, and less than one channel more.

    If too many are removed, the units of highest log alpha come back. If too few, the units of lowest log alpha are
    removed. KV groups and hidden dimensions are removed only where they fit, so that a channel is the last unit.
    """
    tally = Tally(anatomy, {name: units.clone() for name, units in keep.items()})
    names = list(log_alpha)
    ranking = torch.cat([log_alpha[name].double() for name in names]).argsort(stable=True)
    owners = [(name, unit) for name in names for unit in range(len(log_alpha[name]))]
    order = [owners[at] for at in ranking.tolist()]
    channel = next(site.name for site in anatomy.blocks() if site.kind == "mlp")
    for name, unit in reversed(order):
        if tally.removed < goal + tally.unit_params(channel):
            break
        if not tally.keep[name][unit]:
            tally.change(name, unit, True)
    for must_fit in (True, False):
        for name, unit in order:
            if tally.removed >= goal:
                return tally.keep
            site = anatomy.sites[name]
            if not tally.keep[name][unit] or tally.counts[name] <= least_units(anatomy, site):
                continue
            if must_fit and site.kind != "mlp" and tally.removed + tally.unit_params(name) > goal:
                continue
            tally.change(name, unit, False)
    return tally.keep


def check_reach(anatomy: Anatomy, ratio: float) -> None:
    """Raise Unsupported if the sites cannot lose that much, before anything is trained."""
    fewest = {name: least_units(anatomy, site) for name, site in anatomy.sites.items()}
    most = 1 - anatomy.params(fewest, prunable=True) / anatomy.params(prunable=True)
    if ratio > most:
        raise Unsupported(
            f"{ratio:g} of the prunable parameters cannot go: every site keeps at least one unit, and the hidden width "
            f"the width of a head, so at most {math.floor(most * 1e4) / 1e4:g} can",
            "ask for a smaller ratio",
        )
