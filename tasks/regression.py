"""Regression: one number an example.

    r               (f - y) / sd                              sd of the training targets, a population constant
    loss            r^2
    signal          -sqrt(|r|)                                Hawkins & Wixley 1986: the fourth root of a squared normal
                    is
                                                              near normal; -log(r^2) is more skewed
    log_likelihood  -r^2 / 2 - log(2 pi) / 2                  normal, its variance fixed at the population's
    quality         1 - |r| / d, cut to 0..1                  d mean |y - mean| / sd: 0 is no better than the mean of
                    all

``losses`` is (f - y)^2, in the square of the target's unit: what GraNd and unlearners differentiate. Recipes train on
targets in units of their own spread (``recipes.fitting.standardise``).

Source: Hawkins and Wixley, "A note on the transformation of chi-squared variables to normality", The American
Statistician 40 (1986).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import EVERY_TASK, TaskSpec, task
from tasks.base import Constants, Examples, OutputTask, Reading

if TYPE_CHECKING:
    from torch import Tensor

MAX_BINS = 10


@task(
    TaskSpec(
        name="regression",
        doc="One number an example.",
        source="Hawkins & Wixley, The American Statistician 1986 (signal)",
        gives=(*EVERY_TASK, "numbers", "features"),
        quality="1 - error / error of the mean",
        loss="squared error (variances of the target)",
    )
)
class Regression(OutputTask):
    """See the file."""

    target_dtype: ClassVar[str] = "float64"
    affine: ClassVar[bool] = True
    likeliest: ClassVar[float] = -0.5 * math.log(2 * math.pi)

    def losses_of(self, outputs: Any, targets: Any) -> Tensor:
        """Squared error (B,) of predictions (B, 1) and targets (B,) or (B, 1)."""
        residual: Tensor = outputs.reshape(-1) - targets.reshape(-1)
        return residual.square()

    def reading_of(self, outputs: NDArray[Any], targets: NDArray[Any], constants: Constants) -> Reading:
        """From predictions (..., N, 1) and targets (N,) or (N, 1)."""
        residual = (outputs[..., 0].astype(np.float64) - targets.reshape(-1).astype(np.float64)) / constants["sd"]
        size = np.abs(residual)
        return Reading.of(
            loss=np.square(residual),
            signal=-np.sqrt(size),
            log_likelihood=-0.5 * np.square(residual) - 0.5 * np.log(2 * np.pi),
            quality=np.clip(1 - size / constants["naive"], 0, 1),
        )

    def loss_unit(self, constants: Constants) -> float:
        """The variance of the training targets."""
        return float(constants["sd"]) ** 2

    def of_signal(self, signal: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both of |r| = signal^2. A signal above 0, which no error has but a mapped one may, is surer than no error:
        the order stays."""
        loss = -np.sign(signal) * np.square(np.square(signal))
        return loss, -0.5 * loss + self.likeliest

    def wrong_targets(self, data: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
        """The target of a training example a quarter to three quarters of all ranks away, going round at the ends."""
        known = np.sort(data.y[data.split == "train"])
        ranks = np.searchsorted(known, data.y[rows]) / len(known) + rng.uniform(0.25, 0.75, len(rows))
        return np.asarray(known[np.minimum((ranks % 1 * len(known)).astype(np.int64), len(known) - 1)])

    def target_tensor(self, y: NDArray[Any], dtype: Any) -> Tensor:
        """(N, 1) in the model's precision."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(y)).to(dtype)[:, None]

    def check_targets(self, data: Examples) -> None:
        bad = ~np.isfinite(data.y)
        if bad.any():
            raise data.refusal("targets are not finite", bad)

    def check(self, data: Examples) -> None:
        """Finite targets, and no class names."""
        self.check_targets(data)
        if data.class_names:
            raise DataError(f"{data.name}: regression has no class names")

    def describe(self, data: Examples) -> str:
        return "a number to predict (regression)"

    def strata(self, x: Any, y: NDArray[Any], example_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """At most ten bins of as many examples by the target; ties by id."""
        num_bins = int(np.clip(len(y) // 10, 1, MAX_BINS))
        bins = np.empty(len(y), np.int64)
        bins[np.lexsort((example_id, y))] = np.arange(len(y)) * num_bins // max(len(y), 1)
        return bins

    def constants(self, data: Examples) -> Constants:
        """``sd`` of the training targets (1 where they are all equal), and the mean's mean absolute error in units of
        it."""
        y = data.y[data.split == "train"] if (data.split == "train").any() else data.y
        with np.errstate(invalid="ignore"):  # targets that are not finite are refused by check_targets
            sd = float(y.std()) or 1.0
            naive = float(np.abs(y - y.mean()).mean()) / sd or 1.0
        return {"sd": np.float64(sd), "naive": np.float64(naive)}  # type: ignore[dict-item]

    def constant_quality(self, data: Examples) -> float:
        """Of the best among the mean and 41 quantiles of the targets."""
        answers = np.append(np.quantile(data.y, np.linspace(0, 1, 41)), data.y.mean())
        said = np.broadcast_to(answers[:, None, None], (len(answers), len(data.y), 1))
        return float(self.reading_of(said, data.y, data.constants).quality.mean(1).max())

    def target_digest(self, y: NDArray[Any]) -> list[Any]:
        """The bits of the numbers."""
        return list(y.view(np.int64).tolist())

    def shown(self, data: Examples) -> dict[str, NDArray[Any]]:
        return {"target": data.y}
