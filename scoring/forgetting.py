"""Forgetting events: how often training unlearns an example that it had right.

    acc_i(t) = [argmax f(x_i) = y_i] when example i is drawn for the t-th time, before that mini-batch's step
    forgetting_i = #{t : acc_i(t) > acc_i(t + 1)}            higher = harder; undefined when acc_i(t) = 0 for every t
    hardness_i   = mean over R runs of forgetting_i, or T in a run in which it was never right

The paper counts an example that is never right as infinitely forgotten; T, the presentations of an example in a run (in
the longest, were they unequal), is more than one that was right can be forgotten (T / 2), keeps the mean over runs
finite and lets every example be ranked. R runs of the subject's own recipe from R
initialisations; with it, the share of runs in which the example was never right, and the presentation at which it was
first right. Every epoch draws each example once, so a presentation is an epoch, counted from 1.

Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning" (ICLR 2019, arXiv
1812.05159), definition 1 and algorithm 1; the baseline of Paul et al. (NeurIPS 2021). It needs whole training runs and
no forward pass of its own. Not a count over a fixed evaluation after each epoch, which sees other transitions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, NotApplicable
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column
from recipes.streaming import in_order_of, tabulate
from sources.example_set import ExampleSet
from tasks.base import require

_BLOCK = 65_536  # examples added up at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgettingConfig(Config):
    """How much is trained."""

    seeds: int = param(3, ge=1, le=1000, doc="runs R, each from its own initialisation")
    effort: float = param(1.0, gt=0, le=100, doc="epochs of a run, as a multiple of the recipe's")


@score(
    ScoreSpec(
        name="forgetting",
        trains=True,
        version=2,
        wants=("outputs", "classes"),
        doc="Forgetting events: how often an example goes from right to wrong between two of its presentations in "
        "training.",
        source="Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019 (arXiv 1812.05159)",
        config=ForgettingConfig,
        needs=("train",),
        columns=(
            Column(
                name="hardness",
                dtype="float64",
                low=0,
                unit="events",
                direction="higher = harder",
                doc="mean over runs of the forgetting events, or of the presentations in a run in which it was never "
                "right",
            ),
            Column(
                name="hardness_stderr",
                dtype="float64",
                low=0,
                nullable=True,
                unit="events",
                doc="standard error over runs; null for a single run",
            ),
            Column(
                name="forgetting",
                dtype="float64",
                low=0,
                nullable=True,
                unit="events",
                direction="higher = harder",
                doc="mean over the runs in which the example was ever right; null when it never was",
            ),
            Column(
                name="forgetting_std",
                dtype="float64",
                low=0,
                nullable=True,
                unit="events",
                doc="sample standard deviation over these runs; null for fewer than two",
            ),
            Column(
                name="forgetting_stderr",
                dtype="float64",
                low=0,
                nullable=True,
                unit="events",
                doc="standard error over these runs; null for fewer than two",
            ),
            Column(name="never_correct", dtype="bool", doc="right at no presentation of any run"),
            Column(
                name="never_correct_share",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = harder",
                doc="share of the runs in which it was right at no presentation",
            ),
            Column(
                name="first_learned",
                dtype="float64",
                low=1,
                nullable=True,
                unit="epochs",
                direction="higher = harder",
                doc="epoch of the first presentation at which it was right, from 1, mean over these runs; null when "
                "never",
            ),
            Column(name="n_seeds", dtype="int64", low=1, doc="runs"),
        ),
        value="hardness",
        stderr="hardness_stderr",
        higher_means="harder",
        calls=Call("hard"),
    )
)
def forgetting(
    data: ExampleSet,
    *,
    config: ForgettingConfig,
    seed: int,
    train: Callable[..., nn.Module],
    progress: Progress = silent,
) -> pl.DataFrame:
    """Forgetting events of every example.

    Args:
        data: N labelled examples, classification. The runs see them ordered by id.
        config: runs and their length.
        seed: root of the runs' seeds.
        train: the subject's recipe, which tells ``observe(rows, logits)`` of every mini-batch before its step.
        progress: called with (runs done, runs, "runs observed").

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: another task, or a recipe that does not tell its mini-batches.
        DataError: no examples, an id used twice, labels that are not classes, or NaN or infinite logits; names the
            examples.
        Diverged: a run diverged.
    """
    require(data, "forgetting", "classes")
    ordered = data.by_id()
    total = _Totals(len(ordered))
    for r in range(config.seeds):
        events = ForgettingEvents(ordered.y)
        train(ordered, derive_seed("forgetting", seed, r) % 2**31, effort=config.effort, observe=events)
        events.check(ordered)
        total.add(events)
        progress(r + 1, config.seeds, "runs observed")
    del events  # its memory is wanted for the table
    return in_order_of(tabulate(len(ordered), lambda rows: total.columns(ordered.example_id, rows)), data)


class ForgettingEvents:
    """An observer of one training run: ``events(rows, logits)`` for every mini-batch.

    >>> events = ForgettingEvents(np.array([0, 1]))
    >>> for logits in ([[2.0, 1.0], [2.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [2.0, 1.0]]):
    ...     events(torch.tensor([0, 1]), torch.tensor(logits))
    >>> events.count.tolist(), events.first.tolist(), events.seen.tolist()
    ([1, 0], [1, 0], [3, 3])

    Attributes:
        count: int32 (N,), transitions from right to wrong so far.
        first: int32 (N,), presentation at which the example was first right, from 1; 0 = never.
        seen: int32 (N,), presentations.
        broken: bool (N,), a presentation had NaN or infinite logits, of which no answer can be told.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self._labels = torch.from_numpy(np.ascontiguousarray(labels))
        self._right, self.broken = (torch.zeros(len(labels), dtype=torch.bool) for _ in range(2))
        self.count, self.first, self.seen = (torch.zeros(len(labels), dtype=torch.int32) for _ in range(3))

    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        """Take in one mini-batch: positions (b,), no two the same, and logits (b, K)."""
        if self._labels.device != logits.device:
            self._labels, self._right, self.broken, self.count, self.first, self.seen = (
                t.to(logits.device) for t in (self._labels, self._right, self.broken, self.count, self.first, self.seen)
            )
        right = logits.argmax(1) == self._labels[rows]
        seen = self.seen[rows] + 1
        first = self.first[rows]
        self.count[rows] += self._right[rows] & ~right
        self.first[rows] = torch.where((first == 0) & right, seen, first)
        self.seen[rows], self._right[rows] = seen, right
        self.broken[rows] |= ~logits.isfinite().all(1)

    def check(self, data: ExampleSet) -> None:
        """Refuse a run that did not show every example, with finite logits.

        Raises:
            NotApplicable: it told nothing at all.
            DataError: it left examples out, or their logits were NaN or infinite; names them.
        """
        unseen = (self.seen == 0).cpu().numpy()
        if unseen.all():
            raise NotApplicable("forgetting: the recipe trained without telling its mini-batches (observe)")
        if unseen.any():
            raise DataError("forgetting: the recipe never drew these examples", example_ids=data.example_id[unseen])
        broken = self.broken.cpu().numpy()
        if broken.any():
            raise DataError("forgetting: NaN or infinite logits", example_ids=data.example_id[broken])


class _Totals:
    """Sums over the runs, exact in integers; of the events, over the runs in which the example was ever right: others
    have 0."""

    def __init__(self, num: int) -> None:
        self.runs = 0
        self.presentations = 0
        self.times, self.count, self.first = (np.zeros(num, np.int32) for _ in range(3))
        self.squares = np.zeros(num, np.int64)

    def add(self, run: ForgettingEvents) -> None:
        count, first = run.count.cpu().numpy(), run.first.cpu().numpy()
        self.runs += 1
        self.presentations = max(self.presentations, int(run.seen.max()))
        self.first += first
        self.count += count  # 0 where it was never right
        for rows in (slice(start, start + _BLOCK) for start in range(0, len(count), _BLOCK)):
            self.times[rows] += first[rows] > 0
            self.squares[rows] += count[rows].astype(np.int64) ** 2

    def columns(self, example_id: NDArray[np.int64], rows: slice) -> dict[str, object]:
        count, squares, times = (a[rows].astype(np.float64) for a in (self.count, self.squares, self.times))
        runs, most = np.full(len(times), self.runs), self.presentations
        mean, variance = _moments(count, squares, times)
        missed = self.runs - times
        hardness, spread = _moments(count + most * missed, squares + most**2 * missed, runs)
        with np.errstate(invalid="ignore"):
            first = self.first[rows] / times
            stderr = np.sqrt(variance / times)
        return {
            "example_id": example_id[rows],
            "hardness": hardness,
            "hardness_stderr": np.sqrt(spread / runs),
            "forgetting": mean,
            "forgetting_std": np.sqrt(variance),
            "forgetting_stderr": stderr,
            "first_learned": first,
            "never_correct": times == 0,
            "never_correct_share": 1.0 - times / self.runs,
            "n_seeds": runs,
        }


def _moments(
    total: NDArray[np.float64], squares: NDArray[np.float64], times: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sample variance of whole numbers from their sum and sum of squares; NaN, which becomes null, where
    undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = squares * times - total**2  # times squared deviations, whole numbers: nothing cancels
        return total / times, spread / times / np.where(times > 1, times - 1, 0)
