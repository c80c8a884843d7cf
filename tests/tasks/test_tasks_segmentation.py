"""Segmentation and nodes: the four numbers against a loop over pixels and nodes; how the signal lies over models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sources.payloads.graph import Graph
from tasks.base import Batch, named
from tasks.pixels import mask_blocks, mask_digests, pixel_counts
from tasks.segmentation import iou

SEGMENTATION = named("segmentation")


@pytest.mark.parametrize("lead", [(), (3,)])
def test_readings_by_hand_pixel_by_pixel(lead) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (*lead, 5, 4, 3, 2)).astype(np.float32)
    masks = rng.integers(0, 4, (5, 3, 2))
    found = SEGMENTATION.reading_of(logits, masks, {})
    assert found.values.shape == (*lead, 5, 4)
    for model in np.ndindex(lead):
        for n in range(5):
            terms = []
            for i in range(3):
                for j in range(2):
                    z = [float(v) for v in logits[(*model, n)][:, i, j]]
                    y = int(masks[n, i, j])
                    log_p = z[y] - math.log(sum(map(math.exp, z)))
                    terms.append((-log_p, z[y] - math.log(sum(math.exp(v) for k, v in enumerate(z) if k != y)), log_p))
            predicted = logits[(*model, n)].argmax(0)
            shares = []
            for k in range(1, 4):
                both, either = ((predicted == k) & (masks[n] == k)).sum(), ((predicted == k) | (masks[n] == k)).sum()
                shares += [both / either] if either else []
            want = [*np.mean(terms, axis=0), np.mean(shares) if shares else 1.0]
            np.testing.assert_allclose(found.values[(*model, n)], want, rtol=1e-9)


def test_losses_are_the_readings_loss_and_have_gradients() -> None:
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(4, 3, 5, 5)), requires_grad=True)
    masks = rng.integers(0, 3, (4, 5, 5))
    losses = SEGMENTATION.losses_of(logits, torch.from_numpy(masks))
    np.testing.assert_allclose(
        losses.detach().numpy(), SEGMENTATION.reading_of(logits.detach().numpy(), masks, {}).loss, rtol=1e-9
    )
    losses[2].backward()
    assert logits.grad is not None and not logits.grad[[0, 1, 3]].any() and logits.grad[2].any()


@pytest.mark.parametrize(
    ("predicted", "mask", "want"),
    [
        ([0, 0, 0], [0, 0, 0], 1.0),
        ([1, 0, 0], [0, 0, 0], 0.0),
        ([0, 0, 0], [0, 1, 0], 0.0),
        ([1, 1, 0], [0, 1, 1], 1 / 3),
        ([1, 1, 1], [1, 1, 1], 1.0),
        ([2, 1, 0], [2, 2, 0], (0 / 1 + 1 / 2) / 2),
    ],
)
def test_intersection_over_union_by_hand(predicted, mask, want) -> None:
    assert iou(np.array(predicted), np.array(mask), 3) == pytest.approx(want)


def test_a_sure_model_keeps_its_precision() -> None:
    """1 - p of a float32 softmax is 0 here; the signal still tells the two images apart."""
    logits = np.zeros((2, 2, 1, 1), np.float32)
    logits[:, 1] = [[[60.0]], [[61.0]]]
    found = SEGMENTATION.reading_of(logits, np.ones((2, 1, 1), int), {})
    assert found.signal.tolist() == [60.0, 61.0] and (found.loss > 0).all() and found.quality.tolist() == [1.0, 1.0]


@given(
    y=arrays.arrays(
        np.uint8, st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 5)
    )
)
def test_pixels_of_each_class_are_counted(y) -> None:
    counts = pixel_counts(y, 3)
    for mask, row in zip(y, counts, strict=True):
        assert row.tolist() == [*((mask == k).sum() for k in range(3)), (mask > 2).sum()]
    assert (
        np.concatenate([np.empty((0, *y.shape[1:]), np.uint8), *(m for _, m in mask_blocks(y))]).tolist() == y.tolist()
    )
    same = mask_digests(y.astype(np.int64))
    assert same.tolist() == mask_digests(y).tolist()
    assert len(set(same.tolist())) == len({m.tobytes() for m in y})


def test_digests_tell_shapes_apart() -> None:
    assert mask_digests(np.zeros((1, 2, 3), np.uint8)) != mask_digests(np.zeros((1, 3, 2), np.uint8))


def test_negative_values_are_no_class() -> None:
    assert pixel_counts(np.array([[[-1, 0], [1, 2]]]), 2).tolist() == [[1, 1, 2]]


def test_strata_follow_the_share_of_the_foreground() -> None:
    masks = np.zeros((40, 4, 5), np.uint8)
    for n, mask in enumerate(masks):
        mask.reshape(-1)[: n // 2] = 1
    strata = SEGMENTATION.strata(None, masks, np.arange(40))
    assert strata.tolist() == [n // 10 for n in range(40)]


def test_the_signal_is_nearer_normal_over_models_than_the_loss() -> None:
    """Pixel-wise logistic models on random halves: skewness over models, averaged over images."""
    rng = np.random.default_rng(0)
    num, size, models = 40, 8, 48
    masks = (rng.random((num, size, size)) < 0.4).astype(np.int64)
    x = torch.from_numpy(masks[:, None] * 1.2 + rng.normal(0, 1, (num, 3, size, size)))
    y = torch.from_numpy(masks)
    outputs = []
    for seed in range(models):
        half = np.random.default_rng(seed).permutation(num)[: num // 2]
        net = torch.nn.utils.skip_init(torch.nn.Conv2d, 3, 2, 1, dtype=torch.float64)
        torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
        step = torch.optim.LBFGS(net.parameters(), max_iter=15)

        def closure(net=net, step=step, half=half):
            step.zero_grad()
            loss = SEGMENTATION.losses_of(net(x[half]), y[half]).mean()
            loss.backward()
            return loss

        step.step(closure)
        outputs.append(net(x).detach().numpy())
    found = SEGMENTATION.reading_of(np.stack(outputs), masks, {})

    def skewness(values):
        z = (values - values.mean(0)) / values.std(0)
        return float(np.abs((z**3).mean(0)).mean())

    assert np.isfinite(found.values).all()
    assert skewness(found.signal) < 0.35 and skewness(found.signal) < 0.7 * skewness(found.loss)


class _Neighbours(torch.nn.Module):
    """Logits of a node from its own features and the sum of its neighbours'."""

    def __init__(self, num: int, classes: int) -> None:
        super().__init__()
        self.own, self.near = torch.nn.Linear(num, classes), torch.nn.Linear(num, classes)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        near = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
        return (self.own(x) + self.near(near))[nodes]


def test_nodes_are_classified_on_the_whole_graph() -> None:
    rng = np.random.default_rng(2)
    graph = Graph(rng.normal(size=(7, 3)).astype(np.float32), np.array([[0, 1, 4, 5], [2, 2, 6, 1]]), np.arange(7))
    from sources.payloads.base import Affine

    affine = Affine(np.zeros(3, np.float32), np.ones(3, np.float32))
    rows, y = np.array([2, 6, 0]), np.array([1, 0, 2])
    given_ = {k: torch.from_numpy(v) for k, v in graph.inputs(rows, affine).items()}
    torch.manual_seed(0)
    model = _Neighbours(3, 3)
    batch = Batch(given_, torch.from_numpy(y), torch.from_numpy(rows))
    found = named("nodes").read(model, batch)
    near = np.zeros((7, 3))
    for a, b in graph.edges.T.tolist():
        near[a] += graph.features[b]
        near[b] += graph.features[a]
    for row, node in enumerate(rows):
        w = [p.detach().numpy().astype(np.float64) for p in model.parameters()]
        z = w[0] @ graph.features[node] + w[1] + w[2] @ near[node] + w[3]
        log_p = z[y[row]] - np.log(np.exp(z).sum())
        np.testing.assert_allclose(found.log_likelihood[row], log_p, rtol=1e-5)
        np.testing.assert_allclose(found.signal[row], log_p - np.log1p(-np.exp(log_p)), rtol=1e-5)
        assert found.quality[row] == float(z.argmax() == y[row])
    assert named("nodes").losses(model, batch).detach().numpy() == pytest.approx(found.loss, rel=1e-5)


def test_the_best_constant_answer_by_trying_each_class() -> None:
    rng = np.random.default_rng(4)
    masks = rng.integers(0, 3, (9, 4, 5))
    masks[0], masks[1] = 0, 2
    masks[2][masks[2] == 1] = 0
    for y in (masks, np.zeros_like(masks[:2]), masks[1:2]):
        data = SimpleNamespace(y=y, class_names=("a", "b", "c"))
        each = [np.mean([iou(np.full((4, 5), k), mask, 3) for mask in y]) for k in range(3)]
        assert SEGMENTATION.constant_quality(data) == pytest.approx(max(each))
