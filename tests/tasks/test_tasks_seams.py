"""What every task promises: readings as their definitions say, example by example, and references on every one of
them."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from scoring_data import make_examples

from contracts.errors import ConfigError, NotApplicable, UnknownName
from contracts.methods import TaskSpec, task
from contracts.subject import Ensemble
from recipes.ensemble import train_ensemble
from recipes.inputs import Inputs
from recipes.models import builder
from recipes.predict import predict_logits, read
from recipes.recsys import BprConfig
from recipes.schedule import SupervisedConfig
from sources.example_set import ExampleSet
from sources.loading import load
from tasks.base import READING, Reading, Task, lacking, named, require


def numbers(num: int = 90, *, seed: int = 3) -> ExampleSet:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 5)).astype(np.float32)
    y = 40 + 7 * (x @ rng.normal(size=5)) + rng.normal(size=num)
    data = make_examples(x, np.zeros(num, int), num_classes=2)
    split = np.where(np.arange(num) % 4 == 0, "test", "train").astype("<U5")
    return dataclasses.replace(data, task="regression", y=y.astype(np.float64), class_names=(), split=split)


def classes(num: int = 60, *, seed: int = 0) -> ExampleSet:
    rng = np.random.default_rng(seed)
    return make_examples(rng.normal(size=(num, 6)).astype(np.float32), rng.integers(0, 4, num), num_classes=4)


@pytest.fixture(scope="module")
def clicks() -> ExampleSet:
    return load("synthetic_interactions", {"num_users": 30, "num_items": 40, "per_user": 8})


def test_a_task_is_one_object_however_it_is_found() -> None:
    found = named("classification")
    assert (
        found is named("classification")
        and copy.deepcopy(found) == found
        and pickle.loads(pickle.dumps(found)) is found
    )
    assert str(found) == "classification" and found != named("regression") and found.gives("classes", "outputs")
    with pytest.raises(UnknownName, match="clustering"):
        classes().__class__(**{**classes().__dict__, "task": "clustering"})
    with pytest.raises(ConfigError, match="every task gives"):
        TaskSpec(name="t", doc="", gives=("classes",), quality="q", loss="l")
    with pytest.raises(ConfigError, match="not a view"):
        TaskSpec(name="t", doc="", gives=("reading", "losses", "smell"), quality="q", loss="l")
    assert {"classification", "ranking"} <= {m.spec.name for m in task}


def test_what_a_task_lacks_is_said() -> None:
    assert lacking(numbers(), ("reading", "losses", "features")) == ""
    with pytest.raises(
        NotApplicable, match=r"by_class does not apply to .* a regression task: it wants that the target"
    ):
        require(numbers(), "by_class", "classes", "reading")


def test_classification_by_hand() -> None:
    data = classes()
    model = builder("mlp", {"hidden": [8]}, input_shape=(6,), num_outputs=4)(1)
    found, logits = read(model, data, batch=7), predict_logits(model, data, batch=7).astype(np.float64)
    for j, z in enumerate(logits):
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        own = p[data.y[j]]
        wanted = (-math.log(own), math.log(own) - math.log1p(-own), math.log(own), float(z.argmax() == data.y[j]))
        assert found.values[j] == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    losses = data.task.losses(model, Inputs(data, dtype=torch.float32).slice(0, len(data)))
    assert losses.detach().numpy() == pytest.approx(found.loss, rel=1e-5) and losses.requires_grad


def test_regression_by_hand_and_a_subset_keeps_the_constants_of_its_whole() -> None:
    data = numbers()
    model = builder("mlp", {"hidden": [8]}, input_shape=(5,), num_outputs=1)(1)
    train = data.y[data.split == "train"]
    sd, naive = train.std(), np.abs(train - train.mean()).mean() / train.std()
    found, said = read(model, data), predict_logits(model, data)[:, 0].astype(np.float64)
    for j, f in enumerate(said):
        r = (f - data.y[j]) / sd
        wanted = (r * r, -math.sqrt(abs(r)), -r * r / 2 - math.log(2 * math.pi) / 2, min(1, max(0, 1 - abs(r) / naive)))
        assert found.values[j] == pytest.approx(wanted, rel=1e-6)
    few = data.take(np.array([5, 2, 11]))
    assert read(model, few).values == pytest.approx(found[[5, 2, 11]].values, rel=1e-6)
    assert read(model, few.take(np.array([1]))).values == pytest.approx(found[[2]].values, rel=1e-6)
    batch = Inputs(data, dtype=torch.float32).slice(0, 4)
    assert data.task.losses(model, batch).detach().numpy() == pytest.approx((said[:4] - data.y[:4]) ** 2, rel=1e-4)


def test_ranking_by_hand_items_met_in_any_split_are_no_candidates(clicks: ExampleSet) -> None:
    model = builder("mf", {"dim": 4}, input_shape=(clicks.num_users,), num_outputs=clicks.num_classes)(0)
    found, scores = read(model, clicks, batch=13), predict_logits(model, clicks, batch=13).astype(np.float64)
    users = np.asarray(clicks.x)[:, 0]
    for j in range(0, len(clicks), 5):
        met = set(clicks.y[users == users[j]].tolist()) - {int(clicks.y[j])}
        rest = [k for k in range(clicks.num_classes) if k not in met]
        z = scores[j]
        p = np.exp(z[clicks.y[j]]) / np.exp(z[rest]).sum()
        rank = sum((z[k], -k) > (z[clicks.y[j]], -clicks.y[j]) for k in rest)
        wanted = (-math.log(p), math.log(p / (1 - p)), math.log(p), float(rank < 10))
        assert found.values[j] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    batch = Inputs(clicks, dtype=torch.float32).slice(0, 20)
    assert clicks.task.losses(model, batch).detach().numpy() == pytest.approx(found.loss[:20], rel=1e-4)
    # what a part was trained on changes nothing of who is a candidate
    part = clicks.part("train")
    again = read(model, part)
    assert again.values == pytest.approx(found[np.flatnonzero(clicks.split == "train")].values, rel=1e-5, abs=1e-7)


def test_references_are_read_on_every_task(clicks: ExampleSet) -> None:
    """keep[M, N] and reading[M, N, 4], each model's own reading of the recipe on its half."""
    data = numbers()
    small = Ensemble(num_models=4, block=2)
    build = builder("mlp", {"hidden": [8]}, input_shape=(5,), num_outputs=1)
    config = SupervisedConfig(epochs=3, batch=16, lr=0.05)
    found = train_ensemble(build, data, recipe="supervised", config=config, ensemble=small, seed=1)
    assert found.reading.shape == (4, len(data), len(READING)) and found.logits is None and found.spoken is None
    assert np.isfinite(found.reading).all() and len({m.tobytes() for m in found.reading}) == 4
    rank = train_ensemble(
        builder("mf", {"dim": 4}, input_shape=(clicks.num_users,), num_outputs=clicks.num_classes),
        clicks,
        recipe="bpr",
        config=BprConfig(epochs=2, batch=64),
        ensemble=small,
        seed=1,
    )
    assert rank.reading.shape == (4, len(clicks), 4) and set(np.unique(rank.readings.quality)) <= {0.0, 1.0}
    assert (rank.keep[:, rank.pool].sum(0) == 2).all()


def test_a_reading_is_checked() -> None:
    with pytest.raises(Exception, match="float64"):
        Reading(np.zeros((3, 4), np.float32))
    made = Reading.of(loss=[1, 2], signal=[0, 0], log_likelihood=[-1, -2], quality=[True, False])
    assert len(made) == 2 and made[1:].loss.tolist() == [2.0] and made.quality.tolist() == [1.0, 0.0]
    assert isinstance(named("ranking"), Task)


@pytest.mark.parametrize("name", ["classification", "regression", "ranking"])
def test_loss_and_likelihood_of_a_signal_are_those_of_the_reading_and_keep_its_order(
    name: str, clicks: ExampleSet
) -> None:
    data = {"classification": classes(), "regression": numbers(), "ranking": clicks}[name]
    make = {
        "classification": lambda: builder("mlp", {"hidden": (8,)}, input_shape=(6,), num_outputs=4)(0),
        "regression": lambda: builder("mlp", {"hidden": (8,)}, input_shape=(5,), num_outputs=1)(0),
        "ranking": lambda: builder("mf", {"dim": 4}, input_shape=(30,), num_outputs=clicks.num_classes)(0),
    }
    found = read(make[name](), data)
    loss, log_likelihood = data.task.of_signal(found.signal)
    np.testing.assert_allclose(loss, found.loss, rtol=1e-9)
    np.testing.assert_allclose(log_likelihood, found.log_likelihood, rtol=1e-9)
    signal = np.linspace(-3, 3, 500)
    loss, log_likelihood = data.task.of_signal(signal)
    assert (np.diff(loss) < 0).all() and (np.diff(log_likelihood) > 0).all()
    assert found.log_likelihood.max() <= data.task.likeliest
    batch = Inputs(data, dtype=torch.float32).slice(0, 20)
    losses, reading = data.task.losses_and_reading(make[name](), batch)
    assert losses.requires_grad and torch.equal(losses, data.task.losses(make[name](), batch))
    np.testing.assert_array_equal(reading.values, data.task.read(make[name](), batch).values)
    np.testing.assert_allclose(
        losses.detach().numpy() / data.task.loss_unit(data.constants), reading.loss, rtol=1e-4, atol=1e-6
    )


def test_a_later_version_of_a_task_makes_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the former version read is then no longer current; the first version is not told, for digests of old."""
    data, task_of = classes(), type(named("classification"))
    first = data.digest
    monkeypatch.setattr(task_of, "spec", dataclasses.replace(task_of.spec, version=2))
    second = dataclasses.replace(data).digest
    monkeypatch.setattr(task_of, "spec", dataclasses.replace(task_of.spec, version=3))
    assert len({first, second, dataclasses.replace(data).digest}) == 3
