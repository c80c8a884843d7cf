"""How smoothly experts move: the length of each epoch's step, how much it turns, and the detour of the whole way.

    step_norm    |theta_{e+1} - theta_e|            turn_cos    cosine of this step and the one before, in [-1, 1]
    max_step     the longest step                   path_ratio  sum of the steps / |theta_T - theta_0|, >= 1

A student on a few images follows short steps that do not turn; strong optimisers make long ones, whose matching teaches
less (Shen et al., arXiv 2310.10541).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from curation.distilled.experts import ExpertBuffer
from curation.distilled.flat import FlatNetwork

Float = NDArray[np.float64]


class Smoothness(NamedTuple):
    """Of one trajectory.

    Attributes:
        step_norm: (T,). turn_cos: (T,), NaN for the first step, before which there is none.
        max_step, path_ratio: see the head of this file.
    """

    step_norm: Float
    turn_cos: Float
    max_step: float
    path_ratio: float


def smoothness(trajectory: NDArray[np.float32]) -> Smoothness:
    """Of a trajectory (T + 1, D).

    >>> found = smoothness(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], np.float32))
    >>> found.step_norm.tolist(), found.turn_cos.tolist()[1:], found.max_step, found.path_ratio
    ([3.0, 4.0], [0.0], 4.0, 1.4)
    """
    norms, cosines, before = [], [np.nan], None
    for start, end in pairwise(trajectory):
        step = end.astype(np.float64) - start
        norms.append(float(np.linalg.norm(step)))
        if before is not None:
            cosines.append(float(np.clip(step @ before / (norms[-1] * norms[-2]), -1, 1)))
        before = step
    whole = float(np.linalg.norm(trajectory[-1].astype(np.float64) - trajectory[0]))
    steps = np.array(norms)
    return Smoothness(steps, np.array(cosines), float(steps.max()), max(1.0, float(steps.sum()) / whole))


def accuracies(network: FlatNetwork, experts: ExpertBuffer, x: Tensor, y: Tensor) -> Float:
    """Of every expert after every epoch on examples that it was not trained on: (E, T + 1), in [0, 1]."""
    return np.array(
        [
            [
                network.accuracy(experts.checkpoints(number, network, first=epoch, num=1)[0], x, y)
                for epoch in range(experts.epochs + 1)
            ]
            for number in range(len(experts))
        ]
    )
