"""Was this very set forgotten? The unlearned model against R retrainings without that set, other seeds.

A set that is not random has no peers among unseen examples: the hardest examples, a class, one person's rows look
unlike the rest also to a model that never saw them (exact retraining: LOSS AUC 0.06 on the hardest, 0.9 on the easiest,
0.05 on a class). Its null is what retraining without it gives, example by example:

    phi    the task's signal (of classes the log-odds of the label), every model's mapped to one scale on the unseen
           test examples: outputs first, of a task that gives them, then the signal (``scale``)
    z_j    = (phi_j - mean_r phi_rj) / s_j,   s_j^2 = (own variance over r + mean variance over the set) / 2
    set    m = mean_j z_j, against m_r of the retrainings:   (m - 0) / (sd_r m_r sqrt(1 + 1/R)) is Student's t, R - 1
           degrees shown as the AUC of two unit normals m apart, Phi(m / sqrt 2): 0.5 is forgotten, above: known better
           than by retraining
    each   t_j = (phi_j - mean) / (own sd sqrt(1 + 1/R)), two-sided, Holm over the set; and max_j |t_j| must lie beyond
           what retrainings judged by the others lead one to expect, a Gumbel law fitted to their log max |t|: the first
           trusts the normal tail, the second does not (three models of 5 to 300 examples, tails as heavy as t_4's: at
           most 0.01 of audits fail; 0.13 to 0.85 without it)

    trace  bound of |m| over the m of the untouched model: how much of what there was to forget may be left, at most

Under exact removal the model is one more retraining, and m varies as m_r does (0.14 to 0.25 standard deviations for 45
to 90 digits), so the trace is what a pass can bound: where the untouched model itself hardly differs there was nothing
to see. A single model clears no single example: what is not found is only not found. Shapes: S unlearned models, R
retrainings, F examples of the set, T test examples, K classes.
Source: LiRA's per-example normals (Carlini et al., IEEE S&P 2022) with the set's own retrainings as the only reference,
    as the
definition of unlearning asks (Cao and Yang, IEEE S&P 2015; Thudi et al., USENIX Security 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from attacks.membership.scale import OUTPUT_KNOTS, thinned, to_reference_scale
from contracts.errors import InvalidInput
from stats import holm
from tasks.base import NO_CONSTANTS, Constants, OutputTask, Task

Float = NDArray[np.float64]
FEWEST_RETRAININGS = 20
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class AgainstRetraining:
    """One unlearned model against the retrainings.

    Attributes:
        num_examples, num_retrainings: F and R.
        shift: m, in standard deviations of one example over retrainings; > 0 = better known than after retraining.
        shift_lo, shift_hi: its interval at 1 - ``alpha``.
        spread: standard deviation of m_r over the retrainings.
        p_value: two-sided, of "one more retraining", for the set's mean.
        standing_out: examples whose p-value after Holm is at most ``level``.
        beyond: max |t| is more than retrainings lead one to expect, at ``level``.
        detectable: |t| from which on one example is significant at ``level``.
        trace: shift of the untouched model, what there was to forget.
        alpha, level: 1 - level of the interval; level of a failure.
    """

    num_examples: int
    num_retrainings: int
    shift: float
    shift_lo: float
    shift_hi: float
    spread: float
    p_value: float
    standing_out: int
    beyond: bool
    detectable: float
    trace: float
    alpha: float
    level: float

    def surely(self) -> tuple[float, float]:
        """Bounds of the shift at 1 - ``level``."""
        freedom = self.num_retrainings - 1
        ratio = float(student_t.isf(self.level / 2, freedom) / student_t.isf(self.alpha / 2, freedom))
        return self.shift - ratio * (self.shift - self.shift_lo), self.shift + ratio * (self.shift_hi - self.shift)

    @property
    def trace_left(self) -> float:
        """Most of the trace that may be left at 1 - ``alpha``, as a share; infinite where there was none."""
        furthest = max(abs(self.shift_lo), abs(self.shift_hi))
        return furthest / abs(self.trace) if self.trace else math.inf


@dataclass(frozen=True, eq=False, kw_only=True)
class Retrainings:
    """What R models that never saw the set say of it and of test examples: the scale on which it is judged.

    Attributes:
        signal: (R, F + T), the set first, then test examples; of mapped outputs, where a task gives outputs.
        num_set: F.
        spoken: sample of the retrainings' outputs on the test examples; None where there are none.
    """

    signal: Float
    num_set: int
    spoken: NDArray[np.floating] | None = None

    @classmethod
    def of_readings(cls, signal: Float, *, num_set: int) -> Retrainings:
        """Of a task whose answers are no vector of logits: (R, F + T) signals."""
        return cls(signal=signal, num_set=num_set)

    @classmethod
    def of_outputs(
        cls,
        outputs: NDArray[np.floating],
        targets: NDArray[np.int64],
        *,
        num_set: int,
        task: OutputTask,
        constants: Constants = NO_CONSTANTS,
    ) -> Retrainings:
        """Of whole outputs (R, F + T, K), which need not be kept.

        Raises:
            InvalidInput: too few test examples to read a scale off.
        """
        spoken = thinned(outputs[:, num_set:]).astype(outputs.dtype)
        signal = [_mapped(z, spoken, targets, num_set, task, constants) for z in outputs]
        return cls(signal=np.stack(signal), num_set=num_set, spoken=spoken)

    @property
    def null(self) -> Float:
        """(R, F) every retraining's signals of the set, mapped to the scale of all of them together."""
        return np.stack([self._placed(row) for row in self.signal])

    def place(
        self,
        signal: Float,
        outputs: NDArray[np.floating] | None = None,
        targets: NDArray[np.int64] | None = None,
        *,
        task: Task | None = None,
        constants: Constants = NO_CONSTANTS,
    ) -> Float:
        """(F,) signals of the set of another model, on the same scale.

        Args:
            signal: (F + T,) of the model, the set first.
            outputs, targets: (F + T, K) behind them and (F + T,), where the retrainings' outputs were given.
            task: that reads outputs.
        """
        if self.spoken is not None and outputs is not None and targets is not None:
            assert isinstance(task, OutputTask)
            signal = _mapped(outputs, self.spoken, targets, self.num_set, task, constants)
        return self._placed(signal)

    def _placed(self, signal: Float) -> Float:
        num = self.num_set
        return to_reference_scale(signal[num:], self.signal[:, num:])(signal[:num])


def _mapped(
    outputs: NDArray[np.floating],
    spoken: NDArray[np.floating],
    targets: NDArray[np.int64],
    num_set: int,
    task: OutputTask,
    constants: Constants,
) -> Float:
    """(F + T,) signals of one model's outputs (F + T, K), mapped by what it says of the test examples."""
    to_scale = to_reference_scale(outputs[num_set:], spoken, knots=OUTPUT_KNOTS)
    return task.reading_of(to_scale(outputs), targets, constants).signal


def against_retraining(
    phi: Float, null: Float, *, untouched: Float, alpha: float, level: float
) -> tuple[AgainstRetraining, Float]:
    """Judge one model's signals of the set against those of retrainings without it.

    Args:
        phi: (F,), null: (R, F); finite, on one scale.
        untouched: (F,) of the model from which nothing was removed.
        alpha: 1 - level of the interval.
        level: at which single examples stand out, after Holm.

    Returns:
        The result, and (F,) t of each example, > 0 = better known than after retraining.

    Raises:
        InvalidInput: shapes, values that are not finite, fewer than 20 retrainings, an empty set.
    """
    if phi.ndim != 1 or null.ndim != 2 or null.shape[1] != len(phi) or untouched.shape != phi.shape or not len(phi):
        raise InvalidInput(
            f"phi {phi.shape}, untouched {untouched.shape} and null {null.shape} must be (F,), (F,) and (R, F), F >= 1"
        )
    if not (np.isfinite(phi).all() and np.isfinite(untouched).all() and np.isfinite(null).all()):
        raise InvalidInput("signals that are not finite cannot be compared")
    num, freedom = len(null), len(null) - 1
    if num < FEWEST_RETRAININGS:
        raise InvalidInput(f"{num} retrainings; at least {FEWEST_RETRAININGS} are needed")
    mean, variance = null.mean(axis=0), null.var(axis=0, ddof=1)
    floor = _TINY * (1 + np.abs(mean))
    scale = np.maximum(np.sqrt((variance + variance.mean()) / 2), floor)
    of_null = ((null - mean) / scale).mean(axis=1)
    shift, spread = float(((phi - mean) / scale).mean()), float(of_null.std(ddof=1))
    widen = math.sqrt(1 + 1 / num)
    error = max(spread, _TINY) * widen
    reach = float(student_t.isf(alpha / 2, freedom)) * error
    own = np.maximum(np.sqrt(variance), floor)
    example_t = (phi - mean) / (own * widen)
    adjusted = holm(2 * student_t.sf(np.abs(example_t), freedom))
    found = AgainstRetraining(
        num_examples=len(phi),
        num_retrainings=num,
        shift=shift,
        shift_lo=shift - reach,
        shift_hi=shift + reach,
        spread=spread,
        p_value=float(2 * student_t.sf(abs(shift) / error, freedom)),
        standing_out=int((adjusted <= level).sum()),
        beyond=bool(np.abs(example_t).max() > _expected_largest(_largest_t(null), level)),
        detectable=float(student_t.isf(level / 2 / len(phi), freedom)),
        trace=float(((untouched - mean) / scale).mean()),
        alpha=alpha,
        level=level,
    )
    return found, example_t


def _expected_largest(of_retrainings: Float, level: float) -> float:
    """Bound of the next max |t| at ``level``, from those of R retrainings: log max |t| ~ Gumbel by its moments, as
    maxima of heavy tails are, and wider for R finite (as Student's t is beside the normal)."""
    num, logs = len(of_retrainings), np.log(np.maximum(of_retrainings, _TINY))
    gumbel = math.sqrt(6) / math.pi * (-math.log(-math.log1p(-level)) - float(np.euler_gamma))
    wider = math.sqrt(1 + 1 / num) * float(student_t.isf(level, num - 1) / norm.isf(level))
    return float(np.exp(logs.mean() + logs.std(ddof=1) * gumbel * wider))


def _largest_t(null: Float) -> Float:
    """(R,) max_j |t_j| of every retraining judged by the other R - 1."""
    num = len(null)
    total, squares = null.sum(axis=0), np.square(null - null.mean(axis=0)).sum(axis=0)
    mean = (total - null) / (num - 1)
    centred = null - null.mean(axis=0)
    # Leaving one out takes num / (num - 1) of its squared distance off the sum of squares.
    variance = np.maximum(squares - num / (num - 1) * np.square(centred), 0.0) / (num - 2)
    own = np.maximum(np.sqrt(variance), _TINY * (1 + np.abs(mean)))
    return np.asarray((np.abs(null - mean) / (own * math.sqrt(1 + 1 / (num - 1)))).max(axis=1))
