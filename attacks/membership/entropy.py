"""Entropy: members are predicted with more certainty, whatever their label.

Source: Shokri et al., IEEE S&P 2017; Song and Mittal, USENIX Security 2021, eq. 8. score = -H = sum_k p_k log p_k.
Shapes: Evidence with T targets, N examples -> (T, N) in nats, in [-log K, 0]. Ignores the label: a confidently wrong
prediction looks like a member (``modified_entropy`` corrects that).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config
from tasks import signals


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="entropy",
        wants=("outputs", "classes"),
        doc="A certain prediction means member.",
        source="Song and Mittal, USENIX Security 2021",
        config=EntropyConfig,
    )
)
def entropy(evidence: Evidence, *, config: EntropyConfig, seed: int) -> NDArray[np.float64]:
    """Minus the entropy of the prediction in nats, (T, N). ``seed`` is not used."""
    return np.stack([-signals.entropy(logits) for logits in evidence.outputs.target])
