"""Audits of unlearning: was the example trained on and then removed, or never seen?

(a) Population U-MIA (Kurmanji et al., NeurIPS 2023, and the NeurIPS 2023 unlearning kit): a logistic regression tells the
    losses of forgotten examples from those of unseen test examples, equal counts, losses clipped to [-100, 100].
    Ideal 0.5. Near 0.5 is NOT evidence of unlearning: (b) can be far above. On RAW losses, as published, the attack is
    blind to a model that interpolates: at losses near 1e-4 the regularised regression never leaves its start and its
    accuracy is 0.5 whatever there is to see. The verdict therefore rests on the standardised log of the loss.
(b) U-LiRA (Hayes et al., SaTML 2025, arXiv 2403.01218): R shadow runs; in each, every target example is IN (trained,
    kept), OUT (never trained) or UNLEARN (trained, then removed), R/3 runs each. With phi of the unlearned model

        score of j on a held-out run = log N(phi; UNLEARN_j) - log N(phi; OUT_j)

(c) Collateral: the same test, IN against OUT, before and after unlearning: do retained examples leak more?
(d) Epsilon of an example from its two normals, by Gaussian differential privacy (``attacks.dp_audit``).

Shapes: R runs, N target examples, K classes; logits (R, N, K), labels (N,), state (R, N) int8 in {IN, OUT, UNLEARN}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedShuffleSplit

from attacks.dp_audit import eps_of_mu
from attacks.membership.gaussian import Variance, fit
from attacks.membership.lira import log_ratio
from attacks.membership.metrics import report_over_targets
from attacks.membership.signals import log_odds
from attacks.statistics import auc, auc_interval, clopper_pearson
from contracts.errors import InvalidInput
from contracts.progress import Progress, silent

Float = NDArray[np.float64]
State = NDArray[np.int8]
Ids = NDArray[np.int64]
Model = TypeVar("Model")

IN, OUT, UNLEARN = 0, 1, 2
_CLIP = 100.0
_FLOOR = 1e-12  # of a loss, before its log: what float32 probabilities turn into 0
_FEWEST = 10
_HALVINGS = 10
_INFLATION = 1.3


@dataclass(frozen=True, kw_only=True, slots=True)
class UMIAResult:
    """Population U-MIA.

    Attributes:
        accuracy: mean over 10 random halvings, each half judged by the regression fitted to the other, on log losses.
        low, high: its interval, see :func:`population_umia`.
        published_accuracy: mean over 5 stratified shuffle splits of 10% each, on raw clipped losses: the papers' figure.
            The splits share examples, so it has no honest interval and no verdict rests on it.
        auc, auc_low, auc_high: of "low loss = forgotten", DeLong; below 0.5 the forgotten losses are too HIGH (Streisand).
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
    if size < _FEWEST:
        raise InvalidInput(f"population U-MIA needs at least {_FEWEST} forgotten and unseen examples, not {len(forget)} and {len(test)}")  # fmt: skip
    rng = np.random.default_rng(seed)
    forget, test = (np.clip(v[np.sort(rng.permutation(len(v))[:size])], -_CLIP, _CLIP) for v in (forget, test))
    x = np.concatenate([forget, test])[:, None]
    y = np.repeat([1, 0], size)
    split_seed = int(rng.integers(2**31))
    log_x = np.log(np.maximum(x, _FLOOR))
    log_x = (log_x - log_x.mean()) / (log_x.std() or 1.0)
    halves = RepeatedStratifiedKFold(n_splits=2, n_repeats=_HALVINGS, random_state=split_seed)
    accuracy = _split_accuracy(log_x, y, halves)
    trials = 2 * size / _INFLATION
    low, high = clopper_pearson(accuracy * trials, trials, alpha=alpha)
    shuffles = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=split_seed)
    area = auc_interval(-forget, -test, alpha=alpha)
    return UMIAResult(
        accuracy=accuracy,
        low=float(low),
        high=float(high),
        published_accuracy=_split_accuracy(x, y, shuffles),
        auc=area.value,
        auc_low=area.low,
        auc_high=area.high,
        n_pos=size,
        n_neg=size,
    )


def _split_accuracy(x: Float, y: NDArray[np.int64], splits: RepeatedStratifiedKFold | StratifiedShuffleSplit) -> float:
    """Mean accuracy over splits of a logistic regression fitted to one part and judged on the other."""
    return float(np.mean([LogisticRegression().fit(x[a], y[a]).score(x[b], y[b]) for a, b in splits.split(x, y)]))


def three_state_design(num_runs: int, num_targets: int, *, seed: int) -> State:
    """(num_runs, num_targets): every target example is IN, OUT and UNLEARN in exactly a third of the runs each.

    Raises:
        InvalidInput: num_runs not a multiple of 3 of at least 9 (U-LiRA leaves the judged run out and needs 2 others of each state).
    """
    if num_runs < 9 or num_runs % 3:
        raise InvalidInput(f"num_runs = {num_runs} must be a multiple of 3, at least 9")
    ranks = np.random.default_rng(seed).random((num_runs, num_targets)).argsort(axis=0).argsort(axis=0)
    return (ranks // (num_runs // 3)).astype(np.int8)


def shadow_unlearning(
    state: State,
    target_ids: Ids,
    base_ids: Ids,
    *,
    train: Callable[[Sequence[Ids]], Sequence[Model]],
    unlearn: Callable[[int, Model, Ids, Ids], Model],
    predict: Callable[[Model], NDArray[np.floating]],
    progress: Progress = silent,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Carry out the runs of a three-state design with the audited recipe and removal method.

    Args:
        state: (R, N) from :func:`three_state_design`; column j is ``target_ids[j]``.
        base_ids: always trained and always retained.
        train: training ids of every run -> one model a run (stacked training fits here); no two runs with one seed.
        unlearn: (run, model, retain ids, forget ids) -> model, leaving its argument unchanged.
        predict: model -> (N, K) logits of the target examples, eval mode, in the order of ``target_ids``.

    Returns:
        Logits before and after unlearning, (R, N, K) float32 each.
    """
    trained = [np.concatenate([base_ids, target_ids[row != OUT]]) for row in state]
    models = train(trained)
    before, after = [], []
    for run, (row, model) in enumerate(zip(state, models, strict=True)):
        retain, forget = np.concatenate([base_ids, target_ids[row == IN]]), target_ids[row == UNLEARN]
        before.append(predict(model))
        after.append(predict(unlearn(run, model, retain, forget)))
        progress(run + 1, len(state), "shadow unlearning runs")
    return np.stack(before).astype(np.float32), np.stack(after).astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class ULiRAResult:
    """U-LiRA over held-out shadow runs.

    Attributes:
        scores: (R, N) log-likelihood ratio in nats, larger = was trained and removed; NaN where the state is IN.
        is_unlearned: (R, N) truth, meaningful where scores are defined.
        auc, auc_low, auc_high: mean over runs, bootstrap over runs.
        accuracy: share of (run, example) with the right sign; ideal 0.5.
        tpr_at_1, tpr_at_1_low, tpr_at_1_high: TPR at 1% FPR, mean over runs; NaN with fewer than 100 OUT examples a run.
        example_accuracy: (N,) share of held-out runs in which the sign is right for the example.
    """

    scores: Float
    is_unlearned: NDArray[np.bool_]
    auc: float
    auc_low: float
    auc_high: float
    accuracy: float
    tpr_at_1: float
    tpr_at_1_low: float
    tpr_at_1_high: float
    example_accuracy: Float


def u_lira(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    state: State,
    *,
    variance: Variance = "pooled",
    alpha: float = 0.05,
    seed: int = 0,
) -> ULiRAResult:
    """Tell UNLEARN from OUT on every run, with the other runs as references.

    Args:
        logits: (R, N, K) of the models after unlearning.
        state: (R, N), see :func:`three_state_design`.
        variance: spread of the normals (``membership.gaussian``); pooled suits the usual tens of runs.
        seed: of the bootstrap over runs.

    Raises:
        InvalidInput: shapes that do not fit.
    """
    _check_runs(logits, labels, state)
    phi = log_odds(logits, labels)
    judged = state != IN
    scores = _held_out(phi, state == UNLEARN, state == OUT, variance)
    truth = state == UNLEARN
    area, tpr = _over_runs(scores, truth, judged, alpha, seed)
    right = np.where(judged, (scores > 0) == truth, False)
    return ULiRAResult(
        scores=scores,
        is_unlearned=truth,
        auc=area[0],
        auc_low=area[1],
        auc_high=area[2],
        accuracy=float(right.sum() / judged.sum()),
        tpr_at_1=tpr[0],
        tpr_at_1_low=tpr[1],
        tpr_at_1_high=tpr[2],
        example_accuracy=right.sum(axis=0) / judged.sum(axis=0),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CollateralResult:
    """Leakage about retained examples: AUC of IN against OUT before and after unlearning, and its change with a
    bootstrap interval over paired runs. ``low`` > 0: retained people leak more than they did."""

    auc_before: float
    auc_after: float
    change: float
    low: float
    high: float


def collateral(
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    labels: NDArray[np.int64],
    state: State,
    *,
    variance: Variance = "pooled",
    alpha: float = 0.05,
    seed: int = 0,
    repeats: int = 2000,
) -> CollateralResult:
    """Online LiRA of IN against OUT on the same runs before and after unlearning, paired by run."""
    aucs = []
    for logits in (before, after):
        _check_runs(logits, labels, state)
        scores = _held_out(log_odds(logits, labels), state == IN, state == OUT, variance)
        aucs.append([auc(s[row == IN], s[row == OUT]) for s, row in zip(scores, state, strict=True)])
    old, new = np.asarray(aucs)
    draws = np.random.default_rng(seed).integers(len(old), size=(repeats, len(old)))
    low, high = np.quantile((new - old)[draws].mean(axis=1), [alpha / 2, 1 - alpha / 2])
    return CollateralResult(
        auc_before=float(old.mean()),
        auc_after=float(new.mean()),
        change=float((new - old).mean()),
        low=float(low),
        high=float(high),
    )


def example_epsilon(
    logits: NDArray[np.floating], labels: NDArray[np.int64], state: State, *, delta: float = 1e-5, alpha: float = 0.05
) -> pl.DataFrame:
    """What the two normals of each example say about its privacy, as Gaussian differential privacy.

    mu_j = |mean_UNLEARN - mean_OUT| / s with the pooled s; ``mu_low`` takes off the sampling error at one-sided level
    1 - alpha / 2 (s counts as known: its degrees of freedom are those of all examples together). eps solves
    delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) = delta. One example at a time; correct for many
    with ``attacks.statistics`` before naming the worst.

    Returns:
        position int64 (column of ``state``), mu, mu_low, eps, eps_low float64, p_value (two-sided, of "no difference").
    """
    _check_runs(logits, labels, state)
    phi = log_odds(logits, labels)
    nobody = np.array([-1])
    groups = [(state == s) for s in (UNLEARN, OUT)]
    means = [np.where(g, phi, 0.0).sum(axis=0) / g.sum(axis=0) for g in groups]
    sizes = [g.sum(axis=0) for g in groups]
    both = np.concatenate([phi, phi])
    residual = fit(
        both - np.repeat(np.stack(means), len(phi), axis=0), np.concatenate(groups), nobody, variance="pooled"
    )
    # Two means were taken off each example where the pool counts one: correct the degrees of freedom.
    num = sum(sizes)
    s = residual.scale[0, 0] * np.sqrt((num - 1).sum() / (num - 2).sum())
    mu = np.abs(means[0] - means[1]) / s
    error = np.sqrt(1 / sizes[0] + 1 / sizes[1])
    mu_low = np.maximum(0.0, mu - norm.ppf(1 - alpha / 2) * error)
    return pl.DataFrame(
        {
            "position": np.arange(len(labels)),
            "mu": mu,
            "mu_low": mu_low,
            "eps": [eps_of_mu(m, delta=delta) for m in mu],
            "eps_low": [eps_of_mu(m, delta=delta) for m in mu_low],
            "p_value": 2 * norm.sf(mu / error),
        }
    )


def _held_out(phi: Float, inside: NDArray[np.bool_], outside: NDArray[np.bool_], variance: Variance) -> Float:
    """(R, N) log ratio of every run against the others; NaN where the run's state is neither."""
    scores = log_ratio(phi, phi, inside, outside, np.arange(len(phi)), variance=variance)
    scores[~(inside | outside)] = np.nan
    return scores


def _over_runs(
    scores: Float, truth: NDArray[np.bool_], judged: NDArray[np.bool_], alpha: float, seed: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    report = report_over_targets(np.where(judged, scores, np.nan), truth, alpha=alpha, fpr_caps=(0.01,), seed=seed)
    nan = float("nan")
    area, tpr = (tuple(nan if v is None else float(v) for v in row[1:4]) for row in report.iter_rows())
    return area, tpr  # type: ignore[return-value]  # three figures each


def _check_runs(logits: NDArray[np.floating], labels: NDArray[np.int64], state: State) -> None:
    if logits.ndim != 3 or logits.shape[:2] != state.shape or logits.shape[1] != len(labels):
        raise InvalidInput(f"logits {logits.shape}, state {state.shape}, labels {labels.shape} do not fit (R, N, K), (R, N), (N,)")  # fmt: skip
    if not np.isfinite(logits).all():
        raise InvalidInput("logits hold values that are not finite")
    if not np.isin(state, (IN, OUT, UNLEARN)).all():
        raise InvalidInput("state holds values other than IN = 0, OUT = 1, UNLEARN = 2")
