"""How well a stream is remembered: the matrix of accuracies after every step, and what is lost of it.

    R[i, n]    accuracy on the test examples of step n after step i, the answer any class seen after step i (no step is
    told)
    A          accuracy on the test examples of all steps after the last
    F_G        1 / (S-1) sum_{i=2..S} sum_{n<i} |T_n| / |T_1..i| (R[n, n] - R[i, n])        T_n: the classes of step n
    F_L        the same of L[i, n], the answer one of step n's own classes
    drop       mean over n < S of R[n, n] - R[S, n]

R[n, n] is taken right after step n, with the classes seen then. In a class-incremental stream F_G is at most
1 / (S-1) sum_i |T_1..i-1| / |T_1..i|, 0.58 for three equal steps: a model that forgets everything does not reach 1. The
drop does.

Source: Smith et al., "A Closer Look at Rehearsal-Free Continual Learning" (CVPRW 2023, arXiv 2203.17269), section 4;
F_L: Smith et al.,
"Always Be Dreaming" (ICCV 2021, arXiv 2106.09701).
Shapes: R, L (S, S) float64, NaN above the diagonal and for steps without test examples; T (S,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contracts.errors import InvalidInput
from recipes.continual.stream import Stream
from recipes.predict import predict_logits
from sources.example_set import ExampleSet

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class StepAccuracy:
    """Attributes:
    overall: R (S, S).
    within: L (S, S).
    final: A.
    """

    overall: Float
    within: Float
    final: float


def step_accuracy(
    models: Sequence[nn.Module], test: ExampleSet, steps: NDArray[np.int64], stream: Stream
) -> StepAccuracy:
    """R, L and A of the models after each step.

    Args:
        models: S of them, in order.
        test: (N,) examples that were not trained on.
        steps: (N,) int64, the step of each; others than 0..S-1 take no part.
        stream: of the training examples.

    Raises:
        InvalidInput: not one model a step, or no test example of any step.
    """
    num = stream.num_steps
    if len(models) != num:
        raise InvalidInput(f"{len(models)} models for {num} steps: one after each is needed")
    overall, within = np.full((num, num), np.nan), np.full((num, num), np.nan)
    final = float("nan")
    for i, model in enumerate(models):
        logits = predict_logits(model, test)
        seen = np.array(sorted({c for own in stream.classes[: i + 1] for c in own}), np.int64)
        answer = seen[logits[:, seen].argmax(1)] if len(seen) else np.full(len(test), -1)
        for n in range(i + 1):
            own, at = np.array(stream.classes[n], np.int64), steps == n
            if not len(own) or not at.any():
                continue
            overall[i, n] = (answer[at] == test.y[at]).mean()
            within[i, n] = (own[logits[at][:, own].argmax(1)] == test.y[at]).mean()
        if i == num - 1:
            judged = (steps >= 0) & (steps < num)
            if not judged.any():
                raise InvalidInput(f"{test.name}: no test example of any step")
            final = float((answer[judged] == test.y[judged]).mean())
    return StepAccuracy(overall=overall, within=within, final=final)


def forgetting(accuracy: Float, num_classes: Sequence[int]) -> float:
    """F_G of R, or F_L of L; 0 for a single step, NaN where no earlier step was measured.

    Args:
        accuracy: (S, S), see the module.
        num_classes: (S,) classes of each step, 0 for a step that has no examples.

    Raises:
        InvalidInput: shapes that do not fit.

    >>> round(forgetting(np.array([[1.0, np.nan], [0.5, 1.0]]), [2, 2]), 3)
    0.25
    """
    size = np.asarray(num_classes, np.float64)
    num = len(size)
    if accuracy.shape != (num, num):
        raise InvalidInput(f"accuracies {accuracy.shape} of {num} steps must be ({num}, {num})")
    if num == 1:
        return 0.0
    lost = np.diag(accuracy)[None, :] - accuracy
    share = size[None, :] / np.maximum(size.cumsum(), 1.0)[:, None]
    earlier = np.tri(num, k=-1, dtype=bool) & ~np.isnan(lost)
    if not earlier.any():
        return float("nan")
    return float((share * np.nan_to_num(lost))[earlier].sum() / (num - 1))


def mean_drop(accuracy: Float) -> float:
    """Mean over the earlier steps of the accuracy lost from right after the step to the end; 0 for a single step."""
    lost = (np.diag(accuracy) - accuracy[-1])[:-1]
    lost = lost[~np.isnan(lost)]
    return float(lost.mean()) if len(lost) else 0.0
