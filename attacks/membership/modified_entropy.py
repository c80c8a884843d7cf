"""Modified entropy: certainty that counts only when it is certainty of the right label.

Source: Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX Security 2021, eq.
    9.

    global      score = -ME
    per class   score = tau_y - ME, tau_c chosen on one shadow model, among its own values of class c, to maximise
                (TPR + TNR) / 2 of "member iff ME <= tau_c"; > 0 means member

Shapes: Evidence with T targets, M references, N examples -> (T, N) in nats; per class NaN where the shadow model has
only members or only non-members of the class. The shadow is a reference model, never the audited one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.calibration import Trials, at_best
from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config
from tasks import signals

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModifiedEntropyConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="modified_entropy",
        wants=("outputs", "classes"),
        doc="A prediction certain of the right label means member; one threshold for all classes.",
        source="Song and Mittal, USENIX Security 2021",
        config=ModifiedEntropyConfig,
    )
)
def modified_entropy(evidence: Evidence, *, config: ModifiedEntropyConfig, seed: int) -> Float:
    """Minus the modified entropy in nats, (T, N). ``seed`` is not used."""
    return _scores(evidence)


@attack(
    AttackSpec(
        name="modified_entropy_per_class",
        wants=("outputs", "classes"),
        doc="As modified_entropy, with a threshold a class chosen on a shadow model.",
        source="Song and Mittal, USENIX Security 2021",
        config=ModifiedEntropyConfig,
        references=1,
    )
)
def modified_entropy_per_class(evidence: Evidence, *, config: ModifiedEntropyConfig, seed: int) -> Float:
    """tau_y - ME in nats, (T, N); > 0 is Song's decision "member". ``seed`` draws the shadow model.

    Raises:
        ConfigError: no reference model besides the audited one.
    """
    evidence.require_references("modified_entropy_per_class", fewest=1)
    # One shadow serves every target but itself; a second one serves that one.
    order = np.random.default_rng(seed).permutation(evidence.num_references)
    scores = _scores(evidence)
    for shadow in order[:2]:
        served = evidence.left_out != shadow if shadow == order[0] else evidence.left_out == order[0]
        if served.any():
            scores[served] -= _thresholds(evidence, int(shadow))[evidence.outputs.labels]
    return scores


def _scores(evidence: Evidence) -> Float:
    return np.stack([-signals.modified_entropy(z, evidence.outputs.labels) for z in evidence.outputs.target])


def _thresholds(evidence: Evidence, shadow: int) -> Float:
    """(K,) -tau of each class, chosen on one shadow model's own members and non-members."""
    assert evidence.keep is not None
    labels = evidence.outputs.labels
    score = -signals.modified_entropy(evidence.outputs.references[shadow], labels)
    member = evidence.keep[shadow]
    limits = np.full(evidence.outputs.num_classes, np.nan)
    for c in np.unique(labels):
        of_class = labels == c
        if member[of_class].any() and not member[of_class].all():
            trials = Trials(evidence.example_id[of_class], model=shadow)
            threshold = at_best(score[of_class], member[of_class], trials).value
            if np.isfinite(threshold):  # infinite: calling nobody a member is best, so there is no threshold
                limits[c] = threshold
    return limits
