"""A Fisher information of few examples shows whose it is; that of others does not; the score by hand."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.membership.fisher import fisher_similarity
from contracts.errors import ConfigError, InvalidInput, NotApplicable
from contracts.progress import silent
from contracts.subject import Thresholds
from recipes.continual.fisher import empirical_fisher_diagonal, per_example_gradients
from recipes.continual.rehearsal_free import RehearsalFreeConfig
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from sources.example_set import ExampleSet
from studies.fisher_leak import FisherLeakConfig, fisher_leak, halves, judge_fisher_leak

STEPS = ((0, 1), (2, 3))


def noise(num: int, *, dim: int = 40) -> ExampleSet:
    """Labels that say nothing of the features: what is known of them is known by heart."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num, dim)).astype(np.float32)
    return ExampleSet(
        name="noise",
        task="classification",
        x=x,
        y=rng.permutation(np.arange(num) % 4).astype(np.int64),
        example_id=rng.permutation(3 * num)[:num].astype(np.int64),
        split=np.array(["train"] * num),
        owner=np.array([""] * num),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=("a", "b", "c", "d"),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )


def measured(data: ExampleSet, *, models: int = 6, **more: object) -> dict[str, pl.DataFrame]:
    config = RehearsalFreeConfig(steps=STEPS, epochs=20, lr=0.01, batch=32, **({"ewc": 1.0} | more))  # type: ignore[arg-type]
    build = builder("mlp", {"hidden": [64]}, input_shape=data.input_shape, num_outputs=4)
    recipe = Trainer(recipe="rehearsal_free", build=build, config=config)
    return fisher_leak(data, config=FisherLeakConfig(models=models), seed=0, progress=silent, recipe=recipe)


def test_the_score_is_the_cosine_of_squares_by_hand() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 4))
    fishers = [{"w": rng.uniform(size=(2, 3)), "b": rng.uniform(size=4)} for _ in range(2)]
    found = fisher_similarity(
        ({"w": torch.from_numpy(w[at]), "b": torch.from_numpy(b[at])} for at in (slice(0, 2), slice(2, 5))),
        [{name: torch.from_numpy(f) for name, f in fisher.items()} for fisher in fishers],
    )
    for k, fisher in enumerate(fishers):
        f = np.concatenate([fisher["w"].ravel(), fisher["b"]])
        for i in range(5):
            g2 = np.concatenate([w[i].ravel(), b[i]]) ** 2
            assert found[k, i] == pytest.approx(g2 @ f / np.linalg.norm(g2) / np.linalg.norm(f), rel=1e-12)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_the_score_knows_no_scale_is_one_for_itself_and_between_0_and_1(scale: float, seed: int) -> None:
    g = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 7)))
    f = {"w": g[0].square()}
    scores = fisher_similarity([{"w": g}], [f])[0]
    assert scores[0] == pytest.approx(1.0) and (scores >= 0).all() and (scores <= 1).all()
    np.testing.assert_allclose(fisher_similarity([{"w": scale * g}], [{"w": f["w"] / scale}])[0], scores, rtol=1e-9)


def test_nothing_resembles_nothing_and_wrong_shapes_are_refused() -> None:
    zero, one = {"w": torch.zeros(1, 2)}, {"w": torch.ones(2)}
    assert fisher_similarity([zero], [one]).tolist() == [[0.0]]
    assert fisher_similarity([{"w": torch.ones(1, 2)}], [{"w": torch.zeros(2)}]).tolist() == [[0.0]]
    for gradients, fishers in (
        ([zero], []),
        ([], [one]),
        ([zero], [{"w": torch.ones(3)}]),
        ([zero], [{"v": one["w"]}]),
    ):
        with pytest.raises(InvalidInput):
            fisher_similarity(gradients, fishers)


def test_per_example_gradients_make_the_fisher_information() -> None:
    model, x, y = (
        torch.nn.Linear(3, 2),
        torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
        torch.arange(7) % 2,
    )
    given = {"loss_of": torch.nn.functional.cross_entropy, "names": ["weight", "bias"]}
    for vectorised in (True, False):
        blocks = list(per_example_gradients(model, [(x[:4], y[:4]), (x[4:], y[4:])], vectorised=vectorised, **given))
        each = torch.cat([block["weight"] for block in blocks])
        for i in range(7):
            (alone,) = torch.autograd.grad(given["loss_of"](model(x[i : i + 1]), y[i : i + 1]), model.weight)
            assert torch.allclose(each[i], alone, atol=1e-7)
        fisher = empirical_fisher_diagonal(model, [(x, y)], vectorised=vectorised, **given)
        assert torch.allclose(fisher["weight"], each.square().mean(0), atol=1e-7)


def test_halves_are_complements_and_even_in_every_class_of_every_step() -> None:
    steps, labels = np.repeat([0, 1, 1], [20, 21, 9]), np.repeat([0, 1, 2], [20, 21, 9])
    keep = halves(labels, steps, num=6, seed=1)
    assert (keep[::2] == ~keep[1::2]).all() and (keep.sum(0) == 3).all()
    for label, sizes in ((0, {10}), (1, {10, 11}), (2, {4, 5})):
        assert set(keep[:, labels == label].sum(1).tolist()) <= sizes
    assert not np.array_equal(keep[0], keep[2])


def test_a_fisher_information_of_few_examples_tells_whose_it_is_and_of_many_less() -> None:
    few, many = measured(noise(40)), measured(noise(240))
    shown = {}
    for name, tables in (("few", few), ("many", many)):
        auc = {(r["step"], r["score"]): r for r in tables["fisher_leak"].iter_rows(named=True)}
        gap = {r["step"]: r for r in tables["fisher_difference"].iter_rows(named=True)}
        for step in (1, 2):
            difference = auc[step, "fisher"]["auc"] - auc[step, "control"]["auc"]
            assert gap[step]["difference"] == pytest.approx(difference)
        shown[name] = gap[1]
        assert auc[1, "fisher"]["num_models"] == 6
    assert shown["few"]["low"] > 0.1, "a share of 1/10 in the mean shows"
    assert shown["few"]["difference"] > shown["many"]["difference"] + 0.1
    ((about, finding),) = judge_fisher_leak(few, Thresholds(max_auc=0.55))
    assert (about, finding.verdict.value, finding.judged) == ("fisher", "fail", False)
    assert judge_fisher_leak({"fisher_difference": few["fisher_difference"].clear()}, Thresholds()) == []


def test_the_order_of_the_rows_changes_nothing() -> None:
    data = noise(40)
    once, again = measured(data, models=4), measured(data.take(np.arange(40)[::-1]), models=4)
    assert all(once[name].equals(again[name]) for name in once)


def test_recipes_that_keep_no_fisher_information_are_refused() -> None:
    data = noise(40)
    with pytest.raises(NotApplicable, match="keeps none with this configuration"):
        measured(data, ewc=0.0)
    build = builder("mlp", {"hidden": [4]}, input_shape=data.input_shape, num_outputs=4)
    plain = Trainer(recipe="supervised", build=build, config=SupervisedConfig())
    with pytest.raises(NotApplicable, match="train through steps"):
        fisher_leak(data, config=FisherLeakConfig(), seed=0, progress=silent, recipe=plain)
    with pytest.raises(ConfigError, match="must be even"):
        FisherLeakConfig(models=5)
    with pytest.raises(ConfigError):
        dataclasses.replace(FisherLeakConfig(), models=2)
