"""LAF+R: label-agnostic forgetting, then the output layer fine-tuned on a few labelled examples that are kept (Shen et
al., ICLR 2024).

    theta      <- LAF(theta; D_r, D_f)                                     no label read
    theta_head <- Adam on the task's loss over a labelled share of D_r     the rest is frozen, in eval mode

Source: arXiv 2404.00506, "LAF+R"; the published code trains the head of a small CNN by cross-entropy with Adam. The
labelled examples are drawn from all retained ones, uniformly.

It is not label-free: only its first part is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contracts.digests import derive_seed
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from explain.embeddings import last_linear
from sources.example_set import ExampleSet
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of
from unlearning.label_agnostic.laf import LafConfig, label_agnostic_forgetting


@dataclass(frozen=True, kw_only=True, slots=True)
class LafRepairConfig(LafConfig):
    """Label-agnostic forgetting, and the repair that follows it."""

    labelled: float = param(0.05, gt=0, le=1, doc="share of the retained examples whose labels are used")
    repair_epochs: int = param(10, ge=0, le=10_000, doc="passes over them; 0 repairs nothing")
    repair_lr: float = param(1e-3, gt=0, le=1, doc="learning rate of Adam on the output layer")


def supervised_repair(
    model: nn.Module,
    *,
    retain: ExampleSet,
    config: LafRepairConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Fine-tune the output layer of a copy of ``model`` on a labelled share of ``retain``.

    Args:
        model: with a linear output layer; not changed.
        retain: (N_r) examples, at least one; ceil(labelled * N_r) of them are used.
        config: its repair fields.
        seed: which are labelled, and batch order.
        progress: called after each step.

    Returns:
        The copy, eval mode; all but its output layer is equal to the bit.

    Raises:
        NotApplicable: the model has no linear output layer.
        Diverged: the run left the finite numbers or collapsed.
    """
    head, _ = last_linear(model)
    ids = np.sort(retain.example_id)
    draw = np.random.default_rng(derive_seed("laf_repair", "labelled", seed))
    few = retain.subset(np.sort(draw.choice(ids, int(np.ceil(config.labelled * len(ids))), replace=False)))
    labelled = Pass.over(inputs_of(model, few))
    plan = Descent(
        model=model,
        passes=lambda _: [labelled],
        retain=few,
        config=DescentConfig(lr=config.repair_lr, epochs=config.repair_epochs, batch=config.batch),
        seed=seed,
        name="laf_repair",
        optimizer=lambda parameters, settings: torch.optim.Adam(parameters, lr=settings.lr),
        frozen=[name for name, _ in model.named_modules() if name != head],
    )
    return descend(plan, progress=progress)


@unlearner(
    UnlearnerSpec(
        name="laf_repair",
        wants=("losses", "reading", "features"),
        doc="Forgets without labels, then repairs the output layer with a few labelled retained examples.",
        source="Shen et al., Label-Agnostic Forgetting, ICLR 2024 (arXiv 2404.00506), LAF+R",
        config=LafRepairConfig,
    )
)
def laf_repair(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LafRepairConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Label-agnostic forgetting, then :func:`supervised_repair`.

    Args:
        model: trained, with a linear output layer that is called once on (B, d); not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove.
        config: see :class:`LafRepairConfig`.
        seed: of both parts.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable, Diverged: see ``label_agnostic_forgetting`` and :func:`supervised_repair`.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("losses", "reading", "features"))
    forgotten, _ = label_agnostic_forgetting(
        model, retain=retain, forget=forget, config=config, seed=seed, progress=progress
    )
    return supervised_repair(forgotten, retain=retain, config=config, seed=seed, progress=progress)
