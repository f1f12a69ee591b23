"""From learned gates to units: so many of each site as the gates expect, then exactly what the budget asks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness import Unsupported
from harness.models.anatomy.core import Anatomy, Site

from .gates import alive


def least(anatomy: Anatomy, site: Site) -> int:
    """What a site keeps at any budget: one unit; of the hidden width no less than a head is wide."""
    return min(int(anatomy.config["head_dim"]), site.units) if site.kind == "hidden" else 1


def learned(anatomy: Anatomy, log_alpha: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per site which units stay: as many zeros as expected, where log alpha is lowest."""
    stays = {}
    for name, found in log_alpha.items():
        site = anatomy.sites[name]
        zeros = round(site.units - float(alive(found.double()).sum()))
        zeros = min(zeros, site.units - least(anatomy, site))
        stays[name] = torch.ones(site.units, dtype=torch.bool)
        stays[name][found.argsort(stable=True)[:zeros]] = False
    return stays


class Tally:
    """Which units stay, and the prunable parameters that are gone with the others, as the harness counts them."""

    def __init__(self, anatomy: Anatomy, stays: dict[str, Tensor]) -> None:
        self.anatomy, self.stays = anatomy, stays
        self.counts = {name: int(units.sum()) for name, units in stays.items()}
        self.dense = anatomy.params(prunable=True)
        self.gone = self._removed()

    def _removed(self) -> int:
        return self.dense - self.anatomy.params(self.counts, prunable=True)

    def weight(self, name: str) -> int:
        """Parameters that go with a site's next unit."""
        if name == "hidden":
            fewer = {**self.counts, name: self.counts[name] - 1}
            return self.dense - self.anatomy.params(fewer, prunable=True) - self.gone
        width = self.counts.get("hidden", self.anatomy.config["hidden_size"])
        tensors = self.anatomy.tensors
        return sum(m.block * (width if len(tensors[m.tensor]) > 1 else 1) for m in self.anatomy.sites[name].members)

    def change(self, name: str, unit: int, stay: bool) -> None:
        self.gone += 0 if name == "hidden" else self.weight(name) * (-1 if stay else 1)
        self.stays[name][unit] = stay
        self.counts[name] += 1 if stay else -1
        if name == "hidden":  # every other unit's weight is another now
            self.gone = self._removed()


def to_budget(
    anatomy: Anatomy, log_alpha: Mapping[str, Tensor], stays: dict[str, Tensor], goal: int
) -> dict[str, Tensor]:
    """Exactly `goal` parameters, and less than one channel more.

    Too much gone: the units of highest log alpha come back. Too little: those of lowest go, groups and hidden
    dimensions only where they fit, so that a channel is last.
    """
    tally = Tally(anatomy, {name: units.clone() for name, units in stays.items()})
    names = list(log_alpha)
    ranking = torch.cat([log_alpha[name].double() for name in names]).argsort(stable=True)
    owners = [(name, unit) for name in names for unit in range(len(log_alpha[name]))]
    order = [owners[at] for at in ranking.tolist()]
    channel = next(site.name for site in anatomy.blocks() if site.kind == "mlp")
    for name, unit in reversed(order):
        if tally.gone < goal + tally.weight(channel):
            break
        if not tally.stays[name][unit]:
            tally.change(name, unit, True)
    for must_fit in (True, False):
        for name, unit in order:
            if tally.gone >= goal:
                return tally.stays
            site = anatomy.sites[name]
            if not tally.stays[name][unit] or tally.counts[name] <= least(anatomy, site):
                continue
            if must_fit and site.kind != "mlp" and tally.gone + tally.weight(name) > goal:
                continue
            tally.change(name, unit, False)
    return tally.stays


def refuse_beyond_reach(anatomy: Anatomy, ratio: float) -> None:
    """Before anything is trained."""
    fewest = {name: least(anatomy, site) for name, site in anatomy.sites.items()}
    most = 1 - anatomy.params(fewest, prunable=True) / anatomy.params(prunable=True)
    if ratio > most:
        raise Unsupported(
            f"{ratio:g} of the prunable parameters cannot go: every site keeps a unit and the hidden width a head's, "
            f"so at most {math.floor(most * 1e4) / 1e4:g} can",
            "ask for a smaller ratio",
        )
