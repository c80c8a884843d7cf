"""zlib ratio: what a model finds likelier than its own redundancy explains was in training.

Source: Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021: the ratio
    of the model's log-perplexity and the bits that zlib needs for the text.
score = -l / z, l the mean NLL of the counted tokens (nats), z the bytes of the packed text; larger = likelier a member.
Shapes: Evidence with T targets, N examples -> (T, N), <= 0. The same order as z / l, which is infinite at l = 0.

Texts that repeat themselves have a low loss under any model and pack well: dividing takes that away. It takes it away
from nothing else: a text that is likely because it is common English keeps its low score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class ZlibConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="zlib_ratio",
        wants=("reading", "tokens"),
        doc="Low loss for a text that zlib hardly packs means member.",
        source="Carlini et al., USENIX Security 2021",
        config=ZlibConfig,
    )
)
def zlib_ratio(evidence: Evidence, *, config: ZlibConfig, seed: int) -> NDArray[np.float64]:
    """Minus mean NLL over packed bytes, (T, N). ``seed`` is not used.

    Raises:
        NotApplicable: no tokens were read.
    """
    tokens = evidence.token_readings
    return -tokens.loss / tokens.zlib_bytes
