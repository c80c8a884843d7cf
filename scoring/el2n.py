"""EL2N: expected L2 norm of the error vector early in training.

    EL2N_i = mean_r || softmax(f_r(x_i)) - onehot(y_i) ||_2     in [0, sqrt 2]; higher = harder

f_r: R models stopped after a few epochs, one initialisation each, eval mode. logits (B, K).
With it, from the same forward pass: EL1N, and the margins max_{k != y} p_k - p_y and sum_{k != y} (p_k - p_y) = 1 - K p_y.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training" (NeurIPS
2021, arXiv 2107.07075), definition 3 and the authors' code. It ranks by difficulty, not by value: under label noise the
highest scores are the noise. Not for untrained models (epoch 0) nor for interpolating ones, which carry no information.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.methods import ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from scoring.error_vector import error_vector
from scoring.streaming import Moments, batches, check, check_finite, check_outputs, evaluating
from sources.example_set import ExampleSet

_SQRT2 = math.sqrt(2.0)
_VALUES = ("el2n", "el1n", "margin_max", "margin_sum")


@dataclass(frozen=True, kw_only=True, slots=True)
class EL2NConfig(Config):
    """How the forward passes are cut up; the scores do not depend on it."""

    batch: int = param(1024, ge=1, le=1_000_000, doc="examples a forward pass; bounds memory")


@score(
    ScoreSpec(
        name="el2n",
        doc="EL2N: mean over early models of the L2 norm of softmax(logits) - onehot(label).",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=EL2NConfig,
        needs=("early_models",),
        columns=(
            Column(name="el2n", dtype="float64", low=0, high=_SQRT2, direction="higher = harder", doc="mean over models"),
            Column(
                name="el2n_std", dtype="float64", low=0, high=_SQRT2, nullable=True,
                doc="sample standard deviation over models; null for one model",
            ),
            Column(
                name="el2n_stderr", dtype="float64", low=0, high=_SQRT2, nullable=True,
                doc="standard error of el2n, std / sqrt(n_seeds); null for one model",
            ),
            Column(name="el1n", dtype="float64", low=0, high=2, direction="higher = harder", doc="L1 norm in place of L2"),
            Column(
                name="margin_max", dtype="float64", low=-1, high=1, direction="higher = harder",
                doc="mean of max over wrong classes k of p_k - p_y; above 0 = wrong",
            ),
            Column(
                name="margin_sum", dtype="float64", high=1, direction="higher = harder",
                doc="mean of the sum over wrong classes k of p_k - p_y, which is 1 - K p_y",
            ),
            Column(name="n_seeds", dtype="int64", low=1, doc="models averaged"),
        ),
        value="el2n",
        stderr="el2n_stderr",
        higher_means="harder",
    )
)  # fmt: skip
def el2n(data: ExampleSet, *, config: EL2NConfig, seed: int, early_models: Sequence[nn.Module]) -> pl.DataFrame:
    """EL2N and margins of every example.

    Args:
        data: N labelled examples, classification.
        config: batch size.
        seed: not used; the score is a function of the models.
        early_models: R >= 1 models stopped at the early epoch, one seed each; put into eval mode and back.

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: a regression task.
        DataError: labels outside the model's outputs, NaN or infinite logits; names the examples.
        InvalidInput: no models.
    """
    check("el2n", data, early_models)
    moments = {name: Moments(len(data)) for name in _VALUES}
    for model in early_models:
        values = _one_model(model, data, batch=config.batch)
        for name, moment in moments.items():
            moment.add(values[name])
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "el2n": moments["el2n"].mean.clip(0.0, _SQRT2),
            "el2n_std": moments["el2n"].std,
            "el2n_stderr": moments["el2n"].stderr,
            "el1n": moments["el1n"].mean,
            "margin_max": moments["margin_max"].mean,
            "margin_sum": moments["margin_sum"].mean,
            "n_seeds": np.full(len(data), len(early_models), np.int64),
        }
    )


def error_scores(logits_BK: Tensor, y_B: Tensor) -> dict[str, Tensor]:
    """EL2N, EL1N and the two margins of one model's logits, each float64 (B,).

    >>> round(float(error_scores(torch.zeros(1, 10), torch.tensor([3]))["el2n"]), 6) == round(math.sqrt(0.9), 6)
    True
    """
    e_BK = error_vector(logits_BK, y_B)
    miss = -e_BK.gather(1, y_B[:, None]).squeeze(1)  # 1 - p_y
    hit = 1.0 - miss
    return {
        "el2n": torch.linalg.vector_norm(e_BK, dim=1),
        "el1n": 2.0 * miss,
        "margin_max": e_BK.amax(1) - hit,  # the entry of the true class is never above 0
        "margin_sum": 1.0 - logits_BK.shape[1] * hit,
    }


def _one_model(model: nn.Module, data: ExampleSet, *, batch: int) -> dict[str, NDArray[np.float64]]:
    values = {name: np.empty(len(data)) for name in _VALUES}
    with evaluating(model), torch.inference_mode():
        check_outputs("el2n", data, model)
        for rows, x, y in batches(data, model, batch=batch):
            logits = model(x)
            check_finite("el2n", "logits", data, rows, logits)
            for name, value in error_scores(logits, y).items():
                values[name][rows] = value.cpu().numpy()
    return values
