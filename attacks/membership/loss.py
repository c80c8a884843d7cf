"""LOSS: members have a lower loss.

Source: Yeom et al., "Privacy Risk in Machine Learning", IEEE CSF 2018. score = -l, of classes log p_y; one global
    threshold.
Shapes: Evidence with T targets, N examples -> (T, N) in the unit of the task's loss. Not calibrated to the difficulty
    of an example,
so weak at low false-positive rates: the baseline that every other attack has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="loss",
        wants=("reading",),
        doc="Low loss under the audited model means member.",
        source="Yeom et al., CSF 2018",
        config=LossConfig,
    )
)
def loss(evidence: Evidence, *, config: LossConfig, seed: int) -> NDArray[np.float64]:
    """Minus the task's loss, (T, N); of classes minus the cross-entropy in nats. ``seed`` is not used."""
    return -evidence.target_loss
