"""Backdoor success and corrected accuracy: what of a manipulation is left in a model (corrective unlearning).

    attack success   k / n of the affected test inputs of which the answer is the manipulator's:
                         poison      triggered images whose true class is not the target, answered "target"
                         confusion   test inputs of classes a and b, answered by the other of the two
    acc_corr         accuracy against TRUE labels on the affected test inputs: all triggered images, none left out;
                     inputs of a and b
    acc_retain       accuracy on the unaffected ones: the clean images; inputs of the other classes
    manip_acc        accuracy against true labels on the manipulated training examples as they are (trigger and all)
    delete_err       share of the identified ones still answered with their wrong label; needs no clean label

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015), section 4; intervals
    Clopper-Pearson.
Images that already are of the target class are answered "target" by any good model: counting them as success would give
every model a backdoor of 1 / K. Retraining without the identified part is NOT the reference here: the rest brings the
harm back.

Shapes: logits (N, K), labels (N,).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput
from stats import clopper_pearson


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """k of n with exact bounds, all in [0, 1]; value and bounds are None when n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def rate(hits: NDArray[np.bool_], *, alpha: float = 0.05) -> Rate:
    """Share of True in ``hits``.

    >>> rate(np.ones(4, dtype=bool)).low < 1.0
    True
    """
    if not len(hits):
        return Rate(value=None, low=None, high=None, n=0)
    k = int(np.count_nonzero(hits))
    low, high = clopper_pearson(k, len(hits), alpha=alpha)
    return Rate(value=k / len(hits), low=float(low), high=float(high), n=len(hits))


def attack_success_rate(
    logits: NDArray[np.floating], labels: NDArray[np.int64], *, target: int, alpha: float = 0.05
) -> Rate:
    """Triggered images answered ``target``, among those whose true class is another.

    Args:
        logits: (N, K) on images WITH the trigger.
        labels: (N,) true classes.

    Raises:
        InvalidInput: shapes that do not fit, values that are not finite, or a target out of range.
    """
    _check(logits, labels)
    if not 0 <= target < logits.shape[1]:
        raise InvalidInput(f"target = {target} is outside 0..{logits.shape[1] - 1}")
    other = labels != target
    return rate(logits[other].argmax(axis=1) == target, alpha=alpha)


def confusion_rate(
    logits: NDArray[np.floating], labels: NDArray[np.int64], *, classes: tuple[int, int], alpha: float = 0.05
) -> Rate:
    """Inputs of one of two classes answered by the other of them; inputs of other classes are left out."""
    _check(logits, labels)
    first, second = classes
    answer = logits.argmax(axis=1)
    affected = (labels == first) | (labels == second)
    return rate((answer == np.where(labels == first, second, first))[affected], alpha=alpha)


def accuracy(logits: NDArray[np.floating], labels: NDArray[np.int64], *, alpha: float = 0.05) -> Rate:
    """Right answers, with the true labels: the corrected accuracy on affected inputs, utility on the others."""
    _check(logits, labels)
    return rate(logits.argmax(axis=1) == labels, alpha=alpha)


def _check(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> None:
    if logits.ndim != 2 or labels.shape != (len(logits),):
        raise InvalidInput(f"logits {logits.shape} and labels {labels.shape} do not fit (N, K) and (N,)")
    if not np.isfinite(logits).all():
        raise InvalidInput("logits hold values that are not finite")
    if len(labels) and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise InvalidInput(f"labels outside 0..{logits.shape[1] - 1}")
