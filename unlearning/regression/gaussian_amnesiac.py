"""Gaussian-Amnesiac: what is to be forgotten is taught a draw from the Gaussian of all targets.

    mu, sigma  mean and standard deviation of the targets of D_r and D_f together
    t_i ~ N(mu, sigma^2) for each x_i in D_f, drawn once and kept in every epoch
    theta <- Adam steps on  E_{D_f} |f(x) - t| and E_{D_r} |f(x) - y|,  both shuffled into one pass

The random labels of a task without classes. Published: Adam 1e-3, one epoch (ages) or five (text similarity).
sigma of the retained targets alone is another method: it forgets a range of targets less naturally, and by more.
It is not a copy of retraining: what it says of the forgotten examples is drawn towards noise around mu, not towards
what a model that never saw them would say.

Source: Tarun et al., "Deep Regression Unlearning" (ICML 2023, arXiv 2210.08196), and its code for mu and sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from contracts.digests import derive_seed
from contracts.methods import UnlearnerSpec, unlearner
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import Descent, Pass, adam, descend, inputs_of
from unlearning.regression.errors import WANTS, RegressionConfig, check_numbers, own_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianAmnesiacConfig(RegressionConfig):
    """As published; nothing of its own."""


def amnesiac_targets(retained: np.ndarray, forgotten: np.ndarray, *, seed: int) -> np.ndarray:
    """(F,) float64 draws from the Gaussian with the mean and the standard deviation of all targets.

    Args:
        retained, forgotten: (R,) and (F,) targets, each in the order of the examples' ids.
    """
    every = np.concatenate([retained, forgotten]).astype(np.float64)
    rng = np.random.default_rng(derive_seed("gaussian_amnesiac", "targets", seed))
    return rng.normal(every.mean(), every.std(), len(forgotten))


def gaussian_amnesiac_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: GaussianAmnesiacConfig, seed: int
) -> Descent:
    """What :func:`gaussian_amnesiac` does, and raises before any work."""
    check_numbers(model, retain=retain, forget=forget)
    kept, gone = inputs_of(model, retain), inputs_of(model, forget)
    drawn = amnesiac_targets(kept.data.y, gone.data.y, seed=seed)
    targets = forget.task.target_tensor(drawn, kept.dtype).numpy()
    both = Pass.over(gone, targets=targets, losses=own_errors(config.loss)).together_with(Pass.over(kept))
    return Descent(
        model=model,
        passes=lambda _: [both],
        retain=retain,
        config=config,
        seed=seed,
        name="gaussian_amnesiac",
        optimizer=adam,
    )


@unlearner(
    UnlearnerSpec(
        name="gaussian_amnesiac",
        wants=WANTS,
        doc="Trains the examples to be forgotten towards draws from the Gaussian of all targets, the others towards "
        "their own.",
        source="Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv 2210.08196",
        config=GaussianAmnesiacConfig,
        plan=gaussian_amnesiac_plan,
    )
)
def gaussian_amnesiac(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: GaussianAmnesiacConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Draw a target for each example of ``forget`` and train a copy of ``model`` on both sets.

    Args:
        model: trained, one number an example; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove.
        config: see :class:`GaussianAmnesiacConfig`.
        seed: drawn targets, batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_numbers``.
        Diverged: the run left the finite numbers or collapsed.
    """
    plan = gaussian_amnesiac_plan(model, retain=retain, forget=forget, config=config, seed=seed)
    return descend(plan, progress=progress)
