"""Gradients of the matching loss: by adjoint, by unrolling, by TESLA, and by the closed form of a linear student."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contracts.errors import DataError
from curation.distilled.augment import Augment
from curation.distilled.flat import FlatNetwork
from curation.distilled.matching import MODES, Inner, Matched, Target, batches, match, targets
from curation.distilled.schedules import intermediate_targets
from recipes.models import builder

SHAPE, CLASSES, IMAGES = (1, 8, 8), 4, 6


def convnet(dtype: torch.dtype = torch.float64) -> FlatNetwork:
    build = builder("convnet", {"width": 6, "depth": 2}, input_shape=SHAPE, num_outputs=CLASSES)
    return FlatNetwork(build, dtype=dtype)


def world(network: FlatNetwork, *, epochs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """A trajectory (epochs + 1, D), images and logits."""
    g = torch.Generator().manual_seed(0)
    steps = 0.2 * torch.randn(epochs + 1, network.num_parameters, generator=g, dtype=torch.float64)
    trajectory = (network.initial(0).double() + steps.cumsum(0)).to(network.dtype)
    x = torch.randn(IMAGES, *SHAPE, generator=g, dtype=torch.float64).to(network.dtype)
    return trajectory, x, torch.randn(IMAGES, CLASSES, generator=g, dtype=torch.float64).to(network.dtype)


def student(network: FlatNetwork, trajectory: Tensor, steps: int, *, on_the_way: bool = False, **more: object) -> Inner:
    epochs = len(trajectory) - 1
    way = intermediate_targets(steps, epochs, "adaptive") if on_the_way else []
    fields = {
        "network": network,
        "start": trajectory[0],
        "targets": targets(trajectory[0], trajectory, epoch=0, steps=steps, on_the_way=way),
        "batches": batches(IMAGES, 4, steps, 5),
        "seeds": list(range(steps)),
        **more,
    }
    return Inner(**fields)  # type: ignore[arg-type]


def differences(a: Matched, b: Matched) -> list[float]:
    """Of loss, images, labels and rate, relative to the largest of ``b``."""
    pairs = [(a.loss, b.loss), (a.images, b.images), (a.labels, b.labels), (a.rate, b.rate)]
    found = []
    for one, other in pairs:
        one, other = torch.as_tensor(one).double(), torch.as_tensor(other).double()
        found.append(float((one - other).abs().max() / other.abs().max().clamp(min=1e-12)))
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("on_the_way", [False, True])
@pytest.mark.parametrize("soft", [True, False])
def test_the_adjoint_is_the_unrolled_gradient(momentum: float, on_the_way: bool, soft: bool) -> None:
    network = convnet()
    trajectory, x, y = world(network)
    y = y if soft else y.softmax(1)
    inner = student(
        network,
        trajectory,
        10,
        on_the_way=on_the_way,
        momentum=momentum,
        soft=soft,
        augment=Augment(siamese=False),
        loss_scale=1.7,
    )
    exact = match(inner, x, y, 0.2, mode="unroll")
    assert max(differences(match(inner, x, y, 0.2, mode="adjoint"), exact)) < 1e-12
    rough = differences(match(inner, x, y, 0.2, mode="tesla"), exact)
    assert rough[0] < 1e-12 and rough[1] > 0.01 and rough[3] > 1e-3, "the same loss, another gradient"
    assert (rough[2] > 1e-3) == soft
    if not soft:
        assert not exact.labels.any()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_in_single_precision_they_agree_to_a_millionth(momentum: float) -> None:
    network = convnet(torch.float32)
    trajectory, x, y = world(network)
    inner = student(network, trajectory, 20, momentum=momentum)
    found = differences(match(inner, x, y, 0.05, mode="adjoint"), match(inner, x, y, 0.05, mode="unroll"))
    assert max(found) < 2e-6


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_of_one_step_all_three_are_the_same(momentum: float) -> None:
    network = convnet()
    trajectory, x, y = world(network)
    inner = student(network, trajectory, 1, momentum=momentum)
    exact = match(inner, x, y, 0.3, mode="unroll")
    for mode in MODES:
        assert max(differences(match(inner, x, y, 0.3, mode=mode), exact)) < 1e-12


class Linear(nn.Module):
    """Logits W x, without bias, of x (B, 1, 1, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(
    start: np.ndarray,
    goals: Sequence[Target],
    x: np.ndarray,
    y: np.ndarray,
    rate: float,
    rows: Sequence[np.ndarray],
    m: float,
) -> float:
    """The loss of a linear student in plain numpy: the gradient of its cross-entropy is (softmax(W x) - q) x'."""
    w, ball, total = start.copy(), np.zeros_like(start), 0.0
    for step, batch in enumerate(rows):
        error = softmax(x[batch] @ w.T) - softmax(y[batch])
        ball = m * ball + error.T @ x[batch] / len(batch)
        w = w - rate * ball
        for goal in goals:
            if goal.step == step + 1:
                total += goal.scale * np.square(w - goal.theta.numpy().reshape(w.shape)).sum()
    return float(total)


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), momentum=st.sampled_from([0.0, 0.9]), steps=st.integers(1, 7))
def test_a_linear_student_in_closed_form(seed: int, momentum: float, steps: int) -> None:
    """Loss and every gradient against central differences of a few lines of numpy."""
    dim = 3
    network = FlatNetwork(lambda seed: Linear(dim), dtype=torch.float64)
    rng = np.random.default_rng(seed)
    trajectory = torch.from_numpy(rng.normal(size=(2, network.num_parameters)))
    x, y = rng.normal(size=(IMAGES, 1, 1, dim)), rng.normal(size=(IMAGES, CLASSES))
    goals = targets(trajectory[0], trajectory, epoch=0, steps=steps, on_the_way=[])
    drawn = batches(IMAGES, 4, steps, seed)
    inner = Inner(
        network=network,
        start=trajectory[0],
        targets=goals,
        batches=drawn,
        seeds=[0] * steps,
        momentum=momentum,
    )

    def loss(x: np.ndarray, y: np.ndarray, rate: float) -> float:
        w = trajectory[0].numpy().reshape(CLASSES, dim)
        return by_hand(w, goals, x.reshape(IMAGES, dim), y, rate, [b.numpy() for b in drawn], momentum)

    found = match(inner, torch.from_numpy(x), torch.from_numpy(y), 0.4)
    assert found.loss == pytest.approx(loss(x, y, 0.4), rel=1e-12)
    h = 1e-5
    assert found.rate == pytest.approx((loss(x, y, 0.4 + h) - loss(x, y, 0.4 - h)) / (2 * h), abs=1e-6)
    for given_, gradient in ((x, found.images), (y, found.labels)):
        at = tuple(rng.integers(0, n) for n in given_.shape)
        up, down = given_.copy(), given_.copy()
        up[at] += h
        down[at] -= h
        values = [loss(v, y, 0.4) if given_ is x else loss(x, v, 0.4) for v in (up, down)]
        assert float(gradient[at]) == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-6)


def test_without_a_step_size_the_loss_is_one() -> None:
    network = convnet()
    trajectory, x, y = world(network)
    for mode in MODES:
        assert match(student(network, trajectory, 4), x, y, 0.0, mode=mode).loss == pytest.approx(1.0, rel=1e-12)


def test_the_one_softmax_makes_the_labels_of_a_constant_shift_the_same() -> None:
    """Logits are used through softmax once: a shift of all of them changes nothing, and soft labels given as
    probabilities are the same student."""
    network = convnet()
    trajectory, x, y = world(network)
    inner = student(network, trajectory, 5)
    plain = match(inner, x, y, 0.2)
    assert differences(match(inner, x, y + 3.0, 0.2), plain)[0] < 1e-12
    given_ = match(dataclasses.replace(inner, soft=False), x, y.softmax(1), 0.2)
    assert given_.loss == pytest.approx(plain.loss, rel=1e-12)
    assert float(plain.labels.sum(1).abs().max()) < 1e-12, "its gradient has no part along the shift"


def test_an_expert_that_stands_still_is_refused_in_words() -> None:
    network = convnet()
    trajectory, _, _ = world(network)
    still = trajectory[:1].expand(4, -1)
    with pytest.raises(DataError, match="after epoch 0 and after epoch 3 are the same"):
        targets(trajectory[0], still, epoch=0, steps=4, on_the_way=[])
    moved = trajectory[0] + 0.1  # a perturbed start does not hide it
    with pytest.raises(DataError, match="nothing to match"):
        targets(moved, still, epoch=0, steps=4, on_the_way=[])


def test_a_small_step_on_the_way_stands_on_a_floor_and_says_so() -> None:
    network = convnet()
    trajectory, _, _ = world(network)
    trajectory[1] = trajectory[0]
    goals = targets(trajectory[0], trajectory, epoch=0, steps=6, on_the_way=[(2, 1, 1.0), (4, 2, 1.0)])
    least = 1e-8 * float(trajectory[1].square().sum())
    assert [g.floored for g in goals] == [True, False, False]
    assert goals[0].scale == pytest.approx(1 / least)
    assert goals[1].scale == pytest.approx(1 / float((trajectory[0] - trajectory[2]).square().sum()))
    assert [g.step for g in goals] == [2, 4, 6]


@settings(max_examples=40)
@given(num=st.integers(1, 17), size=st.integers(1, 20), steps=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_pass_uses_each_image_once(num: int, size: int, steps: int, seed: int) -> None:
    drawn = batches(num, size, steps, seed)
    each = -(-num // min(size, num))
    for first in range(0, steps - each + 1, each):
        assert sorted(torch.cat(drawn[first : first + each]).tolist()) == list(range(num))
    rest = torch.cat([*drawn[steps - steps % each :], torch.empty(0, dtype=torch.int64)]).tolist()
    assert len(set(rest)) == len(rest) and len(drawn) == steps


def test_passes_are_permuted_anew() -> None:
    drawn = batches(12, 12, 4, 3)
    assert len({tuple(b.tolist()) for b in drawn}) == 4
