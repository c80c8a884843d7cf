"""Shadow-model attack: a classifier a class learns from shadow models what members' outputs look like.

Source: Shokri et al., "Membership Inference Attacks against Machine Learning Models", IEEE S&P 2017.

    features of (model, example)   the 3 largest of softmax(z) in descending order, loss l, entropy H, 1[argmax = y]
    label                          was the example in that model's training set
    score                          the classifier's probability on the audited model's row, by the class of the example

The shadow models are the reference models. So that no audited model is scored by a classifier that learned from it,
references are dealt into two halves; a target that sits in one half is scored by the classifiers of the other.
Shapes: Evidence with T targets, M references, N examples -> (T, N) in [0, 1]; NaN for a class whose rows are all IN or
    all OUT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config, param
from tasks import signals

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowModelConfig(Config):
    classifier: str = param("logistic", choices=("logistic", "mlp"), doc="logistic regression, or 64 ReLU units")
    rows_per_class: int = param(10_000, ge=20, le=10_000_000, doc="training rows a class; drawn when there are more")


@attack(
    AttackSpec(
        name="shadow_model",
        wants=("outputs", "classes"),
        doc="A classifier a class, trained on shadow models' outputs for members and non-members.",
        source="Shokri et al., IEEE S&P 2017",
        config=ShadowModelConfig,
        references=2,
    )
)
def shadow_model(evidence: Evidence, *, config: ShadowModelConfig, seed: int) -> Float:
    """Probability of membership in [0, 1], (T, N); ``seed`` deals the halves, draws rows and starts the classifiers.

    Raises:
        ConfigError: fewer than 2 reference models besides the audited one.
    """
    evidence.require_references("shadow_model", fewest=2)
    assert evidence.keep is not None
    rng = np.random.default_rng(seed)
    first_half = np.isin(
        np.arange(evidence.num_references), rng.permutation(evidence.num_references)[: evidence.num_references // 2]
    )
    in_first = np.where(evidence.left_out >= 0, first_half[evidence.left_out], False)
    free = evidence.left_out < 0
    groups = (  # (shadow models to learn from, targets to score)
        (~first_half, in_first & ~free),
        (first_half, ~in_first & ~free),
        (np.ones_like(first_half), free),
    )
    scores = np.full((evidence.num_targets, len(evidence.example_id)), np.nan)
    for shadows, served in groups:
        if served.any():
            scores[served] = _attack(evidence, np.flatnonzero(shadows), np.flatnonzero(served), config, rng)
    return scores


def _attack(
    evidence: Evidence,
    shadows: NDArray[np.int64],
    targets: NDArray[np.int64],
    config: ShadowModelConfig,
    rng: np.random.Generator,
) -> Float:
    assert evidence.keep is not None
    scores = np.full((len(targets), len(evidence.example_id)), np.nan)
    whole = evidence.outputs
    for c in np.unique(whole.labels):
        examples = np.flatnonzero(whole.labels == c)
        rows = np.stack(np.meshgrid(shadows, examples, indexing="ij"), axis=-1).reshape(-1, 2)
        rows = rows[np.sort(rng.permutation(len(rows))[: config.rows_per_class])]
        member = evidence.keep[rows[:, 0], rows[:, 1]]
        if member.all() or not member.any():
            continue
        model = _classifier(config.classifier, int(rng.integers(2**31)))
        model.fit(_features(whole.references[rows[:, 0], rows[:, 1]], int(c)), member)
        for out, t in zip(scores, targets, strict=True):
            out[examples] = model.predict_proba(_features(whole.target[t, examples], int(c)))[:, 1]
    return scores


def _features(logits_BK: NDArray[np.floating], label: int) -> Float:
    """(B, 6) or fewer columns when there are fewer than 3 classes."""
    labels = np.full(len(logits_BK), label)
    top = np.exp(-np.sort(-signals.log_softmax(logits_BK), axis=-1)[:, :3])
    loss = signals.loss_from_log_odds(signals.log_odds(logits_BK, labels))
    return np.column_stack([top, loss, signals.entropy(logits_BK), signals.correct(logits_BK, labels)])


def _classifier(kind: str, seed: int) -> Pipeline:
    model: Any = (
        LogisticRegression(max_iter=1000)
        if kind == "logistic"
        else MLPClassifier((64,), early_stopping=True, max_iter=500, random_state=seed)
    )
    return make_pipeline(StandardScaler(), model)
