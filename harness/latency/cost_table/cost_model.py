"""What a cost table predicts: times of sites and of whole shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from harness.api import Budget, Shape
from harness.errors import BadCut, Unsupported
from harness.latency.cost_table.table import CostTable, classes, cost_class
from harness.models.anatomy.core import Anatomy


class CostModel:
    """What a method and the matcher ask: the time of a shape, exactly or smoothly. Times are nanoseconds."""

    def __init__(self, table: CostTable, anatomy: Anatomy) -> None:
        self.table, self.anatomy = table, anatomy
        self.classes = classes(anatomy)

    @cached_property
    def staircases(self) -> dict[str, Any]:
        """Per class the time at every number of units, 0 included."""
        import numpy as np

        found = {}
        for name, sites in self.classes.items():
            curve = self.table.curves[name]
            found[name] = np.interp(np.arange(sites[0].units + 1), curve.units, curve.ns)
        return found

    @cached_property
    def weights(self) -> dict[str, float]:
        """What the fit makes of a class's time, and of the fixed part."""
        plain = dict.fromkeys(["fixed", *self.classes], 1.0)
        return (
            plain | dict(zip(self.table.fit.features, self.table.fit.weights, strict=True)) if self.table.fit else plain
        )

    def site_times(self, site: str) -> Any:
        """What a site adds to the model's time at every number of its units; nothing at none."""
        return self._added[cost_class(self.anatomy, self.anatomy.sites[site])]

    @cached_property
    def _added(self) -> dict[str, Any]:
        return {name: (stairs - stairs[0]) * self.weights[name] for name, stairs in self.staircases.items()}

    def limit(self, budget: Budget) -> float:
        """A latency budget in nanoseconds, if any model of this width can meet it."""
        limit = budget.value * (self.dense if budget.unit == "x" else 1e6)
        if limit < self.floor:
            raise Unsupported(
                f"{budget.value:g}{budget.unit} is faster than the model without any layer, "
                f"{self.floor / self.dense:.3g}x by the cost table",
                "give a larger budget",
            )
        return limit

    def additive(self, shape: Shape, fitted: bool = True) -> float:
        parts = self.parts(shape)
        return math.fsum(ns * (self.weights[name] if fitted else 1.0) for name, ns in parts.items())

    def parts(self, shape: Shape) -> dict[str, float]:
        """The unfitted time of the fixed part and of each class of sites."""
        full = self.anatomy.complete(shape)
        found = {"fixed": self.table.fixed_ns}
        for name, sites in self.classes.items():
            found[name] = math.fsum(float(self.staircases[name][full[site.name]]) for site in sites)
        return found

    def time(self, shape: Shape) -> float:
        """The exact view: steps and dents as they were measured."""
        full = self.anatomy.complete(shape)
        narrow = "hidden" in full and full["hidden"] != self.anatomy.sites["hidden"].units
        if not narrow:
            return self.additive(full)
        if self.table.predictor is None:
            raise Unsupported("this cost table knows no narrower residual stream", "harness profile --preset paper")
        from harness.latency.cost_table.regression import predict

        # The predictor is smooth; the staircase of the uncut stream gives it its steps.
        whole = {**full, "hidden": self.anatomy.sites["hidden"].units}
        learned = self.table.predictor
        return self.additive(whole) * predict(learned, self.anatomy, full) / predict(learned, self.anatomy, whole)

    def faults(self) -> str:
        """Why this table cannot predict this model; empty if it can."""
        from harness.latency.cost_table.regression import sizes

        if {name: sites[0].units for name, sites in self.classes.items()} != self.table.tops():
            return "does not cover this model's sub-layers"
        if self.table.predictor and not set(self.table.predictor.features) <= set(sizes(self.anatomy, {})):
            return "has a predictor of other sub-layers"
        return "" if self.dense > 0 else "predicts that the model takes no time"

    @cached_property
    def dense(self) -> float:
        return self.time({})

    @cached_property
    def floor(self) -> float:
        """The model without any layer: nothing that keeps the hidden size is faster."""
        return self.additive(self.anatomy.empty())

    def share(self, shape: Shape) -> float:
        return self.time(shape) / self.dense

    @cached_property
    def _curves(self) -> dict[str, Any]:
        from harness.latency.cost_table.smoothing import Smooth

        return {name: Smooth(self.staircases[name] * self.weights[name]) for name in self.classes}

    def smooth(self, units: Mapping[str, Any], convex: float = 0.0) -> Any:
        """Time of fractional units per site as a torch scalar with gradients; sites not named stay whole.

        `convex` is the share of the staircase's lower convex hull in it. Monotone in every site, within the units there
        are; outside it goes on at the slope of the end. A narrower residual stream scales all of it by its share: a
        first guess, which measuring corrects.
        """
        import torch

        if unknown := set(units) - set(self.anatomy.sites):
            raise BadCut(
                f"this model has no site {min(unknown)!r}", f"its sites look like {next(iter(self.anatomy.sites))!r}"
            )
        total = torch.as_tensor(self.table.fixed_ns * self.weights["fixed"], dtype=torch.float64)
        for name, sites in self.classes.items():
            curve = self._curves[name]
            asked = [torch.as_tensor(units[site.name]) for site in sites if site.name in units]
            total = total + (len(sites) - len(asked)) * curve.top
            if asked:
                total = total + curve(torch.stack([one.reshape(()).double() for one in asked]), convex).sum()
        if "hidden" in units:
            total = total * (torch.as_tensor(units["hidden"]).double().reshape(()) / self.anatomy.sites["hidden"].units)
        return total
