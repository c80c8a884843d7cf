"""The signal over reference models: how near normal it is, measured on trained models, beside transforms that are
worse.

For every example the models that were trained without it and those trained with it are one sample each; of the
standardised samples the mean size of the skewness and the mean of Shapiro and Wilk's W (1 is normal) are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import language_data
import numpy as np
import pytest
from scipy.stats import shapiro, skew
from scoring_data import make_examples

from contracts.subject import Ensemble
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.language.fitting import TokenTrainingConfig
from recipes.models import builder
from recipes.recsys import BprConfig
from recipes.schedule import SupervisedConfig
from sources.example_set import ExampleSet
from sources.loading import load
from tasks.base import Reading

MODELS = 60
FLOOR = 1e-6
SPLIT = np.where(np.arange(120) % 4 == 0, "test", "train").astype("<U5")


def features(num: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 6)).astype(np.float32), rng


def classes() -> ExampleSet:
    x, rng = features(120, 0)
    data = make_examples(x, (x[:, :3] + 0.8 * rng.normal(size=(120, 3))).argmax(1), num_classes=3)
    return dataclasses.replace(data, split=SPLIT)


def numbers() -> ExampleSet:
    x, rng = features(120, 1)
    data = make_examples(x, np.zeros(120, int), num_classes=2)
    y = x[:, 0] + np.sin(2 * x[:, 1]) + 0.5 * rng.normal(size=120)
    return dataclasses.replace(data, task="regression", y=y.astype(np.float64), class_names=(), split=SPLIT)


def ensemble_of(task: str) -> ReferenceEnsemble:
    plan = Ensemble(num_models=MODELS, block=MODELS, population_fraction=0.3)
    if task == "language":
        tokens = TokenTrainingConfig(lr=0.02, batch=24, epochs=40)
        return train_ensemble(
            language_data.build, language_data.make_texts(48), recipe="causal_lm", config=tokens, ensemble=plan, seed=0
        )
    if task == "ranking":
        data = load("synthetic_interactions", {"num_users": 20, "num_items": 30, "per_user": 8})
        make = builder("mf", {"dim": 8}, input_shape=(20,), num_outputs=data.num_classes)
        config: object = BprConfig(lr=0.05, batch=64, epochs=25)
        return train_ensemble(make, data, recipe="bpr", config=config, ensemble=plan, seed=0)  # type: ignore[arg-type]
    data = classes() if task == "classification" else numbers()
    outputs = data.num_classes or 1
    make = builder("mlp", {"hidden": (16,)}, input_shape=(6,), num_outputs=outputs)
    config = SupervisedConfig(lr=0.05, epochs=25, batch=16)
    return train_ensemble(make, data, recipe="supervised", config=config, ensemble=plan, seed=0)


def shape_of(values: np.ndarray, keep: np.ndarray) -> tuple[float, float]:
    """(mean |skewness|, mean W) over examples, of models with and without each; constant samples say nothing."""
    samples = [values[side, j] for j in range(values.shape[1]) for side in (keep[:, j], ~keep[:, j]) if side.sum() > 20]
    samples = [s for s in samples if s.std() > 1e-9 * (1 + abs(s.mean()))]
    assert len(samples) > 50
    return float(np.mean([abs(skew(s)) for s in samples])), float(np.mean([shapiro(s).statistic for s in samples]))


WORSE: dict[str, dict[str, Callable[[Reading], np.ndarray]]] = {
    "classification": {"probability": lambda r: np.exp(r.log_likelihood), "loss": lambda r: r.loss},
    "language": {"probability": lambda r: np.exp(r.log_likelihood), "loss": lambda r: r.loss},
    "regression": {"-log(r^2 + floor)": lambda r: -np.log(r.loss + FLOOR), "loss": lambda r: r.loss},
    "ranking": {"probability": lambda r: np.exp(r.log_likelihood), "loss": lambda r: r.loss},
}


@pytest.mark.parametrize("task", sorted(WORSE))
def test_the_signal_is_nearer_to_normal_than_what_it_replaces(task: str) -> None:
    ensemble = ensemble_of(task)
    skewness, w = shape_of(ensemble.readings.signal, ensemble.keep)
    assert skewness < 0.6 and w > 0.93
    for name, transform in WORSE[task].items():
        other = shape_of(transform(ensemble.readings), ensemble.keep)
        assert other[0] > skewness and other[1] < w, (name, other, (skewness, w))
