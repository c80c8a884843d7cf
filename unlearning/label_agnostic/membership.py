"""The attack by which label-agnostic forgetting is judged: trees on sorted softmax vectors (Shen et al., ICLR 2024).

    v(x) = softmax(f(x)), sorted in falling order                                  (n, K); blind to which class it is
    attack = gradient-boosted trees fitted on v of retained training examples (member) and of test examples (not)
    ASR = 100 * mean of ( share of D_f called member, share of unseen examples called non-member )

50 is a guess. Judge it by closeness to retraining, and not by its height: of a forgotten class, take unseen examples of
that class, which a retrained model knows as little as D_f; others differ from D_f in more than membership.

It is not an audit of members: an average from one weak attack without reference models. See ``attacks`` for that.
Trees: scikit-learn's histograms, 100 rounds at rate 0.1; the published code uses another library of the same kind.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from contracts.digests import derive_seed
from contracts.errors import InvalidInput


def sorted_softmax(logits: ArrayLike, *, what: str = "logits") -> NDArray[np.float64]:
    """(n, K) class probabilities of each example in falling order.

    Args:
        logits: (n, K), n >= 1, K >= 2, finite.
        what: names them in the message.

    Raises:
        InvalidInput: any other array.

    >>> sorted_softmax([[0.0, np.log(3.0)]]).round(2).tolist()
    [[0.75, 0.25]]
    """
    found = np.asarray(logits, np.float64)
    if found.ndim != 2 or not len(found) or found.shape[1] < 2 or not np.isfinite(found).all():
        raise InvalidInput(f"{what} of shape {found.shape}: (n, K) finite numbers are needed, n >= 1 and K >= 2")
    return -np.sort(-softmax(found, axis=1), axis=1)


def tree_attack_success(
    members: ArrayLike, outsiders: ArrayLike, *, forgotten: ArrayLike, unseen: ArrayLike, seed: int
) -> float:
    """ASR in percent, in [0, 100].

    Args:
        members, outsiders: (n, K) and (m, K) logits of retained training examples and of test examples; as many of each
            are drawn for the fit. The order of their rows does not matter.
        forgotten: (F, K) logits on D_f.
        unseen: (U, K) logits on examples in neither training nor ``outsiders``.
        seed: of the draw: one for all methods that are compared.

    Raises:
        InvalidInput: no example on a side, values that are not finite, or another number of classes.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    named = {"members": members, "outsiders": outsiders, "forgotten": forgotten, "unseen": unseen}
    sides = {what: sorted_softmax(logits, what=what) for what, logits in named.items()}
    if len({side.shape[1] for side in sides.values()}) > 1:
        shapes = ", ".join(f"{what} {side.shape[1]}" for what, side in sides.items())
        raise InvalidInput(f"logits of different numbers of classes: {shapes}")
    size = min(len(sides["members"]), len(sides["outsiders"]))
    rng = np.random.default_rng(derive_seed("tree attack", seed))
    fitted = [_drawn(sides[what], size, rng) for what in ("members", "outsiders")]
    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.1, early_stopping=False, random_state=0)
    trees.fit(np.concatenate(fitted), np.repeat([1, 0], size))
    return 50 * float((trees.predict(sides["forgotten"]) == 1).mean() + (trees.predict(sides["unseen"]) == 0).mean())


def _drawn(rows: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """``size`` of the rows, whatever their order."""
    return rows[np.lexsort(rows.T)][np.sort(rng.choice(len(rows), size, replace=False))]
