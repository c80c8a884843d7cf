from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError
from recipes.schedule import (
    SupervisedConfig,
    batches_of,
    epoch_order,
    epochs_to_train,
    learning_rates,
    num_epochs,
    num_steps,
)


def _all(config, steps):
    return np.concatenate([learning_rates(config, steps=steps, epoch=e) for e in range(config.epochs)])


def test_cosine_equals_torchs_scheduler_stepped_every_batch():
    config = SupervisedConfig(lr=0.3, epochs=7, schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7 * 5)
    expected = []
    for _ in range(35):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert np.allclose(_all(config, 5), expected, rtol=1e-9, atol=1e-12)


def test_polynomial_equals_torchs_scheduler_stepped_every_batch():
    config = SupervisedConfig(lr=0.3, epochs=7, schedule="polynomial")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=35, power=0.9)
    expected = []
    for _ in range(35):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates = np.concatenate([learning_rates(config, steps=5, epoch=e) for e in range(7)])
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_warm_up_is_linear_then_cosine_over_the_rest():
    rates = _all(SupervisedConfig(lr=1.0, epochs=5, warmup_epochs=2), 3)
    assert np.allclose(rates[:6], np.arange(1, 7) / 6)
    assert np.allclose(rates[6:], [(1 + math.cos(math.pi * t / 9)) / 2 for t in range(9)])


def test_multistep_drops_at_its_milestones():
    config = SupervisedConfig(lr=1.0, epochs=5, schedule="multistep", milestones=(1, 3), gamma=0.1)
    assert np.allclose(_all(config, 2), np.repeat([1, 0.1, 0.1, 0.01, 0.01], 2))
    assert np.array_equal(_all(SupervisedConfig(lr=0.2, epochs=3, schedule="constant"), 2), np.full(6, 0.2))


WHOLE = {
    "cosine": SupervisedConfig(lr=0.3, epochs=7, warmup_epochs=2),
    "polynomial": SupervisedConfig(lr=0.3, epochs=7, schedule="polynomial", warmup_epochs=2),
    "multistep": SupervisedConfig(
        lr=0.3, epochs=7, schedule="multistep", milestones=(2, 5), gamma=0.3, warmup_epochs=1
    ),
    "constant": SupervisedConfig(lr=0.3, epochs=7, schedule="constant"),
}


@pytest.mark.parametrize("name", sorted(WHOLE))
@given(num=st.integers(1, 200), other=st.integers(1, 200), batch=st.integers(1, 70), length=st.integers(1, 90))
def test_a_run_of_steps_has_one_schedule_whatever_the_size_of_the_set(name, num, other, batch, length):
    config = dataclasses.replace(WHOLE[name], batch=batch, steps=length)

    def rates(examples):
        steps = num_steps(examples, config)
        return np.concatenate(
            [learning_rates(config, steps=steps, epoch=e) for e in range(num_epochs(examples, config))]
        )

    assert len(rates(num)) == length and np.array_equal(rates(num), rates(other))
    assert (rates(num) <= 0.3).all() and (rates(num) >= 0).all()
    # As many steps as the run by epochs has: the same rates, bit for bit.
    by_epochs = dataclasses.replace(config, steps=None)
    steps = num_steps(num, config)
    config = dataclasses.replace(config, steps=7 * steps)
    assert num_epochs(num, config) == num_epochs(num, by_epochs) == 7
    assert np.array_equal(rates(num), _all(by_epochs, steps))


@given(st.integers(1, 300), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_and_a_function_of_seed_and_epoch(num, seed, epoch):
    order = epoch_order(num, seed=seed, epoch=epoch)
    assert torch.equal(order.sort().values, torch.arange(num))
    assert torch.equal(order, epoch_order(num, seed=seed, epoch=epoch))


def test_orders_of_other_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed=s, epoch=e).tolist()) for s in range(5) for e in range(5)}
    assert len(orders) == 25


@given(st.integers(1, 1000), st.integers(1, 70))
def test_the_last_short_batch_counts_as_a_step(num, batch):
    config = SupervisedConfig(batch=batch)
    assert (num_steps(num, config) - 1) * batch < num <= num_steps(num, config) * batch


@given(st.integers(1, 1000), st.integers(1, 70), st.sampled_from([1, 2]))
def test_batches_cover_an_epoch_and_none_is_too_small(num, batch, smallest):
    config = SupervisedConfig(batch=batch)
    batches = batches_of(num, config, smallest=smallest)
    assert [i for part in batches for i in range(num)[part]] == list(range(num))
    assert len(batches) == num_steps(num, config, smallest=smallest)
    assert all(part.stop - part.start == batch for part in batches[:-1])
    if num % batch != 1 or smallest == 1 or batch == 1 or num == 1:
        former = [slice(at, min(at + batch, num)) for at in range(0, num, batch)]
        assert batch == 1 or batches == former, "other networks keep their batches"
    else:
        assert batches[-1].stop - batches[-1].start == batch + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"nesterov": True, "momentum": 0.0},
        {"nesterov": True, "optimizer": "adamw"},
        {"warmup_epochs": 80, "epochs": 80},
        {"schedule": "multistep"},
        {"milestones": (3,)},
        {"schedule": "multistep", "milestones": (5, 3)},
        {"schedule": "multistep", "milestones": (80,), "epochs": 80},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"batch": 0},
        {"label_smoothing": 1.0},
        {"grad_clip": 0.0},
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError, match="SupervisedConfig"):
        SupervisedConfig(**fields)


def test_stop_after_lies_within_the_schedule():
    assert [epochs_to_train(4, s) for s in (None, 0, 4)] == [4, 0, 4]
    for wrong in (-1, 5):
        with pytest.raises(ConfigError, match="stop_after"):
            epochs_to_train(4, wrong)
