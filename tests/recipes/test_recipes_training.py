"""Every model is the plan's recipe: one at a time or many, early or observed, and nothing it does not declare."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable, UnknownName
from contracts.methods import RecipeSpec, recipe
from contracts.params import Config, param
from contracts.registry import Method
from contracts.subject import Ensemble
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.early import early_snapshots
from recipes.ensemble import train_ensemble
from recipes.inputs import Inputs
from recipes.models import builder
from recipes.predict import logits_of, predict_logits
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from recipes.training import Trainer

CONFIG = SupervisedConfig(epochs=4, batch=16, lr=0.05, weight_decay=1e-3)
SMALL = Ensemble(num_models=6, block=4, population_fraction=0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class PerceptronConfig(Config):
    epochs: int = param(2, ge=1, le=100)


class Perceptron:
    """A recipe of another package: the base signature alone, batches from torch's global generator, calls counted."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int]] = []

    def __call__(self, build, data, *, config, seed):
        self.calls.append((data.example_id.tolist(), seed))
        model, x, y = build(seed), torch.from_numpy(data.inputs(slice(None))), torch.from_numpy(data.y)
        for _ in range(config.epochs):
            for rows in torch.randperm(len(y)).split(8):  # as a shuffling DataLoader draws it
                loss = nn.functional.multi_margin_loss(model(x[rows]), y[rows])
                model.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.1 * p.grad
        return model  # left in train mode


def outside(function: Any, **declared: Any) -> Method[RecipeSpec]:
    return Method(RecipeSpec(name="outside", doc="", config=PerceptronConfig, wants=("classes",), **declared), function)


def mlp(data: Any, **config: Any) -> Any:
    return builder("mlp", {"hidden": [8], **config}, input_shape=data.input_shape, num_outputs=data.num_classes)


def states(models: Any) -> list[str]:
    return [arrays_digest(to_arrays(model)) for model in models]


@pytest.fixture
def no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the built-in trainer was called for another recipe")

    monkeypatch.setattr(StackedTrainer, "snapshots", refuse)


def test_every_registered_recipe_keeps_its_declaration():
    for method in recipe:
        trainer = Trainer(recipe=method, build=lambda seed: nn.Linear(1, 1), config=method.spec.config())
        assert trainer.takes("device") and trainer.takes("checkpoints") and trainer.takes("progress")


def test_an_outside_recipe_trains_every_model_itself(examples, no_stack, rng_left_alone):
    data, function = examples(60), Perceptron()
    trainer = Trainer(recipe=outside(function), build=mlp(data), config=PerceptronConfig())
    members = [np.arange(30), np.array([5, 3, 59, 1]), np.arange(60)]
    told: list[tuple[int, int]] = []
    with rng_left_alone():
        models = trainer.many(data, members=members, seeds=[7, 8, 9], progress=lambda d, t, _: told.append((d, t)))
    assert function.calls == [
        (data.example_id[rows].tolist(), seed) for rows, seed in zip(members, (7, 8, 9), strict=True)
    ]
    assert told == sorted(told) and told[-1][0] == told[-1][1]
    assert not any(model.training for model in models)
    one_by_one, done = trainer.each(data, members=members, seeds=[7, 8, 9]), len(function.calls)
    assert states([next(one_by_one)]) == states(models[:1]) and len(function.calls) == done + 1
    assert states(list(one_by_one)) == states(models[1:]) and function.calls[done:] == function.calls[:done]
    torch.rand(3)  # wherever the global generator stands
    alone = [trainer.one(data.take(rows), seed) for rows, seed in zip(members, (7, 8, 9), strict=True)]
    assert states(models) == states(alone) and len(set(states(models))) == 3


def test_the_reference_models_of_an_outside_recipe_are_its_own(examples, no_stack):
    data, function = examples(80), Perceptron()
    told: list[tuple[int, int]] = []
    ensemble = train_ensemble(
        mlp(data),
        data,
        recipe=outside(function),
        config=PerceptronConfig(),
        ensemble=SMALL,
        seed=9,
        outputs=True,
        progress=lambda d, t, _: told.append((d, t)),
    )
    assert told == sorted(told) and told[-1] == (12, 12) and len(function.calls) == 6
    trainer = Trainer(recipe=outside(Perceptron()), build=mlp(data), config=PerceptronConfig())
    for m, (ids, seed) in enumerate(function.calls):
        assert ids == ensemble.example_id[ensemble.keep[m]].tolist() and seed == derive_seed("reference", 9, m)
        alone = predict_logits(trainer.one(data.subset(np.array(ids)), seed), data)
        assert np.allclose(ensemble.logits[m], alone, atol=1e-6)


def test_a_recipe_of_another_version_does_not_resume_the_blocks_of_the_first(examples, store):
    data = examples(80)
    for version, calls in ((1, 6), (1, 0), (2, 6)):
        function = Perceptron()
        train_ensemble(
            mlp(data),
            data,
            recipe=outside(function, version=version),
            config=PerceptronConfig(),
            ensemble=SMALL,
            seed=9,
            checkpoints=store,
        )
        assert len(function.calls) == calls, version


@pytest.mark.parametrize("name", ["mlp", "dropout", "cnn"])
def test_the_supervised_recipe_keeps_its_bits(examples, name):
    """Reference, early and shadow models are those of the stacked trainer called directly, block by block, bit for
    bit."""
    data = examples(81, shape=(1, 8, 8))
    config = {"mlp": {"hidden": [8]}, "dropout": {"hidden": [8], "dropout": 0.3}, "cnn": {"channels": [3, 4]}}[name]
    build = builder("cnn" if name == "cnn" else "mlp", config, input_shape=data.input_shape, num_outputs=3)
    ensemble = train_ensemble(build, data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=9, outputs=True)
    view = data.subset(ensemble.example_id)
    inputs, former = Inputs(view, dtype=torch.float32), StackedTrainer(build=build, config=CONFIG)
    seeds = [derive_seed("reference", 9, m) for m in range(6)]
    for block in (slice(0, 4), slice(4, 6)):
        members = [np.flatnonzero(row) for row in ensemble.keep[block]]
        models = former.train(view, members=members, seeds=seeds[block], inputs=inputs)
        logits = np.stack([logits_of(model, inputs, batch=4096) for model in models])
        assert np.array_equal(ensemble.logits[block], logits)
    early = early_snapshots(build, data, recipe="supervised", config=CONFIG, seeds=[1, 2], epochs=[0, 2])
    everything = [np.arange(81)] * 2
    for found, models in zip(
        early.values(), former.snapshots(data, members=everything, seeds=[1, 2], epochs=[0, 2]), strict=True
    ):
        assert states(found) == states(models)
    trainer = Trainer(recipe="supervised", build=build, config=CONFIG)
    members = [np.arange(40), np.arange(20, 81)]
    many = trainer.many(data, members=members, seeds=[3, 4])
    assert states(list(trainer.each(data, members=members, seeds=[3, 4]))) == states(many)
    assert states(many) == states(former.train(data, members=members, seeds=[3, 4]))
    assert states([trainer.one(data, 5)]) == states([supervised(build, data, config=CONFIG, seed=5)])


def test_a_network_that_the_stacked_path_refuses_is_trained_by_the_recipe(examples):
    data, function, asked = examples(60), Perceptron(), []

    def stacked(build, data, **given):
        asked.append(sorted(given))
        if len(asked) == 1:
            raise NotApplicable("not this network")
        return [["a model"] for _ in given["epochs"]]

    trainer = Trainer(recipe=outside(function, stacked=stacked), build=mlp(data), config=PerceptronConfig())
    members = [np.arange(9)]
    first = trainer.many(data, members=members, seeds=[1])
    assert states(first) == states([trainer.one(data.take(members[0]), 1)]) and len(function.calls) == 2
    assert trainer.many(data, members=members, seeds=[1]) == ["a model"] and len(function.calls) == 2
    assert asked[0] == ["config", "device", "epochs", "inputs", "members", "progress", "seeds"]


def test_what_a_recipe_has_parameters_for_it_is_given(examples, store):
    data, seen = examples(12), {}

    def one(build, data, *, config, seed, checkpoints, progress):
        seen.update(checkpoints=checkpoints)
        progress(1, 2, "half")
        return build(seed)

    def two(build, data, **given):
        seen.update(given)
        return build(given["seed"])

    told = []
    trainer = Trainer(recipe=outside(one), build=mlp(data), config=PerceptronConfig())
    trainer.one(data, 0, checkpoints=store, progress=lambda *args: told.append(args))
    assert seen == {"checkpoints": store} and told == [(1, 2, "half")] and not trainer.takes("device")
    trainer = Trainer(
        recipe=outside(two, early=True, observable=True), build=mlp(data), config=PerceptronConfig(), device="cpu"
    )
    trainer.one(data, 3, stop_after=1, observe=print)
    assert set(seen) == {"config", "seed", "device", "checkpoints", "progress", "stop_after", "observe"}
    assert (seen["device"], seen["stop_after"], seen["observe"]) == ("cpu", 1, print)


def test_early_models_of_a_recipe_that_is_declared_early(examples):
    data, calls = examples(30), []

    def stops(build, data, *, config, seed, stop_after=None):
        calls.append((seed, stop_after))
        return Perceptron()(build, data, config=dataclasses.replace(config, epochs=stop_after or 3), seed=seed)

    found = early_snapshots(
        mlp(data), data, recipe=outside(stops, early=True), config=PerceptronConfig(), seeds=[5, 6], epochs=[2, 1]
    )
    assert calls == [(5, 2), (6, 2), (5, 1), (6, 1)]
    trainer = Trainer(recipe=outside(stops, early=True), build=mlp(data), config=PerceptronConfig())
    for epoch, models in found.items():
        assert states(models) == states([trainer.one(data, seed, stop_after=epoch) for seed in (5, 6)])


def test_what_a_recipe_does_not_declare_is_refused_with_the_reason(examples):
    data, function = examples(30), Perceptron()
    trainer = Trainer(recipe=outside(function), build=mlp(data), config=PerceptronConfig())
    for refused, words in (
        (lambda: trainer.one(data, 0, stop_after=1), "outside cannot stop early"),
        (lambda: trainer.snapshots(data, members=[np.arange(3)], seeds=[0], epochs=[1, None]), "cannot stop early"),
        (lambda: trainer.one(data, 0, observe=print), "not declared observable"),
        (lambda: trainer.of_length(steps=5), "cannot be told to train for 5 steps"),
        (lambda: trainer.one(examples(30, task="regression"), 0), "one of K classes"),
        (
            lambda: trainer.many(examples(30, task="regression"), members=[np.arange(3)], seeds=[0]),
            "one of K classes",
        ),
    ):
        with pytest.raises(NotApplicable, match=words):
            refused()
    assert not function.calls, "a refusal comes before any training"
    assert trainer.of_length(effort=2.4).config == PerceptronConfig(epochs=5) and trainer.of_length() is trainer
    assert trainer.of_length(effort=0.01).config.epochs == 1
    with pytest.raises(ConfigError, match="steps has no effort"):
        trainer.of_length(effort=2.0, steps=5)
    bare = Trainer(recipe=Method(RecipeSpec(name="bare", doc=""), function), build=mlp(data), config=Config())
    with pytest.raises(NotApplicable, match="has no epochs"):
        bare.of_length(effort=0.5)


def test_declarations_and_results_that_cannot_be_are_refused(examples):
    data, build = examples(12), mlp(examples(12))
    for flag in ("early", "observable", "counts_steps"):
        with pytest.raises(ConfigError, match=f"declares {flag} without"):
            Trainer(recipe=outside(Perceptron(), **{flag: True}), build=build, config=PerceptronConfig())
    with pytest.raises(ConfigError, match="takes a PerceptronConfig, not a SupervisedConfig"):
        Trainer(recipe=outside(Perceptron()), build=build, config=CONFIG)
    with pytest.raises(UnknownName, match="supervised"):
        Trainer(recipe="supervized", build=build, config=CONFIG)
    trainer = Trainer(recipe=outside(lambda *a, **k: {"weights": 1}), build=build, config=PerceptronConfig())
    with pytest.raises(ConfigError, match="returned a dict"):
        trainer.one(data, 0)
    trainer = Trainer(recipe=outside(Perceptron()), build=build, config=PerceptronConfig())
    with pytest.raises(DataError, match="holds no examples"):
        trainer.many(data, members=[np.arange(0)], seeds=[0])
    assert trainer.many(data, members=[], seeds=[]) == []


class TestBatchNorm:
    """It mixes the examples of a batch, and has no statistics of one example."""

    @pytest.fixture(autouse=True)
    def _path(self, monkeypatch):
        monkeypatch.syspath_prepend(str(Path(__file__).parent))

    @staticmethod
    def build(seed: int, **config: Any) -> nn.Module:
        make = builder("recipes_user_models:batchnorm", config, input_shape=(6,), num_outputs=3)
        return make(seed).double()

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_a_last_example_alone_joins_the_batch_before_it(self, examples, seed):
        """The trained model is that of a plain loop over the batches 8 and 9; another network keeps 8, 8 and 1."""
        data = examples(17, seed=seed)
        config = dataclasses.replace(CONFIG, batch=8, epochs=3, schedule="constant")
        seen: list[np.ndarray] = []
        trained = supervised(
            self.build, data, config=config, seed=seed, observe=lambda rows, _: seen.append(rows.numpy().copy())
        )
        assert [len(rows) for rows in seen] == [8, 9] * 3
        assert np.array_equal(np.sort(np.concatenate(seen[:2])), np.arange(17))
        model = self.build(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-3)
        x, y = torch.from_numpy(data.inputs(slice(None))).double(), torch.from_numpy(data.y)
        for rows in map(torch.from_numpy, seen):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        for ours, naive in zip(trained.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.allclose(ours.double(), naive.double(), atol=1e-12)
        plain: list[int] = []
        supervised(mlp(data), data, config=config, seed=seed, observe=lambda rows, _: plain.append(len(rows)))
        assert plain == [8, 8, 1] * 3

    def test_a_run_of_steps_has_exactly_so_many(self, examples):
        data, seen = examples(17), []
        config = dataclasses.replace(CONFIG, batch=8, steps=5)
        alone = supervised(self.build, data, config=config, seed=4, observe=lambda rows, _: seen.append(len(rows)))
        assert seen == [8, 9, 8, 9, 8]
        sets = [np.arange(17), np.arange(9), np.arange(2)]
        many = Trainer(recipe="supervised", build=self.build, config=config).many(data, members=sets, seeds=[4, 5, 6])
        assert states(many[:1]) == states([alone])
        assert states(many[1:]) == states(
            [supervised(self.build, data.take(own), config=config, seed=s) for own, s in ((sets[1], 5), (sets[2], 6))]
        )

    def test_what_it_cannot_be_trained_on_is_refused(self, examples):
        data = examples(17)
        with pytest.raises(ConfigError, match="batch = 1: BatchNorm"):
            supervised(self.build, data, config=dataclasses.replace(CONFIG, batch=1), seed=0)
        with pytest.raises(DataError, match="cannot be trained on 1 example"):
            supervised(self.build, data.take(np.arange(1)), config=CONFIG, seed=0)
        supervised(mlp(data), data.take(np.arange(1)), config=dataclasses.replace(CONFIG, batch=1), seed=0)

    def test_it_has_reference_models_read_in_eval_mode(self, examples):
        """Of every set size, those that leave one example over among them; what a model says of an example is the same
        whatever else is in the batch."""
        data = examples(81)
        config = dataclasses.replace(CONFIG, batch=8)
        ensemble = train_ensemble(
            self.build,
            data,
            recipe="supervised",
            config=config,
            ensemble=dataclasses.replace(SMALL, num_models=16),
            seed=9,
            outputs=True,
        )
        sizes = ensemble.keep.sum(1)
        assert (sizes % 8 == 1).any(), "the rule was not needed"
        for m in [*np.flatnonzero(sizes % 8 == 1)[:2].tolist(), 0]:
            members = data.subset(ensemble.example_id[ensemble.keep[m]])
            model = supervised(self.build, members, config=config, seed=derive_seed("reference", 9, m))
            one_by_one = np.concatenate([predict_logits(model, data.take(np.array([j]))) for j in range(len(data))])
            assert np.allclose(ensemble.logits[m], one_by_one, atol=1e-6)

    def test_without_running_statistics_it_has_none(self, examples):
        data = examples(80)

        def build(seed):
            return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))

        with pytest.raises(NotApplicable, match=r"layer '1', a BatchNorm1d without running statistics"):
            train_ensemble(build, data, recipe="supervised", config=CONFIG, ensemble=SMALL, seed=0)
