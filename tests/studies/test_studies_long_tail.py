"""The long-tail report on a mixture whose subpopulations, frequencies and price are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from scoring_data import make_examples, saying

from contracts.errors import DataError, NotApplicable
from recipes.design import balanced_design
from recipes.ensemble import ReferenceEnsemble
from scoring.memorization import memorization_scores
from sources.long_tail import LongTailMixture, frequency_prior_tau, zipf_prior
from studies.long_tail import LongTailConfig, long_tail_report

NUM, POPULATION, CLASSES, MODELS = 2000, 2000, 5, 40


@pytest.fixture(scope="module")
def world():
    """A learner that knows the label of a subpopulation exactly when it trained on one of its samples, and else
    guesses."""
    mixture = LongTailMixture.draw(zipf_prior(NUM), num_classes=CLASSES, seed=1)
    where = mixture.sample(NUM + POPULATION, seed=2)
    x = mixture.vectors(where, noise=0.2, seed=3)
    rng = np.random.default_rng(4)
    data = make_examples(x, mixture.label[where], num_classes=CLASSES, ids=rng.permutation(99999)[: NUM + POPULATION])
    data = dataclasses.replace(data, split=np.where(np.arange(len(x)) < NUM, "train", "test").astype("<U5"))
    keep = np.zeros((MODELS, len(x)), bool)
    keep[:, :NUM] = balanced_design(MODELS, NUM, seed=5)
    knows = np.stack([np.isin(where, where[row]) for row in keep])
    guess = rng.integers(0, CLASSES, (MODELS, NUM))[:, where]
    answer = np.where(knows, data.y, guess)
    ensemble = ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.arange(len(x)) < NUM,
        labels=data.y,
        keep=keep,
        logits=(5.0 * np.eye(CLASSES)[answer]).astype(np.float32),
        config_digest="0" * 64,
    )
    return data, ensemble, where, answer == data.y, mixture


def run(data, ensemble, **config) -> dict[str, pl.DataFrame]:
    return long_tail_report(data, config=LongTailConfig(**config), seed=0, ensemble=ensemble)


def test_the_price_of_not_memorising(world) -> None:
    data, ensemble, where, right, mixture = world
    rows = {row["estimate"]: row for row in run(data, ensemble)["long_tail_price"].iter_rows(named=True)}
    count = np.bincount(where[:NUM], minlength=NUM)
    ones, twos = int((count == 1).sum()), int((count == 2).sum())
    for name in ("good_turing", "measured"):
        assert (rows[name]["num_singletons"], rows[name]["num_subpopulations"]) == (ones, int((count > 0).sum()))
        assert rows[name]["num_examples"] == NUM
    good = rows["good_turing"]
    assert good["singleton_mass"] == pytest.approx(2 * twos / NUM) and good["missing_mass"] == pytest.approx(ones / NUM)
    assert good["tau_1"] == pytest.approx(2 * twos / (NUM * ones))
    assert good["price"] == pytest.approx(2 * twos / NUM * (1 - 1 / CLASSES)) and good["price_low"] is None

    measured, unseen = rows["measured"], where[NUM:]
    assert measured["missing_mass"] == pytest.approx((count[unseen] == 0).mean())
    assert measured["singleton_mass"] == pytest.approx((count[unseen] == 1).mean())
    gain = []
    for j in range(POPULATION):
        twin = np.flatnonzero(where[:NUM] == unseen[j])
        held = ensemble.keep[:, twin[0]] if len(twin) == 1 else None
        gain.append(0.0 if held is None else right[held, NUM + j].mean() - right[~held, NUM + j].mean())
    assert measured["price"] == pytest.approx(np.mean(gain))
    half = 1.96 * np.std(gain, ddof=1) / np.sqrt(POPULATION)
    assert (measured["price_low"], measured["price_high"]) == pytest.approx(
        (np.mean(gain) - half, np.mean(gain) + half)
    )

    zipf = rows["zipf"]
    tau = frequency_prior_tau(zipf_prior(NUM), num_samples=NUM, ell=1, draws=500, seed=9)
    assert zipf["tau_1"] == pytest.approx(tau, rel=0.06) and zipf["missing_mass"] is None
    # The theorem: the domain is a draw of this prior, labels say nothing about each other, so all three agree.
    truth = mixture.frequency[count == 1].sum() * (1 - 1 / CLASSES)
    for row in rows.values():
        assert row["price"] == pytest.approx(truth, rel=0.35)
        assert row["price_by_mem"] == pytest.approx(row["price"], rel=0.1), "here singletons are guessed at random"


def test_the_prior_of_the_example_is_the_plan_s(world) -> None:
    data, ensemble, where, *_ = world
    ones = int((np.bincount(where[:NUM]) == 1).sum())
    zipf = run(data, ensemble, num_subpopulations=500, exponent=0.5)["long_tail_price"].row(0, named=True)
    tau = frequency_prior_tau(zipf_prior(500, exponent=0.5), num_samples=NUM, ell=1, draws=500, seed=9)
    assert zipf["num_subpopulations"] == 500 and zipf["num_singletons"] == ones
    assert zipf["tau_1"] == pytest.approx(tau, rel=0.06)
    assert zipf["price"] == pytest.approx(tau * ones * (1 - 1 / CLASSES), rel=0.06)


def test_models_that_do_not_fit_are_refused_as_memorization_refuses_them(world) -> None:
    data, ensemble, _, right, _ = world
    assert set(run(data, ensemble)["long_tail_price"]["acc_in"]) == {1.0}
    # A tenth of the models' own answers are wrong.
    logits = ensemble.logits.copy()
    logits[np.random.default_rng(0).random(right.shape) < 0.1] *= -1
    with pytest.raises(NotApplicable, match=r"mean acc_in is 0\.\d*, below 0\.98: the reference models do not fit"):
        run(data, saying(ensemble, logits))


def test_memorised_mass_by_class(world) -> None:
    data, ensemble, where, right, _ = world
    found = run(data, ensemble)["long_tail_classes"]
    own = memorization_scores(ensemble.keep[:, :NUM], right[:, :NUM])
    assert found["memorised_mass"].sum() == pytest.approx(own.acc_in.mean() - own.acc_out.mean())
    once = np.bincount(where[:NUM], minlength=NUM)[where[:NUM]] == 1
    assert found["label"].to_list() == sorted(set(data.y[:NUM]))
    for row in found.iter_rows(named=True):
        of = data.y[:NUM] == row["label"]
        assert row["label_name"] == f"class {row['label']}" and row["num_examples"] == of.sum()
        assert row["mean_mem"] == pytest.approx(own.mem[of].mean())
        assert row["memorised_mass"] == pytest.approx(own.mem[of].sum() / NUM)
        assert row["num_memorised"] == (own.low[of] >= 0.25).sum() and row["num_singletons"] == once[of].sum()
        assert (
            row["singleton_mem"] == pytest.approx(own.mem[of & once].mean()) and row["singleton_mem"] > row["other_mem"]
        )
        assert row["other_mem"] == pytest.approx(own.mem[of & ~once].mean())


def test_the_order_of_the_rows_does_not_matter(world) -> None:
    data, ensemble, *_ = world
    mixed = data.subset(np.random.default_rng(1).permutation(data.example_id))
    first, second = run(data, ensemble), run(mixed, ensemble)
    assert all(first[name].equals(second[name]) for name in first)


def test_nothing_seen_once(world) -> None:
    data, ensemble, where, *_ = world
    twice = np.where(np.arange(len(where)) < NUM, np.arange(len(where)) // 2, where)
    price = run(dataclasses.replace(data, x=data.x[twice]), ensemble)["long_tail_price"]
    assert set(price["num_singletons"]) == {0} and price["tau_1"].null_count() == 3
    assert price["price_by_mem"].null_count() == 3
    good, measured = price.to_dicts()[1:]
    assert good["missing_mass"] == measured["price"] == 0


def test_groups_as_large_as_a_class_are_refused_by_name(world) -> None:
    data, ensemble, *_ = world
    with pytest.raises(
        NotApplicable, match=r"long_tail_report: at ratio 0\.3 one group holds 2000 of 2000 .* class 'class"
    ):
        run(dataclasses.replace(data, x=np.ones_like(data.x)), ensemble)
    with pytest.raises(NotApplicable, match=r"at ratio 0\.95 one group"):
        run(data, ensemble, ratio=0.95)


def test_units_and_constant_columns_do_not_matter(world) -> None:
    data, ensemble, *_ = world
    units = np.geomspace(1e-3, 1e3, 64, dtype=np.float32)
    other = dataclasses.replace(
        data, x=np.column_stack([data.x * units + 5 * units, np.full(len(data), 7, np.float32)])
    )
    first, second = run(data, ensemble), run(other, ensemble)
    assert first["long_tail_classes"].equals(second["long_tail_classes"])


def test_refusals(world) -> None:
    data, ensemble, *_ = world
    with pytest.raises(NotApplicable, match="regression"):
        run(dataclasses.replace(data, task="regression", y=data.y.astype(float), class_names=()), ensemble)
    broken = data.x.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match="not finite") as error:
        run(dataclasses.replace(data, x=broken), ensemble)
    assert error.value.example_ids == (data.example_id[3],)
