"""Losses of masks against loops over pixels, hand-made shapes and invariants of their papers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from contracts.errors import NameTaken
from recipes.segmentation.losses import LOSSES
from recipes.segmentation.losses import topo as topo_module
from recipes.segmentation.losses.base import MaskLoss, distances, mask_loss, skeletons
from recipes.segmentation.losses.cbdice import cbdice, weights
from recipes.segmentation.losses.cldice import cldice, dilate, erode, soft_skeleton
from recipes.segmentation.losses.overlap import cross_entropy, dice
from recipes.segmentation.losses.region_wise import region_map
from recipes.segmentation.losses.skeleton_recall import skeleton_recall, tube
from recipes.segmentation.losses.topo import goals, patch_components, patches, persistent_pairs
from recipes.segmentation.losses.warping import critical, simple, warped

EIGHT = np.ones((3, 3))
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 7))


def grid_of_lines(size: int = 24, width: int = 3, step: int = 8) -> torch.Tensor:
    """(1, H, W) int64: a net of straight lines, one component with holes."""
    mask = torch.zeros(1, size, size, dtype=torch.int64)
    for start in range(2, size - width, step):
        mask[:, start : start + width] = 1
        mask[:, :, start : start + width] = 1
    return mask


def one_hot(labels: torch.Tensor, classes: int = 2) -> torch.Tensor:
    return F.one_hot(labels, classes).movedim(-1, 1).double()


def logits_like(labels: torch.Tensor, sure: float, *, classes: int = 2) -> torch.Tensor:
    return (sure * (2 * one_hot(labels, classes) - 1)).requires_grad_()


def value(name: str, logits: torch.Tensor, labels: torch.Tensor, *, late: bool = False) -> torch.Tensor:
    classes = logits.shape[1]
    return LOSSES[name](logits, one_hot(labels, classes).to(logits), LOSSES[name].maps(labels, classes), late=late)


def betti(mask: np.ndarray) -> tuple[int, int]:
    return ndimage.label(mask, EIGHT)[1], ndimage.label(~np.pad(mask, 1))[1] - 1


@st.composite
def mask_pairs(draw):
    shape = draw(SHAPES)
    bits = st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return [torch.tensor(draw(bits)).reshape(1, *shape) for _ in range(2)]


# ---- every loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_for_empty_full_and_ordinary_masks(name, late) -> None:
    rng = torch.Generator().manual_seed(0)
    for labels in (torch.zeros(2, 12, 11), torch.ones(2, 12, 11), grid_of_lines(12, 2, 5).repeat(2, 1, 1)):
        for scale in (0.0, 1.0, 60.0):  # at 60 a float32 softmax is exactly 0 or 1
            logits = (scale * torch.randn(2, 2, *labels.shape[1:], generator=rng)).requires_grad_()
            value(name, logits, labels.long(), late=late).backward()
            assert torch.isfinite(logits.grad).all(), (name, scale)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_label_is_better_than_its_opposite_and_a_step_down_the_gradient_is_better(name, classes) -> None:
    labels = grid_of_lines()
    labels[0, :, 12:] *= classes - 1
    for late in (False, True):
        right = value(name, logits_like(labels, 4.0, classes=classes), labels, late=late)
        wrong = value(name, logits_like((labels + 1) % classes, 4.0, classes=classes), labels, late=late)
        assert right < wrong - 0.2
        rng = torch.Generator().manual_seed(1)
        logits = torch.randn(1, classes, *labels.shape[1:], generator=rng, dtype=torch.float64, requires_grad=True)
        before = value(name, logits, labels, late=late)
        before.backward()
        step = 1e-3 / float(logits.grad.abs().max())
        assert value(name, logits.detach() - step * logits.grad, labels, late=late) < before


@pytest.mark.parametrize("name", LOSSES)
def test_maps_are_of_each_label_alone(name) -> None:
    """Kept once a run and read by rows: the maps of some labels are those rows of the maps of all."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, (70, 9, 10)))
    labels[0], labels[1] = 0, 1
    whole = LOSSES[name].maps(labels, 2)
    if whole is not None:
        assert len(whole) == 70
        for row in (0, 1, 2, 65, 69):
            torch.testing.assert_close(LOSSES[name].maps(labels[row : row + 1], 2)[0], whole[row])


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(NameTaken):

        @mask_loss
        class Again(MaskLoss):
            name, doc = "ce", "again"


# ---- overlap ---------------------------------------------------------------------------------------------------


def test_cross_entropy_and_dice_by_hand() -> None:
    rng = np.random.default_rng(3)
    z, g = rng.normal(size=(2, 3, 2, 2)), rng.dirichlet([1, 1, 1], (2, 2, 2)).transpose(0, 3, 1, 2)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    entropy = -np.mean(
        [sum(g[b, c, i, j] * np.log(p[b, c, i, j]) for c in range(3)) for b, i, j in np.ndindex(2, 2, 2)]
    )
    overlap = []
    for b, c in np.ndindex(2, 3):
        both, either = (p[b, c] * g[b, c]).sum(), p[b, c].sum() + g[b, c].sum()
        overlap.append((2 * both + 1e-5) / (either + 1e-5))
    logits, targets = torch.from_numpy(z), torch.from_numpy(g)
    assert cross_entropy(logits, targets).item() == pytest.approx(entropy, rel=1e-12)
    assert dice(logits.softmax(1), targets).item() == pytest.approx(-np.mean(overlap), rel=1e-12)
    assert LOSSES["ce_dice"](logits, targets, None, late=False).item() == pytest.approx(
        entropy - np.mean(overlap), rel=1e-12
    )


# ---- clDice ----------------------------------------------------------------------------------------------------


def test_soft_skeleton_of_a_line_of_one_pixel_is_the_line() -> None:
    for line in (torch.eye(9), torch.zeros(9, 9).index_fill(0, torch.tensor([4]), 1.0)):
        torch.testing.assert_close(soft_skeleton(line[None, None]), line[None, None])


def test_soft_skeleton_by_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((8, 7))

    def around(a, i, j, places):
        return [a[i + d, j + r] for d, r in places if 0 <= i + d < 8 and 0 <= j + r < 7]

    cross, square = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)], list(itertools.product((-1, 0, 1), repeat=2))

    def naive(a, places, pick):
        return np.array([[pick(around(a, i, j, places)) for j in range(7)] for i in range(8)])

    def opened(a):
        return naive(naive(a, cross, min), square, max)

    torch.testing.assert_close(erode(torch.from_numpy(x)[None, None])[0, 0].numpy(), naive(x, cross, min))
    torch.testing.assert_close(dilate(torch.from_numpy(x)[None, None])[0, 0].numpy(), naive(x, square, max))
    s = np.maximum(x - opened(x), 0)
    worn = x
    for _ in range(3):
        worn = naive(worn, cross, min)
        d = np.maximum(worn - opened(worn), 0)
        s = s + np.maximum(d - s * d, 0)
    torch.testing.assert_close(soft_skeleton(torch.from_numpy(x)[None, None])[0, 0].numpy(), s)


def test_a_thick_line_keeps_a_skeleton_only_with_enough_iterations() -> None:
    bar = torch.zeros(1, 1, 20, 40)
    bar[..., 6:15, :] = 1.0
    assert soft_skeleton(bar, iterations=5)[..., 10, 10:30].min() > 0.99
    assert soft_skeleton(bar, iterations=2)[..., 9:12, 10:30].max() < 0.01


def test_cldice_is_nothing_where_prediction_is_label_and_one_where_they_miss_each_other() -> None:
    g = grid_of_lines()[:, None].double()
    assert cldice(g, g, soft_skeleton(g)).item() == pytest.approx(0, abs=1e-12)
    line, other = torch.zeros(2, 1, 1, 60, 60, dtype=torch.float64)
    line[..., 10, :], other[..., 40, :] = 1.0, 1.0
    assert cldice(line, other, soft_skeleton(other)).item() > 0.98


def test_cldice_sees_a_gap_that_dice_hardly_sees() -> None:
    g = grid_of_lines(40, 3, 12)
    broken = g.clone()
    broken[0, 20:22, 1:6] = 0  # one line is cut, 6 pixels of many
    whole, cut = one_hot(g), one_hot(broken)
    lost = dice(cut, whole) - dice(whole, whole)
    assert cldice(cut[:, 1:], whole[:, 1:], soft_skeleton(whole[:, 1:])) > 1.5 * float(lost)


# ---- Skeleton Recall -------------------------------------------------------------------------------------------


def test_recall_is_minus_one_wherever_the_prediction_covers_the_label() -> None:
    labels = grid_of_lines()
    k = tube(labels > 0)[:, None].double()
    p = one_hot(labels)[:, 1:]
    assert skeleton_recall(p, k).item() == pytest.approx(-1)
    assert skeleton_recall(torch.ones_like(p), k).item() == pytest.approx(-1)
    assert skeleton_recall(torch.zeros_like(p), k).item() > -1e-4
    assert skeleton_recall(p, torch.zeros_like(k)).item() == pytest.approx(-1)  # an empty label asks for nothing


def test_the_tube_is_the_dilated_skeleton_within_the_label() -> None:
    from skimage.morphology import skeletonize

    rng = np.random.default_rng(0)
    masks = ndimage.gaussian_filter(rng.normal(size=(3, 30, 26)), (0, 2, 2)) > 0
    for mask, found in zip(masks, tube(torch.from_numpy(masks)).numpy(), strict=True):
        wanted = ndimage.binary_dilation(ndimage.binary_dilation(skeletonize(mask))) & mask
        np.testing.assert_array_equal(found, wanted)


def test_stacked_skeletons_and_distances_are_those_of_each_mask() -> None:
    from skimage.morphology import skeletonize

    rng = np.random.default_rng(2)
    masks = ndimage.gaussian_filter(rng.normal(size=(5, 21, 17)), (0, 2, 2)) > -0.02
    masks[3] = True
    masks[4] = False
    thin, far = skeletons(torch.from_numpy(masks)).numpy(), distances(torch.from_numpy(masks)).numpy()
    for n in (0, 1, 2, 4):
        np.testing.assert_array_equal(thin[n], skeletonize(masks[n]))
        np.testing.assert_allclose(far[n], ndimage.distance_transform_edt(masks[n]), rtol=1e-6)
    assert (far[3] == np.float32(np.hypot(21, 17))).all()
    assert (distances(torch.ones(2, 3, 4, dtype=torch.bool)) == 5).all()
    assert skeletons(torch.zeros(0, 3, 4, dtype=torch.bool)).shape == (0, 3, 4)


# ---- region-wise, cbDice ---------------------------------------------------------------------------------------


def test_region_map_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((6, 7)) < 0.7
    outside = np.argwhere(~mask)
    far = np.array([[np.sqrt(((outside - (i, j)) ** 2).sum(1)).min() for j in range(7)] for i in range(6)])
    wanted = np.where(mask, -far / far.max(), 1.0)
    np.testing.assert_allclose(region_map(torch.from_numpy(mask)[None])[0].numpy(), wanted, rtol=1e-6)
    assert (region_map(torch.zeros(1, 3, 3, dtype=torch.bool)) == 1).all()


def test_region_wise_is_least_at_the_label() -> None:
    labels = grid_of_lines()
    z = LOSSES["region_wise"].maps(labels, 2)
    best = z.argmin(1)
    torch.testing.assert_close(best, labels)


def test_cbdice_by_hand() -> None:
    """The published formula written out with loops, on a prediction that is off by some pixels."""
    rng = np.random.default_rng(4)
    label = (grid_of_lines(20, 3, 7) > 0).numpy()[0]
    p = np.clip(0.8 * label + 0.15 + rng.normal(0, 0.12, label.shape), 0.01, 0.99)

    def parts(mask):
        from skimage.morphology import skeletonize

        s, d = skeletonize(mask), ndimage.distance_transform_edt(mask)
        most = max((d * s).max(), 1)
        inverse = np.where(s, (1 + 1e-7) / (d * s / most + 1e-7), 0)
        return np.minimum(d, most) / most, d * s / most, inverse

    (dp, rp, ip), (dg, rg, ig) = parts(p > 0.5), parts(label)
    qp, qrp, qsp = dp * p, rp * p, ip * p

    def heavy(a, b, line):
        return sum(line[i] * (b[i] if b[i] > 0 else a[i]) for i in np.ndindex(line.shape))

    precision = ((qsp * dg).sum() + 1) / (heavy(qrp, rg, qsp) + 1)
    sensitivity = ((ig * qp).sum() + 1) / (heavy(rg, qrp, ig) + 1)
    found = cbdice(torch.from_numpy(p)[None], weights(torch.from_numpy(label)[None]).double())
    assert found.item() == pytest.approx(2 * precision * sensitivity / (precision + sensitivity), rel=1e-5)


# ---- warping ---------------------------------------------------------------------------------------------------


def test_simple_pixels_by_counting_components_of_every_neighbourhood() -> None:
    for code in range(256):
        inside = np.zeros((1, 3, 3), bool)
        for k, place in enumerate(((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))):
            inside[0][place] = code >> k & 1
        assert bool(simple(torch.from_numpy(inside))[0, 1, 1]) == local(inside[0]), code


def local(mask: np.ndarray) -> bool:
    """One foreground and one background component touch the centre: the definition of a simple pixel."""
    around = mask.copy()
    around[1, 1] = False
    ones = ndimage.label(around, EIGHT)[1]
    empty = ~mask
    empty[1, 1] = False
    named, _ = ndimage.label(empty)
    touching = {named[p] for p in ((0, 1), (1, 0), (1, 2), (2, 1))} - {0}
    return ones == 1 and len(touching) == 1


@settings(max_examples=80, deadline=None)
@given(mask_pairs())
def test_warping_never_changes_topology_and_reaches_what_it_can(pair) -> None:
    a, b = pair
    found = warped(a, b)
    assert betti(found[0].numpy()) == betti(a[0].numpy())
    assert not ((found ^ b) & simple(found)).any()  # nothing is left that may be flipped
    assert not ((found ^ a) & ~(a ^ b)).any()  # only pixels that differ were flipped


def test_critical_pixels_are_breaks_not_shifts() -> None:
    line = torch.zeros(1, 11, 20, dtype=torch.bool)
    line[:, 5] = True
    moved = torch.zeros_like(line)
    moved[:, 6] = True
    assert not critical(moved | line, line).any()  # thicker, of one topology
    cut = line.clone()
    cut[0, 5, 9:12] = False
    assert critical(cut, line)[0].any() and not critical(cut, line)[0, 5, :5].any()


# ---- TopoLoss --------------------------------------------------------------------------------------------------


def naive_pairs(values: np.ndarray) -> list[tuple[int, int]]:
    """Union-find pixel by pixel: the definition."""
    flat = values.reshape(-1)
    order = sorted(range(flat.size), key=lambda i: (-flat[i], i))
    place = {p: n for n, p in enumerate(order)}
    parent: dict[int, int] = {}

    def root(p):
        while parent[p] != p:
            p = parent[p]
        return p

    pairs = []
    for p in order:
        parent[p] = p
        i, j = divmod(p, values.shape[1])
        near = [
            a * values.shape[1] + b
            for a, b in itertools.product(range(i - 1, i + 2), range(j - 1, j + 2))
            if 0 <= a < values.shape[0] and 0 <= b < values.shape[1]
        ]
        for q in near:
            if q in parent and root(q) != root(p):
                old, young = sorted((root(q), root(p)), key=place.get)
                parent[young] = old
                if flat[young] > flat[p]:
                    pairs.append((young, p))
    return sorted(pairs)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 10**6), st.sampled_from([3, 1000]))
def test_persistent_pairs_by_a_naive_union_find(shape, seed, levels) -> None:
    values = np.random.default_rng(seed).integers(0, levels, shape) / levels
    births, deaths = persistent_pairs(values[None], np.zeros((1, *shape), np.int64))
    assert sorted(zip(births.tolist(), deaths.tolist(), strict=True)) == naive_pairs(values)


def test_pairs_stay_within_their_patch_and_image() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((3, 9, 8))
    grid = patches(9, 8, size=4)
    part = grid + 10 * np.arange(3)[:, None, None]
    births, deaths = persistent_pairs(values, part)
    found = set(zip(births.tolist(), deaths.tolist(), strict=True))
    wanted = set()
    for n, (top, left) in itertools.product(range(3), itertools.product((0, 4, 8), (0, 4))):
        piece = values[n, top : top + 4, left : left + 4]
        move = lambda p, top=top, left=left, w=piece.shape[1], n=n: n * 72 + (top + p // w) * 8 + left + p % w  # noqa: E731
        wanted |= {(move(b), move(d)) for b, d in naive_pairs(piece)}
    assert found == wanted


def test_goals_keep_what_the_label_has_and_join_the_rest() -> None:
    """Three bumps in a row over a valley: with a label of two components the weakest bump joins, the other is kept."""
    row = np.array([[0.95, 0.2, 0.9, 0.5, 0.7]])
    at, goal = goals(row[None], np.full((1, 1, 5), 2), size=50)
    assert dict(zip(at.tolist(), goal.tolist(), strict=True)) == {2: 1.0, 1: 0.0, 4: 0.5, 3: 0.7}
    at, goal = goals(row[None], np.full((1, 1, 5), 1), size=50)
    assert dict(zip(at.tolist(), goal.tolist(), strict=True)) == {2: 0.2, 1: 0.9, 4: 0.5, 3: 0.7}
    faint = np.array([[0.9, 0.88, 0.9]])
    assert not len(goals(faint[None], np.ones((1, 1, 3), np.int64), size=50)[0])  # below the least persistence


def test_patch_components_by_labelling_each_patch() -> None:
    rng = np.random.default_rng(5)
    masks = rng.random((3, 11, 13)) < 0.4
    found = patch_components(masks, size=5)
    for n, i, j in np.ndindex(3, 11, 13):
        top, left = i // 5 * 5, j // 5 * 5
        assert found[n, i, j] == ndimage.label(masks[n, top : top + 5, left : left + 5], EIGHT)[1]


def test_topo_closes_a_gap_that_cross_entropy_leaves(monkeypatch) -> None:
    """Gradient of the topological part alone raises the saddle of a broken line towards the peaks."""
    monkeypatch.setattr(topo_module, "WEIGHT", 1e6)
    labels = torch.zeros(1, 9, 15, dtype=torch.int64)
    labels[0, 4] = 1
    p = torch.full((1, 9, 15), 0.05)
    p[0, 4] = 0.9
    p[0, 4, 7] = 0.4
    logits = torch.stack([torch.zeros_like(p), torch.logit(p)], 1).requires_grad_()
    value("topo", logits, labels, late=True).backward()
    assert logits.grad[0, 1, 4, 7] < 0 and logits.grad[0, 1].argmin() == 4 * 15 + 7
