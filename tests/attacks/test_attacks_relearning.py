"""Relearning: against a plain loop, on planted knowledge, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from shadow_world import Subject, gaussians

from attacks.relearning import Relearning, relearn
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from sources.example_set import ExampleSet
from tasks.signals import log_odds


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(gaussians(160, spread=2.0))


def split(data: ExampleSet) -> tuple[ExampleSet, np.ndarray]:
    """Training and test examples side by side, and which are from training."""
    both = data.subset(np.sort(data.example_id))
    return both, both.split == "train"


def test_it_is_gradient_descent_on_the_mean_of_both_groups(subject: Subject) -> None:
    data, forgotten = split(subject.data)
    data, forgotten = data.subset(data.example_id[:50]), forgotten[:50]
    model = subject.build(0).double()
    found = relearn(model, data, forgotten, steps=4, lr=0.1, momentum=0.9)
    student, velocity = subject.build(0).double(), None
    x, y = torch.from_numpy(data.inputs(slice(0, 50))).double(), torch.from_numpy(data.y)
    mask = torch.from_numpy(forgotten)
    for step in range(5):
        losses = torch.nn.functional.cross_entropy(student(x), y, reduction="none")
        phi = log_odds(student(x).detach().numpy(), data.y)
        np.testing.assert_allclose(found.phi[step], phi, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(0.5 * losses[mask].mean() + 0.5 * losses[~mask].mean(), student.parameters())
        velocity = (
            list(gradients) if velocity is None else [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        )
        with torch.no_grad():
            for p, v in zip(student.parameters(), velocity, strict=True):
                p -= 0.1 * v
    np.testing.assert_allclose(found.area, found.phi[1:].mean(axis=0))
    assert found.quality[found.phi > 0].all() and 0 < found.quality.mean() < 1


def test_blocks_of_any_size_give_the_same(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    data, forgotten = split(subject.data)
    model = subject.build(0).double()
    whole = relearn(model, data, forgotten, steps=3)
    monkeypatch.setattr("attacks.relearning._BLOCK", 7)
    np.testing.assert_allclose(relearn(model, data, forgotten, steps=3).phi, whole.phi, rtol=1e-5, atol=1e-6)


def test_what_the_model_still_knows_comes_back_first(subject: Subject) -> None:
    """Damage to the output layer hides knowledge; training examples then come back before test examples, and never-seen
    do not."""
    data, forgotten = split(subject.data)
    train = data.part("train")
    gaps = []
    for seed in range(3):
        trained, fresh = subject.train(train, seed), subject.build(100 + seed)
        with torch.no_grad():
            trained.head.weight.mul_(0.1)
        gaps.append(
            [
                found.area[forgotten].mean() - found.area[~forgotten].mean()
                for found in (relearn(m, data, forgotten, steps=20, lr=0.02) for m in (trained, fresh))
            ]
        )
    hidden, new = np.array(gaps).T
    assert (hidden > 0.2).all() and (np.abs(new) < 0.5 * hidden.min()).all()


def test_steps_are_counted_to_the_first_that_reaches_the_accuracy() -> None:
    correct = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [1, 0, 1]], dtype=bool)
    found = Relearning(phi=np.zeros((4, 3)), quality=correct.astype(float))
    group = np.array([True, True, False])
    assert [found.steps_to(a, group) for a in (0.0, 0.5, 1.0)] == [0, 1, 2]
    assert found.steps_to(1.0, ~group) == 0
    assert (
        Relearning(phi=np.zeros((4, 3)), quality=(~correct).astype(float)).steps_to(1.0, ~group) == 4
    )  # never: budget + 1
    with pytest.raises(DataError, match="empty"):
        found.steps_to(1.0, np.zeros(3, dtype=bool))


def test_the_model_and_the_global_generator_are_left_alone(subject: Subject) -> None:
    data, forgotten = split(subject.data)
    model = subject.build(0).train()
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    first, second = (relearn(model, data, forgotten, steps=2) for _ in range(2))
    assert np.array_equal(first.phi, second.phi) and torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def test_what_cannot_be_relearned_is_refused(subject: Subject) -> None:
    data, forgotten = split(subject.data)
    model = subject.build(0)
    for more in ({"steps": 0}, {"lr": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ConfigError):
            relearn(model, data, forgotten, **more)
    for mask in (forgotten[:-1], np.zeros_like(forgotten), np.ones_like(forgotten)):
        with pytest.raises(DataError):
            relearn(model, data, mask)
    y = data.y.copy()
    y[4] = 3
    with pytest.raises(DataError) as error:
        relearn(model, dataclasses.replace(data, y=y), forgotten)
    assert error.value.example_ids == (int(data.example_id[4]),)
    with pytest.raises(Diverged):
        relearn(model, data, forgotten, steps=50, lr=1e6)
    frozen = subject.build(0).requires_grad_(False)
    with pytest.raises(NotApplicable, match="no trainable parameter"):
        relearn(frozen, data, forgotten)
