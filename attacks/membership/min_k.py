"""Min-K%: a text that was in training has no very unlikely tokens.

Source: Shi et al., "Detecting Pretraining Data from Large Language Models", ICLR 2024 (arXiv 2310.16789).
score = 1/|E| sum_{t in E} log p(x_t | x_<t), E the max(1, floor(k |C|)) counted tokens of the lowest probability
Shapes: Evidence with T targets, N examples -> (T, N) in nats, <= 0; larger = likelier a member. k = 1 is
    minus the loss.

Not calibrated: names and numbers are unlikely tokens of any text, so the score tells hard texts from easy ones as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class MinKConfig(Config):
    share: float = param(0.2, gt=0, le=1, doc="k, of the tokens that count; at least one")


@attack(
    AttackSpec(
        name="min_k",
        wants=("reading", "tokens"),
        doc="A text whose least likely tokens are likely means member.",
        source="Shi et al., ICLR 2024, arXiv 2310.16789",
        config=MinKConfig,
    )
)
def min_k(evidence: Evidence, *, config: MinKConfig, seed: int) -> NDArray[np.float64]:
    """Mean log-probability of the least likely tokens, (T, N), nats. ``seed`` is not used.

    Raises:
        NotApplicable: no tokens were read.
    """
    tokens = evidence.token_readings
    return np.stack([tokens.lowest_mean(said[..., 0].astype(np.float64), config.share) for said in tokens.target])
