"""Minus base: how much better the audited model knows an example than the model that it was made from.

Source: Carlini et al., USENIX Security 2021 (perplexity compared with another model's); as a difference of losses
    Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022.
score = l_base - l, in the unit of the task's loss; larger = likelier a member. Shapes: -> (T, N)

l_base is of the model before its training: a pretrained model that is fine-tuned, which takes away how hard a text is
for anybody. It takes away nothing where the model began from a random initialisation, which finds everything equally
hard: then this is LOSS. It costs one reading and no reference model; what it cannot take away is what training on
*others* taught (the style of a person whose other texts are in the set), which is what reference models are for.

A difference of two losses depends on the scale of either, and l_base stays as it is read. Where single tokens were
read, l is their mean NLL, which an audit takes at the model's own temperature on the population (``temperature``): no
temperature changes a score. Else l is the reading's, in an audit on the reference models' scale where there are any
(``outputs.on_reference_scale``), which undoes an increasing map of all losses, and a temperature of texts about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.evidence import Evidence
from contracts.methods import AttackSpec, attack
from contracts.params import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class MinusBaseConfig(Config):
    """Nothing to choose."""


@attack(
    AttackSpec(
        name="minus_base",
        wants=("reading",),
        doc="Loss that fell far from what it was before the training means member.",
        source="Carlini et al., USENIX Security 2021; Watson et al., ICLR 2022",
        config=MinusBaseConfig,
        base=True,
    )
)
def minus_base(evidence: Evidence, *, config: MinusBaseConfig, seed: int) -> NDArray[np.float64]:
    """Loss before training minus loss of the audited model, (T, N), of its tokens where they were read. ``seed`` is not
    used.

    Raises:
        NotApplicable: the model before its training was not read.
    """
    return evidence.base_loss - (evidence.target_loss if evidence.tokens is None else evidence.tokens.loss)
