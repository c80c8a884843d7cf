"""Linear probes on embeddings: what can be read of a concept, against permuted labels and against another model.

Embeddings phi (N, d) of held-out examples. A probe is the concept's linear SVM of ``explain.concepts`` (its C chosen
within the examples it is fitted on); what it says is judged on other examples, as many with the concept as without. The
control fits and judges the same examples under permuted labels (Hewitt and Liang, EMNLP 2019): above 0.5 by more than
its interval, the probe memorises.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attacks.membership.metrics import balanced_accuracy_interval
from explain.concepts import ConceptBank
from stats import clopper_pearson, mcnemar

Bool = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeSet:
    """A concept on held-out examples: rows to fit a probe on, rows to judge it by, and who has the concept.

    Attributes:
        fit, judge: disjoint rows of the test split; ``judge`` holds as many with as without.
        inside: (N_test,) whether an example has the concept.
    """

    name: str
    fit: NDArray[np.int64]
    judge: NDArray[np.int64]
    inside: Bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Probed:
    """Right or wrong on every judged example, and which have the concept; the same with permuted labels."""

    right: Bool
    inside: Bool
    control_right: Bool
    control_inside: Bool

    @classmethod
    def of(cls, phi: Floats, s: ProbeSet, *, per_side: int, seed: int) -> Probed:
        rng = np.random.default_rng(seed)
        permuted = s.inside.copy()
        for rows in (s.fit, s.judge):
            permuted[rows] = rng.permutation(s.inside[rows])
        found = [_says(phi, s, labels, per_side=per_side, seed=seed) for labels in (s.inside, permuted)]
        (said, truth), (control_said, control_truth) = found
        return cls(
            right=said == truth, inside=truth, control_right=control_said == control_truth, control_inside=control_truth
        )

    def figures(self, reference: Probed | None, *, alpha: float) -> dict[str, float | None]:
        row: dict[str, float | None] = {}
        for name, right, inside in (
            ("leak", self.right, self.inside),
            ("control", self.control_right, self.control_inside),
        ):
            counts = (int(right[inside].sum()), int(inside.sum()), int(right[~inside].sum()), int((~inside).sum()))
            row |= dict(
                zip((name, f"{name}_lo", f"{name}_hi"), balanced_accuracy_interval(*counts, alpha=alpha), strict=True)
            )
        if reference is not None:
            value, low, high = paired_difference(self.right, reference.right, alpha=alpha)
            row |= {
                "excess": value,
                "excess_lo": low,
                "excess_hi": high,
                "p_value": mcnemar(self.right, reference.right),
            }
        return row


def paired_difference(right_a: Bool, right_b: Bool, *, alpha: float) -> tuple[float, float, float]:
    """(value, low, high) of accuracy a - accuracy b on the same n examples.

    With p_a, p_b the shares that are right under a or b only, exact bounds of both joined by the square-root rule of
    Zou and Donner (Stat. Med. 2008), with their multinomial correlation rho = -sqrt(p_a p_b / ((1 - p_a) (1 - p_b))):
        low = value - sqrt((p_a - l_a)^2 - 2 rho (p_a - l_a) (u_b - p_b) + (u_b - p_b)^2),   high likewise

    >>> paired_difference(np.array([True, True]), np.array([True, False]), alpha=0.05)[0]
    0.5
    """
    n = len(right_a)
    counts = np.array([(right_a & ~right_b).sum(), (right_b & ~right_a).sum()])
    p_a, p_b = counts / n
    (l_a, l_b), (u_a, u_b) = clopper_pearson(counts, n, alpha=alpha)
    odds = p_a * p_b / max((1 - p_a) * (1 - p_b), 1e-12)
    rho = -min(1.0, float(np.sqrt(odds)))

    def reach(x: float, y: float) -> float:
        return float(np.sqrt(x**2 - 2 * rho * x * y + y**2))

    value = float(p_a - p_b)
    return value, max(-1.0, value - reach(p_a - l_a, u_b - p_b)), min(1.0, value + reach(u_a - p_a, p_b - l_b))


def _says(phi: Floats, s: ProbeSet, labels: Bool, *, per_side: int, seed: int) -> tuple[Bool, Bool]:
    """What a probe fitted on ``fit`` says of ``judge``, and the truth. Embeddings that do not differ: it never says
    yes."""
    fit, truth = labels[s.fit], labels[s.judge]
    bank = ConceptBank.from_examples(
        phi[s.fit], {s.name: (fit, ~fit)}, per_side=per_side, seed=seed, drop_unlearnable=True
    )
    if not len(bank):
        return np.zeros(len(truth), dtype=bool), truth
    return np.asarray(bank.project(phi[s.judge])[:, 0] > 0), truth
