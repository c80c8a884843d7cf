"""Population attack P: how many known non-members have a larger loss under the audited model.

Source: Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models", ACM CCS 2022, attack P.
score = share of the P population points z with l(z) > l(x), one minus the p-value of "x is a non-member".
Shapes: Evidence with T targets, N examples, P points -> (T, N) in [0, 1], resolution 1/P. Ranks as LOSS does up to
    ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from attacks.membership.leave_one_out import count_below
from contracts.methods import AttackSpec, attack
from contracts.params import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class PopulationConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="population",
        wants=("reading",),
        doc="Share of known non-members with a larger loss under the audited model.",
        source="Ye et al., CCS 2022 (attack P)",
        config=PopulationConfig,
    )
)
def population(evidence: Evidence, *, config: PopulationConfig, seed: int) -> NDArray[np.float64]:
    """Share in [0, 1], (T, N). ``seed`` is not used.

    Raises:
        InvalidInput: no population points.
    """
    evidence.require_population("population")
    # l(z) > l(x) iff -l(z) < -l(x)
    points = np.sort(-evidence.population_target_loss, axis=1)
    pairs = zip(points, -evidence.target_loss, strict=True)
    return np.stack([count_below(z, x, side="left") / len(z) for z, x in pairs])
