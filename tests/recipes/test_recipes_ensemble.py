from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, IntegrityError, InvalidInput, NotApplicable
from contracts.subject import Ensemble
from recipes import design as design_module
from recipes.design import balanced_design, pool_and_population
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised

CONFIG = SupervisedConfig(epochs=4, batch=16, lr=0.05, weight_decay=1e-3)
SMALL = Ensemble(num_models=6, block=2, population_fraction=0.5)


def _build(data):
    return builder("mlp", {"hidden": [8]}, input_shape=data.input_shape, num_outputs=data.num_classes)


@given(st.integers(1, 40).map(lambda n: 2 * n), st.integers(0, 300), st.integers(0, 2**63 - 1))
def test_every_example_is_in_exactly_half_of_the_models(models, num, seed):
    keep = balanced_design(models, num, seed=seed)
    assert keep.shape == (models, num) and keep.dtype == bool
    assert (keep.sum(0) == models // 2).all()
    assert np.array_equal(keep, balanced_design(models, num, seed=seed))
    assert np.array_equal(keep[:, : num // 2], balanced_design(models, num // 2, seed=seed))


def test_the_design_does_not_depend_on_the_block(monkeypatch):
    whole = balanced_design(8, 100, seed=3)
    monkeypatch.setattr(design_module, "_BLOCK", 7)
    assert np.array_equal(balanced_design(8, 100, seed=3), whole)


@pytest.mark.parametrize("seed", range(3))
def test_the_design_is_balanced_and_random(seed):
    """Subset sizes spread as sqrt(N)/2 (within 6 sigma), and knowing one model's members says of another's only what
    the balance implies: correlation -1/(M-1)."""
    models, num = 16, 20_000
    keep = balanced_design(models, num, seed=seed).astype(float)
    assert np.abs(keep.sum(1) - num / 2).max() < 6 * np.sqrt(num) / 2
    correlation = np.corrcoef(keep)[~np.eye(models, dtype=bool)]
    assert np.abs(correlation + 1 / (models - 1)).max() < 6 / np.sqrt(num)


def test_odd_numbers_of_models_are_refused():
    for models in (0, 3):
        with pytest.raises(ConfigError, match="even"):
            balanced_design(models, 5, seed=0)


def test_pool_and_population_are_stratified(examples):
    data = examples(400, classes=4)
    pool, population = pool_and_population(data, ensemble=Ensemble(population_fraction=0.3), seed=1)
    test = np.flatnonzero(data.split == "test")
    assert np.array_equal(np.sort(np.concatenate([pool, population])), np.arange(400))
    assert set(population) <= set(test) and len(population) == round(0.3 * len(test))
    assert np.ptp(np.bincount(data.y[population], minlength=4)) <= 1
    other = pool_and_population(data, ensemble=Ensemble(population_fraction=0.3), seed=2)[1]
    assert not np.array_equal(population, other)

    limited, same = pool_and_population(data, ensemble=Ensemble(population_fraction=0.3, pool_size=100), seed=1)
    assert np.array_equal(same, population) and len(limited) == 100 and set(limited) <= set(pool)
    share = (data.split[pool] == "test").mean()
    assert abs((data.split[limited] == "test").sum() - 100 * share) <= 4
    assert np.ptp(np.bincount(data.y[limited], minlength=4)) <= 2


def test_pools_that_cannot_be_are_refused(examples):
    data = examples(60)
    with pytest.raises(ConfigError, match="pool_size"):
        pool_and_population(data, ensemble=Ensemble(pool_size=60), seed=0)
    with pytest.raises(DataError, match="test split of 0"):
        pool_and_population(data.part("train"), ensemble=Ensemble(), seed=0)
    numbers = examples(60, task="regression")
    one = builder("mlp", {"hidden": [8]}, input_shape=numbers.input_shape, num_outputs=1)
    with pytest.raises(NotApplicable, match="class logits"):
        train_ensemble(one, numbers, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=0, outputs=True)


def test_each_model_is_the_recipe_on_its_half(examples, rng_left_alone):
    """Logits of model m = logits of ``supervised`` on the examples that keep[m] names, float64 inside."""
    data, make = examples(80), _build(examples(80))
    with rng_left_alone():
        ensemble = train_ensemble(
            lambda s: make(s).double(), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9, outputs=True
        )
    assert np.array_equal(ensemble.example_id, data.example_id) and np.array_equal(ensemble.labels, data.y)
    assert (ensemble.keep[:, ensemble.pool].sum(0) == 3).all() and not ensemble.keep[:, ~ensemble.pool].any()
    assert set(data.split[~ensemble.pool]) == {"test"} and "test" in data.split[ensemble.pool]
    for m in range(6):
        members = data.subset(ensemble.example_id[ensemble.keep[m]])
        model = supervised(lambda s: make(s).double(), members, config=CONFIG, seed=derive_seed("reference", 9, m))
        assert np.allclose(ensemble.logits[m], predict_logits(model, data), atol=1e-6)


def test_members_are_fitted_better_than_the_others(examples):
    """The planted truth of any audit: an over-fitting model is more sure of its members."""
    data = examples(120, classes=3)
    config = SupervisedConfig(epochs=60, batch=16, lr=0.1)
    ensemble = train_ensemble(
        _build(data), data, recipe="supervised", config=config, ensemble=Ensemble(num_models=8), seed=0
    )
    right = ensemble.readings.quality
    pool = ensemble.pool
    assert right[ensemble.keep].mean() > right[:, pool][~ensemble.keep[:, pool]].mean() + 0.05


def test_a_smaller_pool_trains_and_reports_on_fewer(examples):
    data = examples(200)
    ensemble = train_ensemble(
        _build(data),
        data,
        recipe="supervised",
        config=CONFIG,
        ensemble=dataclasses.replace(SMALL, pool_size=60),
        seed=0,
    )
    assert ensemble.pool.sum() == 60 and len(ensemble.example_id) < 200
    assert np.array_equal(ensemble.labels, data.y[data.positions(ensemble.example_id)])


@pytest.mark.parametrize("killed_at", [1, 4, 7])
@pytest.mark.promise("C10")
def test_it_resumes_by_block_to_the_same_bits(examples, store, killed_at):
    data = examples(80)
    straight = train_ensemble(_build(data), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9)

    class Killed(Exception):
        pass

    calls = []

    def kill(done, total, what):
        calls.append(done)
        if len(calls) == killed_at:
            raise Killed

    def run(**more):
        return train_ensemble(
            _build(data), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9, checkpoints=store, **more
        )

    with pytest.raises(Killed):
        run(progress=kill)
    before = list(store.saves)
    resumed = run()
    names = ["ensemble-00000-00002", "ensemble-00002-00004", "ensemble-00004-00006"]
    assert store.saves == names and before == names[: len(before)]
    for name, array in straight.to_arrays().items():
        assert np.array_equal(array, resumed.to_arrays()[name]), name
    assert resumed.config_digest == straight.config_digest
    run()
    assert store.saves == names, "a finished ensemble was trained again"


def test_blocks_of_another_ensemble_are_not_used_and_damage_is_an_error(examples, store):
    data = examples(80)
    first = train_ensemble(
        _build(data), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9, checkpoints=store
    )
    other = train_ensemble(
        _build(data), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=8, checkpoints=store
    )
    assert len(store.saves) == 6 and not np.array_equal(first.keep, other.keep)
    changed = dataclasses.replace(CONFIG, lr=0.06)
    train_ensemble(_build(data), data, recipe="supervised", config=changed, ensemble=SMALL, seed=8, checkpoints=store)
    assert len(store.saves) == 9
    store.damaged.add("ensemble-00002-00004")
    with pytest.raises(IntegrityError):
        train_ensemble(
            _build(data), data, recipe="supervised", config=changed, ensemble=SMALL, seed=8, checkpoints=store
        )


def test_the_block_changes_neither_members_nor_digest(examples):
    data = examples(80)
    one = train_ensemble(_build(data), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9)
    two = train_ensemble(
        _build(data), data, recipe="supervised", config=CONFIG, ensemble=dataclasses.replace(SMALL, block=5), seed=9
    )
    assert np.array_equal(one.keep, two.keep) and one.config_digest == two.config_digest
    assert np.allclose(one.reading, two.reading, atol=1e-4)


def test_progress_rises_to_its_total(examples):
    data, seen = examples(80), []
    train_ensemble(
        _build(data),
        data,
        recipe="supervised",
        config=CONFIG,
        ensemble=SMALL,
        seed=9,
        progress=lambda d, t, w: seen.append((d, t)),
    )
    assert seen == sorted(seen) and seen[-1] == (24, 24) and {t for _, t in seen} == {24}


def test_arrays_round_trip_and_are_checked(examples):
    data = examples(80)
    ensemble = train_ensemble(
        _build(data), data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9, outputs=True
    )
    arrays, meta = ensemble.to_arrays(), {"config_digest": ensemble.config_digest}
    again = ReferenceEnsemble.from_arrays(arrays, meta)
    assert all(np.array_equal(a, again.to_arrays()[n]) for n, a in arrays.items()) and again.num_models == 6
    unbalanced = arrays["keep"].copy()
    unbalanced[:, 5] = True
    with pytest.raises(DataError, match="half") as caught:
        ReferenceEnsemble.from_arrays(arrays | {"keep": unbalanced}, meta)
    assert caught.value.example_ids == (data.example_id[5],)
    for change in (
        {"logits": arrays["logits"].astype(np.float64)},
        {"logits": arrays["logits"][:, :-1]},
        {"labels": arrays["labels"][:-1]},
        {"example_id": np.zeros_like(arrays["example_id"])},
    ):
        with pytest.raises(InvalidInput):
            ReferenceEnsemble.from_arrays(arrays | change, meta)
    with pytest.raises(InvalidInput, match="config_digest"):
        ReferenceEnsemble.from_arrays(arrays, {})
    with pytest.raises(InvalidInput, match="keep"):
        ReferenceEnsemble.from_arrays({n: a for n, a in arrays.items() if n != "keep"}, meta)
