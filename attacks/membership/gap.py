"""Gap attack: member iff the prediction is correct; for tasks that are right by degrees, the better the likelier.

Source: Yeom et al., IEEE CSF 2018. score = quality, of classes 1[argmax_k z_k = y]; its balanced accuracy on members
    and non-members is
1/2 + (acc_train - acc_test) / 2, the leak that overfitting alone explains. Shapes: (T, N) in [0, 1].
Of classes no ranking: with one threshold its ROC has a single inner point, so TPR at a low FPR is mostly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class GapConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="gap",
        doc="A correct prediction means member.",
        source="Yeom et al., CSF 2018",
        config=GapConfig,
        wants=("reading",),
    )
)
def gap(evidence: Evidence, *, config: GapConfig, seed: int) -> NDArray[np.float64]:
    """How right the audited model is, (T, N); of classes 1 or 0. ``seed`` is not used."""
    return evidence.target_quality
