"""The baselines of every comparison: no pruning, random pruning, and no recovery."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.api import Budget, Context, Cut, Shape
from harness.models.anatomy.core import Anatomy
from harness.pruning.allocate import uniform


class Dense:
    def shape(self, anatomy: Anatomy, ratio: float) -> Shape:
        return {}

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        return Cut(why="nothing is cut")


class Random:
    def shape(self, anatomy: Anatomy, ratio: float) -> Shape:
        return uniform(anatomy, ratio)

    def prune(self, model: Any, budget: Budget, ctx: Context, state: Any) -> Cut:
        keep = {}
        for site, units in self.shape(ctx.anatomy, budget.value).items():
            draw = np.random.default_rng(ctx.seed("site", site))
            keep[site] = sorted(draw.choice(ctx.anatomy.sites[site].units, units, replace=False).tolist())
        return Cut(keep=keep, why="random units, the same share in every layer")


class NoRecovery:
    def recover(self, model: Any, teacher: Any, ctx: Context) -> None:
        return None
