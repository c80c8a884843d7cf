"""GraNd: expected norm of the per-example loss gradient over all parameters, early in training.

    GraNd_i = mean_r || d loss(f_r(x_i), y_i) / d theta_r ||_2        higher = harder
    classification: loss = cross-entropy,         gradient at the logits     softmax(z) - onehot(y)   (K,)
    regression:     loss = (f_r(x_i) - y_i)^2,    gradient at the prediction 2 (f_r(x_i) - y_i)       (1,)

f_r: R models stopped after a few epochs, eval mode. Exact over all trainable parameters (scoring.grad_norms), not the
last layer alone, whose norm || p - y || sqrt(||h||^2 + 1) falls out as a by-product. The squared error is that of the
model as it stands, in the target's own units, so the score is in these units squared; the paper has classification only.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021, arXiv 2107.07075), definition 1. At
initialisation it ranks no better than the input norm (Kirsch, arXiv 2303.14753): use models of a few epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from recipes.predict import eval_mode
from recipes.streaming import batches, check, check_finite, check_outputs
from scoring.error_vector import error_vector
from scoring.grad_norms import PerExampleGradNorm
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class GrandConfig(Config):
    """How the passes are cut up; the scores do not depend on it."""

    batch: int = param(512, ge=1, le=1_000_000, doc="examples read at a time")
    micro_batch: int | None = param(
        None, ge=1, le=1_000_000, doc="examples differentiated at a time; bounds memory. By the cache when not given"
    )


@score(
    ScoreSpec(
        name="grand",
        version=2,
        wants=("losses",),
        doc="GraNd: mean over early models of the L2 norm of the example's loss gradient, all parameters.",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=GrandConfig,
        needs=("early_models",),
        columns=(
            Column(name="grand", dtype="float64", low=0, direction="higher = harder", doc="mean over models"),
            Column(
                name="grand_std",
                dtype="float64",
                low=0,
                nullable=True,
                doc="sample standard deviation over models; null for one model",
            ),
            Column(
                name="grand_stderr",
                dtype="float64",
                low=0,
                nullable=True,
                doc="standard error of grand, std / sqrt(n_seeds); null for one model",
            ),
            Column(
                name="grand_last_layer",
                dtype="float64",
                low=0,
                nullable=True,
                direction="higher = harder",
                doc="gradient norm of the output layer alone; null when the logits do not come from a linear layer",
            ),
            Column(
                name="grand_last_layer_std",
                dtype="float64",
                low=0,
                nullable=True,
                doc="sample standard deviation of grand_last_layer over models; null for one model",
            ),
            Column(name="n_seeds", dtype="int64", low=1, doc="models averaged"),
        ),
        value="grand",
        stderr="grand_stderr",
        higher_means="harder",
        calls=Call("hard"),
    )
)
def grand(data: ExampleSet, *, config: GrandConfig, seed: int, early_models: Sequence[nn.Module]) -> pl.DataFrame:
    """GraNd of every example.

    Args:
        data: N examples with a label (classification) or a target (regression).
        config: batch size.
        seed: not used; the score is a function of the models.
        early_models: R >= 1 models stopped at the early epoch, one seed each; put into eval mode and back, else untouched.

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: a ranking task, or a model under which an example has no gradient of its own.
        DataError: labels outside the model's outputs, targets, outputs or gradients that are NaN or infinite; names the
            examples.
        InvalidInput: no models.
    """
    check("grand", data, early_models, wants=("losses", "features"))
    num, num_models = len(data), len(early_models)
    # Rows: all parameters, the output layer. Filled block by block: no value of a single model is kept.
    mean, std = np.empty((2, num)), np.full((2, num), np.nan)
    error = error_vector if data.task.gives("classes") else squared_error_gradient
    with ExitStack() as stack:
        measures = []
        for model in early_models:
            stack.enter_context(eval_mode(model))
            measures.append(stack.enter_context(PerExampleGradNorm(model, micro_batch=config.micro_batch)))
            check_outputs("grand", data, model)
        for rows, x, y in batches(data, early_models[0], batch=config.batch):
            norms = np.stack([_norms(measure, x, y, error, data, rows) for measure in measures])
            mean[:, rows] = norms.mean(0)
            if num_models > 1:
                std[:, rows] = norms.std(0, ddof=1)
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "grand": mean[0],
            "grand_std": pl.Series(std[0], nan_to_null=True),
            "grand_stderr": pl.Series(std[0] / math.sqrt(num_models), nan_to_null=True),
            "grand_last_layer": pl.Series(mean[1], nan_to_null=True),
            "grand_last_layer_std": pl.Series(std[1], nan_to_null=True),
            "n_seeds": np.full(num, num_models, np.int64),
        }
    )


def squared_error_gradient(predictions_B1: Tensor, y_B: Tensor) -> Tensor:
    """Gradient of (f - y)^2 at the prediction f: float64 (B, 1).

    >>> squared_error_gradient(torch.tensor([[1.5]]), torch.tensor([1.0])).tolist()
    [[1.0]]
    """
    return 2.0 * (predictions_B1.double() - y_B.double()[:, None])


def _norms(
    measure: PerExampleGradNorm,
    x: Tensor,
    y: Tensor,
    error: Callable[[Tensor, Tensor], Tensor],
    data: ExampleSet,
    rows: slice,
) -> NDArray[np.float64]:
    """(2, b): norms over all parameters and over the output layer (NaN when that is not a linear layer)."""
    found = measure(x, y, error)
    check_finite("grand", "logits", data, rows, found.logits)
    check_finite("grand", "gradients", data, rows, found.total[:, None])
    last = torch.full_like(found.total, torch.nan)
    if measure.output_layer:
        last = torch.stack([found.squared[name] for name in measure.output_layer]).sum(0)
    return torch.stack([found.total, last]).sqrt().double().cpu().numpy()  # type: ignore[no-any-return]
