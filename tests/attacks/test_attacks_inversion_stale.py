"""Inversion of a stale update: exact on the client's own data, near on synthetic data, better the longer and the
warmer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from inversion_helpers import BOX, net_of, victims

from attacks.gradient_inversion import Inverted, LocalTraining, StaleConfig, invert_update, share, unstale
from contracts.errors import ConfigError, DataError, InvalidInput

LOCAL = LocalTraining(steps=3, lr=0.1)
CONFIG = StaleConfig(steps=200, lr=0.05)


@pytest.fixture(scope="module")
def world():
    """Two clients of twelve examples of one class each, and nets of the old and the current model for sets of six."""
    plain = {"hidden": [12], "activation": "gelu"}
    client = net_of(config=plain, batch=12)
    x, y = victims(client, 2)
    y = y[:, :1].expand(-1, 12)
    old = net_of(config=plain, batch=6)
    update, _ = share(client, x, y, seeds=[0, 1], local=LOCAL)
    current = net_of(config=plain, batch=6, seed=5)
    return client, old, current, x, y, update


def relative(found, truth):
    """L1 distance of updates over the L1 norm of the true one, a client."""
    gap = sum((found[n] - t).abs().flatten(1).sum(1) for n, t in truth.items())
    return gap / sum(t.abs().flatten(1).sum(1) for t in truth.values())


def invert(world, config=CONFIG, **more):
    _, old, _, _, _, update = world
    return invert_update(old, update.tensors, local=LOCAL, box=BOX, config=config, seeds=[7, 8], **more)


@pytest.fixture(scope="module")
def found(world):
    """The full inversion from noise."""
    return invert(world)


def test_the_synthetic_set_trains_as_the_clients_did_from_the_old_weights(world, found):
    _, old, _, _, y, update = world
    again = unstale(old, found, local=LOCAL)
    error = relative(again, update.tensors)
    torch.testing.assert_close(error, found.distance, rtol=1e-3, atol=1e-5)  # no staleness: the inversion's own error
    assert error.max() < 0.05
    assert torch.equal(found.targets.mean(1).argmax(-1), y[:, 0]), "the client's class shows in the labels"
    assert (found.x >= 0).all() and (found.x <= 1).all()
    torch.testing.assert_close(found.targets.sum(-1), torch.ones(2, 6))


def test_it_estimates_the_update_of_the_current_model_better_than_the_stale_one(world, found):
    _, _, current, x, y, update = world
    fresh = net_of(config={"hidden": [12], "activation": "gelu"}, batch=12, seed=5)
    truth, _ = share(fresh, x, y, seeds=[0, 1], local=LOCAL)
    estimate = unstale(current, found, local=LOCAL)
    assert (relative(estimate, truth.tensors) < relative(update.tensors, truth.tensors) / 2).all()


def test_the_clients_own_data_give_its_fresh_update_exactly(world):
    _, _, _, x, y, _ = world
    fresh = net_of(config={"hidden": [12], "activation": "gelu"}, batch=12, seed=5)
    truth, _ = share(fresh, x, y, seeds=[0, 1], local=LOCAL)
    nothing = torch.zeros(2)
    own = Inverted(x, (), F.one_hot(y, 3).float(), nothing, nothing, nothing.long())
    found = unstale(fresh, own, local=LOCAL)
    assert max((found[n] - t).abs().max().item() for n, t in truth.tensors.items()) < 1e-6


def test_a_warm_start_goes_on_where_the_last_one_ended(world, found):
    short = dataclasses.replace(CONFIG, steps=5)
    warm, cold = invert(world, short, warm=found), invert(world, short)
    assert (warm.distance <= found.distance * 1.01).all() and (warm.distance < cold.distance / 2).all()


@pytest.mark.parametrize("distance", ["cosine", "squared"])
def test_other_distances(world, distance):
    _, old, _, _, _, update = world
    again = unstale(old, invert(world, dataclasses.replace(CONFIG, distance=distance, steps=120)), local=LOCAL)
    flat = [torch.cat([t.flatten(1) for t in tensors.values()], 1) for tensors in (again, update.tensors)]
    assert F.cosine_similarity(*flat).min() > 0.99


def test_a_sparse_match_follows_the_direction_with_a_larger_error(world, found):
    _, old, _, _, _, update = world
    sparse = unstale(old, invert(world, dataclasses.replace(CONFIG, keep=0.1)), local=LOCAL)
    full = unstale(old, found, local=LOCAL)
    flat = [torch.cat([t.flatten(1) for t in tensors.values()], 1) for tensors in (sparse, update.tensors)]
    assert F.cosine_similarity(*flat).min() > 0.8
    assert (relative(sparse, update.tensors) > relative(full, update.tensors)).all()


def test_what_does_not_fit_is_refused(world):
    _, old, _, _, _, update = world
    args = {"box": BOX, "config": CONFIG}
    with pytest.raises(InvalidInput, match="local"):
        invert_update(old, update.tensors, local=LocalTraining(), seeds=[1, 2], **args)
    with pytest.raises(InvalidInput, match="seeds"):
        invert_update(old, update.tensors, local=LOCAL, seeds=[1], **args)
    broken = {n: t * torch.nan for n, t in update.tensors.items()}
    with pytest.raises(DataError, match="not finite"):
        invert_update(old, broken, local=LOCAL, seeds=[1, 2], **args)
    with pytest.raises(InvalidInput, match="warm"):
        small = Inverted(torch.zeros(2, 1, 1, 4, 4), (), torch.ones(2, 1, 3) / 3, *[torch.zeros(2)] * 3)
        invert(world, warm=small)
    with pytest.raises(ConfigError, match="keep"):
        StaleConfig(keep=0.0)
