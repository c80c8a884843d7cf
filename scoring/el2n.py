"""EL2N: expected L2 norm of the error vector early in training.

    EL2N_i = mean_r || softmax(f_r(x_i)) - onehot(y_i) ||_2     in [0, sqrt 2]; higher = harder

f_r: R models stopped after a few epochs, one initialisation each, eval mode. logits (B, K).
With it, from the same forward pass: EL1N; the margins max_{k != y} p_k - p_y and sum_{k != y} (p_k - p_y) = 1 - K p_y;
and the GraNd of the output layer, || p - onehot(y) || sqrt(||h||^2 + 1) with h what that layer takes in
(scoring.last_layer).

Every batch is read once and passed through all R models, so that nothing but the table grows with the number of
examples.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training" (NeurIPS
2021, arXiv 2107.07075), definition 3 and the authors' code. It ranks by difficulty, not by value: under label noise the
highest scores are the noise. Not for untrained models (epoch 0) nor for interpolating ones, which carry no information;
the analysis ``data_diet`` shows where between the two the scores settle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

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
from scoring.last_layer import LastLayer
from sources.example_set import ExampleSet
from tasks.base import respond

_SQRT2 = math.sqrt(2.0)
_BLOCK = 1 << 15  # logits: a few hundred KiB of work that stays in the cache
MEANS = ("el2n", "el1n", "margin_max", "margin_sum", "grand_last_layer")


@dataclass(frozen=True, kw_only=True, slots=True)
class EL2NConfig(Config):
    """How the forward passes are cut up; the scores do not depend on it."""

    batch: int = param(1024, ge=1, le=1_000_000, doc="examples a forward pass; bounds memory")


@score(
    ScoreSpec(
        name="el2n",
        version=2,
        wants=("outputs", "classes"),
        doc="EL2N: mean over early models of the L2 norm of softmax(logits) - onehot(label).",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=EL2NConfig,
        needs=("early_models",),
        columns=(
            Column(
                name="el2n", dtype="float64", low=0, high=_SQRT2, direction="higher = harder", doc="mean over models"
            ),
            Column(
                name="el2n_std",
                dtype="float64",
                low=0,
                high=_SQRT2,
                nullable=True,
                doc="sample standard deviation over models; null for one model",
            ),
            Column(
                name="el2n_stderr",
                dtype="float64",
                low=0,
                high=_SQRT2,
                nullable=True,
                doc="standard error of el2n, std / sqrt(n_seeds); null for one model",
            ),
            Column(
                name="el1n", dtype="float64", low=0, high=2, direction="higher = harder", doc="L1 norm in place of L2"
            ),
            Column(
                name="margin_max",
                dtype="float64",
                low=-1,
                high=1,
                direction="higher = harder",
                doc="mean of max over wrong classes k of p_k - p_y; above 0 = wrong",
            ),
            Column(
                name="margin_max_std",
                dtype="float64",
                low=0,
                high=_SQRT2,
                nullable=True,
                doc="sample standard deviation of margin_max over models; null for one model",
            ),
            Column(
                name="margin_sum",
                dtype="float64",
                high=1,
                direction="higher = harder",
                doc="mean of the sum over wrong classes k of p_k - p_y, which is 1 - K p_y",
            ),
            Column(
                name="grand_last_layer",
                dtype="float64",
                low=0,
                nullable=True,
                direction="higher = harder",
                doc="mean gradient norm of the output layer alone; null when the logits do not come from a linear "
                "layer",
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
        value="el2n",
        stderr="el2n_stderr",
        higher_means="harder",
        calls=Call("hard"),
    )
)
def el2n(data: ExampleSet, *, config: EL2NConfig, seed: int, early_models: Sequence[nn.Module]) -> pl.DataFrame:
    """EL2N, margins and the output layer's GraNd of every example.

    Args:
        data: N labelled examples, classification.
        config: batch size.
        seed: not used; the score is a function of the models.
        early_models: R >= 1 models stopped at the early epoch, one seed each; put into eval mode and back.

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: a task without classes (``grand`` applies to every task).
        DataError: labels outside the model's outputs, NaN or infinite logits; names the examples.
        InvalidInput: no models.
    """
    check("el2n", data, early_models)
    num, num_models = len(data), len(early_models)
    mean, std = np.empty((len(MEANS), num)), np.full((len(MEANS), num), np.nan)
    for rows, values in model_values("el2n", data, early_models, batch=config.batch):
        mean[:, rows] = values.mean(0)
        if num_models > 1:
            std[:, rows] = values.std(0, ddof=1)
    means = dict(zip(MEANS, mean, strict=True))
    stds = {name: pl.Series(spread, nan_to_null=True) for name, spread in zip(MEANS, std, strict=True)}
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "el2n": means["el2n"],
            "el2n_std": stds["el2n"],
            "el2n_stderr": stds["el2n"] / math.sqrt(num_models),
            "el1n": means["el1n"],
            "margin_max": means["margin_max"],
            "margin_max_std": stds["margin_max"],
            "margin_sum": means["margin_sum"],
            "grand_last_layer": pl.Series(means["grand_last_layer"], nan_to_null=True),
            "grand_last_layer_std": stds["grand_last_layer"],
            "n_seeds": np.full(num, num_models, np.int64),
        }
    )


def model_values(
    name: str, data: ExampleSet, models: Sequence[nn.Module], *, batch: int
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """(rows, values (R, len(MEANS), b)) block by block: what each of R models says of these examples.

    A block is as many batches as give ``_BLOCK`` logits: the scores of one batch take microseconds, calling for them
    takes as long. ``grand_last_layer`` is NaN for a model whose logits do not come from a linear layer.

    Raises:
        As :func:`el2n`; ``name`` is the score in the messages.
    """
    with ExitStack() as stack:
        last_layers = []
        for model in models:
            stack.enter_context(eval_mode(model))
            check_outputs(name, data, model)
            _, x, _ = next(batches(data, model, batch=1), (None, None, None))
            last_layers.append(stack.enter_context(LastLayer(model, x)))
        stack.enter_context(torch.inference_mode())
        start, held = 0, _Held(models, last_layers)
        for rows, x, y in batches(data, models[0], batch=batch):
            held.add(x, y)
            del x, y  # given back before the next batch is read, which then takes the same memory
            if held.size >= _BLOCK or rows.stop == len(data):
                block, start = slice(start, rows.stop), rows.stop
                yield block, held.values(name, data, block)


class _Held:
    """Logits (b, K) of R models, and the norms of what their output layers take in, over the batches of one block."""

    def __init__(self, models: Sequence[nn.Module], last_layers: Sequence[LastLayer]) -> None:
        self._models, self._last_layers = models, last_layers
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self._y: list[Tensor] = []
        self._logits: list[list[Tensor]] = [[] for _ in self._models]
        self._norms: list[list[Tensor | None]] = [[] for _ in self._models]

    def add(self, x: Any, y: Tensor) -> None:
        self._y.append(y)
        for r, (model, last) in enumerate(zip(self._models, self._last_layers, strict=True)):
            logits = respond(model, x)
            self._logits[r].append(logits)
            self._norms[r].append(last.norm(logits))
            self.size += logits.numel()

    def values(self, name: str, data: ExampleSet, rows: slice) -> NDArray[np.float64]:
        """(R, len(MEANS), b) of the examples at ``rows``, those added since the last call."""
        y, found = torch.cat(self._y), []
        for last, parts, norms in zip(self._last_layers, self._logits, self._norms, strict=True):
            logits = torch.cat(parts)
            check_finite(name, "logits", data, rows, logits)
            scores = error_scores(logits, y)
            scores["grand_last_layer"] = torch.full_like(scores["el2n"], torch.nan)
            known = [norm for norm in norms if norm is not None]
            if len(known) == len(norms):
                norm = torch.cat(known)
                check_finite(name, "activations", data, rows, norm[:, None])
                torch.mul(scores["el2n"], last.factor(norm), out=scores["grand_last_layer"])
            found.append(torch.stack([scores[column] for column in MEANS]))
        self._clear()
        return torch.stack(found).cpu().numpy()  # type: ignore[no-any-return]


def error_scores(logits_BK: Tensor, y_B: Tensor) -> dict[str, Tensor]:
    """EL2N, EL1N and the two margins of one model's logits, each float64 (B,).

    1 - p_y is taken as sum_{k != y} p_k, so that small errors keep their digits (see scoring.error_vector).

    >>> round(float(error_scores(torch.zeros(1, 10), torch.tensor([3]))["el2n"]), 6) == round(math.sqrt(0.9), 6)
    True
    """
    # Classes first: sums over K then run along whole rows of examples, several times as fast as over rows of K.
    wrong_KB = logits_BK.t().to(torch.float64, memory_format=torch.contiguous_format)
    wrong_KB = wrong_KB.sub(wrong_KB.amax(0)).exp_()
    y_1B = y_B[None]
    right_B = wrong_KB.gather(0, y_1B).squeeze(0)
    wrong_KB.scatter_(0, y_1B, 0.0)
    missed_B = wrong_KB.sum(0)
    whole_B = missed_B + right_B
    squared_B = wrong_KB.square().sum(0).addcmul_(missed_B, missed_B)
    return {
        "el2n": squared_B.sqrt_().div_(whole_B).clamp_(max=_SQRT2),
        "el1n": 2.0 * missed_B / whole_B,
        "margin_max": (wrong_KB.amax(0) - right_B) / whole_B,
        "margin_sum": 1.0 - len(wrong_KB) * right_B / whole_B,
    }
