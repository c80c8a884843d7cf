"""Which counterfactual explanations given earlier does a deletion break? Worst cases, a common worst case, and any
given set.

    valid after S   f_{w_S}(x') >= 0,  w_S = the model really retrained without S
                    (explain.counterfactuals.logistic.retrain)
    one_shot        S = the k most negative a_i(x') of the original model: the worst set to first order
    adaptive        k rounds; each removes the most negative a_i(x') of the model as it is after the earlier removals
    exchange        from there, swaps while real retraining says that they hurt more
                    (explain.counterfactuals.worst_case)
    best            the worst of these three and of swaps that start from one_shot
    greedy          one S for a whole batch of explanations: each round takes the example whose removal leaves the
                    fewest valid, by first-order influence of the model as it is then; ties by the least validity left,
                    sum max(f, 0), then by id

An attacker needs no model of his own: whoever may have data deleted picks S. Companion result: two deletions can break
up to 95% of ordinary explanations (Pawelczyk et al., 2023, arXiv 2208.14137). Validity is always counted on real
retraining; influence only proposes sets, so what survives has survived these searches, not every set.

Source: Krishna et al., ICML 2023 (arXiv 2302.04288), evaluation; the greedy attack after Pawelczyk et al.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.errors import DataError, InvalidInput
from explain.counterfactuals import (
    LogisticModel,
    Search,
    exchanged,
    influence_at,
    most_negative,
    newton_step,
    retrain,
    with_one,
    worst_deletion,
)

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Attack = Literal["one_shot", "adaptive", "exchange", "best"]


def worst_case_deletion(model: LogisticModel, x_cf: Float, *, k: int, search: Attack = "one_shot") -> Bool:
    """For each explanation a deletion of at most k examples meant to break it.

    Args:
        model: the model that the explanations were given for.
        x_cf: (Q, d) counterfactuals.
        k: examples deleted at most, 0 <= k < n.
        search: "one_shot", "adaptive", "exchange" or "best"; see the head of this file.

    Returns:
        (Q, n) bool; a column is an example of ``model.example_id``.

    Raises:
        InvalidInput: k or search out of range.
        DataError: explanations that are not finite.
    """
    x_cf = _checked(model, x_cf)
    if search != "best":
        return np.asarray(worst_deletion(model, x_cf, k=k, search=search))
    points, worst, lowest = with_one(x_cf), np.zeros((len(x_cf), len(model.y)), bool), np.full(len(x_cf), np.inf)
    for start in get_args(Search):
        removed: Bool = np.asarray(worst_deletion(model, x_cf, k=k, search=start))
        if start == "one_shot":
            removed = np.asarray(exchanged(model, x_cf, removed))
        logits = (retrain(model, removed) * points).sum(axis=1)
        lower = logits < lowest
        worst = np.where(lower[:, None], removed, worst)
        lowest = np.where(lower, logits, lowest)
    return worst


def greedy_deletion(model: LogisticModel, x_cf: Float, *, k: int) -> Bool:
    """One deletion of at most k examples meant to break as many explanations of a batch as it can.

    Returns:
        (n,) bool; fewer than k where no further removal breaks or weakens anything.

    Raises:
        InvalidInput: k out of range.
        DataError: explanations that are not finite.
    """
    x_cf = _checked(model, x_cf)
    removed: Bool = most_negative(np.zeros((1, len(model.y))), k)
    weights, points = model.weights[None], with_one(x_cf)
    for _ in range(k):
        chosen = _next(points @ weights[0], influence_at(model, weights, removed, points[None])[0], removed[0])
        if chosen is None:
            break
        removed[0, chosen] = True
        weights = newton_step(model, weights, removed)
    return np.asarray(removed[0])


def greedy_rows(logits: Float, influence: Float, *, k: int) -> Bool:
    """The greedy deletion of a model that is known only by its logits (Q,) and fixed influences (Q, n): (n,) bool."""
    removed: Bool = most_negative(np.zeros((1, influence.shape[1])), k)[0]
    for _ in range(k):
        chosen = _next(logits, influence, removed)
        if chosen is None:
            break
        removed[chosen] = True
        logits = logits + influence[:, chosen]
    return np.asarray(removed)


def _next(logits: Float, influence: Float, removed: Bool) -> int | None:
    """The example whose removal leaves the fewest explanations valid, then the least validity; None when none helps."""
    after = np.where(removed, np.inf, logits[:, None] + influence)  # (Q, n)
    valid, left = (after >= 0).sum(axis=0), np.maximum(after, 0.0).sum(axis=0)
    best = int(np.lexsort((left, valid))[0])
    now = int((logits >= 0).sum()), float(np.maximum(logits, 0.0).sum())
    return best if not removed[best] and (int(valid[best]), float(left[best])) < now else None


def random_deletions(model: LogisticModel, *, k: int, draws: int, seed: int) -> Bool:
    """``draws`` deletions of k examples each, uniform without replacement: (draws, n) bool."""
    most_negative(np.zeros((1, len(model.y))), k)  # k is checked
    order = np.random.default_rng(seed).random((draws, len(model.y))).argsort(axis=1)
    removed = np.zeros(order.shape, bool)
    np.put_along_axis(removed, order[:, :k], True, axis=1)
    return removed


def recourse_validity(model: LogisticModel, x_cf: Float, removed: Bool) -> Float:
    """Logits of every explanation after real retraining without each of B deletions.

    Args:
        x_cf: (Q, d) counterfactuals.
        removed: (B, n) bool.

    Returns:
        (B, Q) float64; >= 0 where the explanation is still valid.

    Raises:
        DataError: explanations that are not finite, or a deletion that leaves a single class.
    """
    return np.asarray(retrain(model, removed) @ with_one(_checked(model, x_cf)).T)


def own_deletion_logits(model: LogisticModel, x_cf: Float, removed: Bool) -> Float:
    """As :func:`recourse_validity`, explanation q after deletion q only: (Q,)."""
    return np.asarray((retrain(model, removed) * with_one(_checked(model, x_cf))).sum(axis=1))


def broken_explanations(
    model: LogisticModel, issued: pl.DataFrame, *, removed_ids: NDArray[np.int64], x_cf: str = "x_cf"
) -> pl.DataFrame:
    """Which explanations that were given does this deletion break, on real retraining?

    Args:
        model: the model they were given for.
        issued: one row an explanation, with the counterfactual's features in the list column ``x_cf``; a table of
            ``audits.robust_counterfactuals`` as it is stored, or any other. Its further columns are kept.
        removed_ids: (K,) examples deleted; ids the model was not trained on are refused.

    Returns:
        ``issued`` with ``logit_before``, ``logit_after`` (float64) and ``broken`` (bool): valid before and not after.

    Raises:
        DataError: unknown ids, explanations of another length or not finite, or a deletion that leaves a single class.
    """
    lengths = issued[x_cf].list.len().unique().to_list()
    if lengths not in ([], [model.x.shape[1] - 1]):
        raise DataError(f"explanations have {lengths} features, the model {model.x.shape[1] - 1}")
    points = np.asarray(issued[x_cf].to_list(), np.float64).reshape(issued.height, model.x.shape[1] - 1)
    before = model.logits(_checked(model, points))
    after = recourse_validity(model, points, model.removed(removed_ids)[None])[0]
    return issued.with_columns(
        logit_before=pl.Series(before), logit_after=pl.Series(after), broken=pl.Series((before >= 0) & (after < 0))
    )


def _checked(model: LogisticModel, x_cf: Float) -> Float:
    x_cf = np.asarray(x_cf, np.float64)
    if x_cf.ndim != 2 or x_cf.shape[1] + 1 != model.x.shape[1]:
        raise InvalidInput(f"explanations {x_cf.shape}: needs (Q, {model.x.shape[1] - 1})")
    if not np.isfinite(x_cf).all():
        raise DataError(f"{int((~np.isfinite(x_cf).all(axis=1)).sum())} explanations are not finite")
    return x_cf
