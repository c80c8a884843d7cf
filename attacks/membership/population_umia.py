"""Population U-MIA: can the losses of forgotten examples be told from those of unseen ones?

    accuracy = mean over halvings of the share that a logistic regression on the losses' normal scores calls right
        ideal 0.5

Kurmanji et al., NeurIPS 2023, and the NeurIPS 2023 unlearning kit: losses clipped to [-100, 100], equal counts. Near
0.5 is NOT evidence of unlearning: U-LiRA (``unlearning``) can be far above. On RAW losses, as published, the attack is
blind to a model that interpolates: at losses near 1e-4 the regularised regression never leaves its start and its
accuracy is 0.5 whatever there is to see; on log losses it moves when all outputs are shrunk. The verdict therefore
rests on normal scores, PhiInv((rank - 1/2) / n): any increasing map of all losses leaves it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit

from contracts.errors import InvalidInput
from stats import auc_interval, clopper_pearson

Float = NDArray[np.float64]

_CLIP = 100.0
FEWEST = 10
_HALVINGS = 10
_INFLATION = 1.3


@dataclass(frozen=True, kw_only=True, slots=True)
class UMIAResult:
    """Population U-MIA.

    Attributes:
        accuracy: mean over 10 random halvings, each half judged by the regression fitted to the other, on normal
            scores.
        low, high: its interval, see :func:`population_umia`.
        published_accuracy: mean over 5 stratified shuffle splits of 10% each, on raw clipped losses: the papers'
            figure. The splits share examples, so it has no honest interval and no verdict rests on it.
        auc, auc_low, auc_high: of "low loss = forgotten", DeLong; below 0.5 the forgotten losses are too HIGH
            (Streisand).
        n_pos, n_neg: forgotten and unseen examples used; equal.
    """

    accuracy: float
    low: float
    high: float
    published_accuracy: float
    auc: float
    auc_low: float
    auc_high: float
    n_pos: int
    n_neg: int


def population_umia(
    forget_losses: Float,
    test_losses: Float,
    *,
    seed: int,
    alpha: float = 0.05,
    forget_labels: NDArray[np.int64] | None = None,
    test_labels: NDArray[np.int64] | None = None,
) -> UMIAResult:
    """Can the losses (nats) of the unlearned model tell forgotten from unseen examples?

    The interval is Clopper-Pearson at 2 n / 1.3 trials. Cross-fitted predictions are not independent: the direction
    that one half learns depends on the examples the other half judges. For large n, one halving has a variance of up to
    1 + 2/pi = 1.64 binomial ones under "no difference"; the mean of 10 halvings has at most 0.8 there, 1.6 for faint
    differences (accuracy 0.52 to 0.6), and 1 for clear ones. Simulated coverage with 1.3 (n = 130; normal, uniform,
    t3 and two-point losses): 0.98 or more under no difference, 0.94 or more everywhere. tests/attacks repeats it.

    Args:
        forget_losses, test_losses: (n,), (m,) finite; the larger set is thinned at random to the size of the smaller.
        seed: draws the thinning, the folds and the shuffle splits.
        forget_labels, test_labels: given together, test examples of classes absent from the forget set are left out.

    Raises:
        InvalidInput: fewer than 10 examples on a side, or losses that are negative or not finite.
    """
    forget, test = np.asarray(forget_losses, dtype=np.float64), np.asarray(test_losses, dtype=np.float64)
    if (forget_labels is None) != (test_labels is None):
        raise InvalidInput("forget_labels and test_labels come together")
    if forget_labels is not None and test_labels is not None:
        test = test[np.isin(test_labels, forget_labels)]
    if not (np.isfinite(forget).all() and np.isfinite(test).all() and (forget >= 0).all() and (test >= 0).all()):
        raise InvalidInput(
            "losses must be finite and not negative: an unlearned model that diverged cannot be audited by its losses"
        )
    size = min(len(forget), len(test))
    if size < FEWEST:
        raise InvalidInput(
            f"population U-MIA needs at least {FEWEST} forgotten and unseen examples, not {len(forget)} and {len(test)}"
        )
    rng = np.random.default_rng(seed)
    forget, test = (np.clip(v[np.sort(rng.permutation(len(v))[:size])], -_CLIP, _CLIP) for v in (forget, test))
    x = np.concatenate([forget, test])[:, None]
    y = np.repeat([1, 0], size)
    split_seed = int(rng.integers(2**31))
    scores = norm.ppf((rankdata(x[:, 0]) - 0.5) / len(x))[:, None]
    halves = RepeatedStratifiedKFold(n_splits=2, n_repeats=_HALVINGS, random_state=split_seed)
    accuracy = _split_accuracy(scores, y, halves)
    low, high = interval_of(accuracy, size, alpha=alpha)
    shuffles = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=split_seed)
    area = auc_interval(-forget, -test, alpha=alpha)
    return UMIAResult(
        accuracy=accuracy,
        low=low,
        high=high,
        published_accuracy=_split_accuracy(x, y, shuffles),
        auc=area.value,
        auc_low=area.low,
        auc_high=area.high,
        n_pos=size,
        n_neg=size,
    )


def interval_of(accuracy: float, size: int, *, alpha: float) -> tuple[float, float]:
    """The interval of an accuracy over ``size`` examples a side, see :func:`population_umia`."""
    trials = 2 * size / _INFLATION
    low, high = clopper_pearson(accuracy * trials, trials, alpha=alpha)
    return float(low), float(high)


def _split_accuracy(x: Float, y: NDArray[np.int64], splits: RepeatedStratifiedKFold | StratifiedShuffleSplit) -> float:
    """Mean accuracy over splits of a logistic regression fitted to one part and judged on the other."""
    return float(np.mean([LogisticRegression().fit(x[a], y[a]).score(x[b], y[b]) for a, b in splits.split(x, y)]))
