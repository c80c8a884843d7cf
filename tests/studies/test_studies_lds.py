"""The linear datamodeling score: of the truth, of noise, by another program; no model judges what is made of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from contracts.errors import DataError, InvalidInput
from contracts.subject import Ensemble
from palimpsest.testing.worlds import class_examples
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from scoring.influence import influence_matrix
from sources.example_set import ExampleSet
from studies import lds as module
from studies.lds import LdsConfig, bootstrap, lds, lds_of, subset_means


def planted(seed: int = 0, *, models: int = 60, num: int = 40, unseen: int = 30) -> tuple[np.ndarray, ...]:
    """A true datamodel, halves, and outputs that are sums of it."""
    rng = np.random.default_rng(seed)
    tau, keep = rng.normal(size=(unseen, num)), rng.random((models, num)) < 0.5
    return tau, keep, keep @ tau.T


def test_the_true_datamodel_scores_one_and_a_shuffled_one_nothing() -> None:
    tau, keep, outputs = planted()
    assert np.allclose(lds_of(tau, keep, outputs), 1) and np.allclose(lds_of(-tau, keep, outputs), -1)
    assert np.allclose(lds_of(3 * tau, keep, np.exp(outputs)), 1), "ranks alone count"
    shuffled = lds_of(tau[:, np.random.default_rng(1).permutation(40)], keep, outputs)
    assert abs(shuffled.mean()) < 4 * shuffled.std() / np.sqrt(30) and np.abs(shuffled).max() < 0.7


def test_it_is_the_rank_correlation_of_another_program() -> None:
    tau, keep, outputs = planted(2, models=12)
    outputs = np.round(outputs)  # ties
    wanted = [spearmanr(keep @ tau[j], outputs[:, j]).statistic for j in range(30)]
    assert np.allclose(lds_of(tau, keep, outputs), wanted)
    noisy = outputs + np.random.default_rng(0).normal(size=outputs.shape) * 5
    assert 0.2 < lds_of(tau, keep, noisy).mean() < 0.95
    still = np.where(np.arange(30) == 4, 1.0, outputs)
    assert np.flatnonzero(np.isnan(lds_of(tau, keep, still))).tolist() == [4], "a constant output says nothing"


def test_shapes_that_do_not_fit_are_refused() -> None:
    tau, keep, outputs = planted()
    for call in ((tau[:, :3], keep, outputs), (tau, keep, outputs[:, :3]), (tau, keep[:1], outputs[:1])):
        with pytest.raises(InvalidInput, match="do not fit"):
            lds_of(*call)


def test_differences_of_subset_means_are_those_of_the_influence_of_qualities() -> None:
    _, keep, outputs = planted(3)
    quality = (outputs - outputs.min()) / np.ptp(outputs)
    found = subset_means(keep, quality)
    wanted = np.concatenate([part.infl for part in influence_matrix(keep, quality)])
    assert np.allclose(found, wanted)
    keep[:, 0] = True
    assert (subset_means(keep, quality)[:, 0] == 0).all(), "without models on one side there is no difference"


def test_the_interval_covers_the_mean_at_its_rate() -> None:
    hits = 0
    for seed in range(100):
        values = np.random.default_rng(seed).normal(0.3, 0.2, 60)
        low, high = bootstrap(values, draws=200, seed=seed)
        hits += low <= 0.3 <= high
    assert 87 <= hits <= 100
    assert bootstrap(np.array([0.1, np.nan]), draws=10, seed=0) == (None, None)


@pytest.fixture(scope="module")
def world() -> tuple[ExampleSet, ReferenceEnsemble, Trainer]:
    data = class_examples(300, 5, seed=4).by_id()
    build = builder("mlp", {"hidden": (16,)}, input_shape=data.input_shape, num_outputs=3)
    config = SupervisedConfig(lr=0.05, epochs=15, batch=32)
    ensemble = train_ensemble(
        build, data, recipe="supervised", config=config, ensemble=Ensemble(num_models=64, block=32), seed=0
    )
    return data, ensemble, Trainer(recipe="supervised", build=build, config=config)


def run(world: tuple[ExampleSet, ReferenceEnsemble, Trainer], **config: object) -> dict[str, pl.DataFrame]:
    data, ensemble, trainer = world

    def train_many(sets, seeds, *, data):
        return trainer.many(data, members=[data.positions(ids) for ids in sets], seeds=list(seeds))

    settings = LdsConfig(**{"dim": 200, "models": 4, "draws": 200, **config})
    return lds(data, config=settings, seed=0, ensemble=ensemble, train_many=train_many)


def test_projected_gradients_predict_subsets_and_noise_does_not(world) -> None:
    out = run(world)
    found = {row["method"]: row for row in out["lds"].to_dicts()}
    assert found["random"]["low"] < 0.05 and abs(found["random"]["lds"]) < 0.1
    assert found["trak"]["low"] > 0.2 and found["trak"]["low"] > found["random"]["high"]
    assert found["trak"]["low"] > found["margin"]["high"] and found["margin"]["lds"] > found["random"]["high"]
    assert {row["num_models"] for row in found.values()} == {32}
    each = out["lds_examples"].filter(pl.col("method") == "trak")
    assert each["lds"].mean() == pytest.approx(found["trak"]["lds"])
    assert set(each["example_id"]) == set(world[1].example_id[~world[1].pool])


def test_no_model_judges_what_was_made_of_it(world, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(tau, keep, outputs):
        seen.append((tau, keep, outputs))
        return lds_of(tau, keep, outputs)

    monkeypatch.setattr(module, "lds_of", spy)
    run(world, targets=10)
    ensemble = world[1]
    pool = np.flatnonzero(ensemble.pool)
    judges = [m for m in range(64) if any((ensemble.keep[m, pool] == row).all() for row in seen[0][1])]
    others = np.setdiff1d(np.arange(64), judges)
    assert len(judges) == len(others) == 32
    signal = ensemble.reading[:, :, 1]
    held = [c for c in np.flatnonzero(~ensemble.pool) if (signal[judges][:, c : c + 1] == seen[0][2]).all(0).any()]
    assert len(held) == 10, "the outputs are those of the judges"
    wanted = subset_means(ensemble.keep[others][:, pool], signal[others][:, held])
    assert np.allclose(seen[3][0], wanted), "and the datamodel is of the others"


def test_an_ensemble_of_other_data_is_refused(world) -> None:
    data, ensemble, trainer = world
    with pytest.raises(DataError, match="are not in"):
        run((data.take(np.arange(200)), ensemble, trainer))
    with pytest.raises(DataError, match="targets differ"):
        run((dataclasses.replace(data, y=(data.y + 1) % 3), ensemble, trainer))
