"""What is fitted to whole models: a few non-negative weights, so that more can never be predicted to be faster.

Two sets of features. `CostModel.parts` are the additive parts of a cost table; their weights correct what a sub-layer
costs among
its neighbours. `sizes` are parameters and counts per class of sites, products of the sizes that meet in a tensor: they
carry models whose sites interact (a cut residual stream, the channels of a CNN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.api import Shape
from harness.latency.cost_table.table import Fit, classes
from harness.models.anatomy.core import Anatomy

# Penalties on weights, as shares of the squared norm of their features.
PRIOR_PENALTY = 1e-2
ALMOST_NO_PENALTY = 1e-9  # makes the solution unique where features depend on each other


def sizes(anatomy: Anatomy, shape: Shape) -> dict[str, float]:
    full = anatomy.complete(shape)
    left = anatomy.tensor_shapes(full)
    found = {"1": 1.0, "head": float(sum(math.prod(left[name]) for name in anatomy.head if name in left))}
    for name, sites in classes(anatomy).items():
        alive = [site for site in sites if full[site.name]]
        found[f"{name}: sites"] = float(len(alive))
        found[f"{name}: params"] = float(sum(math.prod(left[t]) for site in alive for t in site.owned))
    return found


def non_negative(features: np.ndarray, target: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """Least squares with weights of at least zero, regularised towards `prior` (towards zero without one).

    The penalty on a weight grows with the square of its feature's norm, so that no unit of measurement matters. It
    enters the problem as one more row per weight.
    """
    from scipy.optimize import nnls

    strength = ALMOST_NO_PENALTY if prior is None else PRIOR_PENALTY
    penalty = np.sqrt(strength) * np.linalg.norm(features, axis=0)
    goal = penalty * (0.0 if prior is None else prior)
    weights, _ = nnls(np.vstack([features, np.diag(penalty)]), np.concatenate([target, goal]))
    return weights


def fit(rows: Sequence[dict[str, float]], times: Sequence[float], towards: float | None = None) -> Fit:
    """Weights for relative errors, with the error on rows left out (each fold leaves out every fourth)."""
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])
    scale = np.maximum(table.max(axis=0), 1e-30) if towards is None else np.ones(len(names))
    relative = table / scale / np.array(times)[:, None]
    centre = None if towards is None else np.full(len(names), towards)

    def solved(keep: np.ndarray) -> np.ndarray:
        return non_negative(relative[keep], np.ones(int(keep.sum())), centre)

    errors = []
    for fold in range(4):
        out = np.arange(len(rows)) % 4 == fold
        if out.any() and (~out).sum() > 1:
            errors += list(np.abs(relative[out] @ solved(~out) - 1))
    weights = solved(np.ones(len(rows), dtype=bool)) / scale
    error = float(np.mean(errors)) if errors else math.inf
    return Fit(features=names, weights=[float(w) for w in weights], shapes=len(rows), error=error)


def predict(learned: Fit, anatomy: Anatomy, shape: Shape) -> float:
    known: dict[str, Any] = sizes(anatomy, shape)
    return math.fsum(weight * known[name] for name, weight in zip(learned.features, learned.weights, strict=True))
