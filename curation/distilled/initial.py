"""What synthetic images start from, and the labels that they start with.

    correct          the first images of each class, in a random order, that the final expert 0 classifies correctly,
                     then those that expert 1 does, ...                                                 (DATM)
    real             random images of each class
    representative   k-means with as many clusters as images a class on the logits of the class under a final expert;
                     the image that is nearest to each centre                                           (AST)
    labels           logits, the mean over the final experts that classify the image correctly; over all where none does

The published code of AST has ten clusters whatever the number of images, so that fewer than ten images come out empty:
the number of clusters here is the number of images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import DataError
from curation.distilled.experts import ExpertBuffer
from curation.distilled.flat import FlatNetwork

Start = Literal["correct", "real", "representative"]
STARTS: tuple[Start, ...] = ("correct", "real", "representative")


def final_logits(network: FlatNetwork, experts: ExpertBuffer, x: Tensor) -> Tensor:
    """What every trained expert says: (E, N, K)."""
    return torch.stack([network.logits(experts.final(number, network), x) for number in range(len(experts))])


def choose_start(how: Start, logits: Tensor, y: Tensor, *, per_class: int, num_classes: int, seed: int) -> Tensor:
    """Positions of ``per_class`` real images a class, class by class: int64 (K * per_class,).

    Args:
        logits: (E, N, K) of the final experts (:func:`final_logits`); y: (N,) classes.

    Raises:
        DataError: a class with fewer images, or, for "correct", with fewer that any expert classifies correctly.
    """
    found = []
    for label in range(num_classes):
        own = torch.nonzero(y == label)[:, 0].cpu().numpy()
        if len(own) < per_class:
            raise DataError(f"class {label} has {len(own)} images, fewer than the {per_class} that are to be made")
        rng = np.random.default_rng(derive_seed("start", seed, label))
        if how == "representative":
            chosen = _representative(
                logits[0][own].double().cpu().numpy(), per_class, derive_seed("k-means", seed, label)
            )
        elif how == "real":
            chosen = rng.permutation(len(own))[:per_class]
        else:
            order = rng.permutation(len(own))
            right = (logits[:, own].argmax(2) == label).cpu().numpy()[:, order]
            chosen = order[_first_correct(right, per_class, label)]
        found.append(torch.from_numpy(own[chosen]))
    return torch.cat(found).to(y.device)


def mean_logits(logits: Tensor, y: Tensor) -> Tensor:
    """(n, K): mean over the experts that classify an image correctly, or over all where none does.

    Args:
        logits: (E, n, K). y: (n,).
    """
    right = (logits.argmax(2) == y).to(logits.dtype)[:, :, None]
    count = right.sum(0)
    return torch.where(count > 0, (logits * right).sum(0) / count.clamp(min=1), logits.mean(0))


def _first_correct(right: NDArray[np.bool_], num: int, label: int) -> NDArray[np.int64]:
    """Positions of the first ``num`` images that expert 0 has right, filled up by those of expert 1, and so on.

    Args:
        right: (E, n) bool.
    """
    chosen: list[int] = []
    for expert in right:
        chosen += [i for i in np.flatnonzero(expert).tolist() if i not in set(chosen)]
        if len(chosen) >= num:
            return np.array(chosen[:num], np.int64)
    raise DataError(
        f"{len(chosen)} images of class {label} are classified correctly by an expert, fewer than the {num} that are "
        "to be made: train the experts longer, or start from 'real'"
    )


def _representative(logits: NDArray[np.float64], num: int, seed: int) -> NDArray[np.int64]:
    """Positions of the images that are nearest to the centres of ``num`` clusters, each image once."""
    clusters = min(num, len(np.unique(logits, axis=0)))
    centres = KMeans(clusters, n_init=3, random_state=seed % 2**31).fit(logits).cluster_centers_
    distance = np.square(logits[None] - centres[:, None]).sum(2)
    chosen: list[int] = []
    for row in distance:
        row[chosen] = np.inf
        chosen.append(int(row.argmin()))
    rest = [i for i in range(len(logits)) if i not in set(chosen)]
    return np.array((chosen + rest)[:num], np.int64)  # fewer distinct images than clusters: any of the equal ones
