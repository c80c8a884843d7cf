"""Measures of masks beside their overlap: Betti numbers, distance of boundaries, skeletons, pieces that have no
partner.

    b0        8-connected components of the mask
    b1        4-connected components of the background of the mask padded by 1 pixel, minus 1: its holes
    errors    |b0(p) - b0(g)|, |b1(p) - b1(g)|
    HD95      max over both directions of the 95th percentile of distances from a boundary pixel to the other boundary;
              null where a mask is empty: it has no boundary
    clDice    2 TP TS / (TP + TS), TP = |skel(p) and g| / |skel(p)|, TS likewise; 1 for two empty masks, 0 for one
    missed    components (holes) of g without a partner in p;  invented: of p without one in g
              partners are those of which each overlaps the other more than any other, the lower number of equals

so that missed - invented = b(g) - b(p): two bricks that run into one are one hole missed, whatever else is well. A
pixel in a corner that another touches is joined to it in the mask and parted in the background, which is the same
topology as that of the cubical complex of 1 - mask. Connectivity the other way round doubles the errors of b1, and
Betti numbers of crops are those of the crops.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365); Shit et al., clDice (CVPR 2021). On the 350
published test masks these Betti numbers are the published ones. gudhi's b0 of an empty mask is 1, this one 0.

Shapes: masks bool (N, H, W), N of them at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.errors import InvalidInput
from recipes.segmentation.losses.base import skeletons

Masks = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_EIGHT = np.zeros((3, 3, 3), bool)
_EIGHT[1] = True  # masks of a stack do not touch
_FOUR = np.zeros((3, 3, 3), bool)
_FOUR[1] = [[False, True, False], [True, True, True], [False, True, False]]


class Pieces(NamedTuple):
    """Components or holes of a stack of masks.

    Attributes:
        named: int (N, H, W), 0 where there is none, else its number, 1 to the number of all.
        owner: (P + 1,) int64, the mask that each number is of; -1 for 0.
    """

    named: Ints
    owner: Ints

    def counts(self, num: int) -> Ints:
        """(N,) pieces of each mask."""
        return np.bincount(self.owner[1:], minlength=num).astype(np.int64)


def components(masks: Masks) -> Pieces:
    """The 8-connected components of each mask."""
    return _pieces(_stack(masks), _EIGHT)


def holes(masks: Masks) -> Pieces:
    """The holes of each mask: 4-connected pieces of its background that do not reach beyond the image."""
    stack = _stack(masks)
    empty = np.pad(~stack, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    found = _pieces(empty, _FOUR)
    outer = found.named[:, 0, 0]  # one a mask, as the frame is one piece
    kept = np.ones(len(found.owner), bool)
    kept[0] = False
    kept[outer] = False
    number = np.zeros(len(kept), np.int64)
    number[kept] = np.arange(1, kept.sum() + 1)
    inside = number[found.named][:, 1:-1, 1:-1]
    return Pieces(inside, np.concatenate([[-1], found.owner[kept]]).astype(np.int64))


def betti_numbers(masks: Masks) -> Ints:
    """(N, 2) b0 and b1 of masks (N, H, W), or (2,) of one (H, W).

    >>> betti_numbers(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)).tolist()
    [1, 1]
    """
    if masks.ndim == 2:
        return np.asarray(betti_numbers(masks[None])[0])
    return np.stack([components(masks).counts(len(masks)), holes(masks).counts(len(masks))], 1)


def betti_error(predicted: Masks, true: Masks) -> Ints:
    """(N, 2) absolute differences of b0 and b1; lower = better, 0 the best."""
    _same(predicted, true)
    return np.asarray(np.abs(betti_numbers(predicted) - betti_numbers(true)))


def hd95(predicted: Masks, true: Masks) -> Floats:
    """(N,) pixels, lower = better; NaN where one of the two masks is empty."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    _same(predicted, true)
    found = np.full(len(true), np.nan)
    edges = [m & ~binary_erosion(m, _FOUR) for m in (_stack(predicted), _stack(true))]
    there = np.flatnonzero(edges[0].any((1, 2)) & edges[1].any((1, 2)))
    far = np.hypot(*true.shape[1:]) + 1
    worst = np.zeros((2, len(there)))
    for way, (of, to) in enumerate((edges, edges[::-1])):
        if not len(there):
            break
        # One transform of the stack, whose masks lie farther apart than any two pixels of an image.
        distance = distance_transform_edt(~to[there], sampling=(2 * far, 1.0, 1.0))
        worst[way] = [np.percentile(distance[row][of[n]], 95) for row, n in enumerate(there)]
    found[there] = worst.max(0)
    return found


def cl_dice_score(predicted: Masks, true: Masks) -> Floats:
    """(N,) in [0, 1], higher = better."""
    _same(predicted, true)
    p, g = _stack(predicted), _stack(true)
    thin_p, thin_g = (skeletons(torch.from_numpy(np.ascontiguousarray(m))).numpy() for m in (p, g))
    size_p, size_g = thin_p.sum((1, 2)), thin_g.sum((1, 2))
    precision = (thin_p & g).sum((1, 2)) / np.maximum(size_p, 1)
    sensitivity = (thin_g & p).sum((1, 2)) / np.maximum(size_g, 1)
    total = precision + sensitivity
    score = np.where(total > 0, 2 * precision * sensitivity / np.where(total > 0, total, 1), 0.0)
    return np.where((size_p == 0) & (size_g == 0), 1.0, score)


def dice_score(predicted: Masks, true: Masks) -> Floats:
    """(N,) in [0, 1], higher = better; 1 for two empty masks."""
    _same(predicted, true)
    p, g = _stack(predicted), _stack(true)
    either = p.sum((1, 2)) + g.sum((1, 2))
    return np.where(either > 0, 2 * (p & g).sum((1, 2)) / np.maximum(either, 1), 1.0)


def unmatched(predicted: Pieces, true: Pieces, num: int) -> Ints:
    """(N, 2) pieces of the truth without a partner, and of the prediction: missed and invented.

    Args:
        num: N, masks.
    """
    both = (predicted.named > 0) & (true.named > 0)
    width = len(true.owner)
    pairs, overlap = np.unique(predicted.named[both] * width + true.named[both], return_counts=True)
    p, g = pairs // width, pairs % width
    best_of_p, best_of_g = (
        _best(side, other, overlap, size)
        for side, other, size in (
            (p, g, len(predicted.owner)),
            (g, p, len(true.owner)),
        )
    )
    partner = np.zeros(len(true.owner), bool)
    numbers = np.arange(1, len(true.owner))
    chosen = best_of_g[1:]
    partner[1:] = (chosen > 0) & (best_of_p[chosen] == numbers)
    matched = np.bincount(true.owner[partner], minlength=num)
    return np.stack([true.counts(num) - matched, predicted.counts(num) - matched], 1)


def _best(side: Ints, other: Ints, overlap: Ints, size: int) -> Ints:
    """(size,) of each number of a side the other one that it overlaps most, the lower of equals; 0 for none."""
    found = np.zeros(size, np.int64)
    order = np.lexsort((other, -overlap, side))
    first = np.ones(len(order), bool)
    first[1:] = side[order][1:] != side[order][:-1]
    found[side[order][first]] = other[order][first]
    return found


def _pieces(masks: Masks, structure: Masks) -> Pieces:
    from scipy.ndimage import label

    named, num = label(masks, structure)
    owner = np.full(num + 1, -1, np.int64)
    flat = np.repeat(np.arange(len(masks)), masks[0].size if len(masks) else 0)
    owner[named.reshape(-1)] = flat
    owner[0] = -1
    return Pieces(named.astype(np.int64), owner)


def _stack(masks: Masks) -> Masks:
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise InvalidInput(f"masks are {masks.dtype} {masks.shape}; bool (N, H, W) is needed")
    return masks


def _same(predicted: Masks, true: Masks) -> None:
    if predicted.shape != true.shape:
        raise InvalidInput(f"predicted masks {predicted.shape} and true ones {true.shape} differ in shape")
