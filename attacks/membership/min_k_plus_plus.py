"""Min-K%++: the least likely tokens, each against what the model could have said there.

Source: Zhang et al., "Min-K%++: Improved Baseline for Detecting Pre-Training Data from Large Language Models",
    ICLR 2025 (arXiv 2404.02936).
z_t = (log p(x_t | x_<t) - mu_t) / sigma_t,  mu_t and sigma_t of log p(v | x_<t) over v drawn from the model itself
score = mean of the max(1, floor(k |C|)) lowest z_t
Shapes: Evidence with T targets, N examples -> (T, N); larger = likelier a member.

A token that is a mode of its distribution was trained on, however flat the distribution: a member sits at local maxima
of the likelihood. Where the model has one answer only, sigma is 0: if that is the token, log p = mu and z is 0; float32
leaves no smaller probability than e^-104 to divide, so sigma is not cut below ``_FLOOR``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config, param

_FLOOR = 1e-6  # nats: below it a standard deviation of log p is rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class MinKPlusPlusConfig(Config):
    share: float = param(0.2, gt=0, le=1, doc="k, of the tokens that count; at least one")


@attack(
    AttackSpec(
        name="min_k_plus_plus",
        wants=("reading", "tokens"),
        doc="A text whose least likely tokens are likely for where they stand means member.",
        source="Zhang et al., ICLR 2025, arXiv 2404.02936",
        config=MinKPlusPlusConfig,
    )
)
def min_k_plus_plus(evidence: Evidence, *, config: MinKPlusPlusConfig, seed: int) -> NDArray[np.float64]:
    """Mean standardised log-probability of the lowest tokens, (T, N). ``seed`` is not used.

    Raises:
        NotApplicable: no tokens were read.
    """
    tokens = evidence.token_readings
    scores = []
    for said in tokens.target:
        log_p, mean, std = np.moveaxis(said.astype(np.float64), -1, 0)
        scores.append(tokens.lowest_mean((log_p - mean) / np.maximum(std, _FLOOR), config.share))
    return np.stack(scores)
