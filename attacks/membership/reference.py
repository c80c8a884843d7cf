"""Reference attack R: how many models trained without the example have a larger loss on it than the audited one.

Source: Ye et al., "Enhanced Membership Inference Attacks against Machine Learning Models", ACM CCS 2022, attack R.
score = share of OUT reference models m with l_m(x) > l(x), the audited model left out; a p-value an example.
Shapes: Evidence with T targets, M references, N examples -> (T, N) in [0, 1], NaN without an OUT model.
Its granularity is 1/#OUT, which makes it useless at low false-positive rates; there LiRA's normals take over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config

_BLOCK = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="reference",
        wants=("reading",),
        doc="Share of models trained without the example that have a larger loss on it.",
        source="Ye et al., CCS 2022 (attack R)",
        config=ReferenceConfig,
        references=2,
    )
)
def reference(evidence: Evidence, *, config: ReferenceConfig, seed: int) -> NDArray[np.float64]:
    """Share in [0, 1], (T, N). ``seed`` is not used.

    Raises:
        ConfigError: fewer than 2 reference models besides the audited one.
    """
    evidence.require_references("reference", fewest=2)
    assert evidence.keep is not None
    keep, left_out = evidence.keep, evidence.left_out
    theirs, target = evidence.reference_loss, evidence.target_loss
    num_examples = len(evidence.example_id)
    share = np.empty((evidence.num_targets, num_examples))
    for start in range(0, num_examples, _BLOCK):
        at = slice(start, start + _BLOCK)
        outside = ~keep[:, at]
        # An IN model never counts: its loss is set below everything.
        values = np.where(outside, theirs[:, at], -np.inf)
        size = outside.sum(axis=0)
        for t, own in enumerate(left_out):
            # The target itself never counts either: its loss is not larger than its own.
            num = size - outside[own] if own >= 0 else size
            larger = (values > target[t, at]).sum(axis=0)
            if own >= 0 and theirs is not target:
                larger = larger - (values[own] > target[t, at])
            with np.errstate(invalid="ignore"):
                share[t, at] = larger / num
    return share
