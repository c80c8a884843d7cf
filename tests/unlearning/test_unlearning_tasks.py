"""Descent on tasks other than classification: against loops written out by hand, and what every run promises there
too."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, NotApplicable
from contracts.methods import unlearner
from recipes.models import builder
from recipes.predict import read
from recipes.recsys import BprConfig, bpr
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from sources.loading import load
from tasks.base import Batch, named
from unlearning.descent import Pass, inputs_of
from unlearning.finetune import FinetuneConfig, finetune
from unlearning.gradient_ascent import GradientAscentConfig, gradient_ascent


@dataclass(frozen=True)
class Sets:
    model: nn.Module
    retain: ExampleSet
    forget: ExampleSet

    @property
    def sets(self) -> dict[str, ExampleSet]:
        return {"retain": self.retain, "forget": self.forget}


@pytest.fixture(scope="module")
def numbers(world) -> Sets:
    """Targets far from zero and of large spread, and a network that has learnt them."""
    rng = np.random.default_rng(2)

    def of(data: ExampleSet) -> ExampleSet:
        y = 500.0 + 80.0 * (np.asarray(data.x, np.float64) @ np.array([1.0, -0.5, 0.3, 0, 0, 0]))
        return dataclasses.replace(data, task="regression", y=y + rng.normal(size=len(y)), class_names=(), whole=None)

    retain, forget = of(world.retain), of(world.forget)
    build = builder("mlp", {"hidden": (16,)}, input_shape=retain.input_shape, num_outputs=1)
    model = supervised(build, retain, config=SupervisedConfig(lr=0.05, batch=32, epochs=30), seed=0)
    return Sets(model, retain, forget)


@pytest.fixture(scope="module")
def users() -> Sets:
    data = load("synthetic_interactions", {"num_users": 12, "num_items": 40, "per_user": 10, "dim": 2}).part("train")
    build = builder("mf", {"dim": 4}, input_shape=(data.num_users,), num_outputs=data.num_classes)
    model = bpr(build, data, config=BprConfig(epochs=80, batch=32, lr=0.05), seed=0)
    gone = np.arange(len(data)) % 6 == 0
    return Sets(model, data.take(np.flatnonzero(~gone)), data.take(np.flatnonzero(gone)))


def shuffles(name: str, seed: int, num: int, epochs: int, batch: int) -> list[np.ndarray]:
    order = torch.Generator().manual_seed(derive_seed(name, "order", seed))
    drawn = [torch.randperm(num, generator=order).numpy() for _ in range(epochs)]
    return [rows[a : a + batch] for rows in drawn for a in range(0, num, batch)]


def naive(model: nn.Module, loss_of, cuts, *, lr: float, sign: float = 1.0, wd: float = 5e-4) -> nn.Module:
    """Momentum SGD by its definition on the mean of ``loss_of(model, row)``, one example at a time."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for rows in cuts:
        total = sum((sign * loss_of(model, int(i)) for i in rows), torch.zeros(()))
        grads = torch.autograd.grad(total / len(rows), list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, grads, strict=True):
                v.mul_(0.9).add_(g + wd * p)
                p.sub_(lr * v)
    return model


def test_a_regression_is_descended_in_units_of_its_own_spread(numbers, flat):
    """By hand: the head's affine map undone, momentum SGD on squared errors of standardised targets, the map put
    back."""
    retain = numbers.retain.by_id()
    x, y = torch.from_numpy(retain.inputs(slice(None))), torch.from_numpy(retain.y).float()
    mean, sd = float(retain.y.mean()), float(retain.y.std())
    student = copy.deepcopy(numbers.model)
    with torch.no_grad():
        student.head.weight.div_(sd)
        student.head.bias.sub_(mean).div_(sd)
    cuts = shuffles("finetune", 3, len(y), 2, 40)
    naive(student, lambda m, i: (m(x[i : i + 1])[0, 0] - (y[i] - mean) / sd) ** 2, cuts, lr=0.05)
    with torch.no_grad():
        student.head.weight.mul_(sd)
        student.head.bias.mul_(sd).add_(mean)
    got = finetune(numbers.model, **numbers.sets, config=FinetuneConfig(lr=0.05, epochs=2, batch=40), seed=3)
    torch.testing.assert_close(flat(got), flat(student), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(flat(got), flat(numbers.model), rtol=1e-3, atol=1e-3)


def test_a_regression_without_a_head_is_descended_as_it_is(numbers, flat):
    """A user's network: targets in their own unit, here of unit spread."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    small = {k: dataclasses.replace(d, y=(d.y - 500) / 80) for k, d in numbers.sets.items()}
    forget = small["forget"].by_id()
    x, y = torch.from_numpy(forget.inputs(slice(None))), torch.from_numpy(forget.y).float()
    expected = naive(
        copy.deepcopy(model),
        lambda m, i: (m(x[i : i + 1])[0, 0] - y[i]) ** 2,
        shuffles("gradient_ascent", 4, len(y), 3, 10),
        lr=0.003,
        sign=-1.0,
    )
    got = gradient_ascent(model, **small, config=GradientAscentConfig(lr=0.003, epochs=3, batch=10), seed=4)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-4, atol=1e-6)


def test_a_recommender_is_descended_on_the_softmax_among_items_not_met(users, flat):
    """By hand: cross-entropy of the item against those that its user met nowhere."""
    retain = users.retain.by_id()
    met = {u: set() for u in range(retain.num_users)}
    whole = retain.constants
    for u in met:
        met[u] = set(whole["items"][whole["start"][u] : whole["start"][u] + _count(whole, u)].tolist())
    of_user, item = np.asarray(retain.x)[:, 0], retain.y

    def loss(model: nn.Module, i: int) -> Tensor:
        among = [int(item[i]), *(k for k in range(retain.num_classes) if k not in met[int(of_user[i])])]
        scores = model(torch.tensor([[of_user[i]]]))[0, among]
        return scores.logsumexp(0) - scores[0]

    expected = naive(copy.deepcopy(users.model), loss, shuffles("finetune", 5, len(retain), 2, 32), lr=0.1)
    got = finetune(users.model, **users.sets, config=FinetuneConfig(lr=0.1, epochs=2, batch=32), seed=5)
    torch.testing.assert_close(flat(got), flat(expected), rtol=1e-4, atol=1e-6)


def _count(constants, user: int) -> int:
    start = np.append(constants["start"], len(constants["items"]))
    return int(start[user + 1] - start[user])


@pytest.mark.parametrize("kind", ["numbers", "users"])
def test_finetune_descends_what_is_kept_and_ascent_climbs_what_is_to_go(request, kind):
    one: Sets = request.getfixturevalue(kind)
    rate = 0.005 if kind == "numbers" else 0.1
    before = {name: read(one.model, data).loss.mean() for name, data in one.sets.items()}
    kept = finetune(one.model, **one.sets, config=FinetuneConfig(lr=rate, epochs=5, batch=32), seed=0)
    gone = gradient_ascent(one.model, **one.sets, config=GradientAscentConfig(lr=4 * rate, epochs=5), seed=0)
    assert read(kept, one.retain).loss.mean() < before["retain"]
    assert read(gone, one.forget).loss.mean() > before["forget"] * 1.01


def test_the_graph_of_a_recommender_is_that_of_what_is_kept(users):
    """Vectors propagated over the retained interactions alone, taken over into what a stored model answers from."""
    build = builder("lightgcn", {"dim": 4, "layers": 2}, input_shape=(12,), num_outputs=users.retain.num_classes)
    model = build(0)
    everyone = [np.concatenate([np.asarray(d.x)[:, 0] for d in users.sets.values()]), users.retain.y]
    everyone[1] = np.concatenate([d.y for d in users.sets.values()])
    model.set_graph(*(torch.from_numpy(v) for v in everyone))
    model.eval()
    got = finetune(model, **users.sets, config=FinetuneConfig(lr=1.0, epochs=1), seed=0)
    by_hand = copy.deepcopy(got)
    kept = users.retain
    by_hand.set_graph(torch.from_numpy(np.asarray(kept.x)[:, 0].copy()), torch.from_numpy(kept.y))
    people = torch.arange(12)
    torch.testing.assert_close(got(people), by_hand(people))
    assert (got(people) - model(people)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["numbers", "users"])
def test_a_collapse_is_told_by_the_quality_of_the_best_constant_answer(request, kind):
    one: Sets = request.getfixturevalue(kind)
    rate, epochs = (0.1, 40) if kind == "numbers" else (1.0, 1000)
    with pytest.raises(Diverged, match=r"best constant answer|not finite|loss"):
        gradient_ascent(one.model, **one.sets, config=GradientAscentConfig(lr=rate, epochs=epochs), seed=0)


def test_no_constant_answer_is_better_than_the_best_one(numbers, users):
    data, task = numbers.retain, numbers.retain.task
    best = task.constant_quality(data)
    tried = [
        task.reading_of(np.full((len(data), 1), c), data.y, data.constants).quality.mean()
        for c in np.linspace(data.y.min(), data.y.max(), 500)
    ]
    assert max(tried) - 0.005 < best < 1 and best < read(numbers.model, data).quality.mean()
    assert 0 < users.retain.task.constant_quality(users.retain) < read(users.model, users.retain).quality.mean()
    labels = dataclasses.replace(
        data, task="classification", y=(np.arange(len(data)) % 3 > 0).astype(np.int64), class_names=("a", "b")
    )
    assert labels.task.constant_quality(labels) == labels.y.mean()


def test_a_pass_over_two_sets_gives_each_example_its_own_inputs_and_targets(users, numbers):
    for one in (users, numbers):
        parts = [inputs_of(one.model, data) for data in (one.forget, one.retain)]
        both = Pass.over(parts[0], weight=2.0).together_with(Pass.over(parts[1]))
        rows = torch.from_numpy(np.random.default_rng(0).permutation(len(both))[:30])
        batch = both.batch(rows)
        assert isinstance(batch, Batch) and len(batch) == 30
        for place, row in enumerate(rows.tolist()):
            part, own = (parts[0], row) if row < len(parts[0]) else (parts[1], row - len(parts[0]))
            alone = part.batch(torch.tensor([own]))
            assert torch.equal(batch.inputs[place], alone.inputs[0])
            assert torch.equal(batch.targets[place], alone.targets[0])
            assert batch.example_id[place] == alone.example_id[0]


def test_what_is_refused(numbers, users, world):
    config = FinetuneConfig(epochs=1)
    with pytest.raises(NotApplicable, match="regression task, the forget set a classification task"):
        finetune(numbers.model, retain=numbers.retain, forget=world.forget, config=config, seed=0)
    bad = dataclasses.replace(numbers.forget, y=np.where(np.arange(24) == 3, np.inf, numbers.forget.y))
    with pytest.raises(DataError, match="not finite") as error:
        finetune(numbers.model, retain=numbers.retain, forget=bad, config=config, seed=0)
    assert error.value.example_ids == (numbers.forget.example_id[3],)
    method = unlearner.get("random_label")
    for one in (numbers, users):
        with pytest.raises(NotApplicable, match="one of K classes"):
            method(one.model, **one.sets, config=method.spec.config(), seed=0)
    assert named("regression").gives(*unlearner.get("finetune").spec.wants)
