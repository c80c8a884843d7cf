"""Schedules, augmentation, experts and starts of distillation: closed forms, naive loops, and what the papers say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from curation.distilled.augment import STRATEGIES, Augment
from curation.distilled.descent import Descent, gradient_penalty
from curation.distilled.experts import ExpertBuffer, ExpertConfig, train_experts
from curation.distilled.flat import FlatNetwork, one_hot, soft_loss
from curation.distilled.initial import choose_start, mean_logits
from curation.distilled.schedules import DifficultySchedule, balanced_scale, clip_scale, intermediate_targets
from curation.distilled.smoothness import smoothness
from recipes.models import builder

CLASSES = 3


def network(dtype: torch.dtype = torch.float64) -> FlatNetwork:
    build = builder("convnet", {"width": 5, "depth": 2}, input_shape=(1, 8, 8), num_outputs=CLASSES)
    return FlatNetwork(build, dtype=dtype)


def examples(num: int = 30, channels: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    y = torch.arange(num) % CLASSES
    x = torch.randn(num, channels, 8, 8, generator=g, dtype=torch.float64)
    return x + y[:, None, None, None], y


# ---- schedules ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    t_min=st.integers(0, 10),
    more=st.integers(1, 10),
    wide=st.integers(0, 20),
    it_end=st.integers(1, 50),
    it=st.integers(0, 200),
)
def test_start_epochs_stay_in_their_half_open_range(t_min: int, more: int, wide: int, it_end: int, it: int) -> None:
    schedule = DifficultySchedule(t_min=t_min, t_max=t_min + more + wide, t_cur=t_min + more, it_end=it_end)
    upper = schedule.upper(it)
    assert t_min + more <= upper <= schedule.t_max
    assert upper == min(schedule.t_max, t_min + more + math.floor(wide * it / it_end))
    assert all(t_min <= schedule.draw(it, seed) < upper for seed in range(5))


def test_start_epochs_are_uniform_up_to_the_last_and_never_reach_the_end() -> None:
    schedule = DifficultySchedule(t_min=2, t_max=6)
    drawn = np.bincount([schedule.draw(0, seed) for seed in range(2000)], minlength=8)
    assert drawn[:2].sum() == 0 and drawn[6:].sum() == 0
    assert np.abs(drawn[2:6] / 2000 - 0.25).max() < 0.05


@pytest.mark.parametrize(
    "fields", [{"t_min": 3, "t_max": 3}, {"t_min": 0, "t_max": 4, "t_cur": 5}, {"t_min": 2, "t_max": 4, "t_cur": 2}]
)
def test_an_empty_range_of_start_epochs_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="t_min < t_cur <= t_max"):
        DifficultySchedule(**fields)


def test_clipping_counts_the_first_ten_epochs_less() -> None:
    assert [clip_scale(e) for e in range(12)] == pytest.approx([0.5 + 0.05 * e for e in range(10)] + [1.0, 1.0])


@pytest.mark.parametrize("t_max", [2, 9, 20])
def test_balancing_is_log_5_with_a_jump_at_the_middle(t_max: int) -> None:
    middle = t_max // 2
    assert balanced_scale(middle, t_max) == pytest.approx(math.log(8) / math.log(5))
    assert balanced_scale(middle - 1, t_max) == pytest.approx(1 / (math.log(9) / math.log(5)))
    for t in range(t_max):
        wanted = math.log(t - middle + 8) / math.log(5) if t >= middle else math.log(5) / math.log(middle - t + 8)
        assert balanced_scale(t, t_max) == pytest.approx(wanted)


def test_checkpoints_on_the_way_leave_the_longer_last_segment() -> None:
    assert intermediate_targets(20, 3) == [(6, 1, 1.0), (12, 2, 1.0)]
    assert intermediate_targets(20, 4, "adaptive") == [(5, 1, 0.25), (10, 2, 0.5), (15, 3, 0.75)]
    assert intermediate_targets(20, 1) == intermediate_targets(20, 3, "none") == []
    with pytest.raises(ConfigError, match="2 steps cannot"):
        intermediate_targets(2, 3)


# ---- augmentation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("siamese", [True, False])
def test_an_augmentation_is_a_function_of_its_seed_and_affine_in_the_images(strategy: str, siamese: bool) -> None:
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = x.flip(0) + 0.3
    change = Augment((strategy,), siamese=siamese)
    a, b = change(x, 7), change(other, 7)
    assert torch.equal(a, change(x, 7))
    assert any(not torch.equal(change(x, 7), change(x, s)) for s in range(8, 14))
    middle = change(0.25 * x + 0.75 * other, 7)
    assert torch.allclose(middle, 0.25 * a + 0.75 * b, atol=1e-12), (
        "affine: its derivative does not depend on the images"
    )
    x.requires_grad_()
    (slope,) = torch.autograd.grad(change(x, 7).square().sum(), x)
    assert torch.isfinite(slope).all() and slope.any()


def test_images_of_a_siamese_batch_are_changed_alike() -> None:
    x = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    for strategy in STRATEGIES:
        alike = Augment((strategy,), siamese=True)(x, 3)
        assert torch.equal(alike[0], alike[1]) and torch.equal(alike[0], alike[2])
        each = [Augment((strategy,))(x, seed) for seed in range(6)]
        assert any(not torch.equal(c[0], c[1]) for c in each), strategy


def test_each_augmentation_does_what_it_is_called() -> None:
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(2)) + 1
    flipped = Augment(("flip",))(x, 0)
    mirrored = (flipped == x.flip(3)).all(3).all(2).all(1)
    same = (flipped == x).all(3).all(2).all(1)
    assert bool((mirrored | same).all()) and 16 < int(mirrored.sum()) < 48
    cut = (Augment(("cutout",))(x, 0) == 0).all(1)
    assert {int(c) for c in cut.sum((1, 2))} <= {n * m for n in range(2, 5) for m in range(2, 5)}
    assert int(cut.sum((1, 2)).max()) == 16
    shifted = Augment(("crop",))(x, 0)
    padded = F.pad(x, (1, 1, 1, 1))
    for image, old in zip(shifted, padded, strict=True):
        views = [old[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        assert any(torch.equal(image, v) for v in views)
    ones = torch.ones(50, 1, 9, 9)
    for strategy in ("scale", "rotate"):
        moved = Augment((strategy,))(ones, 1)
        assert torch.allclose(moved[:, :, 4, 4], torch.ones(())), "the centre stays"
    assert torch.equal(Augment(())(x, 0), x)
    with pytest.raises(ConfigError, match="blur is not one of color"):
        Augment(("blur",))


# ---- the network as a vector -------------------------------------------------------------------------------------


def test_a_network_is_a_function_of_a_vector_that_is_a_copy() -> None:
    net = network(torch.float32)
    model = net.build(3)
    theta = net.vector(model)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(net(theta, x), model(x)) and torch.equal(net.initial(3), theta)
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    assert not torch.equal(net.vector(model), theta), "the vector is not a view of the live weights"
    assert torch.equal(net.vector(net.module(theta)), theta)


def test_networks_that_are_no_function_of_their_parameters_are_refused() -> None:
    with pytest.raises(NotApplicable, match="buffers"):
        FlatNetwork(lambda seed: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(NotApplicable, match="random"):
        FlatNetwork(lambda seed: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))


def test_the_convnet_halves_and_refuses_what_it_cannot_halve() -> None:
    model = builder("convnet", {"depth": 3, "width": 4}, input_shape=(3, 17, 9), num_outputs=6)(0)
    assert model(torch.zeros(2, 3, 17, 9)).shape == (2, 6)
    assert model.head.in_features == 4 * 2 * 1
    x = torch.randn(4, 3, 17, 9)
    z = model.norms[0](model.convs[0](x))
    assert torch.allclose(z.mean((2, 3)), torch.zeros(()), atol=1e-5), "one group a channel"
    with pytest.raises(NotApplicable, match="at least 16 x 16"):
        builder("convnet", {"depth": 4}, input_shape=(1, 8, 8), num_outputs=2)(0)


# ---- experts -----------------------------------------------------------------------------------------------------


def by_torch(net: FlatNetwork, config: ExpertConfig, seed: int, x: Tensor, y: Tensor) -> Tensor:
    """The same training with ``torch.optim`` on a module, batch by batch."""
    from contracts.digests import derive_seed
    from recipes.rng import generator

    model = net.build(seed).double()
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.SGD
    more = {} if config.optimizer == "adam" else {"momentum": config.momentum}
    optimizer = kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, **more)
    path = [net.vector(model)]
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (config.decay if epoch > config.epochs // 2 + 1 else 1)
        order = torch.randperm(len(x), generator=generator(derive_seed("order", seed, epoch)))
        for rows in order.split(config.batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows]) * (min(1, 0.5 + 0.05 * epoch) if config.clip_loss else 1)
            loss.backward()
            optimizer.step()
        path.append(net.vector(model))
    return torch.stack(path)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01, "decay": 0.6},
        {"momentum": 0.9, "clip_loss": True},
        {"optimizer": "adam", "lr": 0.01},
    ],
)
def test_an_expert_is_trained_as_torch_trains_it(fields: dict[str, object]) -> None:
    from contracts.digests import derive_seed

    net, (x, y) = network(), examples()
    config = ExpertConfig.from_mapping({"num": 2, "epochs": 7, "batch": 8, "lr": 0.05, "augment": [], **fields})
    found = train_experts(net, x, y, num_classes=CLASSES, config=config, seed=4)
    for number in range(2):
        wanted = by_torch(net, config, derive_seed("expert", 4, number), x, y).float().numpy()
        assert np.abs(found.trajectories[number] - wanted).max() < 1e-5


@pytest.mark.parametrize(
    "fields",
    [{"sam_rho": 0.1}, {"penalty": 0.5}, {"penalty": 0.5, "penalty_norm": "per_sample"}, {"augment": list(STRATEGIES)}],
)
def test_experts_in_one_stack_are_experts_one_by_one(fields: dict[str, object]) -> None:
    net, (x, y) = network(), examples()
    config = ExpertConfig.from_mapping(
        {"num": 3, "epochs": 2, "batch": 8, "lr": 0.05, "momentum": 0.9, "augment": [], **fields}
    )
    thetas, seeds = torch.stack([net.initial(s) for s in range(3)]), [0, 1, 2]
    targets = one_hot(y, CLASSES, net.dtype)
    loop, stack = (
        dataclasses.replace(config.descent(), path=path).run(net, thetas, x, targets, seeds=seeds)
        for path in ("loop", "vmap")
    )
    assert torch.allclose(loop, stack, atol=1e-10)
    alone = dataclasses.replace(config.descent(), path="loop").run(net, thetas[1:2], x, targets, seeds=seeds[1:2])
    assert torch.equal(alone[0], loop[1]), "an expert does not depend on its neighbours"


def test_gsam_climbs_and_takes_off_the_orthogonal_part() -> None:
    """One step against the formula, adaptive and not; without alpha it is SAM."""
    net, (x, y) = network(), examples(8)
    theta, targets = net.initial(0), one_hot(y, CLASSES, net.dtype)

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(soft_loss(net(at, x), targets), at)[0]

    for adaptive in (True, False):
        g = gradient(theta)
        climb = theta.square() * g / (theta.abs() * g).norm() if adaptive else g / g.norm()
        higher = gradient(theta + 0.2 * climb)
        unit = higher / higher.norm()
        across = g - (g @ unit) * unit
        assert abs(float(across @ higher)) < 1e-10
        for alpha in (0.0, 0.4):
            train = Descent(epochs=1, batch=8, rate=lambda e: 0.1, sam_rho=0.2, sam_alpha=alpha, sam_adaptive=adaptive)
            found = train.run(net, theta[None], x, targets, seeds=[0])[0]
            assert torch.allclose(found, theta - 0.1 * (higher - alpha * across), atol=1e-10)


@pytest.mark.parametrize("norm", ["per_pixel", "per_sample"])
def test_the_gradient_penalty_is_that_of_a_loop_over_pixels(norm: str) -> None:
    build = builder("convnet", {"width": 4, "depth": 1}, input_shape=(2, 4, 4), num_outputs=CLASSES)
    net = FlatNetwork(build, dtype=torch.float64)
    theta, x = net.initial(0), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    terms = []
    for image in x:
        image = image[None].requires_grad_()
        (slope,) = torch.autograd.grad(net(theta, image).sum(), image)
        if norm == "per_sample":
            terms.append(float((slope.norm() - 1) ** 2))
        else:
            terms += [float((slope[0, :, i, j].norm() - 1) ** 2) for i in range(4) for j in range(4)]
    assert float(gradient_penalty(net, theta, x, norm=norm)) == pytest.approx(np.mean(terms))  # type: ignore[arg-type]


def test_checkpoints_are_distinct_and_kept_experts_are_not_trained_again() -> None:
    class Memory:
        def __init__(self) -> None:
            self.held: dict[str, tuple[dict, dict]] = {}
            self.saved: list[str] = []

        def save(self, name, tensors, meta):
            self.held[name] = (dict(tensors), dict(meta))
            self.saved.append(name)
            return ""

        def load(self, name):
            return self.held.get(name)

    net, (x, y) = network(torch.float32), examples()
    x = x.float()
    config = ExpertConfig(num=5, epochs=3, batch=8, lr=0.05, augment=(), together=2)
    store, told = Memory(), []
    found = train_experts(
        net, x, y, num_classes=CLASSES, config=config, seed=0, store=store, progress=lambda *a: told.append(a)
    )
    assert store.saved == ["experts-0", "experts-2", "experts-4"] and told[-1][:2] == (15, 15)
    for trajectory in found.trajectories:
        assert len({row.tobytes() for row in trajectory}) == 4
    del store.held["experts-2"]
    again = train_experts(net, x, y, num_classes=CLASSES, config=config, seed=0, store=store)
    assert store.saved[3:] == ["experts-2"]
    fresh = train_experts(net, x, y, num_classes=CLASSES, config=dataclasses.replace(config, together=5), seed=0)
    for a, b, c in zip(found.trajectories, again.trajectories, fresh.trajectories, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    with pytest.raises(DataError, match="expert 0 does not move in epoch 2: its checkpoints are not distinct"):
        ExpertBuffer([found.trajectories[0][[0, 1, 1]]])
    with pytest.raises(Diverged, match="network 0 diverged in epoch"):
        dataclasses.replace(config, lr=100.0, num=1, epochs=40)  # a legal rate
        wild = Descent(epochs=40, batch=8, rate=lambda e: 1e30)
        wild.run(net, net.initial(0)[None], x, one_hot(y, CLASSES, net.dtype), seeds=[0])


# ---- what it starts from -----------------------------------------------------------------------------------------


def test_starts_are_of_their_class_and_correct_where_that_is_asked() -> None:
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, CLASSES, 60))
    logits = torch.from_numpy(rng.normal(size=(2, 60, CLASSES)))
    for how in ("correct", "real", "representative"):
        rows = choose_start(how, logits, y, per_class=3, num_classes=CLASSES, seed=1)  # type: ignore[arg-type]
        assert y[rows].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and len(set(rows.tolist())) == 9
        if how == "correct":
            assert bool((logits[0, rows].argmax(1) == y[rows]).all()), "expert 0 knows enough of them"
    never = torch.zeros(2, 60, CLASSES, dtype=torch.float64)
    never[0, torch.arange(60), (y + 1) % CLASSES] = 1  # expert 0 knows nothing, expert 1 all of them
    never[1, torch.arange(60), y] = 1
    rows = choose_start("correct", never, y, per_class=3, num_classes=CLASSES, seed=1)
    assert bool((never[1, rows].argmax(1) == y[rows]).all())
    with pytest.raises(DataError, match="0 images of class 0 are classified correctly"):
        choose_start("correct", never[:1], y, per_class=3, num_classes=CLASSES, seed=1)
    with pytest.raises(DataError, match="fewer than the 61"):
        choose_start("real", logits, y, per_class=61, num_classes=CLASSES, seed=1)


def test_representatives_are_one_of_each_cluster() -> None:
    """Well separated clusters of unequal sizes: one image of each; random draws miss one nearly always."""
    rng = np.random.default_rng(1)
    place = np.repeat(np.arange(4), [40, 3, 3, 3])
    logits = torch.from_numpy(
        10 * np.eye(4)[place][:, :CLASSES] + 20 * (place == 3)[:, None] + 0.01 * rng.normal(size=(49, CLASSES))
    )
    rows = choose_start(
        "representative", logits[None], torch.zeros(49, dtype=torch.int64), per_class=4, num_classes=1, seed=0
    )
    assert sorted(place[rows].tolist()) == [0, 1, 2, 3]
    equal = torch.zeros(1, 9, CLASSES)
    rows = choose_start("representative", equal, torch.zeros(9, dtype=torch.int64), per_class=4, num_classes=1, seed=0)
    assert len(set(rows.tolist())) == 4, "equal images make too few clusters, and four images all the same"


def test_labels_are_the_mean_of_the_experts_that_are_right() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[4.0, 1.0], [0.0, 1.0]], [[0.0, 9.0], [1.0, 2.0]]])
    found = mean_logits(logits, torch.tensor([0, 0]))
    assert found[0].tolist() == [3.0, 0.5], "the two that are right"
    assert found[1].tolist() == pytest.approx([1 / 3, 2.0]), "none is right: the mean over all, no division by zero"
    assert torch.isfinite(found).all()


# ---- smoothness --------------------------------------------------------------------------------------------------


def test_smoothness_of_ways_that_are_known() -> None:
    straight = smoothness(np.outer(np.arange(5), [3.0, 4.0]).astype(np.float32))
    assert straight.step_norm.tolist() == [5.0] * 4 and straight.path_ratio == pytest.approx(1.0)
    assert straight.turn_cos[1:].tolist() == pytest.approx([1.0] * 3) and math.isnan(straight.turn_cos[0])
    back = smoothness(np.array([[0.0, 0], [4, 0], [1, 0]], np.float32))
    assert back.turn_cos[1] == -1 and back.path_ratio == pytest.approx(7.0) and back.max_step == 4
