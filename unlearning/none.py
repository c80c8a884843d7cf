"""None: the control that forgets nothing. An audit that lets it pass measures nothing.

    theta <- theta

Every comparison carries it beside retraining: retraining shows what a pass looks like, this what a fail looks like.
It is not a method to choose.
"""

from __future__ import annotations

import copy

from torch import nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import check_disjoint


@unlearner(
    UnlearnerSpec(
        name="none",
        doc="Control: the audited model as it is, with nothing removed.",
        source="definition",
        control=True,
    )
)
def none(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: Config,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """A copy of ``model``, in eval mode.

    Args:
        model: any model; not changed.
        retain: (N_r) examples to keep; used only to check that the two sets are disjoint.
        forget: (N_f) examples that stay where they are.
        config: no fields.
        seed: not used.
        progress: called once at the end.

    Raises:
        DataError: an example in both sets.
    """
    check_disjoint(retain, forget)
    progress(1, 1, "none")
    return copy.deepcopy(model).eval()
