"""Fits non-negative weights to times of whole models, so that a larger model is never predicted to be faster.

There are two sets of features. `CostModel.parts` are the additive parts of a cost table; their weights correct what a
sub-layer costs in a whole model. `sizes` are counts and parameters by class of sites. A number of parameters is a
product of the sizes that meet in a tensor, so these features predict models whose sites interact, as with a smaller
hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.api import Shape
from harness.errors import HarnessError
from harness.latency.cost_table.table import Fit, classes
from harness.models.anatomy.core import Anatomy

# Penalties on weights, as shares of the squared norm of their features.
PRIOR_PENALTY = 1e-2
ALMOST_NO_PENALTY = 1e-9  # makes the solution unique where features depend on each other


def sizes(anatomy: Anatomy, shape: Shape) -> dict[str, float]:
    """A constant, the parameters of the head, and by class of sites how many remain and their parameters."""
    full = anatomy.complete(shape)
    tensors = anatomy.tensor_shapes(full)
    head = sum(math.prod(tensors[name]) for name in anatomy.head if name in tensors)
    features = {"1": 1.0, "head": float(head)}
    for name, sites in classes(anatomy).items():
        remaining = [site for site in sites if full[site.name]]
        features[f"{name}: sites"] = float(len(remaining))
        features[f"{name}: params"] = float(sum(math.prod(tensors[t]) for site in remaining for t in site.owned))
    return features


def non_negative(features: np.ndarray, target: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """Least squares with weights of at least zero, regularised towards `prior` (towards zero without one).

    The penalty on a weight grows with the square of its feature's norm, so that no unit of measurement matters. It
    enters the problem as one more row per weight.
    """
    from scipy.optimize import nnls

    strength = ALMOST_NO_PENALTY if prior is None else PRIOR_PENALTY
    penalty = np.sqrt(strength) * np.linalg.norm(features, axis=0)
    goal = penalty * (0.0 if prior is None else prior)
    rows, goals = np.vstack([features, np.diag(penalty)]), np.concatenate([target, goal])
    try:
        weights, _ = nnls(rows, goals, maxiter=100 * features.shape[1])
    except RuntimeError as error:
        raise HarnessError(
            f"no cost model fits the measured times: {error}", "measure again on a calmer machine (--again)"
        ) from None
    return weights


def fit(rows: Sequence[dict[str, float]], times: Sequence[float], towards: float | None = None) -> Fit:
    """Fit weights that minimise relative errors.

    Args:
        rows: The features of each model.
        times: The measured time of each model.
        towards: What all weights are regularised towards; without it, features are scaled to their largest value.

    Returns:
        The weights, with the mean error on models that were left out, a quarter of them at a time.
    """
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])
    scale = np.maximum(table.max(axis=0), 1e-30) if towards is None else np.ones(len(names))
    relative = table / scale / np.array(times)[:, None]
    prior = None if towards is None else np.full(len(names), towards)

    def solve(chosen: np.ndarray) -> np.ndarray:
        return non_negative(relative[chosen], np.ones(int(chosen.sum())), prior)

    errors = []
    for fold in range(4):
        held_out = np.arange(len(rows)) % 4 == fold
        if held_out.any() and (~held_out).sum() > 1:
            errors += list(np.abs(relative[held_out] @ solve(~held_out) - 1))
    weights = solve(np.ones(len(rows), dtype=bool)) / scale
    error = float(np.mean(errors)) if errors else math.inf
    return Fit(features=names, weights=[float(w) for w in weights], shapes=len(rows), error=error)


def predict(fitted: Fit, anatomy: Anatomy, shape: Shape) -> float:
    """The time of a shape by a fit of `sizes`."""
    features = sizes(anatomy, shape)
    return math.fsum(weight * features[name] for name, weight in zip(fitted.features, fitted.weights, strict=True))
