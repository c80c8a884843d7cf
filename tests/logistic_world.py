"""A small logistic model and queries that it rejects, for the tests of explanations in several packages."""

from __future__ import annotations

import numpy as np

from explain.counterfactuals import LogisticModel, fit_logistic


def world(seed: int = 0, n: int = 60, d: int = 4, c: float = 0.1, q: int = 8) -> tuple[LogisticModel, np.ndarray]:
    """Two overlapping clusters, ids with gaps; queries that the model rejects."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, d)) + 0.8 * (2 * y[:, None] - 1)
    model = fit_logistic(x, y, rng.permutation(5 * n)[:n], c=c)
    queries = rng.normal(size=(20 * q, d)) - 1.0
    return model, queries[model.logits(queries) < 0][:q]
