"""What is measured of the models of an unlearning job on one set of forgotten examples: figures by run, and what the
attacks and the page look at. The same for a job's own models and for those that another request of a batch had made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.base import Reading

if TYPE_CHECKING:
    from torch import nn

    from sources.example_set import ExampleSet


class Measured:
    """Figures of the runs of a job.

    Attributes:
        forget, retain: the sets, of the training split; ``forget`` is what is measured, whatever else was removed.
        non_member: (S, F) bool, called a non-member by the efficacy attack; all False of a run without a result.
        predicted: (S, F) of a task of numbers, what each model says of the set; 0 of a run without a result.
        relearned: (S, 2) int64 of a task of numbers, batches until the set was learned again, and 1 where it was.
    """

    def __init__(self, data: ExampleSet, ids: Mapping[str, np.ndarray], *, original: nn.Module, runs: int) -> None:
        self._data, self._original = data, original
        self._train, self._test = data.part("train"), data.part("test")
        self.forget, self.retain = self._train.subset(ids["forget"]), self._train.subset(ids["retain"])
        self._numbers = data.task.gives("numbers") and all(map(len, (self.forget, self.retain, self._test)))
        self.non_member = np.zeros((runs, len(self.forget)), dtype=bool)
        self.predicted, self.relearned = np.zeros((runs, len(self.forget))), np.zeros((runs, 2), np.int64)

    def of(self, run: int, model: nn.Module, reading: Reading, *, seed: int) -> dict[str, float | None]:
        """Metrics of a run's model.

        Args:
            run: its place in the job.
            reading: (N, 4) what it says of the data set.

        Raises:
            Diverged: a figure is not finite.
        """
        from unlearning.metrics import measure

        def known(some: ExampleSet) -> Reading:
            return Reading(reading.values[self._data.positions(some.example_id)])

        sets = {"retain": self.retain, "forget": self.forget, "test": self._test}
        metrics, called = measure(model, **sets, seed=seed, known=known)
        if self._numbers:
            from unlearning.regression.metrics import run_figures

            figures, self.predicted[run], again = run_figures(
                model, original=self._original, **sets, train=self._train, seed=seed
            )
            metrics, self.relearned[run] = metrics | figures, (again.batches, again.reached)
        self.non_member[run] = called
        return metrics

    @property
    def sizes(self) -> dict[str, Any]:
        """Of the sets, for a row of metrics."""
        return {"num_forget": self.forget.num_examples, "num_retain": self.retain.num_examples}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored beside the models."""
        numbers = {"predicted": self.predicted, "relearned": self.relearned} if self._numbers else {}
        return {"non_member": self.non_member, "forget": self.forget.example_id, **numbers}
