"""Label quality by cleanlab, on the out-of-sample predictions of the reference ensemble: a comparator for our own scores.

    p_i = mean of softmax(f_m(x_i)) over the models m that did not train on i      (keep[m, i] = 0: M/2 models)
    label_noise_i = 1 - p_i[y_i]          (1 - cleanlab's self-confidence)     in [0, 1]; higher = noisier
    is_issue_i    = cleanlab's verdict by confident learning: the joint of given and true labels is estimated from p, and as many
                    examples as it says are wrong are called so, the least likely first (prune by noise rate)

cleanlab's own quality score is high for good labels; here the sign is turned, as every score of ours means "more of it".

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021, arXiv 1911.00068);
the package cleanlab, which is an optional dependency (extra ``labels``). Models trained on half of the pool know less than
the audited one, so hard examples look noisier than they are; not a cross-validation of the audited model itself.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.errors import DataError, NotApplicable
from contracts.methods import ScoreSpec, score
from contracts.params import Config
from contracts.tables import Column
from recipes.ensemble import ReferenceEnsemble
from scoring.pool import Ints, logits_of, members, softmax
from sources.example_set import ExampleSet

INSTALL = "pip install 'palimpsest-audit[labels]'"


@score(
    ScoreSpec(
        name="label_quality",
        doc="Label quality: one minus the probability that models not trained on the example give its label (cleanlab).",
        source="Northcutt et al., Confident Learning, JAIR 2021 (arXiv 1911.00068); the package cleanlab",
        needs=("ensemble",),
        columns=(
            Column(
                name="label_noise", dtype="float64", low=0, high=1, direction="higher = noisier",
                doc="1 - out-of-sample probability of the label (cleanlab's self-confidence, sign turned)",
            ),
            Column(
                name="margin_noise", dtype="float64", low=0, high=1, direction="higher = noisier",
                doc="1 - cleanlab's normalized margin: (1 - p_label + max over the others) / 2",
            ),
            Column(name="is_issue", dtype="bool", doc="cleanlab's confident learning calls the label wrong"),
            Column(name="suggested_label", dtype="int64", low=0, doc="most probable label out of sample"),
            Column(name="n_out", dtype="int64", low=1, doc="models averaged, none trained on the example"),
        ),
        value="label_noise",
        higher_means="noisier",
    )
)  # fmt: skip
def label_quality(data: ExampleSet, *, config: Config, seed: int, ensemble: ReferenceEnsemble) -> pl.DataFrame:
    """cleanlab's view of every label of ``data`` that is in the ensemble's pool.

    Args:
        data: the training split, classification.
        config: no fields.
        seed: not used.
        ensemble: M models on halves of the pool.

    Returns:
        One row for each example of ``data`` in the pool, ordered by id; columns as declared.

    Raises:
        NotApplicable: not classification, or cleanlab is not installed (the message says how).
        DataError: ids used twice; no example in the pool; labels other than the ensemble's or outside its outputs; an
            example in every model, which has no out-of-sample prediction; NaN or infinite logits. Names the examples.
    """
    ordered = data.subset(np.sort(data.example_id))
    rows, columns = members("label_quality", ordered, ensemble)
    rank, filters = _cleanlab("rank"), _cleanlab("filter")
    probabilities, n_out = out_of_sample(ensemble, columns)
    labels, ids = ordered.y[rows], ordered.example_id[rows]
    quality = [np.empty(0)] * 2
    issue = np.empty(0, bool)
    if len(rows):
        quality = [
            rank.get_label_quality_scores(labels, probabilities, method=method)
            for method in ("self_confidence", "normalized_margin")
        ]
        issue = _issues(filters, labels, probabilities)
    return pl.DataFrame(
        {
            "example_id": ids,
            "label_noise": (1.0 - quality[0]).clip(0.0, 1.0),
            "margin_noise": (1.0 - quality[1]).clip(0.0, 1.0),
            "is_issue": issue,
            "suggested_label": probabilities.argmax(1) if len(rows) else np.empty(0, np.int64),
            "n_out": n_out,
        },
        schema_overrides={"label_noise": pl.Float64, "margin_noise": pl.Float64},
    )


def out_of_sample(ensemble: ReferenceEnsemble, columns: Ints) -> tuple[NDArray[np.float64], Ints]:
    """Mean probabilities (B, K) over the models that did not train on each example, and how many these are (B,).

    Raises:
        DataError: an example that every model trained on, NaN or infinite logits; names the examples.
    """
    out_MB = ~ensemble.keep[:, columns]
    n_out = out_MB.sum(0, dtype=np.int64)
    if (n_out == 0).any():
        raise DataError("every model trained on these examples", example_ids=ensemble.example_id[columns[n_out == 0]])
    mean = np.empty((len(columns), ensemble.logits.shape[2]))
    for block, logits in logits_of(ensemble, columns):
        mean[block] = (softmax(logits) * out_MB[:, block, None]).sum(0) / n_out[block, None]
    return mean, n_out


def _issues(filters: Any, labels: Ints, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """cleanlab's confident learning over the classes that occur: a class without examples has no threshold of its own."""
    present, code = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return np.zeros(len(labels), bool)  # nothing else could be the true label
    shares = np.maximum(probabilities[:, present], np.finfo(float).tiny)
    found: NDArray[np.bool_] = filters.find_label_issues(code, shares / shares.sum(1, keepdims=True), n_jobs=1)
    return found


def _cleanlab(part: str) -> ModuleType:
    try:
        return importlib.import_module(f"cleanlab.{part}")
    except ModuleNotFoundError as error:
        raise NotApplicable(f"label_quality is computed by cleanlab, which is not installed: {INSTALL}") from error
