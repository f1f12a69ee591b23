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


def sizes(anatomy: Anatomy, shape: Shape) -> dict[str, float]:
    full = anatomy.complete(shape)
    left = anatomy.tensor_shapes(full)
    found = {"1": 1.0, "head": float(sum(math.prod(left[name]) for name in anatomy.head if name in left))}
    for name, sites in classes(anatomy).items():
        alive = [site for site in sites if full[site.name]]
        found[f"{name}: sites"] = float(len(alive))
        found[f"{name}: params"] = float(sum(math.prod(left[t]) for site in alive for t in site.owned))
    return found


def non_negative(features: np.ndarray, target: np.ndarray, towards: np.ndarray | None = None) -> np.ndarray:
    """Least squares with weights of at least zero, by coordinate descent; `towards` is where it starts and leans."""
    size = features.shape[1]
    centre = np.zeros(size) if towards is None else towards
    lean = 1e-9 if towards is None else 1e-2
    gram = features.T @ features
    diagonal = np.diag(gram)
    gram = gram + np.diag(lean * diagonal + 1e-30)
    right = features.T @ target + lean * diagonal * centre
    weights = centre.copy()
    for _ in range(20000):
        before = weights.copy()
        for i in range(size):
            weights[i] = max(0.0, weights[i] + (right[i] - gram[i] @ weights) / gram[i, i])
        if np.abs(weights - before).max() <= 1e-9 * max(1e-12, np.abs(weights).max()):
            break
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
