"""Pruning, l1-sparse and unlearning under a pruning mask."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from contracts.errors import ConfigError, InvalidInput, NotApplicable
from contracts.methods import RecipeSpec, unlearner
from contracts.params import references
from contracts.progress import silent
from contracts.registry import Method
from palimpsest.testing.worlds import images, numbers
from recipes.models import builder
from recipes.rng import local_rng
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from unlearning.finetune import FinetuneConfig, finetune, finetune_plan
from unlearning.masked import descend_masked, unlearn_masked
from unlearning.masks import density
from unlearning.sparsity.l1_sparse import L1SparseConfig, gamma_of, l1_penalty, l1_sparse
from unlearning.sparsity.measures import near_zero, sparsity, weight_distance
from unlearning.sparsity.prune_then_unlearn import (
    PruneThenUnlearnConfig,
    PruningConfig,
    joined,
    prune_then_unlearn,
    rounds_of,
    sparse_model,
)
from unlearning.sparsity.pruning import (
    apply_mask,
    iterative_magnitude_prune,
    kept,
    magnitude_mask,
    moved,
    prunable,
    random_mask,
    synflow_mask,
    synflow_scores,
    train_masked,
)

HARSH = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "epochs": 3, "batch": 16}


@pytest.fixture(scope="module")
def trainer():
    build = builder("mlp", {"hidden": (16, 8)}, input_shape=(6,), num_outputs=4)
    config = SupervisedConfig(lr=0.1, momentum=0.9, weight_decay=0.01, batch=32, epochs=4)
    return Trainer(recipe="supervised", build=build, config=config)


@pytest.fixture(scope="module")
def everything(world):
    return joined(world.retain, world.forget)


def weights(model: nn.Module, names) -> torch.Tensor:
    own = dict(model.named_parameters())
    return torch.cat([own[name].detach().flatten() for name in names])


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---- which weights ----------------------------------------------------------------------------------------------


def test_what_is_pruned():
    model = images().needs["model"]
    assert prunable(model) == ("conv1.weight", "conv2.weight", "hidden.weight")
    assert prunable(model, layers="conv") == ("conv1.weight", "conv2.weight")
    assert prunable(model, last_layer=True)[-1] == "head.weight"
    with pytest.raises(NotApplicable, match="no weight to prune"):
        prunable(nn.Sequential(nn.Linear(2, 2)))
    tied = nn.Module()
    tied.table, tied.one, tied.last = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
    tied.one.weight = tied.table.weight
    with pytest.raises(NotApplicable):
        prunable(tied)


@pytest.mark.parametrize("asked", [0.0, 0.2, 0.5, 0.95, 0.99])
def test_the_sparsity_is_that_asked_for(trainer, asked):
    model = trainer.build(0)
    names = prunable(model)
    size = len(weights(model, names))
    for mask in (
        magnitude_mask(model, names, kept(size, asked)),
        random_mask(model, names, kept(size, asked), seed=1),
        synflow_mask(model, names, asked, input_shape=(6,)),
    ):
        pruned = apply_mask(copy.deepcopy(model), mask)
        assert abs(sparsity(pruned, names) - asked) <= 1 / size
        assert abs(1 - density(mask) - asked) <= 1 / size
        assert moved(pruned, mask) == 0
    with pytest.raises(InvalidInput, match="sparsity"):
        kept(10, 1.5)


def test_magnitude_is_ranked_over_all_layers_together(trainer):
    model = trainer.build(0)
    with torch.no_grad():
        model.hidden[0].weight.mul_(100)
    names = prunable(model)
    size = model.hidden[0].weight.numel()
    mask = magnitude_mask(model, names, size)
    # by layer, half of each would stay
    assert int(mask["hidden.0.weight"].sum()) > 0.95 * size
    flat, chosen = weights(model, names).abs(), torch.cat([mask[n].flatten() for n in names])
    assert flat[chosen].min() >= flat[~chosen].max()


def test_random_masks_come_from_the_seed(trainer):
    model = trainer.build(0)
    names = prunable(model)
    a, b, c = (random_mask(model, names, 50, seed=s)["hidden.0.weight"] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


# ---- SynFlow ----------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Convolutions and linear maps with ReLUs, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.hidden = nn.Linear(6 * 16, 12, bias=False)
        self.head = nn.Linear(12, 3, bias=False)

    def forward(self, x):
        return self.head(self.hidden(self.conv2(self.conv1(x).relu()).relu().flatten(1)).relu())


def plain(seed: int = 0) -> nn.Module:
    with local_rng(seed):
        return Plain()


def test_synflow_conserves_its_flow_through_every_layer():
    model = plain()
    scores = synflow_scores(model, (1, 8, 8))
    sums = [float(s.sum()) for s in scores.values()]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-4)
    signed = [float(p.detach().sum()) for p in model.parameters()]
    assert max(signed) > 0 > min(signed)  # the absolute values matter


def test_synflow_keeps_the_signs_to_the_bit():
    model = plain(1)
    before = copy.deepcopy(model)
    synflow_mask(model, prunable(model), 0.9, input_shape=(1, 8, 8), rounds=10)
    assert equal(model, before) and all(p.grad is None for p in model.parameters())
    assert any(bool((p < 0).any()) for p in model.parameters())


@pytest.mark.parametrize("seed", range(5))
def test_synflow_never_empties_a_layer_where_single_shot_magnitude_does(seed):
    model = plain(seed)
    with torch.no_grad():
        model.conv1.weight.mul_(0.01)
    names = prunable(model)
    size = len(weights(model, names))
    flow = synflow_mask(model, names, 0.99, input_shape=(1, 8, 8))
    assert all(bool(m.any()) for m in flow.values())
    single = magnitude_mask(model, names, kept(size, 0.99))
    assert not bool(single["conv1.weight"].any())


def test_batch_statistics_do_not_reach_synflow():
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = synflow_scores(model, (5,))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    np.testing.assert_allclose(float(scores["0.weight"].sum()), float(scores["3.weight"].sum()), rtol=1e-4)


def test_synflow_says_where_nothing_flows():
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head((self.one(x) * 0).relu())

    with pytest.raises(NotApplicable, match="nothing flows"):
        synflow_mask(Dead(), ("one.weight",), 0.5, input_shape=(3,))


# ---- training under a mask --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_pruned_weights_are_zero_from_the_first_step_to_the_last(trainer, everything, optimizer):
    momentum = {"momentum": 0.0} if optimizer == "adamw" else {}
    config = dataclasses.replace(trainer.config, optimizer=optimizer, lr=0.05, **momentum)
    own = dataclasses.replace(trainer, config=config)
    names = prunable(own.build(0))
    mask = random_mask(own.build(0), names, 60, seed=0)
    found = train_masked(own, everything, 3, mask)
    assert moved(found, mask) == 0 and sparsity(found, names) == pytest.approx(1 - density(mask))
    start = own.build(3)
    changed = [
        (dict(start.named_parameters())[n] != p)[mask.get(n, torch.ones_like(p) > 0)]
        for n, p in found.named_parameters()
    ]
    assert torch.cat([c.flatten() for c in changed]).float().mean() > 0.8
    assert all(not p._backward_hooks for p in found.parameters())


def test_a_mask_of_everything_trains_as_the_recipe_does(trainer, everything):
    names = prunable(trainer.build(0))
    whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in trainer.build(0).named_parameters() if n in names}
    assert equal(train_masked(trainer, everything, 5, whole), trainer.one(everything, 5))


def test_a_start_from_the_own_initialisation_is_no_start(trainer, everything):
    names = prunable(trainer.build(0))
    mask = random_mask(trainer.build(0), names, 60, seed=0)
    fresh = train_masked(trainer, everything, 5, mask)
    assert equal(train_masked(trainer, everything, 5, mask, origin=trainer.build(5)), fresh)
    other = train_masked(trainer, everything, 5, mask, origin=trainer.build(6))
    assert not equal(other, fresh)


def test_a_number_to_predict_is_taken_up_where_it_was_left():
    # weights in the target's units are put back into the units of training: else the first steps would ruin them
    world = numbers()
    data, trainer = (
        world.train.by_id(),
        dataclasses.replace(world.trainer, config=dataclasses.replace(world.trainer.config, epochs=1, lr=1e-7)),
    )
    model = world.needs["model"]
    names = prunable(model)
    whole = {n: torch.ones_like(dict(model.named_parameters())[n], dtype=torch.bool) for n in names}
    found = train_masked(trainer, data, 0, whole, origin=model)
    for p, q in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_recipe_that_trains_a_copy_is_refused(trainer, everything):
    def copying(build, data, *, config, seed):
        return dataclasses.replace(trainer, build=lambda s: copy.deepcopy(build(s))).one(data, seed)

    spec = RecipeSpec(name="copying", doc="Trains a copy.", wants=("losses", "features"), config=SupervisedConfig)
    own = dataclasses.replace(trainer, recipe=Method(spec, copying))
    mask = random_mask(trainer.build(0), prunable(trainer.build(0)), 60, seed=0)
    with pytest.raises(NotApplicable, match="copying cannot train a pruned model"):
        train_masked(own, everything, 0, mask)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_sparsity_of_rounds(trainer, everything, rounds):
    names = prunable(trainer.build(0))
    size = len(weights(trainer.build(0), names))
    short = dataclasses.replace(trainer, config=dataclasses.replace(trainer.config, epochs=1))
    dense = short.one(everything, 1)
    model, mask = iterative_magnitude_prune(short, everything, 1, dense=dense, names=names, rate=0.2, rounds=rounds)
    assert abs(sparsity(model, names) - (1 - 0.8**rounds)) <= 1 / size
    first = magnitude_mask(dense, names, kept(size, 0.2))
    assert not any(bool((mask[n] & ~first[n]).any()) for n in names)  # what has gone does not come back
    if rounds == 1:
        assert equal(model, train_masked(short, everything, 1, first))


def test_rounds_of_a_rate():
    assert rounds_of(0.95, 0.2) == 14 and pytest.approx(0.956, abs=1e-3) == 1 - 0.8**14
    assert rounds_of(0.5, 0.5) == 1 and rounds_of(0.75, 0.5) == 2 and rounds_of(0.76, 0.5) == 3


@pytest.mark.parametrize("start", ["rewind", "lt", "pt"])
def test_what_the_sparse_model_starts_from(trainer, everything, world, start):
    names = prunable(trainer.build(0))
    given = trainer.one(everything, 77)
    config = PruningConfig(pruner="omp", prune_type=start, sparsity=0.6, rewind_epoch=2)
    model, mask = sparse_model(trainer, everything, 4, config=config, dense=given)
    epochs = {"rewind": [2, None], "lt": [None], "pt": [None]}[start]
    runs = trainer.snapshots(everything, members=[np.arange(len(everything))], seeds=[4], epochs=epochs)
    dense = given if start == "pt" else runs[-1][0]
    size = len(weights(dense, names))
    expected = magnitude_mask(dense, names, kept(size, 0.6))
    assert all(torch.equal(mask[n], expected[n]) for n in names)
    origin = {"rewind": runs[0][0], "lt": None, "pt": given}[start]
    assert equal(model, train_masked(trainer, everything, 4, expected, origin=origin))


@pytest.mark.parametrize("pruner", ["imp", "synflow", "random"])
def test_the_other_pruners(trainer, everything, pruner):
    short = dataclasses.replace(trainer, config=dataclasses.replace(trainer.config, epochs=1))
    config = PruningConfig(pruner=pruner, prune_type="lt", sparsity=0.5, synflow_rounds=10)
    model, mask = sparse_model(short, everything, 4, config=config)
    names, asked = prunable(model), 1 - 0.8**4 if pruner == "imp" else 0.5
    assert abs(sparsity(model, names) - asked) <= 1 / len(weights(model, names))
    assert moved(model, mask) == 0
    with pytest.raises(NotApplicable, match="none is given"):
        sparse_model(short, everything, 4, config=PruningConfig(prune_type="pt"))


# ---- prune, then unlearn ----------------------------------------------------------------------------------------


def test_it_is_the_unlearner_on_the_sparse_model_under_its_mask(trainer, world):
    def run(name: str, **fields):
        config = PruneThenUnlearnConfig.from_mapping(
            {"unlearner": {"name": name, "config": fields}, "sparsity": 0.7, "rewind_epoch": 1}
        )
        return prune_then_unlearn(dense, **world.sets, config=config, seed=2, recipe=trainer)

    dense = trainer.one(joined(world.retain, world.forget), 0)
    sparse, tuned, retrained = run("none"), run("finetune", **HARSH), run("retrain")
    names = prunable(sparse)
    mask = {n: dict(sparse.named_parameters())[n] != 0 for n in names}
    assert abs(sparsity(sparse, names) - 0.7) <= 1 / len(weights(sparse, names))
    plan = finetune_plan(sparse, **world.sets, config=FinetuneConfig(**HARSH), seed=2)
    assert equal(tuned, descend_masked(plan, sparse, mask, progress=silent))
    # the reference: the same mask, fresh weights, without the forgotten
    assert equal(retrained, train_masked(trainer, world.retain.by_id(), 2, mask))
    assert moved(retrained, mask) == 0
    assert not equal(retrained, sparse)


@pytest.mark.parametrize("name", ["finetune", "gradient_ascent"])
def test_pruned_weights_stay_zero_through_momentum_and_decay(world, name):
    names = prunable(world.model)
    mask = magnitude_mask(world.model, names, 40)
    sparse = apply_mask(copy.deepcopy(world.model), mask)
    method = unlearner.get(name)
    config = method.spec.config(**{**HARSH, "lr": 0.001})
    under = unlearn_masked(method, sparse, **world.sets, config=config, seed=0, mask=mask, progress=silent)
    assert moved(under, mask) == 0
    assert moved(method(sparse, **world.sets, config=config, seed=0), mask) > 0  # the mutant without a mask


def test_which_unlearners_can_be_named(trainer, world):
    for name in ("prune_then_unlearn", "flat"):
        config = PruneThenUnlearnConfig.from_mapping({"unlearner": name})
        with pytest.raises(NotApplicable, match="takes no mask"):
            prune_then_unlearn(world.model, **world.sets, config=config, seed=0, recipe=trainer)
    with pytest.raises(ConfigError, match="unlearner"):
        PruneThenUnlearnConfig.from_mapping({"unlearner": {"name": "finetune", "config": {"lr": 7}}})
    found = PruneThenUnlearnConfig.from_mapping({"unlearner": "salun"})
    assert [(r.path, r.kind, r.name) for r in references(found)] == [("unlearner", "unlearner", "salun")]


def test_two_parts_joined_are_the_whole(world):
    both = joined(world.retain, world.forget)
    assert (np.diff(both.example_id) > 0).all() and len(both) == len(world.retain) + len(world.forget)
    rows = both.positions(world.forget.example_id)
    np.testing.assert_array_equal(both.inputs(rows), world.forget.inputs(slice(None)))
    np.testing.assert_array_equal(both.y[rows], world.forget.y)
    nobody = world.forget.subset([])
    assert joined(world.retain, nobody).digest == world.retain.digest == joined(nobody, world.retain).digest


# ---- l1-sparse --------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_penalty_is_gamma_times_the_sign():
    p = {"w": torch.tensor([1.5, -2.0, 0.0, 0.0], requires_grad=True), "b": torch.tensor([-1.0], requires_grad=True)}
    penalty = l1_penalty(p, 0.3)
    assert float(penalty.detach()) == pytest.approx(0.3 * 4.5)
    penalty.backward()
    assert torch.equal(p["w"].grad, 0.3 * torch.tensor([1.0, -1.0, 0.0, 0.0]))
    assert torch.equal(p["b"].grad, torch.tensor([-0.3]))


def test_the_schedules():
    def of(schedule: str, none: int = 0) -> list[float]:
        config = L1SparseConfig(gamma=1.0, epochs=4, schedule=schedule, no_l1_epochs=none)
        return [gamma_of(e, config) for e in range(4)]

    assert of("decreasing") == [1.0, 0.75, 0.5, 0.25]
    assert of("increasing") == of("decreasing")[::-1]
    assert of("constant", none=1) == [1.0, 1.0, 1.0, 0.0]
    assert of("decreasing", none=2) == [1.0, 0.5, 0.0, 0.0]
    assert of("decreasing", none=9) == [0.0] * 4


def test_without_a_penalty_it_is_fine_tuning(world):
    got = l1_sparse(world.model, **world.sets, config=L1SparseConfig(gamma=0.0, **HARSH), seed=6)
    assert equal(got, finetune(world.model, **world.sets, config=FinetuneConfig(**HARSH), seed=6))
    with_penalty = l1_sparse(world.model, **world.sets, config=L1SparseConfig(gamma=1e-2, **HARSH), seed=6)
    assert not equal(got, with_penalty)


@pytest.mark.parametrize("schedule", ["decreasing", "constant", "increasing"])
def test_it_equals_a_naive_loop(world, schedule):
    config = L1SparseConfig(
        lr=0.05, epochs=3, batch=400, momentum=0.0, weight_decay=0.0, gamma=0.02, schedule=schedule, no_l1_epochs=1
    )
    got = l1_sparse(world.model, **world.sets, config=config, seed=0)
    twin = copy.deepcopy(world.model)
    x, y = torch.from_numpy(world.retain.inputs(slice(None))), torch.from_numpy(world.retain.y)
    for epoch in range(3):
        gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), gradients, strict=True):
                p.sub_(0.05 * (g + gamma_of(epoch, config) * torch.sign(p)))
    for p, q in zip(got.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_penalty_makes_weights_small_and_not_zero(world):
    config = L1SparseConfig(gamma=0.02, lr=0.05, epochs=30, batch=32)
    got = l1_sparse(world.model, **world.sets, config=config, seed=0)
    assert near_zero(got, threshold=0.01) > 0.3 > near_zero(world.model, threshold=0.01)
    assert sparsity(got) < 0.05


@pytest.mark.parametrize(("epochs", "every"), [(4, 2), (5, 2), (6, 3), (3, 1)])
def test_the_bilevel_variant_prunes_to_what_is_asked(world, epochs, every):
    config = L1SparseConfig(prune_to=0.6, prune_every=every, epochs=epochs, lr=0.02, batch=32, gamma=1e-4)
    got = l1_sparse(world.model, **world.sets, config=config, seed=0)
    names = prunable(got)
    assert abs(sparsity(got, names) - 0.6) <= 1 / len(weights(got, names))
    with pytest.raises(ConfigError, match="prune_every"):
        L1SparseConfig(prune_to=0.5, epochs=1)


# ---- measures ---------------------------------------------------------------------------------------------------


def test_measures():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        for model, value in ((a, 1.0), (b, 4.0)):
            model.weight.fill_(value)
            model.bias.fill_(0.0)
        a.weight[0, 0] = 0.0
        a.weight[0, 1] = 5e-4
    assert sparsity(a) == 3 / 6 and sparsity(a, ["weight"]) == 1 / 4
    assert near_zero(a, ["weight"]) == 2 / 4
    assert weight_distance(a, a) == 0
    mask = {"weight": torch.tensor([[False, False], [True, True]])}
    assert weight_distance(a, b, mask=mask) == pytest.approx(18**0.5)
    assert weight_distance(a, b) > weight_distance(a, b, mask=mask)
    with pytest.raises(InvalidInput, match="no parameter"):
        sparsity(a, ["other"])
    with pytest.raises(InvalidInput, match="other parameters"):
        weight_distance(a, nn.Linear(3, 2))
