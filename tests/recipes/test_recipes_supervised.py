from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import ConfigError, DataError, Diverged, IntegrityError
from contracts.methods import recipe
from recipes import inputs as inputs_module
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig, epoch_order
from recipes.supervised import supervised
from recipes.supervised import supervised as supervised_package

SMALL = SupervisedConfig(epochs=6, batch=10, lr=0.05, momentum=0.8, weight_decay=1e-3)


def _mlp(data, **config):
    outputs = max(data.num_classes, 1)
    return builder("mlp", {"hidden": [7], **config}, input_shape=data.input_shape, num_outputs=outputs)


def _digest(model):
    return arrays_digest(to_arrays(model))


def test_equals_a_loop_written_by_hand(examples):
    """Softmax regression with momentum, weight decay and a cosine schedule, gradients and updates in numpy, float64."""
    data = examples(47)
    config = dataclasses.replace(SMALL, label_smoothing=0.1)
    make = builder("mlp", {"hidden": []}, input_shape=data.input_shape, num_outputs=3)
    model = supervised(lambda s: make(s).double(), data, config=config, seed=3)

    start = to_arrays(make(3).double())
    weight, bias = start["head.weight"].copy(), start["head.bias"].copy()
    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    x = data.inputs(slice(0, 47)).astype(np.float64)
    target = 0.9 * np.eye(3)[data.y] + 0.1 / 3
    step = 0
    for epoch in range(6):
        order = epoch_order(47, seed=3, epoch=epoch).numpy()
        for first in range(0, 47, 10):
            rows = order[first : first + 10]
            scores = x[rows] @ weight.T + bias
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            delta = (p - target[rows]) / len(rows)
            grads = [delta.T @ x[rows] + 1e-3 * weight, delta.sum(0) + 1e-3 * bias]
            velocity = [0.8 * v + g for v, g in zip(velocity, grads, strict=True)]
            lr = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 30))
            weight, bias = weight - lr * velocity[0], bias - lr * velocity[1]
            step += 1
    assert step == 30
    assert np.abs(to_arrays(model)["head.weight"] - weight).max() < 1e-12
    assert np.abs(to_arrays(model)["head.bias"] - bias).max() < 1e-12


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("killed_after", [1, 2, 5, 6])
@pytest.mark.promise("C10")
def test_a_killed_run_resumes_to_the_same_bits(examples, store, optimizer, killed_after):
    """Dropout, optimiser state and the order of batches included; checkpoints every second epoch."""
    data = examples(33)
    config = SupervisedConfig(optimizer=optimizer, epochs=6, batch=8, lr=0.02)
    straight = _digest(supervised(_mlp(data, dropout=0.3), data, config=config, seed=1))

    class Killed(Exception):
        pass

    def kill(done, total, what):
        if done == killed_after:
            raise Killed

    def run(**more):
        return supervised(
            _mlp(data, dropout=0.3), data, config=config, seed=1, checkpoints=store, checkpoint_every=2, **more
        )

    with pytest.raises(Killed):
        run(progress=kill)
    epochs = []
    model = run(progress=lambda done, total, what: epochs.append(done))
    assert _digest(model) == straight
    assert epochs == list(range(killed_after // 2 * 2 + 1, 7))


_CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path[:0] = [{root!r}, {here!r}]
from recipes_examples import make_examples
from safetensors.numpy import load_file, save_file
import json, torch
from recipes.checkpoints import to_arrays
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from recipes.checkpoints import arrays_digest
torch.set_num_threads(int(sys.argv[3]))

class Store:
    def save(self, name, tensors, meta):
        folder = Path(sys.argv[1]); temp = folder / "temp"
        save_file(dict(tensors), temp, {{"meta": json.dumps(meta)}})
        os.replace(temp, folder / name)
        return ""
    def load(self, name):
        path = Path(sys.argv[1]) / name
        if not path.exists():
            return None
        from safetensors import safe_open
        with safe_open(path, "np") as f:
            meta = json.loads(f.metadata()["meta"])
        return load_file(path), meta

def progress(done, total, what):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

torch.rand(int(sys.argv[2]) % 7)  # the state of the global generator must not matter
data = make_examples(60, shape=(1, 8, 8))
build = builder("mlp", {{"hidden": [16], "dropout": 0.2}}, input_shape=(1, 8, 8), num_outputs=3)
model = supervised(build, data, config=SupervisedConfig(epochs=8, batch=16), seed=4, checkpoints=Store(),
                   checkpoint_name="run", checkpoint_every=1, progress=progress)
print(arrays_digest(to_arrays(model)))
"""


def _child(folder: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    code = _CHILD.format(root=str(here.parents[1]), here=str(here))
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder), str(kill_at), str(torch.get_num_threads())]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))


@pytest.mark.journey
def test_fresh_processes_agree_also_after_sigkill(tmp_path, examples):
    """Killed at epoch 3 by SIGKILL, taken up by a second process, and run straight in this one: the same bits."""
    killed = _child(tmp_path, 3)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "run").exists(), killed.stderr
    resumed = _child(tmp_path, 99)
    assert resumed.returncode == 0, resumed.stderr
    data = examples(60, shape=(1, 8, 8))
    straight = supervised(
        _mlp(data, hidden=[16], dropout=0.2), data, config=SupervisedConfig(epochs=8, batch=16), seed=4
    )
    assert resumed.stdout.strip() == _digest(straight)


def test_an_early_stop_is_the_full_schedule_left_early(examples, store):
    data = examples(30)
    early = supervised(_mlp(data), data, config=SMALL, seed=2, stop_after=3, checkpoints=store)
    seen = {}

    def watch(done, total, what):
        seen[done] = total

    full = supervised(_mlp(data), data, config=SMALL, seed=2, checkpoints=store, progress=watch)
    assert list(seen) == [4, 5, 6], "the early checkpoint was not taken up"
    assert _digest(full) == _digest(supervised(_mlp(data), data, config=SMALL, seed=2))
    again = supervised(_mlp(data), data, config=SMALL, seed=2, stop_after=3, checkpoints=store)
    assert _digest(again) == _digest(early) != _digest(full)
    untrained = supervised(_mlp(data), data, config=SMALL, seed=2, stop_after=0)
    assert _digest(untrained) == _digest(_mlp(data)(2)) and not untrained.training


@pytest.mark.parametrize("steps", [1, 3, 4, 17])  # batches of 10 out of 30: an epoch is 3 steps
def test_a_run_of_steps_takes_that_many_and_resumes(examples, store, steps):
    data, seen = examples(30), []
    config = dataclasses.replace(SMALL, steps=steps)
    model = supervised(_mlp(data), data, config=config, seed=2, observe=lambda rows, logits: seen.append(rows))
    assert len(seen) == steps
    for epoch in range(steps // 3):
        assert set(torch.cat(seen[3 * epoch : 3 * epoch + 3]).tolist()) == set(range(30))
    last = -(-steps // 3)
    supervised(_mlp(data), data, config=config, seed=2, stop_after=last - 1, checkpoints=store)
    resumed = supervised(_mlp(data), data, config=config, seed=2, checkpoints=store)
    assert _digest(resumed) == _digest(model)
    with pytest.raises(ConfigError, match=f"<= {last} epochs"):
        supervised(_mlp(data), data, config=config, seed=2, stop_after=last + 1)


@pytest.mark.parametrize(
    "schedule",
    [{}, {"warmup_epochs": 2}, {"schedule": "multistep", "milestones": (2, 4)}, {"schedule": "constant"}],
)
def test_the_steps_of_all_epochs_are_the_run_by_epochs(examples, store, schedule):
    data, config = examples(37), dataclasses.replace(SMALL, **schedule)
    by_steps = dataclasses.replace(config, steps=6 * 4)
    whole = supervised(_mlp(data), data, config=config, seed=5, checkpoints=store)
    assert _digest(supervised(_mlp(data), data, config=by_steps, seed=5)) == _digest(whole)
    # ... and another number of steps is another run: its checkpoint is not taken up.
    other = dataclasses.replace(config, steps=6 * 4 + 1)
    fresh = supervised(_mlp(data), data, config=other, seed=5)
    assert _digest(supervised(_mlp(data), data, config=other, seed=5, checkpoints=store)) == _digest(fresh)


def test_a_checkpoint_of_another_run_is_not_used(examples, store):
    data = examples(30)
    supervised(_mlp(data), data, config=SMALL, seed=2, checkpoints=store)
    changes = {
        "config": {"config": dataclasses.replace(SMALL, lr=0.04)},
        "seed": {"seed": 3},
        "model": {"build": _mlp(data, activation="tanh", hidden=[8])},
        "order": {"data": data.subset(data.example_id[::-1])},
        "data": {"data": data.subset(data.example_id[:-1])},
    }
    for what, change in changes.items():
        arguments = {"build": _mlp(data), "data": data, "config": SMALL, "seed": 2} | change
        build, rows = arguments.pop("build"), arguments.pop("data")
        epochs = []
        kept = dict(store.kept)
        supervised(build, rows, checkpoints=store, progress=lambda d, t, w, e=epochs: e.append(d), **arguments)
        assert epochs == [1, 2, 3, 4, 5, 6], what
        store.kept = kept
    epochs = []
    supervised(_mlp(data), data, config=SMALL, seed=2, checkpoints=store, progress=lambda d, t, w: epochs.append(d))
    assert epochs == [], "the finished run was trained again"


def test_a_damaged_checkpoint_is_an_error(examples, store):
    data = examples(30)
    store.damaged.add("supervised")
    with pytest.raises(IntegrityError):
        supervised(_mlp(data), data, config=SMALL, seed=2, checkpoints=store)


def test_inputs_kept_in_memory_or_read_by_batch_give_the_same_bits(examples, monkeypatch, rng_left_alone):
    data = examples(30, shape=(1, 4, 4))
    with rng_left_alone():
        kept = _digest(supervised(_mlp(data, dropout=0.1), data, config=SMALL, seed=2))
    assert inputs_module.PRELOAD_BYTES == 2**30
    monkeypatch.setattr(inputs_module.Inputs.__init__, "__kwdefaults__", {"device": "cpu", "preload_bytes": 0})
    assert inputs_module.Inputs(data, dtype=torch.float32)._all is None
    assert _digest(supervised(_mlp(data, dropout=0.1), data, config=SMALL, seed=2)) == kept


def test_gradients_are_clipped_to_the_norm(examples):
    """One step of plain SGD with a tiny bound moves the parameters by exactly lr times the bound."""
    data = examples(20)
    config = SupervisedConfig(epochs=1, batch=20, lr=0.5, momentum=0.0, schedule="constant", grad_clip=1e-3)
    make = _mlp(data)
    before, after = (
        to_arrays(make(0).double()),
        to_arrays(supervised(lambda s: make(s).double(), data, config=config, seed=0)),
    )
    moved = math.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in before))
    assert moved == pytest.approx(0.5e-3, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_parameters_that_do_not_lie_in_order_are_trained_the_same_also_when_resumed(examples, store, optimizer):
    """torch's fused kernels walk memory as it lies; a transposed weight with a state loaded in order would go wrong."""
    data = examples(30)
    config = SupervisedConfig(optimizer=optimizer, epochs=4, batch=10, lr=0.02)
    make = builder("mlp", {"hidden": [7]}, input_shape=data.input_shape, num_outputs=3)

    def transposed(seed):
        model = make(seed).double()
        weight = model.hidden[0].weight.detach()
        model.hidden[0].weight = torch.nn.Parameter(weight.t().contiguous().t())
        return model

    assert not transposed(0).hidden[0].weight.is_contiguous()
    supervised(transposed, data, config=config, seed=1, stop_after=2, checkpoints=store)
    resumed = to_arrays(supervised(transposed, data, config=config, seed=1, checkpoints=store))
    plain = to_arrays(supervised(lambda s: make(s).double(), data, config=config, seed=1))
    assert max(np.abs(resumed[n] - plain[n]).max() for n in plain) < 1e-12


def test_divergence_names_the_epoch(examples):
    data = examples(40, task="regression")
    make = builder("mlp", {"hidden": [], "activation": "relu"}, input_shape=data.input_shape, num_outputs=1)
    config = SupervisedConfig(epochs=200, batch=40, lr=50.0, schedule="constant", momentum=0.0)
    done = []
    with pytest.raises(Diverged, match="lr") as caught:
        supervised(make, data, config=config, seed=0, progress=lambda d, t, w: done.append(d))
    assert f"epoch {len(done) + 1} of 200" in str(caught.value) and 0 < len(done) < 199


def test_regression_reaches_the_least_squares_line_in_the_targets_units(examples):
    data = examples(80, task="regression")
    make = builder("mlp", {"hidden": []}, input_shape=data.input_shape, num_outputs=1)
    config = SupervisedConfig(epochs=300, batch=80, lr=0.1)
    model = supervised(lambda s: make(s).double(), data, config=config, seed=0)
    x = np.hstack([data.inputs(slice(0, 80)).astype(np.float64), np.ones((80, 1))])
    line = x @ np.linalg.lstsq(x, data.y, rcond=None)[0]
    assert np.abs(predict_logits(model, data)[:, 0] - line).max() < 0.05 * data.y.std()


def test_bad_requests_are_refused_before_work_starts(examples):
    data = examples(30)
    with pytest.raises(DataError, match="no example"):
        supervised(_mlp(data), data.subset([]), config=SMALL, seed=0)
    with pytest.raises(ConfigError, match="stop_after"):
        supervised(_mlp(data), data, config=SMALL, seed=0, stop_after=7)
    with pytest.raises(ConfigError, match="checkpoint_every"):
        supervised(_mlp(data), data, config=SMALL, seed=0, checkpoint_every=0)
    make = builder("mlp", {}, input_shape=data.input_shape, num_outputs=4)
    with pytest.raises(ConfigError, match=r"\(1, 3\) is needed"):
        supervised(make, data, config=SMALL, seed=0)


def test_it_is_registered_with_its_configuration():
    method = recipe.get("supervised")
    assert method.spec.config is SupervisedConfig and method.function is supervised
    assert method.spec.wants == ("losses", "features") and supervised_package is supervised


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_an_observer_sees_every_mini_batch_and_changes_nothing(examples, store, task, rng_left_alone):
    data = examples(47, task=task)
    make = _mlp(data, dropout=0.2)
    seen = []
    plain = supervised(make, data, config=SMALL, seed=3)
    with rng_left_alone():
        watched = supervised(
            make, data, config=SMALL, seed=3, observe=lambda rows, out: seen.append((rows.clone(), out.clone()))
        )
    assert _digest(watched) == _digest(plain)
    assert [len(rows) for rows, _ in seen] == [10, 10, 10, 10, 7] * 6
    for epoch in range(6):
        rows = torch.cat([rows for rows, _ in seen[5 * epoch : 5 * epoch + 5]])
        assert rows.dtype == torch.int64 and torch.equal(rows, epoch_order(47, seed=3, epoch=epoch))
    assert all(out.shape == (len(rows), max(data.num_classes, 1)) and not out.requires_grad for rows, out in seen)
    # also when a finished run is stored: every epoch is told again, to the same end
    supervised(make, data, config=SMALL, seed=3, checkpoints=store)
    told = []
    again = supervised(
        make,
        data,
        config=SMALL,
        seed=3,
        checkpoints=store,
        observe=lambda rows, out: told.append((rows.clone(), out.clone())),
    )
    assert _digest(again) == _digest(plain)
    assert len(told) == len(seen) and all(torch.equal(a[1], b[1]) for a, b in zip(told, seen, strict=True))


def test_the_observed_logits_are_those_of_the_model_before_the_step(examples):
    """One epoch without dropout: the first batch sees the initialisation, the second the model after one step."""
    data = examples(20)
    seen = []
    config = SupervisedConfig(epochs=1, batch=10, lr=0.5, momentum=0.0, schedule="constant")
    supervised(_mlp(data), data, config=config, seed=1, observe=lambda rows, out: seen.append((rows, out.clone())))
    model = _mlp(data)(1)
    x = torch.from_numpy(data.inputs(slice(0, 20)))
    for rows, out in seen:
        logits = model(x[rows])
        torch.testing.assert_close(out, logits)
        gradients = torch.autograd.grad(
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.y)[rows]), list(model.parameters())
        )
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.5 * g
