"""Blindspot: imitate, on what is to be forgotten, a network that was trained for a short time on the rest.

    B        a fresh network, trained by the subject's own recipe on D_r for a share of its epochs; frozen
    batch    a mix of both sets, shuffled; u_i = 1 for examples of D_f, r = sum_i u_i / B its own share of them
    L_r      = mean over u = 0 of |S(x) - y|
    L_f      = mean over u = 1 of |S(x) - B(x)|  +  beta * mean over u = 1 of AT(S, B; x)      (regression.attention)
    L        = r L_f + (1 - r) L_r  =  (1/B) sum_i [ u_i (|S - B| + beta AT) + (1 - u_i) |S - y| ]

The two forms of L are equal because r is the share of the very batch: weighting by the share of the whole set would be
another loss. A term without examples is 0. Published: beta 50, Adam 1e-3, constant, one epoch (ages) or five (text
similarity), final weights; B for 2 of 100 epochs (ages) to 10 (text similarity).

B must stay short: trained to the end it is retraining, and nothing is saved; its time is part of the method's. It is
not exact: the student starts from weights that saw D_f.

Source: Tarun et al., "Deep Regression Unlearning" (ICML 2023, arXiv 2210.08196).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from recipes.predict import eval_mode
from sources.example_set import ExampleSet
from tasks.base import Batch
from unlearning.descent import Descent, Pass, adam, check_finite, descend, inputs_of, retained_units
from unlearning.regression.attention import attention_transfer, with_activations
from unlearning.regression.errors import WANTS, Losses, RegressionConfig, check_numbers, errors_of, own_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindspotConfig(RegressionConfig):
    beta: float = param(50.0, ge=0, le=1e6, doc="weight of the attention transfer")
    effort: float = param(
        0.1, gt=0, le=1, doc="share of the recipe's epochs for the fresh network; 1 would be retraining"
    )


def train_blindspot(train: Callable[..., nn.Module], retain: ExampleSet, *, effort: float, seed: int) -> nn.Module:
    """B: the subject's own recipe from a fresh initialisation on ``retain`` alone, for a share of its epochs.

    Args:
        train: the subject's recipe, (data, seed, *, effort) -> model.

    Raises:
        Diverged: the recipe gave weights that are not finite.
    """
    fresh = train(retain.by_id(), derive_seed("blindspot", "fresh network", seed) % 2**31, effort=effort)
    check_finite(fresh, what="blindspot: the fresh network")
    return fresh.eval().requires_grad_(False)


def blindspot_losses(teacher: nn.Module, forgotten: np.ndarray, *, beta: float, loss: str) -> Losses:
    """(student, batch) -> (B,) loss of each example, whose mean over the batch is L.

    Args:
        teacher: B, frozen, in eval mode, speaking in the units of the batch's targets.
        forgotten: int64 ids of D_f.
    """
    ids = torch.from_numpy(np.ascontiguousarray(forgotten))

    def losses(student: nn.Module, batch: Batch) -> Tensor:
        gone = torch.isin(batch.example_id, ids).to(batch.targets.device)
        if not bool(gone.any()):
            return own_errors(loss)(student, batch)
        outputs, seen = with_activations(student, batch.inputs)
        with torch.no_grad():
            said, shown = with_activations(teacher, batch.inputs[gone])
        aims = batch.targets.clone().reshape(len(batch), 1)
        aims[gone] = said.reshape(-1, 1)
        each = errors_of(outputs, aims, loss=loss)
        if beta == 0:
            return each
        apart = attention_transfer([a[gone] for a in seen], shown)
        return each.index_add(0, torch.nonzero(gone).flatten(), beta * apart)

    return losses


def blindspot_plan(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: BlindspotConfig,
    seed: int,
    train: Callable[..., nn.Module],
) -> Descent:
    """What :func:`blindspot` does, with its fresh network trained already, and raises before any work."""
    check_numbers(model, retain=retain, forget=forget)
    kept, gone = inputs_of(model, retain), inputs_of(model, forget)
    with eval_mode(model), torch.no_grad():
        with_activations(model, kept.block(0, 1))
    losses = own_errors(config.loss)
    if config.epochs and len(gone):
        like = next(model.parameters())
        teacher = copy.deepcopy(train_blindspot(train, retain, effort=config.effort, seed=seed)).to(like)
        units = retained_units(model, retain)
        if units is not None:
            units.unfold(teacher)
        losses = blindspot_losses(teacher, gone.data.example_id, beta=config.beta, loss=config.loss)
    both = Pass.over(gone, losses=losses).together_with(Pass.over(kept))
    return Descent(
        model=model,
        passes=lambda _: [both],
        retain=retain,
        config=config,
        seed=seed,
        name="blindspot",
        optimizer=adam,
    )


@unlearner(
    UnlearnerSpec(
        name="blindspot",
        wants=WANTS,
        doc="Imitates, on the examples to be forgotten, outputs and attention of a fresh network that was trained for "
        "a short time on the others.",
        source="Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv 2210.08196",
        config=BlindspotConfig,
        needs=("train",),
        plan=blindspot_plan,
    )
)
def blindspot(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: BlindspotConfig,
    seed: int,
    train: Callable[..., nn.Module],
    progress: Progress = silent,
) -> nn.Module:
    """Train the fresh network, then a copy of ``model`` against it.

    Args:
        model: trained, one number an example; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; with none of them the copy is fine-tuned on the others.
        config: see :class:`BlindspotConfig`.
        seed: fresh network, batch order and dropout.
        train: the subject's recipe, (data, seed, *, effort) -> model; of the architecture of ``model``.
        progress: called after each step of the student.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_numbers``; a network without activations, or a recipe that trains another
            architecture.
        Diverged: one of the two runs left the finite numbers, or the student collapsed.
    """
    plan = blindspot_plan(model, retain=retain, forget=forget, config=config, seed=seed, train=train)
    return descend(plan, progress=progress)
