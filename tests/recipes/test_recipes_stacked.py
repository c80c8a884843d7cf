from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from recipes import stacked as stacked_module
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.early import early_models, early_snapshots
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised

SGD = SupervisedConfig(epochs=6, batch=10, lr=0.1, momentum=0.9, weight_decay=5e-3, schedule="cosine")
CONFIGS = {
    "sgd": SGD,
    "nesterov_clip_smooth_warm": dataclasses.replace(
        SGD, nesterov=True, grad_clip=0.3, label_smoothing=0.1, warmup_epochs=2
    ),
    "plain": dataclasses.replace(SGD, momentum=0.0, weight_decay=0.0, schedule="multistep", milestones=(2, 4)),
    "adamw": dataclasses.replace(SGD, optimizer="adamw", lr=0.01, grad_clip=0.5),
}
SIZES = (57, 31, 60, 1, 40, 10)
MODELS = {
    "mlp": ({"hidden": [9, 5], "activation": "relu"}, (6,)),
    "linear": ({"hidden": []}, (6,)),
    "cnn": ({"channels": [3, 4], "hidden": 6}, (1, 4, 4)),
    "resnet_gn": ({"widths": [4, 8], "groups": 2}, (1, 4, 4)),
    "vit": ({"dim": 8, "depth": 1, "heads": 2, "patch": 2}, (1, 4, 4)),
}


def _double(name, data):
    config, _ = MODELS[name]
    make = builder("mlp" if name == "linear" else name, config, input_shape=data.input_shape, num_outputs=3)
    return lambda seed: make(seed).double()


def _subsets(data, sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(data))[:n] for n in sizes]


def _alone(build, data, members, config, **more):
    return [
        supervised(build, data.subset(data.example_id[rows]), config=config, seed=100 + i, **more)
        for i, rows in enumerate(members)
    ]


def _states(models):
    return [arrays_digest(to_arrays(model)) for model in models]


def _distance(ours, theirs):
    pairs = [
        (a, b) for m, n in zip(ours, theirs, strict=True) for a, b in zip(m.parameters(), n.parameters(), strict=True)
    ]
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("config", sorted(CONFIGS))
@pytest.mark.parametrize("model", ["mlp", "linear"])
def test_stacked_mlps_equal_separate_training(examples, model, config):
    """Up to 36 steps, subsets of 1 to 60 examples, float64: 1e-9. So do chunks of every size."""
    data, config = examples(60), CONFIGS[config]
    build, members = _double(model, data), _subsets(data, SIZES)
    alone = _alone(build, data, members, config)
    seeds = range(100, 106)
    for chunk in (None, 4, 1):
        trainer = StackedTrainer(build=build, config=config, chunk=chunk, path="mlp")
        assert _distance(trainer.train(data, members=members, seeds=seeds), alone) < 1e-9


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "silu"])
def test_the_written_out_backward_pass_is_autograds(examples, activation):
    data = examples(60)
    make = builder("mlp", {"hidden": [9, 5], "activation": activation}, input_shape=(6,), num_outputs=3)
    config = dataclasses.replace(SGD, epochs=2, label_smoothing=0.2)
    members = _subsets(data, SIZES)
    alone = _alone(lambda s: make(s).double(), data, members, config)
    trainer = StackedTrainer(build=lambda s: make(s).double(), config=config, path="mlp")
    assert _distance(trainer.train(data, members=members, seeds=range(100, 106)), alone) < 1e-12


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet_gn", "vit"])
@pytest.mark.parametrize("config", ["nesterov_clip_smooth_warm", "adamw"])
def test_models_under_vmap_equal_separate_training(examples, model, config):
    data = examples(60, shape=MODELS[model][1])
    config = dataclasses.replace(CONFIGS[config], epochs=3)
    build, members = _double(model, data), _subsets(data, (37, 22, 60, 5))
    alone = _alone(build, data, members, config)
    for chunk in (None, 3):
        trainer = StackedTrainer(build=build, config=config, path="vmap", chunk=chunk)
        assert _distance(trainer.train(data, members=members, seeds=range(100, 104)), alone) < 1e-9


@settings(max_examples=15)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 25), st.integers(1, 6), st.integers(0, 3))
def test_any_sizes_batches_chunks_and_early_stops(sizes, batch, chunk, stop):
    from recipes_examples import make_examples

    data = make_examples(60)
    config = dataclasses.replace(SGD, epochs=3, batch=batch)
    build, members = _double("mlp", data), _subsets(data, sizes)
    trained = StackedTrainer(build=build, config=config, chunk=chunk).train(
        data, members=members, seeds=range(100, 100 + len(sizes)), stop_after=stop
    )
    assert _distance(trained, _alone(build, data, members, config, stop_after=stop)) < 1e-9


def test_float32_chunks_agree_and_runs_repeat_bit_for_bit(examples, rng_left_alone):
    data = examples(60)
    build = builder("mlp", {"hidden": [16]}, input_shape=(6,), num_outputs=3)
    members = _subsets(data, SIZES)

    def run(chunk):
        return StackedTrainer(build=build, config=SGD, chunk=chunk).train(data, members=members, seeds=range(6))

    with rng_left_alone():
        first = run(None)
    assert [arrays_digest(to_arrays(m)) for m in first] == [arrays_digest(to_arrays(m)) for m in run(None)]
    assert _distance(first, run(2)) < 1e-5
    assert not any(m.training for m in first)


def test_on_the_cpu_other_models_take_the_loop_and_give_the_recipes_own_bits(examples, monkeypatch):
    data = examples(40, shape=(1, 4, 4))
    build = builder("cnn", {"channels": [3, 4], "hidden": 6}, input_shape=(1, 4, 4), num_outputs=3)
    members = _subsets(data, (20, 33))
    monkeypatch.setattr(stacked_module, "StackedVmap", None)
    trained = StackedTrainer(build=build, config=SGD).train(data, members=members, seeds=[100, 101])
    alone = _alone(build, data, members, SGD)
    assert [arrays_digest(to_arrays(m)) for m in trained] == [arrays_digest(to_arrays(m)) for m in alone]


class TestUserModels:
    """Modules that were not written for this: each is trained as it is alone, or refused by name."""

    @pytest.fixture(autouse=True)
    def _path(self, monkeypatch):
        monkeypatch.syspath_prepend(str(Path(__file__).parent))

    @staticmethod
    def _build(name, **config):
        make = builder(f"recipes_user_models:{name}", config, input_shape=(6,), num_outputs=3)
        return lambda seed: make(seed).double()

    @pytest.mark.parametrize("path", ["auto", "vmap", "loop"])
    def test_frozen_unused_and_tied_parameters(self, examples, path):
        data = examples(40)
        build, members = self._build("Odd"), _subsets(data, (25, 40, 12))
        config = dataclasses.replace(SGD, grad_clip=0.5)
        alone = _alone(build, data, members, config)
        trained = StackedTrainer(build=build, config=config, path=path).train(
            data, members=members, seeds=range(100, 103)
        )
        assert _distance(trained, alone) < 1e-9
        assert all(m.again.weight is m.tied.weight for m in trained)
        assert all(torch.equal(m.fixed.weight, build(100 + i).fixed.weight) for i, m in enumerate(trained))
        assert all(torch.equal(m.unused, torch.ones(3)) for m in trained)

    def test_buffers_that_training_changes_see_no_padding(self, examples):
        data = examples(40)
        build, members = self._build("Odd", counting=True), _subsets(data, (25, 40, 12))
        alone = _alone(build, data, members, SGD)
        trained = StackedTrainer(build=build, config=SGD).train(data, members=members, seeds=range(100, 103))
        assert [float(m.seen) for m in trained] == [float(m.seen) for m in alone] and float(alone[0].seen) > 0
        with pytest.raises(NotApplicable, match="buffers"):
            StackedTrainer(build=build, config=SGD, path="vmap").train(data, members=members, seeds=range(3))

    @pytest.mark.parametrize(("name", "reason"), [("Noisy", "andom"), ("Branching", "data-dependent|item")])
    def test_what_vmap_cannot_run_takes_the_loop(self, examples, name, reason, monkeypatch):
        data = examples(40)
        build, members = self._build(name), _subsets(data, (25, 40))
        with pytest.raises(NotApplicable, match=reason):
            StackedTrainer(build=build, config=SGD, path="vmap").train(data, members=members, seeds=[100, 101])
        trained = StackedTrainer(build=build, config=SGD).train(data, members=members, seeds=[100, 101])
        assert _distance(trained, _alone(build, data, members, SGD)) == 0

    def test_batchnorm_takes_the_loop_and_no_other_path(self, examples):
        data, build, members = examples(40), self._build("batchnorm"), _subsets(examples(40), (20, 40, 31))
        for path in ("mlp", "vmap"):
            trainer = StackedTrainer(build=build, config=SGD, path=path)
            with pytest.raises(NotApplicable, match=r"BatchNorm1d.*padding"):
                trainer.train(data, members=[np.arange(9)], seeds=[0])
        for path in ("auto", "loop"):
            trainer = StackedTrainer(build=build, config=SGD, path=path)
            trained = trainer.train(data, members=members, seeds=[100, 101, 102])
            assert _states(trained) == _states(_alone(build, data, members, SGD))

    def test_early_models_with_batchnorm_are_trained_one_by_one(self, examples):
        data, build = examples(40), self._build("batchnorm")
        found = early_snapshots(build, data, recipe="supervised", config=SGD, seeds=[5, 6], epochs=[3, 0, 6])
        for epoch, models in found.items():
            alone = [supervised(build, data, config=SGD, seed=s, stop_after=epoch) for s in (5, 6)]
            assert _states(models) == _states(alone)


def test_vmap_is_the_path_on_cuda_for_everything_but_mlps(examples, monkeypatch):
    """The choice depends on the models and the kind of device alone; here a CPU that says it is CUDA."""
    data = examples(40, shape=(1, 4, 4))

    class Inputs:
        def __init__(self, kind):
            self.data, self.device = data, torch.device(kind)

        def gather(self, rows):
            return torch.from_numpy(data.inputs(rows.cpu().numpy()))

    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: self)
    rows = np.arange(4)

    def chosen(name, config, kind):
        build = builder(name, config, input_shape=(1, 4, 4), num_outputs=3)
        return StackedTrainer(build=build, config=SGD)._choose([build(0), build(1)], Inputs(kind), rows)

    def normed(seed, kind):
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3, track_running_stats=False))
        return StackedTrainer(build=lambda s: network, config=SGD)._choose([network] * 2, Inputs(kind), rows)

    assert normed(0, "cuda") == normed(0, "cpu") == "loop"
    small = {n: MODELS[n][0] for n in ("cnn", "resnet_gn")}
    assert [chosen(n, c, "cuda") for n, c in small.items()] == ["vmap", "vmap"]
    assert [chosen(n, c, "cpu") for n, c in small.items()] == ["loop", "loop"]
    assert chosen("mlp", {}, "cuda") == chosen("mlp", {}, "cpu") == "mlp"
    assert chosen("mlp", {"dropout": 0.2}, "cuda") == "loop"


def test_regression_takes_the_loop(examples):
    data = examples(40, task="regression")
    build = builder("mlp", {"hidden": [5]}, input_shape=(6,), num_outputs=1)
    members = _subsets(data, (25, 40))
    config = dataclasses.replace(SGD, lr=0.01)
    trained = StackedTrainer(build=build, config=config).train(data, members=members, seeds=[100, 101])
    assert _distance(trained, _alone(build, data, members, config)) == 0
    with pytest.raises(NotApplicable, match="regression"):
        StackedTrainer(build=build, config=config, path="mlp").train(data, members=members, seeds=[0, 1])


def test_divergence_names_the_model(examples):
    data = examples(40)
    make = builder("mlp", {"hidden": [5]}, input_shape=(6,), num_outputs=3)

    def build(seed):
        model = make(seed)
        if seed == 2:
            with torch.no_grad():
                model.head.weight.fill_(3e38)
        return model

    trainer = StackedTrainer(build=build, config=SGD, chunk=2)
    with pytest.raises(Diverged, match="model 2 diverged in epoch 1 of 6"):
        trainer.train(data, members=_subsets(data, (12, 40, 20, 40)), seeds=range(4))


def test_early_models_are_the_recipe_stopped(examples):
    data = examples(60)
    build = _double("mlp", data)
    done = []
    models = early_models(
        build,
        data,
        recipe="supervised",
        config=SGD,
        seeds=[5, 6, 7],
        epoch=2,
        progress=lambda d, total, what, done=done: done.append((d, total)),
    )
    alone = [supervised(build, data, config=SGD, seed=s, stop_after=2) for s in (5, 6, 7)]
    assert _distance(models, alone) < 1e-12 and not any(m.training for m in models)
    assert done[-1] == (6, 6) and done == sorted(done)
    untrained = early_models(build, data, recipe="supervised", config=SGD, seeds=[5], epoch=0)
    assert _distance(untrained, [build(5)]) == 0


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("config", ["nesterov_clip_smooth_warm", "adamw"])
def test_snapshots_of_one_run_are_the_bits_of_separate_runs(examples, model, config):
    data = examples(60, shape=MODELS[model][1])
    build, members = (
        builder(model, MODELS[model][0], input_shape=data.input_shape, num_outputs=3),
        _subsets(data, SIZES),
    )
    told = []
    for chunk in (None, 4):
        trainer = StackedTrainer(build=build, config=CONFIGS[config], chunk=chunk)
        found = trainer.snapshots(
            data,
            members=members,
            seeds=range(6),
            epochs=[3, 0, None, 3],
            progress=lambda done, total, what: told.append((done, total)),
        )
        assert told[-1] == (36, 36) and not any(m.training for models in found for m in models)
        for models, stop in zip(found, (3, 0, None, 3), strict=True):
            alone = trainer.train(data, members=members, seeds=range(6), stop_after=stop)
            assert _states(models) == _states(alone)


def test_snapshots_of_a_regression_speak_in_the_targets_units(examples):
    data = examples(50, task="regression")
    build = builder("mlp", {"hidden": [5]}, input_shape=data.input_shape, num_outputs=1)
    for epoch, models in early_snapshots(
        build, data, recipe="supervised", config=SGD, seeds=[1, 2], epochs=[0, 2, 6]
    ).items():
        alone = [supervised(build, data, config=SGD, seed=s, stop_after=epoch) for s in (1, 2)]
        assert _states(models) == _states(alone)


@pytest.mark.parametrize("path", ["mlp", "vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 7, 24])
def test_runs_of_steps_equal_separate_training_whatever_the_sizes(examples, path, steps):
    data = examples(60)
    build, members = _double("mlp", data), _subsets(data, SIZES)  # 6, 4, 6, 1, 4 and 1 steps an epoch
    config = dataclasses.replace(CONFIGS["nesterov_clip_smooth_warm"], steps=steps)
    for chunk in (None, 2):
        done = []
        trained = StackedTrainer(build=build, config=config, path=path, chunk=chunk).train(
            data,
            members=members,
            seeds=range(100, 106),
            progress=lambda d, total, what, done=done: done.append((d, total)),
        )
        assert _distance(trained, _alone(build, data, members, config)) < 1e-9
        assert done == sorted(done) and done[-1][0] == done[-1][1]
    members = _subsets(data, (60, 55))
    both = [
        StackedTrainer(build=build, config=dataclasses.replace(config, steps=length), path=path).train(
            data, members=members, seeds=[0, 1]
        )
        for length in (None, 6 * 6)
    ]
    assert _states(both[0]) == _states(both[1])


def test_bad_requests_are_refused(examples):
    data = examples(40)
    trainer = StackedTrainer(build=_double("mlp", data), config=SGD)
    assert trainer.train(data, members=[], seeds=[]) == []
    for members, error, words in (
        ([np.arange(3)], ConfigError, "1 subsets for 2 seeds"),
        ([np.arange(3), np.arange(0)], DataError, "model 1 holds no examples"),
        ([np.arange(3), np.array([1, 1])], DataError, "distinct"),
        ([np.arange(3), np.array([40])], DataError, r"0\.\.39"),
        ([np.arange(3), np.array([-1])], DataError, r"0\.\.39"),
    ):
        with pytest.raises(error, match=words):
            trainer.train(data, members=members, seeds=[0, 1])
    with pytest.raises(ConfigError, match="chunk"):
        dataclasses.replace(trainer, chunk=0).train(data, members=[np.arange(3)], seeds=[0])
    dropout = builder("mlp", {"dropout": 0.1}, input_shape=(6,), num_outputs=3)
    with pytest.raises(NotApplicable, match="without dropout"):
        StackedTrainer(build=dropout, config=SGD, path="mlp").train(data, members=[np.arange(3)], seeds=[0])
    assert isinstance(dropout(0).dropout, nn.Dropout)
