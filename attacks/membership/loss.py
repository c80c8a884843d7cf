"""LOSS: members have a lower loss.

Source: Yeom et al., "Privacy Risk in Machine Learning", IEEE CSF 2018. score = -l = log p_y, one global threshold.
Shapes: Evidence with T targets, N examples -> (T, N) in nats, <= 0. Not calibrated to the difficulty of an example,
so weak at low false-positive rates: the baseline that every other attack has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config
from tasks.signals import loss_from_log_odds


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
    """Minus the cross-entropy in nats, (T, N). ``seed`` is not used."""
    return -loss_from_log_odds(evidence.target_phi[0])
