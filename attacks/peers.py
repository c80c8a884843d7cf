"""Do members and non-members differ in nothing but membership? What an attack finds on models that saw neither.

    A_0   AUC of the attack between the same two sides on a model that was trained on neither: 1/2 for peers
    d     A_0 - 1/2, with the interval [d_lo, d_hi] at the level of one test of the audit
    an AUC A of the audited model is then judged by
        A_lo - max(0, d_hi)  where d_lo > 0      as a failure: what the difference alone would give is taken off
        A_hi - min(0, d_lo)  where d_hi < 0      as a pass: what the difference may hide is put on

A test split of another time, place or author, a hand-picked or a cleaner one differs from the training split by itself.
An attack tells it from the training split whatever was learnt, or fails to tell members that it would have told; exact
retraining fails beside it, and an untouched model may pass. So do members whose copies stay: the others are learnt
from, and they are known to models that saw neither. Where d is within chance nothing changes. The widening is
one-sided on purpose: a difference is no licence to pass. Who stands out at a low false-positive rate fails nobody where
the first side lies higher by itself, or where as many stand out on models that saw neither.

Two kinds of models saw neither side. Exact retrainings without a random set saw neither that set nor the test split,
and learnt what the method in use learnt. Reference models read on examples outside their own halves; of these the pool
holds some of both splits, so that they know both, and a model of the training split alone may show a larger difference.

Source: Das, Zhang and Tramer 2024 ("Blind baselines beat membership inference attacks for foundation models"): sets
that differ by themselves make attacks look strong; Duan et al., COLM 2024, the same of temporal shift. The correction
is ours. Intervals over models: ``membership.over_runs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.curve import allowed
from attacks.membership.metrics import FPR_CAPS
from attacks.membership.over_runs import auc_over_runs
from contracts.errors import InvalidInput
from stats import at_level, low_fpr_p_value

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

MODELS = 16  # reference models that are read; their examples, which they share, make most of the error
FEWEST = 10  # examples of a split that a model has never seen: below it nothing is compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Unseen:
    """What an attack finds between the two sides on models that were trained on neither.

    Attributes:
        value, low, high: AUC, or accuracy, in [0, 1], with its interval at 1 - alpha.
        p_value: of "no more of the first side stand out at low false-positive rates than chance allows"; 1 where that
            was not tested.
        by: the models, for people.
        at_least: these models know both sides; on the audited one the difference may be larger.
    """

    value: float
    low: float
    high: float
    p_value: float = 1.0
    by: str
    at_least: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """How far two sides differ by themselves.

    Attributes:
        up, down: what is taken off a lower, and put on an upper bound; 0 for peers, infinite where nobody knows how
            much it is.
        stand_out: more of the first side stand out than chance allows, on models that saw neither.
        aside: what was found, to be put behind a figure in a sentence; "" for peers.
    """

    up: float = 0.0
    down: float = 0.0
    stand_out: bool = False
    aside: str = ""


PEERS = Apart()


def apart(controls: Sequence[Unseen], *, alpha: float, level: float) -> Apart:
    """The largest difference that any of the controls shows; :data:`PEERS` where all lie within chance at ``level``.

    Args:
        controls: intervals at 1 - ``alpha``.
        level: of one test of the audit, so that peers are taken for such in all but alpha of all audits.

    >>> apart([Unseen(value=0.52, low=0.47, high=0.57, by="a retrained model")], alpha=0.05, level=0.05).up
    0.0
    >>> found = apart([Unseen(value=0.62, low=0.57, high=0.67, by="a retrained model")], alpha=0.05, level=0.05)
    >>> round(found.up, 2), found.down
    (0.17, 0.0)
    """
    surely = [(c, *at_level(c.value, c.low, c.high, alpha=alpha, level=level)) for c in controls]
    differ = [(c, low, high) for c, low, high in surely if low > 0.5 or high < 0.5]
    stand_out = [c for c in controls if c.p_value <= level]
    found = [*(c for c, *_ in differ), *stand_out]
    if not found:
        return PEERS
    most = max(found, key=lambda c: abs(c.value - 0.5))
    return Apart(
        up=max((math.inf if c.at_least else high - 0.5 for c, low, high in differ if low > 0.5), default=0.0),
        down=max((math.inf if c.at_least else 0.5 - low for c, low, high in differ if high < 0.5), default=0.0),
        stand_out=bool(stand_out),
        aside=f"; on {most.by}, which saw neither, {most.value:.3f} ({most.low:.3f} to {most.high:.3f})",
    )


def never_seen(scores: Float, keep: Bool, first: Bool, *, alpha: float, by: str) -> Unseen | None:
    """What an attack finds between two sides on models that were trained on neither, each asked of what it never saw.

    Args:
        scores: (R, N) of the attack, larger = more likely a member, against R models, each left out of its own
            references; NaN where undefined.
        keep: (R, N) bool, model r was trained on example n.
        first: (N,) bool, the examples of the first side (the training split).

    Returns:
        The mean AUC over models with its interval clustered by model and by example; p-value of the low false-positive
        rates: twice the models' median, valid however the models depend on each other. None with fewer than two models,
        or fewer than ten examples of a side that one of them never saw.

    Raises:
        InvalidInput: shapes that do not fit.
    """
    if scores.ndim != 2 or keep.shape != scores.shape or first.shape != scores.shape[1:]:
        raise InvalidInput(f"scores {scores.shape}, keep {keep.shape} and first {first.shape} do not fit")
    asked = np.where(keep, np.nan, scores)
    judged = ~np.isnan(asked)
    sizes = np.stack([(judged & first).sum(axis=1), (judged & ~first).sum(axis=1)])
    if len(scores) < 2 or sizes.min() < FEWEST:
        return None
    over = auc_over_runs(asked, np.broadcast_to(first, scores.shape))
    low, high = over.interval(alpha)
    # As many of each model: the law of the p-value depends on the sizes, and is then drawn once.
    p_values = [
        _stands_out(row[own & first][: sizes[0].min()], row[own & ~first][: sizes[1].min()])
        for row, own in zip(asked, judged, strict=True)
    ]
    return Unseen(value=over.value, low=low, high=high, p_value=min(1.0, 2 * float(np.median(p_values))), by=by)


def _stands_out(first: Float, second: Float) -> float:
    """p-value of "no more of the first stand out than chance allows" over the caps that the second can carry."""
    passing = [n for n in (allowed(cap, len(second)) for cap in FPR_CAPS) if n >= 1]
    if not passing:
        return 1.0
    ordered = np.sort(second)[::-1]
    above = [int((first > ordered[n]).sum()) for n in passing]
    return low_fpr_p_value(above, passing, n_pos=len(first), n_neg=len(second))
