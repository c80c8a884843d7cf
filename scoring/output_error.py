"""Error of the audited model's outputs: what one model, as it is, says of every example. Needs no weights.

    error_i = || softmax(z_i) - onehot(y_i) ||_2     in [0, sqrt 2]; higher = harder

with the loss -log p_y, the L1 norm and the two margins of ``el2n``, out of the same numbers. It is EL2N's formula on
the final model's stored outputs and not EL2N, which is a mean over models early in training: a model that has learnt
its examples by heart is right about them, the mislabelled ones among them, and then only what it was not trained on
looks hard.

Source: Paul et al., NeurIPS 2021 (arXiv 2107.07075), definition 3, for the norm; Yeom et al., CSF 2018, for the loss.
Shapes: logits (N, K).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config
from contracts.tables import Column
from scoring.el2n import error_scores
from sources.example_set import ExampleSet
from tasks.base import require

Outputs = Callable[[ExampleSet], NDArray[np.float32]]
_SQRT2 = math.sqrt(2.0)


@score(
    ScoreSpec(
        name="output_error",
        wants=("outputs", "classes"),
        doc="Error of the audited model's outputs: L2 norm of softmax(outputs) - onehot(label).",
        source="Paul et al., NeurIPS 2021 (arXiv 2107.07075), definition 3, of one trained model",
        needs=("outputs",),
        columns=(
            Column(name="error", dtype="float64", low=0, high=_SQRT2, direction="higher = harder", doc="L2 norm"),
            Column(name="error_l1", dtype="float64", low=0, high=2, direction="higher = harder", doc="L1 norm"),
            Column(name="loss", dtype="float64", low=0, unit="nats", direction="higher = harder", doc="cross-entropy"),
            Column(
                name="margin_max",
                dtype="float64",
                low=-1,
                high=1,
                direction="higher = harder",
                doc="max over wrong classes k of p_k - p_y; above 0 = wrong",
            ),
            Column(name="predicted", dtype="int64", low=0, doc="most probable class"),
        ),
        value="error",
        higher_means="harder",
        calls=Call("hard"),
    )
)
def output_error(data: ExampleSet, *, config: Config, seed: int, outputs: Outputs) -> pl.DataFrame:
    """Norms, loss and margin of every example.

    Args:
        data: N labelled examples, classification.
        config: no fields.
        seed: not used.
        outputs: examples -> the audited model's logits (N, K).

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: not classification.
        DataError: labels outside the outputs, or outputs that are not finite; names the examples.
    """
    logits = checked("output_error", data, outputs)
    found = error_scores(torch.from_numpy(logits), torch.from_numpy(data.y))
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(data.y), reduction="none"
    )
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "error": found["el2n"].numpy(),
            "error_l1": found["el1n"].numpy(),
            "loss": loss.clamp(min=0).numpy(),
            "margin_max": found["margin_max"].numpy(),
            "predicted": logits.argmax(1),
        }
    )


def checked(name: str, data: ExampleSet, outputs: Outputs) -> NDArray[np.float32]:
    """The logits (N, K) of these examples.

    Raises:
        As :func:`output_error`; ``name`` is the score in the messages.
    """
    require(data, name, "classes")
    data.check_targets()
    logits = outputs(data)
    if logits.shape != (len(data), data.num_classes):
        raise DataError(f"{name}: outputs have shape {logits.shape}, not ({len(data)}, {data.num_classes})")
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise DataError(f"{name}: outputs are not finite", example_ids=data.example_id[broken])
    return logits
