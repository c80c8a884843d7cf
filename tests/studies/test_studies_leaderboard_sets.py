"""The forget sets of the leaderboard: whole classes, one owner, a planted subpopulation of the influence matrix."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from contracts.errors import DataError, InvalidInput, NotApplicable
from recipes.ensemble import ReferenceEnsemble
from scoring.influence import influence_directions, influence_matrix
from scoring.worst_case_forget import WorstCaseForgetConfig
from studies.forget_selectors import choose
from studies.leaderboard.sets import ALL_SETS, SETS, forget_set

SEARCH = WorstCaseForgetConfig(fraction=0.2, upper_steps=2, lower_epochs=1)


@pytest.fixture
def owned(examples):
    owner = np.repeat(["ann", "bob", "cid", ""], [4, 8, 15, 10])
    return dataclasses.replace(examples, owner=owner)


@pytest.fixture
def ensemble(examples):
    """24 models: those that hold more of the six planted examples are right on the population; two other pool examples
    have an effect on one of it each."""
    rng = np.random.default_rng(0)
    ids, models = np.sort(examples.example_id), 24
    keep = np.zeros((models, 37), bool)
    for column in range(25):
        keep[rng.permutation(models)[: models // 2], column] = True
    keep[:, :6] = keep[:, :1]  # they come and go together
    keep[::5, 1:6] = np.roll(keep[::5, 1:6], 1, axis=1)
    right = np.zeros((models, 37))
    right[:, 25:] = keep[:, :1]
    right[:, 25] = keep[:, 10]
    reading = np.zeros((models, 37, 4))
    reading[:, :, 3] = right
    y = examples.y[examples.positions(ids)]
    return ReferenceEnsemble(
        example_id=ids, pool=np.arange(37) < 25, labels=y, keep=keep, reading=reading, config_digest="x"
    )


def drawn(kind, data, mlp, *, seed=0, **more):
    return forget_set(kind, mlp(0), data, config=SEARCH, seed=seed, **more)


def test_selectors_are_those_of_the_split_maker(examples, mlp):
    for kind in ("random", "worst_case", "easiest", "lowest_loss", "highest_loss", "moderate", "lowest_gradient"):
        exact = choose(kind, mlp(0), examples, config=SEARCH, seed=3).example_id
        assert drawn(kind, examples, mlp, seed=3).tolist() == sorted(exact)
    assert set(SETS) < set(ALL_SETS)


def test_a_class_is_whole_and_every_class_may_be_drawn(examples, mlp):
    found = {}
    for seed in range(40):
        ids = drawn("class", examples, mlp, seed=seed)
        [label] = set(examples.y[examples.positions(ids)])
        assert len(ids) == (examples.y == label).sum()
        found[label] = found.get(label, 0) + 1
    assert set(found) == {0, 1, 2, 3}


def test_an_owner_is_the_one_nearest_to_the_budget(owned, mlp):
    ids = drawn("owner", owned, mlp)
    assert set(owned.owner[owned.positions(ids)]) == {"bob"} and len(ids) == 8  # budget 7 of 37
    ties = dataclasses.replace(owned, owner=np.repeat(["ann", "bob", "cid", ""], [6, 8, 15, 8]))
    who = {ties.owner[ties.positions(drawn("owner", ties, mlp, seed=s))][0] for s in range(20)}
    assert who == {"ann", "bob"}


@pytest.mark.parametrize("kind", ["class", "owner", "random", "influence"])
def test_sets_depend_on_ids_and_not_on_rows(owned, mlp, ensemble, kind):
    mixed = owned.subset(np.random.default_rng(1).permutation(owned.example_id))
    one, two = (drawn(kind, d, mlp, seed=4, ensemble=ensemble) for d in (owned, mixed))
    assert one.tolist() == two.tolist() == sorted(one)


def test_influence_finds_the_planted_subpopulation(examples, mlp, ensemble):
    ids = np.sort(examples.example_id)
    assert set(ids[:6]) <= set(drawn("influence", examples, mlp, ensemble=ensemble))
    rest = examples.subset(ids[6:])
    again = drawn("influence", rest, mlp, ensemble=ensemble)
    assert not set(again) & set(ids[:6]) and set(again) <= set(ids[6:25]), "of the pool, and nothing outside the data"


def test_what_cannot_be_drawn_says_why(owned, regression, mlp, ensemble):
    for kind, data, more, word in (
        ("class", regression, {}, "classes"),
        ("class", owned.take(np.flatnonzero(owned.y == 1)), {}, "two classes"),
        ("owner", dataclasses.replace(owned, owner=np.full(37, "")), {}, "owns"),
        ("owner", dataclasses.replace(owned, owner=np.full(37, "ann")), {}, "owns"),
        ("influence", owned, {}, "reference ensemble"),
        ("influence", owned, {"ensemble": silent(ensemble)}, "no training example"),
    ):
        with pytest.raises(NotApplicable, match=word):
            drawn(kind, data, mlp, **more)
    by_class = dataclasses.replace(SEARCH, group="class", fraction=0.9)
    with pytest.raises(DataError):
        forget_set("random", mlp(0), owned.take(np.flatnonzero(owned.y == 1)), config=by_class, seed=0)


def silent(ensemble):
    return dataclasses.replace(ensemble, reading=np.zeros_like(ensemble.reading))


# --- directions of the influence matrix ----------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("models", "num", "tests"), [(12, 30, 9), (8, 5, 40), (6, 40, 1)])
def test_directions_are_right_singular_vectors_of_the_matrix(soft, models, num, tests):
    rng = np.random.default_rng(models)
    keep = rng.random((models, num)) < 0.5
    keep[0], keep[1] = True, False  # everyone is in and out of some model
    correct = rng.random((models, tests)) if soft else rng.random((models, tests)) < 0.6
    matrix = np.concatenate([part.infl for part in influence_matrix(keep, correct)])
    _, size, vt = np.linalg.svd(matrix, full_matrices=False)
    most = min(models - 1, num, tests)
    sizes, found = influence_directions(keep, correct, count=most)
    np.testing.assert_allclose(sizes, size[:most], atol=1e-9)
    for k in range(most):
        assert np.abs(found[:, k] @ vt[k]) == pytest.approx(1.0) and np.linalg.norm(found[:, k]) == pytest.approx(1.0)
        positive = np.square(found[found[:, k] > 0, k]).sum()
        assert positive >= 0.5 - 1e-9, "turned to the side on which most of it lies"


def test_an_example_of_no_model_or_of_all_has_no_part():
    rng = np.random.default_rng(0)
    keep, correct = rng.random((10, 6)) < 0.5, rng.random((10, 4)) < 0.5
    keep[:, 2], keep[:, 4] = True, False
    _, found = influence_directions(keep, correct)
    assert np.abs(found[[2, 4], 0]).max() < 1e-12
    sizes, found = influence_directions(keep, np.ones((10, 4), bool))
    assert sizes[0] == pytest.approx(0, abs=1e-12) and not found.any(), "nothing moves: no direction"
    for count in (0, 5):
        with pytest.raises(InvalidInput, match="count"):
            influence_directions(keep, correct, count=count)
