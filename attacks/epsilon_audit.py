"""What the reference ensemble proves about the recipe's privacy: lower bounds on epsilon, and the most it could have
proved.

    many_runs      one canary, one trial a model: the models are dealt into two halves; on the first the training
                   example whose signal tells best who was trained with it is chosen, and its threshold; the second half
                   is judged there. Clopper-Pearson (Jagielski et al., NeurIPS 2020).
    gaussian       the same trials, if the mechanism is Gaussian-DP (Nasr et al., USENIX Security 2023)
    one_run        one model, every pool example a canary that a fair coin put in or left out: the surest ``guessed``
                   share by the signal is guessed, half of them in, half out (Steinke et al., NeurIPS 2023)

Statements about the mechanism "train this recipe on a random half", at level 1 - alpha each. A recipe without a privacy
mechanism has no finite epsilon: the figure says how much of that this many models show. The one run looks at one
model's own outputs only: in a balanced design the other models' memberships give away the audited model's, so LiRA and
RMIA are no valid guessers here, and the bound is that of a weak attack. Bounds do not add up: the largest of three at
level 1 - alpha is one at level 1 - 3 alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attacks.dp_audit import audit_epsilon, gdp_lower_bound, one_run_eps
from attacks.membership.calibration import Trials, at_best
from attacks.membership.exposure_audit import every_model_a_target
from contracts.errors import ConfigError
from contracts.methods import AnalysisSpec, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from sources.frames import frame_of

METHODS = ("many_runs", "gaussian", "one_run")
_FEWEST = 2  # models with and without the canary on either half


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonConfig(Config):
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of each bound")
    delta: float = param(1e-5, gt=0, lt=1, doc="delta of (epsilon, delta)-differential privacy")
    guessed: float = param(0.1, gt=0, le=1, doc="one_run: share of the canaries that is guessed, fixed beforehand")


_EPSILON = TableSpec(
    schema="audits",
    name="epsilon",
    doc="Lower bounds on the recipe's epsilon, with the largest that the trials could have proved.",
    key=("method",),
    columns=(
        Column(name="method", dtype="str", choices=METHODS, doc="how the bound is made"),
        Column(
            name="eps_lower",
            dtype="float64",
            low=0,
            direction="higher = less private",
            doc="epsilon exceeds it, at level 1 - alpha",
        ),
        Column(
            name="eps_largest",
            dtype="float64",
            low=0,
            doc="what a perfect attack would have proved with as many trials",
        ),
        Column(name="delta", dtype="float64", low=0, high=1, doc="delta"),
        Column(name="alpha", dtype="float64", low=0, high=1, doc="1 - level"),
        Column(name="n_trials", dtype="int64", low=1, doc="models judged, or canaries guessed"),
        Column(name="n_right", dtype="int64", low=0, doc="of these, called rightly"),
        Column(
            name="canary",
            dtype="int64",
            low=0,
            nullable=True,
            doc="example id; null for one_run, where every pool example is one",
        ),
        Column(name="sentence", dtype="str", doc="the bound in words"),
    ),
)


@analysis(
    AnalysisSpec(
        name="epsilon",
        doc="Lower bounds on the epsilon of the recipe, and the largest that so many models could prove.",
        source="Jagielski et al., NeurIPS 2020; Nasr et al., USENIX Security 2023; Steinke et al., NeurIPS 2023",
        config=EpsilonConfig,
        needs=("ensemble",),
        tables=(_EPSILON,),
    )
)
def epsilon(
    data: ExampleSet,
    *,
    config: EpsilonConfig,
    seed: int,
    ensemble: ReferenceEnsemble,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Table ``epsilon``, one row a method.

    Args:
        data: both splits, any task; says which examples are training examples.
        config: level, delta, share guessed.
        seed: deals the models into halves, and picks the model of the one run.
        ensemble: M models on random halves of the pool.
        progress: called when done.

    Raises:
        NotApplicable, DataError: see ``attacks.membership.exposure_audit``.
        ConfigError: too few models for two halves.
    """
    evidence = every_model_a_target(data, ensemble)
    assert evidence.keep is not None
    phi, keep = evidence.reference_signal[0], evidence.keep
    train = np.isin(evidence.example_id, data.example_id[data.split == "train"])
    order = np.random.default_rng(seed).permutation(len(phi))
    first, second = np.sort(order[: len(phi) // 2]), np.sort(order[len(phi) // 2 :])
    canary = _canary(phi[first], keep[first], train & _both_kinds(keep[second]))
    threshold = at_best(phi[first, canary], keep[first, canary], Trials(first), midway=True)
    member = keep[second, canary]
    audit = audit_epsilon(
        phi[second, canary], member, Trials(second), threshold, alpha=config.alpha, delta=config.delta
    )
    right = audit.true_positives + audit.n_neg - audit.false_positives
    many = {"n_trials": len(member), "n_right": right, "canary": int(evidence.example_id[canary])}
    bounds = [
        gdp_lower_bound(tp, audit.n_pos, fp, audit.n_neg, delta=config.delta, alpha=config.alpha).eps
        for tp, fp in ((audit.true_positives, audit.false_positives), (audit.n_pos, 0))
    ]
    run = int(order[0])
    num_guesses, num_right = _guess(phi[run], keep[run], evidence.example_id, config.guessed)
    one = [
        one_run_eps(keep.shape[1], num_guesses, v, delta=config.delta, alpha=config.alpha)
        for v in (num_right, num_guesses)
    ]
    rows = [
        {
            "method": "many_runs",
            "eps_lower": audit.eps,
            "eps_largest": audit.largest,
            **many,
            "sentence": audit.sentence,
        },
        {
            "method": "gaussian",
            "eps_lower": bounds[0],
            "eps_largest": bounds[1],
            **many,
            "sentence": f"If the mechanism is Gaussian: {_in_words(bounds, config)}",
        },
        {
            "method": "one_run",
            "eps_lower": one[0],
            "eps_largest": one[1],
            "n_trials": num_guesses,
            "n_right": num_right,
            "canary": None,
            "sentence": f"{num_right} of {num_guesses} guesses about {keep.shape[1]} canaries are right in one model. "
            f"{_in_words(one, config)}",
        },
    ]
    progress(1, 1, "bounds on epsilon")
    level = {"delta": config.delta, "alpha": config.alpha}
    return {"epsilon": frame_of(_EPSILON, [row | level for row in rows], nan_to_null=False)}


def _both_kinds(keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which columns have models on either side."""
    inside = keep.sum(axis=0)
    return np.asarray((inside >= _FEWEST) & (len(keep) - inside >= _FEWEST))


def _canary(phi: NDArray[np.float64], keep: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> int:
    """The allowed column whose signals separate best: the largest standardised gap between models with it and without.

    Membership in the other half may decide what is allowed, its outputs may not.
    """
    allowed = allowed & _both_kinds(keep)
    if not allowed.any():
        raise ConfigError(
            f"{2 * len(phi)} models are too few: no training example is in {_FEWEST} and out of {_FEWEST} of either "
            "half"
        )
    groups = [np.where(side, phi, np.nan)[:, allowed] for side in (keep, ~keep)]
    gap = np.nanmean(groups[0], axis=0) - np.nanmean(groups[1], axis=0)
    spread = np.sqrt(np.nanvar(groups[0], axis=0) + np.nanvar(groups[1], axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        standardised = np.where(gap == 0, 0.0, gap / spread)  # no spread at all: as large as it gets
    return int(np.flatnonzero(allowed)[np.argmax(standardised)])


def _guess(
    phi: NDArray[np.float64], member: NDArray[np.bool_], ids: NDArray[np.int64], share: float
) -> tuple[int, int]:
    """(guesses, right ones): the highest signals called in, the lowest out; equal ones in the order of their ids."""
    each = max(1, round(share * len(phi) / 2))
    if 2 * each > len(phi):
        each = len(phi) // 2
    order = np.lexsort((ids, phi))
    return 2 * each, int((~member[order[:each]]).sum() + member[order[len(order) - each :]].sum())


def _in_words(bounds: Sequence[float], config: EpsilonConfig) -> str:
    eps, largest = bounds
    level = f"{100 * (1 - config.alpha):g}%"
    return (
        f"Epsilon is at least {eps:.2f} ({level} confidence, delta {config.delta:g}). The largest bound that so many "
        f"trials can prove is {largest:.2f}."
    )
