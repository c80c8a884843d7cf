"""TopoLoss: critical points of the persistent components of a prediction, moved to where the label's would be.

    filtration   1 - p of the foreground, on patches of 50 x 50 pixels, 8-connected; t falls from 1 to 0 and components
                 of {p >= t} are born at maxima and die where they meet an older one (elder rule)
    pairs        (birth pixel, death pixel) of persistence p(birth) - p(death) > 0.03
    keep         the b0(g) - 1 most persistent, g the label's patch: birth -> 1, death -> 0
    join         the others: death -> p(birth), birth -> p(death)
    loss         CE + 100 (1 / (B H W)) sum over critical points of (p - goal)^2               goals without gradient

0-dimensional persistence alone, as in the comparison of TopoMortar, found by a union-find over the basins of the
maxima: a minimum spanning forest of pixels, whose edges within a basin kill nothing. A patch whose label is empty keeps
no component. Of published code this is not: there the "target" was the label's background channel, softmax was taken
twice, and a hole's patch was forgotten when it was removed. Critical points are looked for in the last 30% of a run;
before, the loss is CE.

Source: Hu et al., "Topology-Preserving Deep Image Segmentation" (NeurIPS 2019, arXiv 1906.05404); Edelsbrunner,
Letscher & Zomorodian (2002). Shapes: ``losses.base``; its map is the patch's b0, (N, 1, H, W).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.segmentation.losses.base import MaskLoss, foreground, mask_loss
from recipes.segmentation.losses.overlap import cross_entropy

PATCH, LEAST, WEIGHT = 50, 0.03, 100.0
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # every pair of 8-neighbours once

Ints = NDArray[np.int64]


def patches(height: int, width: int, *, size: int = PATCH) -> Ints:
    """(H, W) number of the patch of each pixel, from 0."""
    across = -(-width // size)
    return np.asarray((np.arange(height) // size)[:, None] * across + np.arange(width) // size)


def persistent_pairs(values: NDArray[np.floating], part: Ints) -> tuple[Ints, Ints]:
    """Flat positions (births, deaths) of the finite pairs of components of {values >= t}, t falling; parts apart.

    Equal values are ordered by position, the first highest: pairs of persistence 0 among them are left out.

    Args:
        values: (N, H, W).
        part: int64 (N, H, W); pixels of different parts are no neighbours.
    """
    order = np.lexsort((np.arange(values.size), -values.reshape(-1)))
    rank = np.empty(values.size, np.int64)  # 0 is the highest
    rank[order] = np.arange(values.size)
    one, other = _edges(part)
    basin = _basins(rank, one, other)
    weakest = np.where(rank[one] > rank[other], one, other)
    apart = basin[one] != basin[other]
    a, b, at = basin[one][apart], basin[other][apart], weakest[apart]
    a, b = np.minimum(a, b), np.maximum(a, b)
    # Of all edges between two basins only the highest can join them.
    first = np.lexsort((rank[at], b, a))
    a, b, at = a[first], b[first], at[first]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    a, b, at = a[new], b[new], at[new]
    births, deaths = _joined(rank, a, b, at)
    flat = values.reshape(-1)
    lasting = flat[births] > flat[deaths]
    return births[lasting], deaths[lasting]


def _edges(part: Ints) -> tuple[Ints, Ints]:
    """Both ends of every pair of neighbours within a part."""
    position = np.arange(part.size).reshape(part.shape)
    height, width = part.shape[1:]
    ends: list[tuple[Ints, Ints]] = []
    for down, right in _SHIFTS:
        rows, columns = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        lower, beside = slice(down, height), slice(max(0, right), width + min(0, right))
        same = part[:, rows, columns] == part[:, lower, beside]
        ends.append((position[:, rows, columns][same], position[:, lower, beside][same]))
    return np.concatenate([e[0] for e in ends]), np.concatenate([e[1] for e in ends])


def _basins(rank: Ints, one: Ints, other: Ints) -> Ints:
    """The maximum that each pixel climbs to by its highest neighbour."""
    best = rank.copy()
    np.minimum.at(best, one, rank[other])
    np.minimum.at(best, other, rank[one])
    of_rank = np.empty_like(rank)
    of_rank[rank] = np.arange(len(rank))
    up = of_rank[best]
    while True:
        further = up[up]
        if np.array_equal(further, up):
            return np.asarray(up)
        up = further


def _joined(rank: Ints, a: Ints, b: Ints, at: Ints) -> tuple[Ints, Ints]:
    """Kruskal over the edges (a, b), which meet at pixel ``at``: the younger of two components dies there."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.get(node, node)) != node:
            parent[node] = parent.get(above, above)
            node = above
        return node

    births, deaths = [], []
    for edge in np.argsort(rank[at], kind="stable").tolist():
        old, young = root(int(a[edge])), root(int(b[edge]))
        if old == young:
            continue
        if rank[old] > rank[young]:
            old, young = young, old
        parent[young] = old
        births.append(young)
        deaths.append(int(at[edge]))
    return np.array(births, np.int64), np.array(deaths, np.int64)


def goals(values: NDArray[np.floating], counts: Ints, *, size: int = PATCH) -> tuple[Ints, NDArray[np.float64]]:
    """Flat positions of critical points and the value that each is moved to.

    Args:
        values: (N, H, W) foreground probabilities.
        counts: (N, H, W) b0 of the label's patch that each pixel lies in.
        size: pixels of a patch.
    """
    num, height, width = values.shape
    grid = patches(height, width, size=size)
    part = grid + (np.arange(num) * (grid.max() + 1))[:, None, None]
    births, deaths = persistent_pairs(values, part)
    flat = values.reshape(-1).astype(np.float64)
    lasting = flat[births] - flat[deaths] > LEAST
    births, deaths = births[lasting], deaths[lasting]
    of = part.reshape(-1)[births]
    order = np.lexsort((births, flat[deaths] - flat[births], of))  # the most persistent of a patch first
    births, deaths, of = births[order], deaths[order], of[order]
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]]) if len(of) else np.empty(0, np.int64)
    place = np.arange(len(of)) - np.repeat(starts, np.diff(np.r_[starts, len(of)]))
    keep = place < counts.reshape(-1)[births] - 1
    at = np.concatenate([births, deaths])
    goal = np.concatenate([np.where(keep, 1.0, flat[deaths]), np.where(keep, 0.0, flat[births])])
    return at, goal


def patch_components(masks: NDArray[np.bool_], *, size: int = PATCH) -> Ints:
    """(N, H, W) 8-connected components of the mask's patch that each pixel lies in."""
    from scipy.ndimage import label

    num, height, width = masks.shape
    grid = patches(height, width, size=size)
    found = np.zeros(masks.shape, np.int64)
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = True  # masks of a stack are no neighbours
    for number in range(int(grid.max()) + 1):
        inside = grid == number
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = np.ix_(np.arange(num), rows, columns)
        named, total = label(masks[box], cross)
        owner = np.zeros(total + 1, np.int64)
        owner[named.reshape(-1)] = np.repeat(np.arange(num), len(rows) * len(columns))
        found[box] = np.bincount(owner[1:], minlength=num)[:, None, None]
    return found


@mask_loss
class Topo(MaskLoss):
    """Cross-entropy, and critical points of persistent components."""

    name, doc = "topo", "cross-entropy, at the end + 100 squared errors of persistent components' critical points"
    ends_otherwise = True

    def maps(self, labels: Tensor, num_classes: int) -> Tensor:
        counts = patch_components((labels > 0).cpu().numpy())
        return torch.from_numpy(counts).to(torch.int16)[:, None]

    def __call__(self, logits: Tensor, targets: Tensor, maps: Tensor | None, *, late: bool) -> Tensor:
        entropy = cross_entropy(logits, targets)
        if not late:
            return entropy
        assert maps is not None
        p = foreground(logits.softmax(1))
        at, goal = goals(p.detach().cpu().numpy(), maps[:, 0].cpu().numpy().astype(np.int64))
        moved = p.reshape(-1)[torch.from_numpy(at).to(p.device)] - torch.from_numpy(goal).to(p)
        return entropy + WEIGHT * moved.square().sum() / p.numel()
