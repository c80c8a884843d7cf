"""Shadow runs for auditing unlearning: who is IN, OUT or UNLEARN in which run, and carrying the runs out (Hayes et al.
2025).

    ranks_j = a random permutation of the R runs, one for each target example j, independent of all others
    state[r, j] = floor(3 ranks_j[r] / R)        IN = 0 trained and kept, OUT = 1 never trained, UNLEARN = 2 trained,
                                                 then removed

Balanced by construction: R/3 runs of each state for every example. A base set is trained and kept in all runs.
Shapes: R runs, N target examples; state (R, N) int8, signals (R, N) float64.
Source: Hayes et al., SaTML 2025 (arXiv 2403.01218); balanced as the reference design of LiRA (Carlini et al., S&P
    2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from contracts.errors import InvalidInput
from contracts.progress import Progress, silent

State = NDArray[np.int8]
Ids = NDArray[np.int64]
Model = TypeVar("Model")

IN, OUT, UNLEARN = 0, 1, 2


def three_state_design(num_runs: int, num_targets: int, *, seed: int) -> State:
    """(num_runs, num_targets): every target example is IN, OUT and UNLEARN in exactly a third of the runs each.

    Raises:
        InvalidInput: num_runs not a multiple of 3 of at least 9 (U-LiRA leaves the judged run out and needs 2 others of
            each state).
    """
    if num_runs < 9 or num_runs % 3:
        raise InvalidInput(f"num_runs = {num_runs} must be a multiple of 3, at least 9")
    ranks = np.random.default_rng(seed).random((num_runs, num_targets)).argsort(axis=0).argsort(axis=0)
    return (ranks // (num_runs // 3)).astype(np.int8)


def shadow_unlearning(
    state: State,
    target_ids: Ids,
    base_ids: Ids,
    *,
    train: Callable[[Sequence[Ids]], Sequence[Model]],
    unlearn: Callable[[int, Model, Ids, Ids], Model],
    read: Callable[[Model], NDArray[np.float64]],
    progress: Progress = silent,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Carry out the runs of a three-state design with the audited recipe and removal method.

    Args:
        state: (R, N) from :func:`three_state_design`; column j is ``target_ids[j]``.
        base_ids: always trained and always retained.
        train: training ids of every run -> one model a run (stacked training fits here); no two runs with one seed.
        unlearn: (run, model, retain ids, forget ids) -> model, leaving its argument unchanged.
        read: model -> (N,) signals of the target examples, eval mode, in the order of ``target_ids``.

    Returns:
        Signals before and after unlearning, (R, N) each.
    """
    trained = [np.concatenate([base_ids, target_ids[row != OUT]]) for row in state]
    models = train(trained)
    before, after = [], []
    for run, (row, model) in enumerate(zip(state, models, strict=True)):
        retain, forget = np.concatenate([base_ids, target_ids[row == IN]]), target_ids[row == UNLEARN]
        before.append(read(model))
        after.append(read(unlearn(run, model, retain, forget)))
        progress(run + 1, len(state), "shadow unlearning runs")
    return np.stack(before), np.stack(after)


def tolerated_mu(auc: float) -> float:
    """Distance of two unit normals whose AUC is ``auc``: sqrt(2) PhiInv(auc).

    >>> round(tolerated_mu(0.6), 3)
    0.358
    """
    return float(np.sqrt(2) * norm.ppf(auc))
