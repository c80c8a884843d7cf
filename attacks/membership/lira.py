"""LiRA, the likelihood-ratio attack: compare an example's signal with what models with and without it give.

Source: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022, algorithm 1 and section VI.

    online    score = log N(phi; mu_in, s_in^2) - log N(phi; mu_out, s_out^2)
    offline   upper    score = (phi - mu_out) / s_out          one-sided, the paper's; the z-value, which does not
              saturate density  score = -log N(phi; mu_out, s_out^2)    two-sided, the authors' code; a different ROC

phi is the task's signal: of classes the log-odds of the label, as published. Averaged over the queries of an example,
treated as independent as the code does. mu = median and s = spread over the reference models (``gaussian``), the
audited model left out. Up to about 64 reference models a spread per example is too noisy and one pooled spread does
better: ``variance="auto"``.

The ratio of two normals of unequal spread turns over, beyond both centres on the side of the wider one's tail:

    phi* = (mu_out s_in^2 - mu_in s_out^2) / (s_in^2 - s_out^2)         d score / d phi = 0

An audited model that learnt more than its references, which see half of the pool, puts its members beyond phi*, where
the narrow IN normal has died away and the wide OUT normal has not: they would count as non-members, the more so the
surer the model is (a small language model on 480 of its texts, 8 references: AUC 0.19, where its losses tell members
apart completely). Of one pooled spread that is the fit's doing and no evidence. So with it (``pooled``) the narrower
normal is not believed beyond phi*; an online score goes on from there as the ratio of two normals of the wider spread:

    score(phi) = score(phi*) + (mu_in - mu_out) (phi - phi*) / max(s_in, s_out)^2                   phi beyond phi*

It never falls on the way from OUT to IN and on. Where references match the audited model few signals lie there: their
own AUCs, each audited by 8 or 16 others, move by 0.003 or less on digits, emoji, diabetes and rankings. ``fixed``, one
spread for both, is linear in phi everywhere; ``per_example``, of many references, is kept as published.

Shapes: Evidence with T targets, M references, N examples -> scores (T, N), larger = more likely a member, NaN where
an example has fewer than 2 reference models with (online) or without it.
With few references of a balanced design the target's own side has one model less, so its centre is a little noisier: on
models without any trace the AUC lies below 0.5, by 0.016 with 16 models and 0.003 with 64.
Not: a probability. And weaker than it looks when the references generalise better than the target: match the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from attacks.membership.gaussian import BLOCK, Fit, Variance, fit
from contracts.methods import AttackSpec, attack
from contracts.params import Config, param

Float = NDArray[np.float64]

# With 64 the pooled spread still finds more: of 36 digits models with everything to find, 35 against 33 at level 0.05.
ENOUGH_FOR_OWN_VARIANCE = 65
_VARIANCES = ("auto", "pooled", "per_example", "fixed")


@dataclass(frozen=True, kw_only=True, slots=True)
class LiraOnlineConfig(Config):
    variance: str = param(
        "auto",
        choices=_VARIANCES,
        doc="spread of the normals: pooled over examples, per example, auto (pooled up to 64 references), fixed (the "
        "authors' fix_variance: IN spread used for OUT too)",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LiraOfflineConfig(Config):
    variance: str = param("auto", choices=_VARIANCES, doc="as in lira_online; fixed takes the spread of all OUT values")
    tail: str = param(
        "upper",
        choices=("upper", "density"),
        doc="upper: the paper's one-sided test; density: the authors' code, two-sided",
    )


@attack(
    AttackSpec(
        name="lira_online",
        version=2,
        wants=("reading",),
        doc="Likelihood ratio of the signal under models trained with and without the example.",
        source="Carlini et al., IEEE S&P 2022",
        config=LiraOnlineConfig,
        references=4,
    )
)
def lira_online(evidence: Evidence, *, config: LiraOnlineConfig, seed: int) -> Float:
    """Online LiRA score in nats, (T, N); > 0 = likelier a member. ``seed`` is not used: the attack is deterministic.

    Raises:
        ConfigError: fewer than 4 reference models besides the audited one (2 with and 2 without an example).
    """
    _, keep = evidence.references("lira_online", fewest=4)
    variance = _variance(config.variance, evidence.usable_references)
    scores = []
    for target, reference in zip(evidence.target_signal, evidence.reference_signal, strict=True):
        scores.append(
            log_ratio(
                target,
                reference,
                keep,
                ~keep,
                evidence.left_out,
                variance=variance,
                monotone=variance == "pooled",
            )
        )
    return scores[0] if len(scores) == 1 else np.mean(scores, axis=0)


@attack(
    AttackSpec(
        name="lira_offline",
        wants=("reading",),
        doc="How far the signal lies above that of models trained without the example.",
        source="Carlini et al., IEEE S&P 2022",
        config=LiraOfflineConfig,
        references=2,
    )
)
def lira_offline(evidence: Evidence, *, config: LiraOfflineConfig, seed: int) -> Float:
    """Offline LiRA score, (T, N): standard deviations (upper) or nats (density). ``seed`` is not used.

    Raises:
        ConfigError: fewer than 2 reference models besides the audited one.
    """
    _, keep = evidence.references("lira_offline", fewest=2)
    variance = _variance(config.variance, evidence.usable_references)
    scores = []
    for target, reference in zip(evidence.target_signal, evidence.reference_signal, strict=True):
        out = fit(reference, ~keep, evidence.left_out, variance=variance)
        scores.append(out.z(target) if config.tail == "upper" else -out.log_density(target) + 0.5 * np.log(2 * np.pi))
    return scores[0] if len(scores) == 1 else np.mean(scores, axis=0)


def log_ratio(
    target: Float,
    reference: Float,
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    left_out: NDArray[np.int64],
    *,
    variance: Variance,
    monotone: bool = False,
) -> Float:
    """log N(target; inside) - log N(target; outside), (T, N) from target (T, N), reference and both masks (M, N).

    With ``monotone``, where it would turn over it goes on as that of two normals of the wider spread: see the file.
    """
    outer = fit(reference, outside, left_out, variance=variance)
    inner = fit(reference, inside, left_out, variance=variance)
    if variance == "fixed":
        outer = type(outer)(centre=outer.centre, scale=inner.scale)
    score = np.empty(target.shape)
    for start in range(0, target.shape[1], BLOCK):
        at = slice(start, start + BLOCK)
        within, without, phi = inner.part(at), outer.part(at), target[:, at]
        before = _before_turning(phi, within, without) if monotone else phi
        score[:, at] = within.log_density(before)
        score[:, at] -= without.log_density(before)
        if monotone:
            wider = np.square(np.maximum(within.scale, without.scale))
            score[:, at] += (within.centre - without.centre) * (phi - before) / wider
    return score


def _before_turning(phi: Float, inner: Fit, outer: Fit) -> Float:
    """(T, n) phi, or phi* where phi lies beyond it as seen from the centres; equal spreads have no phi*."""
    inside, outside = np.square(inner.scale), np.square(outer.scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        turning = (outer.centre * inside - inner.centre * outside) / (inside - outside)
        above = turning > (inner.centre + outer.centre) / 2
        stays = np.where(above, np.minimum(phi, turning), np.maximum(phi, turning))
    return np.where(np.isfinite(turning), stays, phi)


def _variance(wanted: str, references: int) -> Variance:
    if wanted == "auto":
        return "per_example" if references >= ENOUGH_FOR_OWN_VARIANCE else "pooled"
    return wanted  # type: ignore[return-value]  # one of Variance: the configuration checked it
