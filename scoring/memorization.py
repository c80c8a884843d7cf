"""Memorization: how much better models do on an example that they trained on than models that did not.

    mem_i = E[quality of f on i | i in S] - E[quality of f on i | i not in S]      in [-1, 1]; higher = more memorised
          ~ mean of quality[:, i] over models with keep[:, i]  -  mean over models without

over random training subsets S of a fixed size (here the halves of the reference ensemble, subset ratio 1/2). keep (M,
N)
bool: model m trained on example i; quality (M, N) in [0, 1]: what the task's users call right (``tasks.base``),
    recorded on
all N examples, in and out. Of a classifier it is f(x_i) = y_i and mem the paper's difference of two probabilities.

mem_low, mem_high: Newcombe's 95% interval for the difference of two proportions (``stats.proportions``);
stderr_i = its longer arm / 1.96. The Wald error sqrt(q (1 - q) / n) would be 0 for every example that all models of a
side agree on, which is most of them. An example is called memorised when mem_low > 0.25, the whole interval above the
usual cut. Of examples that are not memorised, mem >= 0.25 alone would call up to 13% with 20 models and 3% with 64,
mem_low > 0.25 at most 0.2% and 0.01%; of examples at the cut itself 2.7%. What all models with it get right is called
from mem = 1.00 on with 8 models, 0.70 with 20, 0.47 with 64, 0.38 with 128, 0.34 with 256; fewer than 8 can call none,
and the score is refused.

A quality between 0 and 1 (1 - error / error of the mean, for regression) is the soft variant: its variance is at most
that of a share with the same mean, so that the interval is too wide, and fewer examples are called memorised, never
more.

mem_prob is the same difference for the probability of the label in place of correctness: less noise, another quantity.
It is null where an example has no class.

Source: Feldman, "Does Learning Require Memorization?" (STOC 2020, arXiv 1906.05271), definition; Feldman & Zhang, "What
Neural Networks Memorize and Why" (NeurIPS 2020, arXiv 2008.03703), section 3 and the authors' code. A property of the
recipe, not of one model; meaningless for models that do not fit their training set, hence the gate. A near duplicate
takes the place of an example it was left out with: deduplicate before reading a low value as "typical".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from contracts.errors import InvalidInput, NotApplicable
from contracts.methods import Call, Gate, ScoreSpec, score
from contracts.params import Config
from contracts.tables import Column
from recipes.ensemble import ReferenceEnsemble
from scoring.pool import members, readings_of
from sources.example_set import ExampleSet
from stats.proportions import newcombe

FIT = Gate(
    column="acc_in",
    at_least=0.98,
    why="the reference models do not fit their training sets: mem then measures difficulty, not memorization; train "
    "longer",
)
MEMORISED = 0.25  # Feldman & Zhang's cut
FEWEST = 4  # models on a side: with 3, right in all with it and wrong in all without has mem_low 0.206
MODELS = Gate(
    column="n_out",  # each example is in exactly half of the models
    at_least=FEWEST,
    statistic="min",
    why="with so few models not even an example that only its own models get right can be told from one with mem = "
    f"{MEMORISED}; {2 * FEWEST} reference models are the fewest that call any memorised, 64 call it from mem = 0.47 on",
)
_NORMAL = 1.959963984540054  # standard errors either side of a 95% interval
_BLOCK = 4096  # examples whose readings of all models are looked at together


@dataclass(frozen=True, eq=False)
class Memorization:
    """Estimates for N examples; NaN where no model is on one of the sides.

    Attributes:
        mem: float64 (N,), acc_in - acc_out.
        acc_in, acc_out: float64 (N,) in [0, 1], mean over models with and without the example.
        n_in, n_out: int64 (N,), models on each side.
        low, high: float64 (N,) in [-1, 1], 95% interval of ``mem``.
    """

    mem: NDArray[np.float64]
    acc_in: NDArray[np.float64]
    acc_out: NDArray[np.float64]
    n_in: NDArray[np.int64]
    n_out: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def stderr(self) -> NDArray[np.float64]:
        """float64 (N,), > 0: the longer arm of the interval in standard errors, so that mem - 1.96 stderr <= low."""
        longer: NDArray[np.float64] = np.maximum(self.mem - self.low, self.high - self.mem)
        return longer / _NORMAL


def memorization_scores(keep: ArrayLike, correct: ArrayLike) -> Memorization:
    """Subsampled memorization estimates.

    Args:
        keep: (M, N) bool, model m trained on example i.
        correct: (M, N) bool, model m is right on example i; or values in [0, 1] (the soft variant), for which the
            interval is too wide, because the variance of such a value is at most q (1 - q).

    Raises:
        InvalidInput: shapes differ, ``keep`` is not bool, or ``correct`` leaves [0, 1].

    >>> float(memorization_scores([[True], [False]], [[True], [False]]).mem[0])
    1.0
    """
    keep_MN, correct_MN = np.asarray(keep), np.asarray(correct, dtype=np.float64)
    if keep_MN.dtype != np.bool_ or keep_MN.ndim != 2 or keep_MN.shape != correct_MN.shape:
        raise InvalidInput(
            f"keep is {keep_MN.dtype} {keep_MN.shape} and correct {correct_MN.shape}; bool (M, N) and (M, N) are needed"
        )
    if not ((correct_MN >= 0) & (correct_MN <= 1)).all():  # NaN included
        raise InvalidInput("correct holds values outside [0, 1]")
    n_in = keep_MN.sum(0, dtype=np.int64)
    n_out = len(keep_MN) - n_in
    acc_in = _ratio(np.where(keep_MN, correct_MN, 0.0).sum(0), n_in)
    acc_out = _ratio(np.where(keep_MN, 0.0, correct_MN).sum(0), n_out)
    # A mean of many values can come out at 1 + 1e-16.
    acc_in, acc_out = np.minimum(acc_in, 1.0), np.minimum(acc_out, 1.0)
    return Memorization(acc_in - acc_out, acc_in, acc_out, n_in, n_out, *newcombe(acc_in, n_in, acc_out, n_out))


def fit_of(name: str, found: Memorization) -> float:
    """Mean accuracy of the models on their own members, for what rests on ``found`` and is no score with a gate itself.

    Raises:
        NotApplicable: it is below what the score's own gate asks for, or there is no example.
    """
    fit = float(np.nanmean(found.acc_in)) if np.isfinite(found.acc_in).any() else np.nan
    if refusal := FIT.refusal(fit):
        raise NotApplicable(f"{name}: {refusal}")
    return fit


@score(
    ScoreSpec(
        name="memorization",
        version=2,
        wants=("reading",),
        doc="Memorization: quality (accuracy) on the example of models trained with it, minus that of models trained "
        "without it.",
        source="Feldman, STOC 2020 (arXiv 1906.05271); Feldman & Zhang, NeurIPS 2020 (arXiv 2008.03703)",
        needs=("ensemble",),
        columns=(
            Column(
                name="mem",
                dtype="float64",
                low=-1,
                high=1,
                nullable=True,
                direction="higher = more memorised",
                doc="acc_in - acc_out; null when no model is on one of the sides",
            ),
            Column(
                name="mem_low",
                dtype="float64",
                low=-1,
                high=1,
                nullable=True,
                doc="lower end of the 95% interval of mem (Newcombe); above 0.25 the example is called memorised",
            ),
            Column(
                name="mem_high",
                dtype="float64",
                low=-1,
                high=1,
                nullable=True,
                doc="upper end of the interval",
            ),
            Column(
                name="mem_prob",
                dtype="float64",
                low=-1,
                high=1,
                nullable=True,
                direction="higher = more memorised",
                doc="the same difference for the probability of the label; null where an example has no class",
            ),
            Column(
                name="acc_in",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                doc="mean quality (share of right predictions) of models trained with the example; null when there are "
                "none",
            ),
            Column(
                name="acc_out",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                doc="mean quality (share of right predictions) of models trained without it; null when there are none",
            ),
            Column(name="n_in", dtype="int64", low=0, doc="models trained with the example"),
            Column(name="n_out", dtype="int64", low=0, doc="models trained without the example"),
            Column(
                name="stderr",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                doc="standard error of mem: the longer arm of its interval / 1.96, never 0",
            ),
        ),
        value="mem",
        stderr="stderr",
        higher_means="memorised",
        calls=Call("memorised", column="mem_low", above=MEMORISED),
        gates=(FIT, MODELS),
    )
)
def memorization(data: ExampleSet, *, config: Config, seed: int, ensemble: ReferenceEnsemble) -> pl.DataFrame:
    """Memorization of every example of ``data`` that is in the ensemble's pool.

    Args:
        data: the training split.
        config: no fields.
        seed: not used; the score is a function of the ensemble.
        ensemble: M models on halves of the pool.

    Returns:
        One row for each example of ``data`` in the pool, in the order of ``data``; the others are not scored.

    Raises:
        DataError: no example of ``data`` is in the pool; targets differ from those the ensemble was trained on, or are
            none of the task's; NaN or infinite readings. Names the examples.
    """
    rows, columns = members("memorization", data, ensemble)
    parts = []
    for block, reading in readings_of(ensemble, columns, block=_BLOCK):
        keep = ensemble.keep[:, columns[block]]
        found = memorization_scores(keep, reading.quality)
        by_label = np.full(len(reading), np.nan)
        if data.task.gives("classes"):
            by_label = memorization_scores(keep, np.exp(reading.log_likelihood)).mem
        parts.append(_frame(data.example_id[rows[block]], found, by_label))
    return pl.concat(parts)


def _frame(ids: NDArray[np.int64], found: Memorization, by_label: NDArray[np.float64]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": ids,
            "mem": found.mem,
            "mem_low": found.low,
            "mem_high": found.high,
            "mem_prob": by_label,
            "acc_in": found.acc_in,
            "acc_out": found.acc_out,
            "n_in": found.n_in,
            "n_out": found.n_out,
            "stderr": found.stderr,
        },
        nan_to_null=True,
    )


def _ratio(total: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """total / count, NaN where there is nothing to divide by."""
    quotient: NDArray[np.float64] = np.full(len(count), np.nan)
    np.divide(total, count, out=quotient, where=count > 0)
    return quotient
