"""What holds the retained answers while others are forgotten: nothing, their NLL, or the divergence from the old model.

    none  0         gd  alpha NLL_mean(retain)         kl  alpha KL(p_ref || p_theta) over the counted tokens of retain

The terms that GradDiff, KL minimisation, PO, NPO, DPO and SimNPO have in common (NPO-GD, NPO-KL, ... in Zhang et al.,
COLM 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from contracts.params import param
from tasks.base import answers
from unlearning.language.descent import Descent, Objective, Step
from unlearning.language.losses import kl_to_reference, token_mean_nll

KINDS = ("none", "gd", "kl")


def kind_param(default: str) -> Any:
    """The configuration field that says what holds the retained answers."""
    doc = "gd: NLL of retained examples; kl: divergence from the old model on them"
    return param(default, choices=KINDS, doc=doc)


def weight_param(doc: str = "of the retain term") -> Any:
    """The configuration field alpha."""
    return param(1.0, ge=0, le=1000, doc=doc)


def retain_term(descent: Descent, kind: str, *, weight: float) -> Objective:
    """(student, step) -> the term, a scalar with gradient.

    Args:
        descent: the run; with ``uses_retain`` unless ``kind`` is "none".
        kind: "none", "gd" or "kl"; a copy of the old model is kept for "kl" alone.
        weight: alpha.
    """
    if kind == "none":
        return lambda student, step: torch.zeros((), device=descent.device)
    reference = descent.frozen if kind == "kl" else None

    def term(student: nn.Module, step: Step) -> Tensor:
        batch = step.retain
        outputs = answers(student, batch)
        if reference is None:
            return weight * token_mean_nll(outputs, batch.targets)
        with torch.no_grad():
            aim = answers(reference, batch)
        return weight * kl_to_reference(outputs, aim, batch.targets)

    return term
