"""The worst-case forget set: projection, both levels against naive loops, and planted easy and hard examples."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from polars.testing import assert_frame_equal
from scoring_data import as_regression, make_examples
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, InvalidInput, NotApplicable
from recipes.inputs import Inputs
from recipes.models import builder
from recipes.recsys import BprConfig, bpr
from recipes.schedule import SupervisedConfig, epoch_order
from recipes.supervised import supervised
from scoring.capped_simplex import project_capped_simplex
from scoring.lower_level import LOWER_LEVELS, sign_step, unlearn_weighted
from scoring.worst_case_forget import (
    WorstCaseForgetConfig,
    WorstCaseScoreConfig,
    losses_of,
    select_worst_case,
    worst_case_forget,
)
from sources.loading import load

# --- projection ---------------------------------------------------------------------------------------------------


def sorted_projection(a: np.ndarray, m: float) -> np.ndarray:
    """Walk down the breakpoints a_i and a_i - 1 of mu: the sum is linear between two of them."""
    points = np.unique(np.concatenate([a, a - 1.0]))
    sums = np.array([np.clip(a - mu, 0, 1).sum() for mu in points])
    above = np.flatnonzero(sums >= m)[-1]
    if above == len(points) - 1:
        return np.clip(a - points[above], 0, 1)
    part = (sums[above] - m) / (sums[above] - sums[above + 1]) if sums[above] > sums[above + 1] else 0.0
    return np.clip(a - (points[above] + part * (points[above + 1] - points[above])), 0, 1)


vectors = hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-50, 50))


@given(vectors, st.floats(0, 1))
def test_projection_equals_the_sorted_one(a: np.ndarray, share: float) -> None:
    m = share * len(a)
    found = project_capped_simplex(a, m)
    np.testing.assert_allclose(found, sorted_projection(a, m), atol=1e-6)
    assert found.sum() == pytest.approx(m, abs=1e-9) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(project_capped_simplex(found, m), found, atol=1e-9)


@given(vectors, st.integers(0, 2**32 - 1))
def test_projection_is_the_nearest_point(a: np.ndarray, seed: int) -> None:
    m = max(1, len(a) // 3)
    found = project_capped_simplex(a, m)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        other = project_capped_simplex(rng.normal(size=len(a)) * 3, m)
        assert np.square(found - a).sum() <= np.square(other - a).sum() * (1 + 1e-12) + 1e-9
    assert (np.diff(found[np.argsort(a, kind="stable")]) >= 0).all(), "order is kept"


def test_projection_of_large_numbers_and_of_ties() -> None:
    found = project_capped_simplex(np.array([1e9, 1e9, 1e9, -1e9]), 2)
    np.testing.assert_allclose(found, [2 / 3, 2 / 3, 2 / 3, 0], atol=1e-6)
    assert project_capped_simplex([5.0, 5.0], 0).tolist() == [0, 0]
    assert project_capped_simplex([5.0, 5.0], 2).tolist() == [1, 1]


@pytest.mark.parametrize(("a", "m"), [([1.0, np.nan], 1), ([1.0, np.inf], 1), ([[1.0]], 1), ([1.0], 2), ([1.0], -1)])
def test_projection_refuses(a, m) -> None:
    with pytest.raises(InvalidInput):
        project_capped_simplex(a, m)


# --- lower level --------------------------------------------------------------------------------------------------


def inputs_of(data) -> Inputs:
    return Inputs(data, dtype=torch.float32)


def naive_sign_sgd(model, data, weight, *, epochs, lr, batch, seed):
    """One pass after another with torch.optim's plain SGD on signed gradients of the weighted sum."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x, y = torch.from_numpy(data.inputs(slice(None))).double(), torch.from_numpy(data.y)
    for epoch in range(epochs):
        for rows in epoch_order(len(data), seed=seed, epoch=epoch).split(batch):
            optimizer.zero_grad()
            loss = sum(weight[i] * F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in rows.tolist())
            loss.backward()
            for p in model.parameters():
                p.grad = p.grad.sign()
            optimizer.step()
    return model


@pytest.mark.parametrize("planned", ["nothing", "some", "halves"])
def test_fine_tuning_equals_a_naive_loop(examples, mlp, planned) -> None:
    """With w = 0 it is signSGD on all examples; a common factor of 1 - w changes nothing. (In double precision: a
    gradient that rounds to the other side of 0 is a step in the other direction.)"""
    w = {"nothing": np.zeros(37), "some": (np.arange(37) % 3 == 0) * 1.0, "halves": np.full(37, 0.5)}[planned]
    weight = np.ones(37) if planned == "halves" else 1.0 - w
    options = {"epochs": 2, "lr": 1e-2, "batch": 7, "seed": 4}
    model, inputs = mlp(1).double(), Inputs(examples, dtype=torch.float64)
    found = unlearn_weighted(model, inputs, torch.from_numpy(w), lower="ft", **options)
    exact = naive_sign_sgd(model, examples, weight, **options)
    for a, b in zip(found.parameters(), exact.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) < 1e-9


def test_weights_of_one_leave_an_example_out(examples, mlp) -> None:
    """Whatever the label of a forgotten example says, the result is the same."""
    w = torch.zeros(37, dtype=torch.float64)
    w[5] = 1.0
    y = examples.y.copy()
    y[5] = (y[5] + 1) % 4
    both = [
        unlearn_weighted(mlp(0), inputs_of(d), w, lower="ft", epochs=2, lr=1e-2, batch=8, seed=0)
        for d in (examples, dataclasses.replace(examples, y=y))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in both), strict=True))


def test_sign_step() -> None:
    p, q = nn.Parameter(torch.tensor([1.0, -2.0, 0.0])), nn.Parameter(torch.tensor([3.0]))
    sign_step([p, q], (torch.tensor([5.0, 0.0, -1e-30]), None), lr=0.5)
    assert p.tolist() == [0.5, -2.0, 0.5] and q.tolist() == [3.0]
    # the L1 term can win inside the sign, and moves a parameter that the loss does not see
    sign_step([p, q], (torch.tensor([-0.1, 0.0, 0.1]), None), lr=0.5, l1=0.2)
    assert p.tolist() == [0.0, -1.5, 0.0] and q.tolist() == [2.5]


def test_starting_points_of_the_lower_levels(examples, mlp) -> None:
    w = torch.zeros(37, dtype=torch.float64)

    def run(model, lower, **more):
        options = {"epochs": 1, "lr": 1e-3, "batch": 37, "seed": 2, **more}
        return unlearn_weighted(model, inputs_of(examples), w, lower=lower, **options)

    # retrain forgets the audited weights, the others do not
    for lower in LOWER_LEVELS:
        one, two = (list(run(mlp(seed), lower).parameters()) for seed in (0, 1))
        same = [torch.equal(a, b) for a, b in zip(one, two, strict=True)]
        assert all(same) == (lower == "retrain"), lower
    # eu: everything below the output layer is as it was; the output layer starts anew, within Xavier's bounds
    body, head = (list(m.parameters()) for m in (mlp(0)[0], mlp(0)[2]))
    eu = run(mlp(0), "eu").requires_grad_(False)
    assert all(torch.equal(a, b) for a, b in zip(eu[0].parameters(), body, strict=True))
    assert float((eu[2].weight - head[0]).detach().abs().max()) > 0.05
    assert (
        float(eu[2].weight.abs().max()) <= (6 / (5 + 4)) ** 0.5 + 1e-3 and float(eu[2].bias.abs().max()) <= 1e-3 + 1e-9
    )
    # ft_l1 without a penalty is ft, with one it is smaller
    plain, free, tied = (
        torch.cat([p.detach().flatten() for p in run(mlp(0), lower, alpha=alpha, epochs=20).parameters()])
        for lower, alpha in (("ft", 1.0), ("ft_l1", 0.0), ("ft_l1", 1.0))
    )
    assert torch.equal(plain, free) and float(tied.abs().sum()) < float(free.abs().sum())


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(x + self.shift)


def test_what_cannot_be_reinitialised_is_refused(examples) -> None:
    model, w = BareParameter(), torch.zeros(37, dtype=torch.float64)
    with pytest.raises(NotApplicable, match="BareParameter"):
        unlearn_weighted(model, inputs_of(examples), w, lower="retrain", epochs=1, lr=0.1, batch=8, seed=0)
    unlearn_weighted(model, inputs_of(examples), w, lower="eu", epochs=1, lr=0.1, batch=8, seed=0)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(NotApplicable, match="trainable"):
        unlearn_weighted(model, inputs_of(examples), w, lower="ft", epochs=1, lr=0.1, batch=8, seed=0)


def test_batch_norm_takes_a_last_single_example(examples) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    w = torch.zeros(37, dtype=torch.float64)
    found = unlearn_weighted(model, inputs_of(examples), w, lower="ft", epochs=1, lr=1e-3, batch=12, seed=0)
    assert int(found[1].num_batches_tracked) == 3 and not found.training


@pytest.mark.parametrize("lower", LOWER_LEVELS)
def test_a_frozen_body_keeps_its_statistics_and_drops_nothing(examples, lower) -> None:
    """Under ``eu`` everything below the output layer is as it was, batch statistics and all; the others are trained
    whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).eval()
    modes = []
    model[2].register_forward_hook(lambda module, *_: modes.append(module.training))
    before = copy.deepcopy(model[:3].state_dict())
    w = torch.zeros(37, dtype=torch.float64)
    found = unlearn_weighted(model, inputs_of(examples), w, lower=lower, epochs=2, lr=1e-2, batch=8, seed=0)
    same = all(torch.equal(a, b) for a, b in zip(before.values(), found[:3].state_dict().values(), strict=True))
    assert same == (lower == "eu") and set(modes) == {lower != "eu"}
    assert not torch.equal(model[3].weight, found[3].weight) and not any(m.training for m in found.modules())


# --- upper level --------------------------------------------------------------------------------------------------


def test_small_losses_keep_their_digits(examples) -> None:
    """A linear model whose logits are 60 for the label: the loss is 3 exp(-60), where single precision sees 0."""

    class Confident(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(60.0))

        def forward(self, x):
            return self.scale * F.one_hot(x[:, 0].round().long(), 4).float()

    y = examples.y
    x = np.repeat(y[:, None], 6, axis=1).astype(np.float32)
    data = make_examples(x, y, num_classes=4, ids=examples.example_id)
    found = losses_of(Confident(), inputs_of(data))
    np.testing.assert_allclose(found, 3 * np.exp(-60.0), rtol=1e-6)


def test_losses_equal_torch_and_ignore_dropout(examples, mlp) -> None:
    model = nn.Sequential(mlp(0), nn.Dropout(0.5)).train()
    exact = F.cross_entropy(
        mlp(0)(torch.from_numpy(examples.inputs(slice(None)))), torch.from_numpy(examples.y), reduction="none"
    )
    np.testing.assert_allclose(losses_of(model, inputs_of(examples)), exact.detach(), rtol=1e-5)
    assert model.training and model[1].training


def handing(model):
    """An unlearner that always gives ``model``: the losses of the upper level are then known."""

    def unlearn(name, *, retain, forget, seed):
        unlearn.calls.append((name, retain, forget, seed))
        return model

    unlearn.calls = []
    return unlearn


def fixed(**more) -> WorstCaseForgetConfig:
    return WorstCaseForgetConfig(
        **{"lower": "unlearner", "unlearner": "any", "fraction": 0.2, "tolerance": 0.0, **more}
    )


def test_with_known_losses_the_sets_are_the_lowest_and_the_highest(examples, mlp) -> None:
    loss = losses_of(mlp(3), inputs_of(examples))
    order = examples.example_id[np.argsort(loss)]
    for direction, exact in (("hardest", order[:7]), ("easiest", order[-7:])):
        config = fixed(direction=direction, upper_steps=60, lr_upper=20.0)
        found = select_worst_case(mlp(0), examples, config=config, seed=0, unlearn=handing(mlp(3)))
        assert set(found.forget_ids) == set(exact)
        assert found.budget == 7 and found.selected.sum() == 7 and found.w.sum() == pytest.approx(7, abs=1e-3)


@pytest.mark.parametrize("direction", ["hardest", "easiest"])
@pytest.mark.parametrize("aware", [True, False])
def test_each_step_follows_the_formula(examples, mlp, direction, aware) -> None:
    config = fixed(direction=direction, upper_steps=3, lr_upper=0.7, gamma=0.3, decay=0.5, scale_aware=aware)
    unlearn = handing(mlp(3))
    found = select_worst_case(mlp(0), examples, config=config, seed=9, unlearn=unlearn)
    data = examples.by_id()
    loss = losses_of(mlp(3), inputs_of(data))
    w = np.zeros(37)
    w[np.random.default_rng(derive_seed("worst-case start", 9)).permutation(37)[:7]] = 1.0
    start, sign = w.copy(), 1 if direction == "hardest" else -1
    scale = np.median(np.abs(loss - np.median(loss))) if aware else 1.0
    assert not aware or 0 < scale <= loss.max() - loss.min()
    for step in range(3):
        assert found.objective[step] == pytest.approx(w @ loss + 0.3 * scale * (w @ w))
        forget = np.sort(np.argsort(-w, kind="stable")[:7])
        name, retain, gone, _ = unlearn.calls[step]
        assert name == "any" and gone.example_id.tolist() == data.example_id[forget].tolist()
        assert set(retain.example_id) | set(gone.example_id) == set(data.example_id) and len(retain) == 30
        w = sorted_projection(w - sign * 0.7 / (step + 1) ** 0.5 * (loss / scale + 2 * 0.3 * w), 7)
    np.testing.assert_allclose(found.w, w, atol=1e-9)
    assert found.overlap_with_start == pytest.approx(start[found.selected].sum() / 7)
    assert len({seed for *_, seed in unlearn.calls}) == 3, "fresh noise in every lower level"


@pytest.mark.parametrize("lower", ["ft", "eu"])
def test_every_lower_level_starts_from_the_audited_weights(examples, mlp, lower) -> None:
    """Both levels by hand. A search that goes on from the last student chases a model that drifts."""
    config = WorstCaseForgetConfig(
        lower=lower,
        fraction=0.2,
        upper_steps=4,
        lower_epochs=3,
        lr_lower=0.03,
        lr_upper=1.0,
        gamma=0.0,
        decay=0.0,
        scale_aware=False,
        tolerance=0.0,
        batch=8,
    )
    model, data = mlp(0), examples.by_id()
    found = select_worst_case(model, examples, config=config, seed=9)
    w = np.zeros(37)
    w[np.random.default_rng(derive_seed("worst-case start", 9)).permutation(37)[:7]] = 1.0
    losses = []
    for step in range(4):
        student = unlearn_weighted(
            mlp(0),
            inputs_of(data),
            torch.from_numpy(w),
            lower=lower,
            epochs=3,
            lr=0.03,
            batch=8,
            seed=derive_seed("lower", 9, step),
        )
        losses.append(losses_of(student, inputs_of(data)))
        assert found.objective[step] == pytest.approx(w @ losses[-1], rel=1e-6), f"upper step {step + 1}"
        w = sorted_projection(w - losses[-1], 7)
    np.testing.assert_allclose(found.loss, losses[-1], rtol=1e-6)
    np.testing.assert_allclose(found.w, w, atol=1e-6)


def test_constant_losses_give_uniform_weights(examples, mlp) -> None:
    flat = mlp(0)
    with torch.no_grad():
        for p in flat.parameters():
            p.zero_()
    config = fixed(upper_steps=200, gamma=0.4, decay=0.0)
    found = select_worst_case(mlp(0), examples, config=config, seed=0, unlearn=handing(flat))
    np.testing.assert_allclose(found.w, 7 / 37, atol=1e-6)


def test_classes_are_chosen_whole_by_their_summed_loss(examples, mlp) -> None:
    loss = losses_of(mlp(3), inputs_of(examples))
    total = np.bincount(examples.y, weights=loss)
    for direction, exact in (("hardest", total.argmin()), ("easiest", total.argmax())):
        config = fixed(direction=direction, group="class", upper_steps=60, lr_upper=20.0)
        found = select_worst_case(mlp(0), examples, config=config, seed=0, unlearn=handing(mlp(3)))
        assert set(found.forget_ids) == set(examples.example_id[examples.y == exact])
        assert found.budget == 1 and found.overlap_with_start is None
        y = examples.subset(found.example_id).y
        per_class = [np.unique(found.w[y == k]) for k in range(4)]
        assert all(len(w) == 1 for w in per_class) and sum(float(w[0]) for w in per_class) == pytest.approx(1, abs=1e-3)


def test_ties_go_to_the_smaller_id(examples, mlp) -> None:
    flat = mlp(0)
    with torch.no_grad():
        for p in flat.parameters():
            p.zero_()
    config = fixed(start="uniform", upper_steps=2)
    found = select_worst_case(mlp(0), examples, config=config, seed=0, unlearn=handing(flat))
    assert found.forget_ids.tolist() == np.sort(examples.example_id)[:7].tolist()
    assert found.rank.tolist() == list(range(1, 38))


def test_it_stops_when_the_set_stays(examples, mlp) -> None:
    config = fixed(upper_steps=500, lr_upper=20.0, tolerance=0.01)
    found = select_worst_case(mlp(0), examples, config=config, seed=0, unlearn=handing(mlp(3)))
    assert 2 <= len(found.objective) < 50 and found.changed[-2:] == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_it_goes_on_while_small_steps_gather(planted, seed) -> None:
    """At a tenth of a step the top m stays for long, while weight piles up beside it."""
    data, model, _ = planted
    config = WorstCaseForgetConfig(decay=0.0, scale_aware=False, lr_upper=0.1, lower_epochs=1, batch=64)
    found = select_worst_case(model, data, config=config, seed=seed)
    assert found.changed[:2] == (0.0, 0.0) and len(found.objective) == config.upper_steps
    exact = select_worst_case(model, data, config=dataclasses.replace(config, tolerance=0.0), seed=seed)
    assert found.objective == exact.objective and found.forget_ids.tolist() == exact.forget_ids.tolist()


# --- the whole search on a trained model --------------------------------------------------------------------------

SMALL = WorstCaseForgetConfig(upper_steps=5, lower_epochs=3, batch=64)


@pytest.fixture(scope="module")
def planted():
    """300 vectors of three well separated classes, 10% of the labels changed, and a network that has learnt them
    all."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (rng.normal(size=(3, 20))[y] * 2 + rng.normal(size=(300, 20))).astype(np.float32)
    flipped = np.sort(rng.permutation(300)[:30])
    y[flipped] = (y[flipped] + 1) % 3
    data = make_examples(x, y, num_classes=3, ids=rng.permutation(5000)[:300].astype(np.int64))
    build = builder("mlp", {"hidden": (128,)}, input_shape=(20,), num_outputs=3)
    model = supervised(build, data, config=SupervisedConfig(lr=0.1, batch=64, epochs=80), seed=1)
    assert (losses_of(model, inputs_of(data)) < 0.3).all(), "it has learnt the changed labels"
    return data, model, set(data.example_id[flipped].tolist())


@pytest.mark.parametrize("seed", range(3))
def test_changed_labels_are_easy_to_forget_and_never_hard(planted, seed) -> None:
    data, model, flipped = planted
    hardest, easiest = (
        select_worst_case(model, data, config=SMALL.turned(direction), seed=seed)
        for direction in ("hardest", "easiest")
    )
    assert len(flipped & set(easiest.forget_ids.tolist())) >= 24
    assert not flipped & set(hardest.forget_ids.tolist())
    assert hardest.objective[-1] <= 0.5 * hardest.objective[0] and easiest.objective[-1] > 2 * easiest.objective[0]
    assert hardest.overlap_with_start < 0.7


def test_the_published_fixed_step_returns_the_random_start(planted) -> None:
    data, model, _ = planted
    config = dataclasses.replace(SMALL, scale_aware=False, lr_upper=1e-3, decay=0.0, tolerance=0.0)
    assert select_worst_case(model, data, config=config, seed=0).overlap_with_start >= 0.95


def test_order_of_the_rows_seed_and_hidden_state(planted) -> None:
    data, model, _ = planted
    mixed = data.subset(np.random.default_rng(3).permutation(data.example_id))
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = select_worst_case(model, data, config=SMALL, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    two = select_worst_case(model, mixed, config=SMALL, seed=7)
    for name in ("example_id", "w", "rank", "selected", "loss"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert one.objective == two.objective
    other = select_worst_case(model, data, config=SMALL, seed=8)
    assert not np.array_equal(one.w, other.w)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_the_score(planted) -> None:
    data, model, _ = planted
    config = WorstCaseScoreConfig(upper_steps=3, lower_epochs=2, batch=64)
    one = worst_case_forget(data, config=config, seed=0, model=model)
    assert one["example_id"].to_list() == data.example_id.tolist()
    assert one["w_stderr"].null_count() == 300
    assert one["selected"].sum() == 30 and one["budget"].unique().to_list() == [30]
    easy = worst_case_forget(data, config=dataclasses.replace(config, direction="easiest"), seed=0, model=model)
    for found, place in ((one, 301 - one["rank"]), (easy, easy["rank"])):
        assert sorted(found["rank"]) == list(range(1, 301))
        np.testing.assert_allclose(found["hardness"], place / 300, rtol=1e-15)
        assert found["rank"].filter(found["selected"]).max() == 30


def order_by(found, *, hardest: bool) -> list[int]:
    """The ids by the meaning of the rank: w, then the loss after unlearning, then the id."""
    frame = found.with_columns(own=found["loss_after_unlearn"] * (1 if hardest else -1))
    return frame.sort(["w", "own", "example_id"], descending=[True, False, False])["example_id"].to_list()


@pytest.mark.parametrize("direction", ["hardest", "easiest"])
@pytest.mark.parametrize("seed", range(3))
def test_every_place_of_the_rank_means_something(planted, direction, seed) -> None:
    """A part of the set is its own best part, and examples outside it, whose w is 0, go by their loss."""
    data, model, _ = planted
    config = WorstCaseScoreConfig(upper_steps=6, lower_epochs=2, batch=64, direction=direction)
    found = worst_case_forget(data, config=config, seed=seed, model=model)
    assert found["w"].n_unique() < 200, "most weights are tied"
    assert found["hardness"].n_unique() == 300
    exact = order_by(found, hardest=direction == "hardest")
    assert found.sort("rank")["example_id"].to_list() == exact
    taken = found.sort("hardness", descending=direction == "hardest")["example_id"].to_list()
    assert taken == exact, "what a curator takes from one end of the value, whatever the fraction"
    searched = select_worst_case(model, data, config=config, seed=derive_seed("start", seed, 0))
    assert set(taken[:30]) == set(searched.forget_ids)


@pytest.mark.parametrize("direction", ["hardest", "easiest"])
def test_a_class_fills_up_before_the_next_one(planted, direction) -> None:
    data, model, _ = planted
    config = WorstCaseScoreConfig(
        upper_steps=3, lower_epochs=1, batch=64, direction=direction, group="class", fraction=0.34
    )
    found = worst_case_forget(data, config=config, seed=0, model=model).sort("rank")
    labels = data.y[data.positions(found["example_id"].to_numpy())]
    assert (np.diff(labels) != 0).sum() == 2, "three classes, each in one piece"
    first = found.filter(found["selected"])
    assert first["rank"].to_list() == list(range(1, int((data.y == labels[0]).sum()) + 1))
    sign = 1 if direction == "hardest" else -1
    means = [found["loss_after_unlearn"].to_numpy()[labels == k].mean() * sign for k in dict.fromkeys(labels.tolist())]
    weights = [found["w"].to_numpy()[labels == k][0] for k in dict.fromkeys(labels.tolist())]
    assert all(w >= v and (w > v or a <= b) for w, v, a, b in zip(weights, weights[1:], means, means[1:], strict=False))
    for k in range(3):
        own = found.filter(pl.Series(labels == k))["loss_after_unlearn"].to_numpy() * sign
        assert (np.diff(own) >= 0).all(), "within a class by loss"


def test_several_starts_are_averaged(planted) -> None:
    data, model, _ = planted
    config = WorstCaseScoreConfig(upper_steps=2, lower_epochs=1, batch=64, starts=3)
    found = worst_case_forget(data, config=config, seed=4, model=model).sort("example_id")
    runs = [select_worst_case(model, data, config=config, seed=derive_seed("start", 4, k)) for k in range(3)]
    w = np.stack([run.w for run in runs])
    np.testing.assert_allclose(found["w"], w.mean(0), atol=1e-12)
    np.testing.assert_allclose(found["w_stderr"], w.std(0, ddof=1) / 3**0.5, atol=1e-12)
    np.testing.assert_allclose(found["loss_after_unlearn"], np.mean([r.loss for r in runs], axis=0))
    assert found["w"].sum() == pytest.approx(30, abs=1e-3) and found["selected"].sum() == 30
    again = worst_case_forget(data, config=config, seed=4, model=model).sort("example_id")
    assert_frame_equal(found, again, check_exact=True)


# --- other tasks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outliers():
    """60 numbers in a large unit, linear but for six far out of line, and a network that has learnt all of them by
    heart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = 300 + 50 * x @ np.array([1, 0.5, -0.3, 0.2])
    odd = np.array([3, 17, 25, 40, 48, 55])
    x[odd] *= 2.5
    y[odd] = 300 + 200 * rng.choice([-1, 1], 6)
    data = as_regression(make_examples(x, np.zeros(60), num_classes=2, ids=rng.permutation(500)[:60]), y)
    build = builder("mlp", {"hidden": (64,)}, input_shape=(4,), num_outputs=1)
    model = supervised(build, data, config=SupervisedConfig(lr=0.05, epochs=300, batch=20, weight_decay=0.0), seed=0)
    assert losses_of(model, inputs_of(data)).max() < 0.01, "they are learnt by heart"
    return data, model, data.example_id[odd]


@pytest.mark.parametrize("direction", ["hardest", "easiest"])
def test_the_outliers_of_a_regression_are_the_easiest_to_forget(outliers, direction) -> None:
    data, model, odd = outliers
    config = WorstCaseForgetConfig(
        direction=direction, lower="retrain", lower_epochs=40, lr_lower=3e-3, batch=20, upper_steps=8
    )
    found = select_worst_case(model, data, config=config, seed=1)
    assert len(np.intersect1d(odd, found.forget_ids)) == (6 if direction == "easiest" else 0)
    assert found.rank[np.isin(found.example_id, odd)].max() <= 6 or direction == "hardest"


def test_a_regression_is_unlearnt_in_units_of_what_is_kept(outliers) -> None:
    """By hand: the output layer's affine map undone, signSGD on squared errors of standardised targets, the map put
    back; and what is left out does not reach the result, however far out it lies."""
    data, model, odd = outliers
    model, w = copy.deepcopy(model).double(), np.isin(data.example_id, odd).astype(np.float64)
    options = {"epochs": 2, "lr": 1e-3, "batch": 7, "seed": 4}
    x, kept = torch.from_numpy(data.inputs(slice(None))).double(), data.y[w < 1]
    mean, sd = float(kept.mean()), float(kept.std())
    exact = copy.deepcopy(model)
    with torch.no_grad():
        exact.head.weight.div_(sd)
        exact.head.bias.sub_(mean).div_(sd)
    for epoch in range(2):
        for rows in epoch_order(60, seed=4, epoch=epoch).split(7):
            loss = sum((1 - w[i]) * (exact(x[i : i + 1])[0, 0] - (data.y[i] - mean) / sd) ** 2 for i in rows.tolist())
            with torch.no_grad():
                for p, g in zip(exact.parameters(), torch.autograd.grad(loss, list(exact.parameters())), strict=True):
                    p.sub_(1e-3 * g.sign())
    with torch.no_grad():
        exact.head.weight.mul_(sd)
        exact.head.bias.mul_(sd).add_(mean)
    for y in (data.y, np.where(w == 1, -1e6, data.y)):
        inputs = Inputs(dataclasses.replace(data, y=y), dtype=torch.float64)
        found = unlearn_weighted(model, inputs, torch.from_numpy(w), lower="ft", **options)
        for a, b in zip(found.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-7)


def test_a_recommender_is_unlearnt_on_the_softmax_of_its_task() -> None:
    """By hand, one interaction at a time; a set is found, and losses are those that the task reads."""
    data = load("synthetic_interactions", {"num_users": 8, "num_items": 30, "per_user": 8, "dim": 2}).part("train")
    build = builder("mf", {"dim": 3}, input_shape=(data.num_users,), num_outputs=data.num_classes)
    model = bpr(build, data, config=BprConfig(epochs=40, batch=32, lr=0.05), seed=0).double()
    inputs, w = Inputs(data, dtype=torch.float64), (np.arange(len(data)) % 4 == 0).astype(np.float64)
    whole = data.constants
    start = np.append(whole["start"], len(whole["items"]))
    exact, users = copy.deepcopy(model), np.asarray(data.x)[:, 0]
    for rows in epoch_order(len(data), seed=4, epoch=0).split(9):
        total = torch.zeros((), dtype=torch.float64)
        for i in rows.tolist():
            met = set(whole["items"][start[users[i]] : start[users[i] + 1]].tolist())
            among = [int(data.y[i]), *(k for k in range(data.num_classes) if k not in met)]
            z = exact(torch.tensor([users[i]]))[0, among]
            total = total + (1 - w[i]) * (z.logsumexp(0) - z[0])
        with torch.no_grad():
            for p, g in zip(exact.parameters(), torch.autograd.grad(total, list(exact.parameters())), strict=True):
                p.sub_(1e-3 * g.sign())
    found = unlearn_weighted(model, inputs, torch.from_numpy(w), lower="ft", epochs=1, lr=1e-3, batch=9, seed=4)
    for a, b in zip(found.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    config = WorstCaseForgetConfig(lower_epochs=1, upper_steps=2)
    chosen = select_worst_case(model, data, config=config, seed=0)
    assert chosen.selected.sum() == chosen.budget == round(0.1 * len(data))
    with pytest.raises(NotApplicable, match="whole classes"):
        select_worst_case(model, data, config=WorstCaseForgetConfig(group="class"), seed=0)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_refusals(examples, regression, mlp) -> None:
    config = WorstCaseForgetConfig(upper_steps=1, lower_epochs=1)

    def run(data, model=None, config=config):
        return select_worst_case(model or mlp(0), data, config=config, seed=0)

    with pytest.raises(NotApplicable, match="regression"):
        run(regression)
    with pytest.raises(DataError, match="0 example"):
        run(examples.subset([]))
    with pytest.raises(DataError, match="1 example"):
        run(examples.subset(examples.example_id[:1]))
    one = dataclasses.replace(examples, y=np.zeros_like(examples.y))
    with pytest.raises(DataError, match="1 class"):
        run(one, config=dataclasses.replace(config, group="class"))
    y = examples.y.copy()
    y[3] = 4
    with pytest.raises(DataError) as error:
        run(dataclasses.replace(examples, y=y))
    assert error.value.example_ids == (int(examples.example_id[3]),)
    broken = mlp(0)
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match=r"0\.weight"):
        run(examples, broken)
    with pytest.raises(ConfigError, match="unlearn"):
        run(examples, config=fixed())
    with pytest.raises(Diverged, match="outputs"):
        select_worst_case(mlp(0), examples, config=fixed(), seed=0, unlearn=handing(broken))
    with pytest.raises(NotApplicable, match="trainable"):
        run(make_examples(examples.x[:, :4], examples.y, num_classes=4), nn.Identity())


@pytest.mark.parametrize(
    "fields",
    [{"lower": "unlearner"}, {"unlearner": "finetune"}, {"lr_upper": 10.0, "gamma": 0.05}, {"lower": "sgd"}],
)
def test_configurations_that_do_not_fit_together(fields) -> None:
    with pytest.raises(ConfigError):
        WorstCaseForgetConfig(**fields)


def test_two_examples_are_enough(examples, mlp) -> None:
    found = select_worst_case(mlp(0), examples.subset(examples.example_id[:2]), config=SMALL, seed=0)
    assert found.budget == 1 and found.selected.sum() == 1


def test_a_model_in_double_precision(examples, mlp) -> None:
    found = select_worst_case(mlp(0).double(), examples, config=SMALL, seed=0)
    assert found.w.sum() == pytest.approx(found.budget, abs=1e-3)
