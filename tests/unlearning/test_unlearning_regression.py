"""Unlearning of numbers: each method against its definition written out by hand, invariants, and the metrics."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, InvalidInput, NotApplicable
from contracts.methods import unlearner
from contracts.progress import silent
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from tasks.base import Batch
from unlearning.descent import descend, inputs_of
from unlearning.regression.attention import attention, attention_transfer, with_activations
from unlearning.regression.blindspot import BlindspotConfig, blindspot, blindspot_losses, blindspot_plan
from unlearning.regression.errors import errors_of
from unlearning.regression.gaussian_amnesiac import (
    GaussianAmnesiacConfig,
    amnesiac_targets,
    gaussian_amnesiac,
    gaussian_amnesiac_plan,
)
from unlearning.regression.metrics import (
    Relearning,
    against_retraining,
    anamnesis_index,
    error_membership_rate,
    mean_absolute_error,
    predictions,
    relative_difference,
    relearning,
    run_figures,
    wasserstein_to_retrain,
)
from unlearning.regression.regression_finetune import RegressionFinetuneConfig, regression_finetune

METHODS = ("regression_finetune", "gaussian_amnesiac", "blindspot")


@dataclass(frozen=True)
class Numbers:
    model: nn.Module
    retain: ExampleSet
    forget: ExampleSet
    test: ExampleSet
    build: Any

    @property
    def sets(self) -> dict[str, ExampleSet]:
        return {"retain": self.retain, "forget": self.forget}

    def train(self, data: ExampleSet, seed: int, *, effort: float = 1.0) -> nn.Module:
        config = SupervisedConfig(lr=0.05, momentum=0.9, batch=16, epochs=max(1, round(20 * effort)))
        return supervised(self.build, data, config=config, seed=seed)

    def run(self, name: str, model: nn.Module | None = None, *, seed: int = 0, **fields: object) -> nn.Module:
        method = unlearner.get(name)
        needs = {"train": self.train} if "train" in method.spec.needs else {}
        config = method.spec.config.from_mapping(fields)
        return method(self.model if model is None else model, **self.sets, config=config, seed=seed, **needs)


def make(kind: str) -> Numbers:
    """Targets in a unit of their own: mean about 50, spread about 9. Forget: the largest tenth."""
    rng, num = np.random.default_rng(2), 150
    shape = (1, 8, 8) if kind == "cnn" else (5,)
    x = rng.normal(size=(num, *shape)).astype(np.float32)
    y = 50 + 8 * np.tanh(x.reshape(num, -1)[:, :4].sum(1)).astype(np.float64) + rng.normal(size=num)
    data = ExampleSet(
        name="numbers",
        task="regression",
        x=x,
        y=y,
        example_id=rng.permutation(num * 3)[:num].astype(np.int64),
        split=np.where(np.arange(num) < 120, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=(),
        center=np.zeros(shape[0] if kind == "cnn" else shape, np.float32),
        scale=np.ones(shape[0] if kind == "cnn" else shape, np.float32),
    ).validate()
    fields = {"channels": (4, 6), "hidden": 8} if kind == "cnn" else {"hidden": (12, 8)}
    build = builder(kind, fields, input_shape=shape, num_outputs=1)
    train = data.part("train")
    gone = train.y >= np.quantile(train.y, 0.9)
    retain, forget = train.subset(train.example_id[~gone]), train.subset(train.example_id[gone])
    world = Numbers(build(0), retain, forget, data.part("test"), build)
    return dataclasses.replace(world, model=world.train(train, 0))


@pytest.fixture(scope="module")
def mlp() -> Numbers:
    return make("mlp")


@pytest.fixture(scope="module")
def cnn() -> Numbers:
    return make("cnn")


# ---- by hand ---------------------------------------------------------------------------------------------------


def by_hand(world: Numbers, losses, *, lr: float, epochs: int, batch: int, seed: int, name: str, ids) -> nn.Module:
    """Adam by its definition on mean losses of shuffled batches of ``ids``, in units of the retained targets."""
    student = copy.deepcopy(world.model)
    shift, scale = world.retain.y.mean(), world.retain.y.std()
    with torch.no_grad():
        student.head.weight.div_(scale)
        student.head.bias.sub_(shift).div_(scale)
    student.train()
    first, second, t = ([torch.zeros_like(p) for p in student.parameters()] for _ in range(2)), None, 0
    first, second = first
    order = torch.Generator().manual_seed(derive_seed(name, "order", seed))
    for _ in range(epochs):
        shuffled = torch.randperm(len(ids), generator=order).numpy()
        for start in range(0, len(ids), batch):
            loss = losses(student, ids[shuffled[start : start + batch]], shift, scale)
            grads = torch.autograd.grad(loss, list(student.parameters()))
            t += 1
            with torch.no_grad():
                for p, m, v, g in zip(student.parameters(), first, second, grads, strict=True):
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    p.sub_(lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
    with torch.no_grad():
        student.head.weight.mul_(scale)
        student.head.bias.mul_(scale).add_(shift)
    return student.eval()


def rows(data: ExampleSet, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    part = data.subset(ids)
    return torch.from_numpy(part.inputs(slice(None))), torch.from_numpy(part.y).float()


def same(flat, one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(flat(one), flat(other), rtol=2e-4, atol=2e-5)


def test_fine_tuning_is_adam_on_the_absolute_error_of_what_is_kept(mlp, flat):
    def losses(student, ids, shift, scale):
        x, y = rows(mlp.retain, ids)
        return (student(x)[:, 0] - (y - shift) / scale).abs().mean()

    ids = np.sort(mlp.retain.example_id)
    expected = by_hand(mlp, losses, lr=0.01, epochs=2, batch=50, seed=4, name="regression_finetune", ids=ids)
    got = mlp.run("regression_finetune", seed=4, lr=0.01, epochs=2, batch=50)
    same(flat, got, expected)
    assert (flat(got) - flat(mlp.model)).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("beta", [0.0, 50.0])
def test_blindspot_is_its_definition_with_the_share_of_each_batch(request, flat, kind, beta):
    """Written as published: r L_f + (1 - r) L_r of each batch, sets apart, maps by explicit loops."""
    world = request.getfixturevalue(kind)
    fresh = world.train(world.retain.by_id(), derive_seed("blindspot", "fresh network", 3) % 2**31, effort=0.1)

    def maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        if kind == "mlp":
            one = torch.relu(model.hidden[0](x))
            return [F.normalize(h.square(), dim=1) for h in (one, torch.relu(model.hidden[1](one)))]
        first = torch.relu(model.conv1(x))
        second = torch.relu(model.conv2(F.max_pool2d(first, 2)))
        found = []
        for block in (first, second):
            each = []
            for example in block:
                q = sum(channel.square() for channel in example).flatten() / len(example)
                each.append(q / q.norm().clamp(min=1e-12))
            found.append(torch.stack(each))
        return found

    shares = []

    def losses(student, ids, shift, scale):
        gone = np.isin(ids, world.forget.example_id)
        r = gone.mean()
        shares.append(r)
        total = torch.zeros(())
        if (~gone).any():
            x, y = rows(world.retain, ids[~gone])
            total = total + (1 - r) * (student(x)[:, 0] - (y - shift) / scale).abs().mean()
        if gone.any():
            x, _ = rows(world.forget, ids[gone])
            with torch.no_grad():
                said, shown = (fresh(x)[:, 0] - shift) / scale, maps(fresh, x)
            own = (student(x)[:, 0] - said).abs().mean()
            for a, b in zip(maps(student, x), shown, strict=True):
                own = own + beta * (a - b).square().mean()
            total = total + r * own
        return total

    ids = np.concatenate([np.sort(world.forget.example_id), np.sort(world.retain.example_id)])
    expected = by_hand(world, losses, lr=0.005, epochs=2, batch=25, seed=3, name="blindspot", ids=ids)
    got = world.run("blindspot", seed=3, lr=0.005, epochs=2, batch=25, beta=beta)
    same(flat, got, expected)
    assert len({round(r, 6) for r in shares}) > 2  # the share did vary


def test_gaussian_amnesiac_draws_once_from_all_targets_and_trains_on_both(mlp, flat):
    rng = np.random.default_rng(derive_seed("gaussian_amnesiac", "targets", 5))
    every = np.concatenate([mlp.retain.y, mlp.forget.y])
    gone = np.sort(mlp.forget.example_id)
    drawn = dict(zip(gone.tolist(), rng.normal(every.mean(), every.std(), len(gone)).tolist(), strict=True))

    def losses(student, ids, shift, scale):
        total = torch.zeros(())
        for i in ids.tolist():
            x, y = rows(mlp.forget if i in drawn else mlp.retain, np.array([i]))
            aim = torch.tensor([drawn[i]], dtype=torch.float32) if i in drawn else y
            total = total + (student(x)[0, 0] - (aim[0] - shift) / scale).square()
        return total / len(ids)

    ids = np.concatenate([gone, np.sort(mlp.retain.example_id)])
    expected = by_hand(mlp, losses, lr=0.01, epochs=2, batch=40, seed=5, name="gaussian_amnesiac", ids=ids)
    same(flat, mlp.run("gaussian_amnesiac", seed=5, lr=0.01, epochs=2, batch=40, loss="l2"), expected)


# ---- invariants ------------------------------------------------------------------------------------------------


def test_the_gaussian_is_that_of_all_targets_and_the_same_in_every_epoch(mlp):
    rng = np.random.default_rng(0)
    retained, forgotten = rng.normal(10, 2, 4000), rng.normal(40, 2, 4000)
    drawn = amnesiac_targets(retained, forgotten, seed=1)
    every = np.concatenate([retained, forgotten])
    assert abs(drawn.mean() - every.mean()) < 5 * every.std() / np.sqrt(4000)
    assert abs(drawn.std() / every.std() - 1) < 5 / np.sqrt(2 * 4000)
    assert abs(drawn.std() / retained.std() - 1) > 1  # the retained targets alone would be another method
    plan = gaussian_amnesiac_plan(mlp.model, **mlp.sets, config=GaussianAmnesiacConfig(), seed=2)
    (one,), (other,) = plan.passes(0), plan.passes(7)
    assert torch.equal(one.targets[0], other.targets[0])
    again = gaussian_amnesiac_plan(mlp.model, **mlp.sets, config=GaussianAmnesiacConfig(), seed=3).passes(0)[0]
    assert not torch.equal(one.targets[0], again.targets[0])


def batch_of(world: Numbers, model: nn.Module, count: int = 6) -> Batch:
    """The first ``count`` forgotten and retained examples in one batch, targets as they are."""
    gone, kept = inputs_of(model, world.forget), inputs_of(model, world.retain)
    parts = [part.batch(torch.arange(count)) for part in (gone, kept)]
    return Batch(
        torch.cat([p.inputs for p in parts]),
        torch.cat([p.targets for p in parts]),
        torch.cat([p.example_id for p in parts]),
    )


def pick(batch: Batch, at: torch.Tensor) -> Batch:
    return Batch(batch.inputs[at], batch.targets[at], batch.example_id[at])


def test_a_student_that_is_the_fresh_network_has_no_forget_loss(cnn):
    model = cnn.model
    losses = blindspot_losses(copy.deepcopy(model), cnn.forget.example_id, beta=50.0, loss="l1")
    each = losses(model, batch_of(cnn, model))
    assert torch.equal(each[:6], torch.zeros(6)) and (each[6:] > 0).all()


def test_without_forgotten_examples_it_is_plain_training_and_order_does_not_matter(cnn):
    model, teacher = cnn.model, cnn.build(9).eval()
    batch = batch_of(cnn, model)
    losses = blindspot_losses(teacher, cnn.forget.example_id, beta=50.0, loss="l1")
    kept = pick(batch, torch.arange(6, 12))
    assert torch.equal(losses(model, kept), (model(kept.inputs) - kept.targets).abs()[:, 0])
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses(model, pick(batch, mixed)), losses(model, batch)[mixed])
    plain = blindspot_losses(teacher, cnn.forget.example_id, beta=0.0, loss="l1")(model, batch)
    more = losses(model, batch)
    assert (more[:6] > plain[:6]).all() and torch.equal(more[6:], plain[6:])


def test_no_gradient_reaches_the_fresh_network(cnn):
    model, teacher = copy.deepcopy(cnn.model), cnn.build(9).eval()
    blindspot_losses(teacher, cnn.forget.example_id, beta=50.0, loss="l1")(model, batch_of(cnn, model)).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_attention_is_blind_to_scale_and_sees_places():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(5, 3, 4, 6, generator=generator) for _ in range(2))
    scale = torch.rand(5, 1, 1, 1, generator=generator) + 0.1
    torch.testing.assert_close(attention_transfer([a * scale], [b]), attention_transfer([a], [b]))
    assert attention(a).shape == (5, 24) and attention(torch.randn(5, 7, 9)).shape == (5, 9)
    assert attention(torch.randn(5, 9)).shape == (5, 9)
    torch.testing.assert_close(attention(a).norm(dim=1), torch.ones(5))
    assert torch.equal(attention_transfer([a, b], [a, b]), torch.zeros(5))
    two = attention_transfer([a, a], [b, b])
    torch.testing.assert_close(two, 2 * attention_transfer([a], [b]))  # summed over the layers
    published = (attention(a) - attention(b)).pow(2).mean()
    torch.testing.assert_close(attention_transfer([a], [b]).mean(), published)
    assert not attention(torch.zeros(2, 3, 4, 4)).any()  # no activation, no NaN
    with pytest.raises(NotApplicable, match="one architecture"):
        attention_transfer([a], [b, b])


def test_activations_are_those_of_blocks_where_there_are_places(cnn, mlp):
    x = torch.randn(3, 1, 8, 8)
    outputs, found = with_activations(cnn.model, x)
    assert [tuple(a.shape) for a in found] == [(3, 4, 8, 8), (3, 6, 4, 4)] and torch.equal(outputs, cnn.model(x))
    torch.testing.assert_close(found[0], torch.relu(cnn.model.conv1(x)))
    hidden = with_activations(mlp.model, torch.randn(3, 5))[1]
    assert [tuple(a.shape) for a in hidden] == [(3, 12), (3, 8)]
    modules = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Conv2d(2, 2, 3), nn.ReLU(inplace=True), nn.Flatten())
    assert [tuple(a.shape) for a in with_activations(modules, x)[1]] == [(3, 2, 6, 6), (3, 2, 4, 4)]
    with pytest.raises(NotApplicable, match="no activations"):
        with_activations(nn.Linear(5, 1), torch.randn(3, 5))


def test_the_fresh_network_sees_nothing_that_is_forgotten_and_is_trained_shortly(mlp):
    seen: list[tuple[set[int], float, int]] = []

    def train(data: ExampleSet, seed: int, *, effort: float) -> nn.Module:
        seen.append((set(data.example_id.tolist()), effort, seed))
        return mlp.train(data, seed, effort=effort)

    for seed in (1, 2):
        blindspot(mlp.model, **mlp.sets, config=BlindspotConfig(effort=0.2), seed=seed, train=train)
    assert [s[:2] for s in seen] == [(set(mlp.retain.example_id.tolist()), 0.2)] * 2 and seen[0][2] != seen[1][2]
    nobody = mlp.forget.subset([])
    blindspot_plan(mlp.model, retain=mlp.retain, forget=nobody, config=BlindspotConfig(), seed=0, train=train)
    blindspot_plan(mlp.model, **mlp.sets, config=BlindspotConfig(epochs=0), seed=0, train=train)
    assert len(seen) == 2  # where it is not needed none is trained

    def broken(data: ExampleSet, seed: int, *, effort: float) -> nn.Module:
        made = mlp.build(seed)
        with torch.no_grad():
            made.head.bias.fill_(torch.nan)
        return made

    with pytest.raises(Diverged, match="fresh network"):
        blindspot(mlp.model, **mlp.sets, config=BlindspotConfig(), seed=0, train=broken)
    with pytest.raises(NotApplicable, match="one architecture"):
        blindspot(
            mlp.model,
            **mlp.sets,
            config=BlindspotConfig(),
            seed=0,
            train=lambda data, seed, *, effort: builder("mlp", {"hidden": (5,)}, input_shape=(5,), num_outputs=1)(seed),
        )


@pytest.mark.parametrize("name", METHODS)
def test_promises_of_every_method(mlp, flat, name):
    before = flat(mlp.model)
    first = mlp.run(name, seed=1, epochs=2, batch=16)
    mixed = {k: d.subset(np.random.default_rng(9).permutation(d.example_id)) for k, d in mlp.sets.items()}
    again = dataclasses.replace(mlp, **mixed).run(name, seed=1, epochs=2, batch=16)
    assert torch.equal(flat(first), flat(again)) and torch.equal(flat(mlp.model), before) and not first.training
    assert not torch.equal(flat(first), flat(mlp.run(name, seed=2, epochs=2, batch=16)))
    assert torch.allclose(flat(mlp.run(name, epochs=0)), before, atol=1e-5)
    plan = unlearner.get(name).spec.plan
    needs = {"train": mlp.train} if name == "blindspot" else {}
    config = unlearner.get(name).spec.config.from_mapping({"epochs": 2, "batch": 16})
    done = descend(plan(mlp.model, **mlp.sets, config=config, seed=1, **needs), progress=silent)
    assert torch.equal(flat(done), flat(first))


def test_the_units_do_not_depend_on_the_order_of_the_rows_in_the_last_bit(mlp, flat):
    double = copy.deepcopy(mlp.model).double()
    once, again = (
        dataclasses.replace(
            mlp, retain=mlp.retain.subset(np.random.default_rng(seed).permutation(mlp.retain.example_id))
        )
        for seed in (1, 2)
    )
    assert once.retain.y.mean() != again.retain.y.mean()  # summed in another order
    assert torch.equal(flat(once.run("regression_finetune", double)), flat(again.run("regression_finetune", double)))


@pytest.mark.parametrize("name", METHODS)
def test_the_unit_of_the_target_does_not_matter(mlp, name):
    """Degrees or radians: the same predictions but for the unit."""

    def in_units(data: ExampleSet) -> ExampleSet:
        return dataclasses.replace(data, y=data.y / 1000 - 3)

    small = copy.deepcopy(mlp.model)
    with torch.no_grad():
        small.head.weight.div_(1000)
        small.head.bias.div_(1000).sub_(3)
    other = dataclasses.replace(mlp, model=small, **{k: in_units(d) for k, d in mlp.sets.items()})
    one, two = mlp.run(name, lr=0.01, epochs=2, batch=16), other.run(name, lr=0.01, epochs=2, batch=16)
    said, scaled = predictions(one, mlp.test), 1000 * (predictions(two, mlp.test) + 3)
    np.testing.assert_allclose(scaled, said, atol=0.05)
    assert np.abs(said - predictions(mlp.model, mlp.test)).max() > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_bad_sets_and_models_are_refused(mlp, world, name):
    with pytest.raises(NotApplicable, match="classification"):
        method = unlearner.get(name)
        needs = {"train": mlp.train} if name == "blindspot" else {}
        method(world.model, **world.sets, config=method.spec.config(), seed=0, **needs)
    overlap = mlp.retain.subset(mlp.retain.example_id[:3])
    with pytest.raises(DataError):
        dataclasses.replace(mlp, forget=overlap).run(name)
    with pytest.raises(DataError, match="retain set is empty"):
        dataclasses.replace(mlp, retain=mlp.retain.subset([])).run(name)
    with pytest.raises(NotApplicable, match="one number an example"):
        mlp.run(name, model=nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))


def test_a_column_of_predictions_never_meets_a_row_of_targets():
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 1.0, 1.0])
    for o, t in (
        (outputs, targets),
        (outputs[:, 0], targets),
        (outputs, targets[:, None]),
        (outputs[:, 0], targets[:, None]),
    ):
        assert errors_of(o, t, loss="l1").tolist() == [0.0, 1.0, 3.0]
        assert errors_of(o, t, loss="l2").tolist() == [0.0, 1.0, 9.0]
    for shape in ((3, 3), (2, 1), (1, 3)):
        with pytest.raises(NotApplicable, match="one number an example"):
            errors_of(torch.zeros(shape), targets, loss="l1")


# ---- metrics ---------------------------------------------------------------------------------------------------


def test_predictions_and_errors_are_in_the_targets_unit(mlp):
    x = torch.from_numpy(mlp.test.inputs(slice(None)))
    with torch.no_grad():
        said = mlp.model(x)[:, 0].double().numpy()
    np.testing.assert_allclose(predictions(mlp.model, mlp.test), said)
    assert mean_absolute_error(mlp.model, mlp.test) == pytest.approx(np.abs(said - mlp.test.y).mean())
    assert np.isnan(mean_absolute_error(mlp.model, mlp.test.subset([])))


def test_wasserstein_is_the_area_between_sorted_samples():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(1, 2, size=40)
    assert wasserstein_to_retrain(a, b) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())
    assert wasserstein_to_retrain(rng.permutation(a), a) == pytest.approx(0)
    assert wasserstein_to_retrain(3 * a, 3 * b) == pytest.approx(3 * wasserstein_to_retrain(a, b))
    for bad in ([], [np.nan], np.zeros((2, 2))):
        with pytest.raises(InvalidInput):
            wasserstein_to_retrain(a, bad)


def test_relative_difference_is_each_examples_own():
    got = relative_difference([1.0, 2.0, 5.0], [2.0, 2.0, 1.0], [-4.0, 3.0, 0.0])
    np.testing.assert_allclose(got, [0.25, 0.0, np.nan])
    with pytest.raises(InvalidInput, match="one each"):
        relative_difference([1.0], [1.0, 2.0], [1.0, 2.0])


def test_the_attack_on_the_error_tells_small_from_large_and_nothing_from_noise():
    rng = np.random.default_rng(1)
    train, test = np.abs(rng.normal(0, 0.3, 900)), np.abs(rng.normal(0, 3, 700))
    small = error_membership_rate(train, test, np.abs(rng.normal(0, 0.3, 500)), seed=0)
    large = error_membership_rate(train, test, np.full(50, 4.0), seed=0)
    assert small > 0.85 and large == 0.0
    same = error_membership_rate(test, np.abs(rng.normal(0, 3, 700)), np.abs(rng.normal(0, 3, 700)), seed=0)
    assert 0.2 < same < 0.8
    order = rng.permutation(900)
    assert error_membership_rate(train[order], test, [0.1, 1.0, 2.0], seed=3) == error_membership_rate(
        train, test, [0.1, 1.0, 2.0], seed=3
    )
    assert np.isnan(error_membership_rate(train, test, [], seed=0))


def test_relearning_is_its_naive_loop(mlp):
    """Adam in standardised units, an evaluation after every batch, and no model changed."""
    data = dataclasses.replace(mlp, model=mlp.model)
    ids = np.sort(np.concatenate([mlp.retain.example_id, mlp.forget.example_id]))
    every = _joined(mlp)
    student = copy.deepcopy(mlp.build(4))
    error = mean_absolute_error(mlp.model, mlp.forget) * 1.05
    shift, scale = every.y[np.argsort(every.example_id)].mean(), every.y.std()
    with torch.no_grad():
        student.head.weight.div_(scale)
        student.head.bias.sub_(shift).div_(scale)
    optimizer, steps = torch.optim.Adam(student.parameters(), lr=0.02), 0
    order = torch.Generator().manual_seed(derive_seed("relearning", "order", 6))
    x, y = rows(mlp.forget, mlp.forget.example_id)
    while True:
        shuffled = ids[torch.randperm(len(ids), generator=order).numpy()]
        for start in range(0, len(ids), 30):
            own, aim = rows(every, shuffled[start : start + 30])
            optimizer.zero_grad()
            (student(own)[:, 0] - (aim - shift) / scale).abs().mean().backward()
            optimizer.step()
            steps += 1
            with torch.no_grad():
                if (student(x)[:, 0] * scale + shift - y).abs().mean() <= error:
                    break
        else:
            continue
        break
    fresh = mlp.build(4)
    before = copy.deepcopy(fresh.state_dict())
    found = relearning(fresh, every, mlp.forget, error=error, seed=6, lr=0.02, batch=30, epochs=200)
    assert found == Relearning(steps, True) and steps > 5
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    assert relearning(data.model, every, mlp.forget, error=-1.0, seed=0, batch=60, epochs=3) == Relearning(6, False)
    assert relearning(mlp.model, every, mlp.forget, error=1e9, seed=0) == Relearning(1, True)


def _joined(world: Numbers) -> ExampleSet:
    names = ("x", "y", "example_id", "split", "owner", "content_hash")
    parts = {name: np.concatenate([getattr(world.retain, name), getattr(world.forget, name)]) for name in names}
    return dataclasses.replace(world.retain, **parts)


def test_the_anamnesis_index_is_one_of_retraining_itself_and_low_of_who_still_knows(mlp, flat):
    retrained = mlp.train(mlp.retain, 1)
    given = {
        "original": mlp.model,
        "retrained": retrained,
        "data": _joined(mlp),
        "watched": mlp.forget,
        "seed": 2,
        "lr": 0.01,
        "batch": 30,
    }
    before = [flat(mlp.model), flat(retrained)]
    itself, own, other = anamnesis_index(retrained, **given)
    assert itself == 1.0 and own == other
    knows, quick, slow = anamnesis_index(mlp.model, **given)
    assert knows < 0.5 and quick.batches == 1 and slow == other
    assert torch.equal(flat(mlp.model), before[0]) and torch.equal(flat(retrained), before[1])


def test_the_figures_of_a_run_are_their_definitions(mlp, flat):
    """Of a model that is shifted by 7 on everything: all errors, and the attack on them, by hand."""
    shifted = copy.deepcopy(mlp.model)
    with torch.no_grad():
        list(shifted.parameters())[-1].add_(7.0)
    before, train = flat(shifted), _joined(mlp)
    parts = {"retain": mlp.retain, "forget": mlp.forget, "train": train, "test": mlp.test}
    figures, said, relearned = run_figures(shifted, original=mlp.model, **parts, seed=3)
    errors = {}
    for name in ("forget", "retain", "test"):
        x, y = rows(parts[name], parts[name].example_id)
        with torch.no_grad():
            errors[name] = (shifted(x).flatten() - y.flatten()).abs().double().numpy()
        assert figures[f"mae_{name}"] == pytest.approx(errors[name].mean(), rel=1e-5)
    rate = error_membership_rate(errors["retain"], errors["test"], errors["forget"], seed=3)
    assert figures["mia_member"] == pytest.approx(100 * rate, abs=100 / len(mlp.forget))
    np.testing.assert_allclose(said, predictions(shifted, mlp.forget))
    assert torch.equal(flat(shifted), before)
    still = run_figures(mlp.model, original=mlp.model, **parts, seed=3)[2]
    goal = 1.05 * mean_absolute_error(mlp.model, mlp.forget)
    again = {"error": goal, "seed": 3, "lr": 0.01, "batch": max(32, len(train) // 100)}
    assert relearned == relearning(shifted, train, mlp.forget, **again)
    assert still == relearning(mlp.model, train, mlp.forget, **again) and still.reached


def test_a_relearning_that_diverges_is_none_and_no_fault_of_the_model(mlp, monkeypatch):
    def diverging(*_, **__):
        raise Diverged("step 3")

    monkeypatch.setattr("unlearning.regression.metrics.relearning", diverging)
    train = _joined(mlp)
    figures, _, relearned = run_figures(mlp.model, original=mlp.model, **mlp.sets, train=train, test=mlp.test, seed=0)
    assert relearned == Relearning(10 * -(-len(train) // 32), False) and all(np.isfinite(list(figures.values())))


def test_what_is_measured_against_retraining_says_nothing_of_two_bounds():
    never, late, soon = Relearning(70, False), Relearning(40, True), Relearning(2, True)
    found = against_retraining([0.0, 4.0], soon, retrained=[1.0, 2.0], reference=never)
    assert found == {"w1": 1.5, "relearn_batches": 2.0, "ain": 2 / 70}
    assert against_retraining([1.0], never, retrained=[1.0], reference=late) == {"w1": 0.0, "ain": 70 / 40}
    assert against_retraining([1.0], never, retrained=[1.0], reference=never) == {"w1": 0.0}


def test_the_student_comes_to_speak_of_the_forgotten_as_the_fresh_network_does_and_keeps_the_rest(mlp):
    fresh = mlp.train(mlp.retain.by_id(), derive_seed("blindspot", "fresh network", 0) % 2**31, effort=0.1)
    models = {name: mlp.run(name, lr=0.01, epochs=8, batch=16) for name in METHODS}
    said = predictions(fresh, mlp.forget)
    apart = {name: np.abs(predictions(model, mlp.forget) - said).mean() for name, model in models.items()}
    before = np.abs(predictions(mlp.model, mlp.forget) - said).mean()
    assert apart["blindspot"] < 0.5 * min(before, apart["regression_finetune"])
    for model in models.values():
        assert mean_absolute_error(model, mlp.retain) < 0.6 * np.abs(mlp.retain.y - np.median(mlp.retain.y)).mean()


def test_fine_tuning_and_amnesia_are_registered_functions(mlp, flat):
    for function, config in (
        (regression_finetune, RegressionFinetuneConfig(epochs=1)),
        (gaussian_amnesiac, GaussianAmnesiacConfig()),
    ):
        name = function.__name__
        assert torch.equal(flat(function(mlp.model, **mlp.sets, config=config, seed=0)), flat(mlp.run(name, epochs=1)))
