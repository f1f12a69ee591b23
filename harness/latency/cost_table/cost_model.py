"""Predicts times of sites and of whole shapes from a cost table."""

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
    """The time of a shape in nanoseconds: exactly, or as a smooth function with gradients."""

    def __init__(self, table: CostTable, anatomy: Anatomy) -> None:
        self.table, self.anatomy = table, anatomy
        self.classes = classes(anatomy)

    @cached_property
    def staircases(self) -> dict[str, Any]:
        """By class, a site's time at every number of units from 0 on."""
        import numpy as np

        staircases = {}
        for name, sites in self.classes.items():
            curve = self.table.curves[name]
            staircases[name] = np.interp(np.arange(sites[0].units + 1), curve.units, curve.ns)
        return staircases

    @cached_property
    def weights(self) -> dict[str, float]:
        """The factors of the fit, by class and for the fixed part; 1 without a fit."""
        weights = dict.fromkeys(["fixed", *self.classes], 1.0)
        if self.table.fit:
            weights |= dict(zip(self.table.fit.features, self.table.fit.weights, strict=True))
        return weights

    def site_times(self, site: str) -> Any:
        """What a site adds to the model's time, at every number of its units from 0 on."""
        return self._site_times[cost_class(self.anatomy, self.anatomy.sites[site])]

    @cached_property
    def _site_times(self) -> dict[str, Any]:
        return {name: (stairs - stairs[0]) * self.weights[name] for name, stairs in self.staircases.items()}

    def limit(self, budget: Budget) -> float:
        """A latency budget in nanoseconds. Raises Unsupported if even the model without layers takes longer."""
        limit = budget.value * (self.dense if budget.unit == "x" else 1e6)
        if limit < self.floor:
            raise Unsupported(
                f"{budget.value:g}{budget.unit} is faster than the model without any layer, "
                f"{self.floor / self.dense:.3g}x by the cost table",
                "give a larger budget",
            )
        return limit

    def additive(self, shape: Shape, fitted: bool = True) -> float:
        """The sum of the fixed part and of all sites, each with its factor of the fit."""
        parts = self.parts(shape)
        return math.fsum(ns * (self.weights[name] if fitted else 1.0) for name, ns in parts.items())

    def parts(self, shape: Shape) -> dict[str, float]:
        """The unfitted times of the fixed part and of each class of sites."""
        full = self.anatomy.complete(shape)
        parts = {"fixed": self.table.fixed_ns}
        for name, sites in self.classes.items():
            parts[name] = math.fsum(float(self.staircases[name][full[site.name]]) for site in sites)
        return parts

    def time(self, shape: Shape) -> float:
        """The exact time, with the steps as they were measured."""
        full = self.anatomy.complete(shape)
        narrow = "hidden" in full and full["hidden"] != self.anatomy.sites["hidden"].units
        if not narrow:
            return self.additive(full)
        if self.table.predictor is None:
            raise Unsupported("this cost table has no times of a smaller hidden size", "harness profile --preset paper")
        from harness.latency.cost_table.regression import predict

        # The predictor is smooth. The steps come from the time of the same shape with the full hidden size.
        wide = {**full, "hidden": self.anatomy.sites["hidden"].units}
        predictor = self.table.predictor
        return self.additive(wide) * predict(predictor, self.anatomy, full) / predict(predictor, self.anatomy, wide)

    def faults(self) -> str:
        """Why this table cannot predict this model, or an empty text."""
        from harness.latency.cost_table.regression import sizes

        if {name: sites[0].units for name, sites in self.classes.items()} != self.table.unit_counts():
            return "does not cover this model's sub-layers"
        if self.table.predictor and not set(self.table.predictor.features) <= set(sizes(self.anatomy, {})):
            return "has a predictor of other sub-layers"
        return "" if self.dense > 0 else "predicts that the model takes no time"

    @cached_property
    def dense(self) -> float:
        """The time of the dense model."""
        return self.time({})

    @cached_property
    def floor(self) -> float:
        """The time of the model without layers. No shape with the full hidden size is faster."""
        return self.additive(self.anatomy.empty())

    def share(self, shape: Shape) -> float:
        """The time of a shape as a share of the dense model's."""
        return self.time(shape) / self.dense

    @cached_property
    def _curves(self) -> dict[str, Any]:
        from harness.latency.cost_table.smoothing import Smooth

        return {name: Smooth(self.staircases[name] * self.weights[name]) for name in self.classes}

    def smooth(self, units: Mapping[str, Any], convex: float = 0.0) -> Any:
        """The time at fractional numbers of units, as a torch scalar with gradients.

        It rises with the units of every site, and continues linearly beyond 0 and the full number. A smaller hidden
        size scales all of it by its share, which is only a first guess.

        Args:
            units: By site; the sites that are not named are not cut.
            convex: The weight, from 0 to 1, of the lower convex hull of each staircase.
        """
        import torch

        if unknown := set(units) - set(self.anatomy.sites):
            raise BadCut(
                f"this model has no site {min(unknown)!r}", f"its sites look like {next(iter(self.anatomy.sites))!r}"
            )
        total = torch.as_tensor(self.table.fixed_ns * self.weights["fixed"], dtype=torch.float64)
        for name, sites in self.classes.items():
            curve = self._curves[name]
            cut = [torch.as_tensor(units[site.name]) for site in sites if site.name in units]
            total = total + (len(sites) - len(cut)) * curve.top
            if cut:
                total = total + curve(torch.stack([count.reshape(()).double() for count in cut]), convex).sum()
        if "hidden" in units:
            total = total * (torch.as_tensor(units["hidden"]).double().reshape(()) / self.anatomy.sites["hidden"].units)
        return total
