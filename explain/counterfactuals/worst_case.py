"""The deletion that hurts an input most: by one partial sort, or step by step on the model as it is after each removal.

    one_shot   S = the k most negative a_i(x) of the fitted model: optimal for the linearised model
    adaptive   k rounds; each removes the most negative a_i(x) of the model after the earlier removals, then takes one
               Newton step. Removals help one another (what is left has less to say against the next), so these sets are
               worse than one_shot's
    exchange   from adaptive's set, swaps: the removed example whose return helps least goes back, the one whose removal
               hurts most is removed, while real retraining says that this hurts more; ends where S is the worst set of
               its own model, to first order

    a_i at (w, S) = x~' [sum_{j not in S} h_j(w) + n R]^-1 g_i(w)

None is the worst of all sets for the retrained model: that is a combinatorial problem, solved only by trying every set.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from contracts.errors import InvalidInput
from explain.counterfactuals.influence import influence_at, most_negative, newton_step, worst_logit
from explain.counterfactuals.logistic import LogisticModel, retrain, with_one

Search = Literal["one_shot", "adaptive", "exchange"]
SEARCHES: tuple[Search, ...] = get_args(Search)


def worst_deletion(
    model: LogisticModel,
    x: np.ndarray,
    *,
    k: int,
    search: Search = "one_shot",
    damping: float = 0.0,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """A deletion of at most k examples for each of Q inputs.

    Args:
        x: (Q, d).
        k: 0 <= k < n.
        search: "one_shot", "adaptive" or "exchange".
        damping: added to the diagonal of H, >= 0; one_shot only.
        weights: (Q, D) of local surrogates, one an input; one_shot only. The model's own when None.

    Returns:
        (Q, n) bool; a column is an example of ``model.example_id``. Only examples whose removal lowers the logit.

    Raises:
        InvalidInput: k or search out of range.
    """
    if search not in SEARCHES:
        raise InvalidInput(f"search = {search!r} is not one of {', '.join(SEARCHES)}")
    nothing = most_negative(np.zeros((len(x), len(model.y))), k)  # k is checked
    points = with_one(x)[:, None]
    if search == "one_shot" and weights is None:
        return worst_logit(model, x, k=k, damping=damping)[1]
    if search == "one_shot":
        return most_negative(influence_at(model, weights, nothing, points, damping=damping)[:, 0], k)
    if weights is not None:
        raise InvalidInput(f"search = {search!r} is for the model itself, not for local surrogates of another")
    removed, weights = nothing, np.tile(model.weights, (len(x), 1))
    for _ in range(k):
        a = np.where(removed, np.inf, influence_at(model, weights, removed, points)[:, 0])
        hit = np.flatnonzero(a.min(axis=1) < 0)
        if not len(hit):
            break
        removed[hit, a.argmin(axis=1)[hit]] = True
        weights = newton_step(model, weights, removed)
    return exchanged(model, x, removed) if search == "exchange" else removed


def exchanged(model: LogisticModel, x: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Local search from given sets (Q, n) for Q inputs (Q, d): one swap a round, kept where the retrained logit
    falls."""
    points, removed = with_one(x), removed.copy()
    weights = retrain(model, removed)
    logits, live = (weights * points).sum(axis=1), removed.any(axis=1) & ~removed.all(axis=1)
    for _ in range(len(model.y)):
        at = np.flatnonzero(live)
        if not len(at):
            break
        a = influence_at(model, weights[at], removed[at], points[at, None])[:, 0]
        trial, row = removed[at], np.arange(len(at))
        back, out = np.where(trial, a, -np.inf).argmax(axis=1), np.where(trial, np.inf, a).argmin(axis=1)
        trial[row, back], trial[row, out] = False, True
        found = retrain(model, trial)
        value = (found * points[at]).sum(axis=1)
        better = value < logits[at] - 1e-9
        kept = at[better]
        removed[kept], weights[kept], logits[kept] = trial[better], found[better], value[better]
        live[at[~better]] = False
    return removed
