"""What the methods share that change the weights once, without a descent: the checks of a finished model, and a mask.

A descent has its own (``descent.descend``); here nothing is trained.
"""

from __future__ import annotations

from torch import nn

from sources.example_set import ExampleSet
from unlearning.descent import beats_constant, check_finite, probe, refuse_collapse
from unlearning.masks import Held, Mask


def finished(
    student: nn.Module, model: nn.Module, *, retain: ExampleSet, seed: int, run: str, mask: Mask | None = None
) -> nn.Module:
    """``student`` in eval mode, with the weights that a mask holds as they are in ``model``.

    Args:
        student: the changed copy of ``model``, changed in place.
        model: as it was before.
        retain: looked at, at most 1,024 of it, to tell a collapse.
        seed: which of them.
        run: method and settings, for messages.
        mask: weights that may have moved; None: every one.

    Raises:
        Diverged: a weight or buffer is not finite, or the model, better before, now does no better on the retained
            examples than the best constant answer.
    """
    student.eval()
    if mask is not None:
        Held.of(dict(model.named_parameters()), mask).restore(dict(student.named_parameters()))
    check_finite(student, what=run)
    watched = probe(retain, seed=seed)
    if beats_constant(model, watched, what="the model before unlearning"):
        refuse_collapse(student, watched, run=run)
    return student
