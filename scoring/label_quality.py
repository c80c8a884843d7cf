"""Label quality by cleanlab, on the out-of-sample predictions of the reference ensemble: a comparator for our own
scores. ``output_label_quality`` is the same on the outputs of the audited model alone, where there are no reference
models.

    p_i = mean of softmax(f_m(x_i)) over the models m that did not train on i      (keep[m, i] = 0: M/2 models)
    label_noise_i = 1 - p_i[y_i]          (1 - cleanlab's self-confidence)     in [0, 1]; higher = noisier
    is_issue_i    = cleanlab's verdict by confident learning: the joint of given and true labels is estimated from p,
                  and as many
                    examples as lie off its diagonal are called wrong, the least likely first (its LabelInspector, in
                    two passes)

cleanlab's own quality score is high for good labels; here the sign is turned, as every score of ours means "more of
it".

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021, arXiv
    1911.00068);
the package cleanlab. Models trained on half of the pool know less than the audited one, so hard examples look noisier
than they are; not a cross-validation of the audited model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config
from contracts.tables import Column
from recipes.ensemble import ReferenceEnsemble
from scoring.output_error import Outputs, checked
from scoring.pool import Ints, logits_of, members, softmax
from sources.example_set import ExampleSet

Block = tuple[slice, NDArray[np.float64], Ints]

_VERDICTS = (  # what cleanlab says, whichever probabilities it is given
    Column(
        name="margin_noise",
        dtype="float64",
        low=0,
        high=1,
        direction="higher = noisier",
        doc="1 - cleanlab's normalized margin: (1 - p_label + max over the others) / 2",
    ),
    Column(name="is_issue", dtype="bool", doc="cleanlab's confident learning calls the label wrong"),
)


@score(
    ScoreSpec(
        name="label_quality",
        wants=("outputs", "classes"),
        doc="Label quality: one minus the probability that models not trained on the example give its label "
        "(cleanlab).",
        source="Northcutt et al., Confident Learning, JAIR 2021 (arXiv 1911.00068); the package cleanlab",
        version=2,
        needs=("ensemble_outputs",),
        columns=(
            Column(
                name="label_noise",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = noisier",
                doc="1 - out-of-sample probability of the label (cleanlab's self-confidence, sign turned)",
            ),
            *_VERDICTS,
            Column(name="suggested_label", dtype="int64", low=0, doc="most probable label out of sample"),
            Column(name="n_out", dtype="int64", low=1, doc="models averaged, none trained on the example"),
        ),
        value="label_noise",
        higher_means="noisier",
        calls=Call("noisy", column="is_issue"),
    )
)
def label_quality(data: ExampleSet, *, config: Config, seed: int, ensemble_outputs: ReferenceEnsemble) -> pl.DataFrame:
    """cleanlab's view of every label of ``data`` that is in the ensemble's pool.

    Args:
        data: the training split, classification.
        config: no fields.
        seed: not used.
        ensemble_outputs: M models on halves of the pool, with their whole outputs.

    Returns:
        One row for each example of ``data`` in the pool, ordered by id; columns as declared.

    Raises:
        NotApplicable: not classification.
        DataError: ids used twice; no example in the pool; labels other than the ensemble's or outside its outputs; an
            example in every model, which has no out-of-sample prediction; NaN or infinite logits. Names the examples.
    """
    ordered = data.by_id()
    rows, columns = members("label_quality", ordered, ensemble_outputs, wants=("classes",))
    num_classes = ensemble_outputs.outputs.shape[2]
    return _judged(ordered.example_id[rows], ordered.y[rows], num_classes, lambda: _blocks(ensemble_outputs, columns))


@score(
    ScoreSpec(
        name="output_label_quality",
        wants=("outputs", "classes"),
        doc="Label quality: one minus the probability that the audited model's own outputs give the label (cleanlab).",
        source="Northcutt et al., Confident Learning, JAIR 2021 (arXiv 1911.00068); the package cleanlab",
        needs=("outputs",),
        columns=(
            Column(
                name="label_noise",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = noisier",
                doc="1 - probability of the label; in sample for what the model was trained on, which hides noise that "
                "it learnt",
            ),
            *_VERDICTS,
            Column(name="suggested_label", dtype="int64", low=0, doc="most probable label"),
        ),
        value="label_noise",
        higher_means="noisier",
        calls=Call("noisy", column="is_issue"),
    )
)
def output_label_quality(data: ExampleSet, *, config: Config, seed: int, outputs: Outputs) -> pl.DataFrame:
    """cleanlab's view of every label of ``data`` by the audited model's own outputs.

    Args:
        data: classification.
        config: no fields.
        seed: not used.
        outputs: examples -> the audited model's logits (N, K).

    Returns:
        One row an example, ordered by id; columns as declared.

    Raises:
        NotApplicable: not classification.
        DataError: ids used twice, labels outside the outputs, outputs that are not finite; names the examples.
    """
    ordered = data.by_id()
    p = softmax(checked("output_label_quality", ordered, outputs)[None].astype(np.float64))[0]
    once = np.ones(len(p), np.int64)
    whole = slice(0, len(p))
    return _judged(ordered.example_id, ordered.y, p.shape[1], lambda: iter([(whole, p, once)])).drop("n_out")


def _judged(ids: Ints, given: Ints, num_classes: int, blocks: Callable[[], Iterator[Block]]) -> pl.DataFrame:
    """The columns of the score for these ids and labels, from two passes over ``blocks``: slice, probabilities (B, K),
    models (B,)."""
    from cleanlab import rank
    from cleanlab.experimental import label_issues_batched as batched

    present = np.flatnonzero(np.bincount(given, minlength=num_classes))
    inspector = batched.LabelInspector(num_class=len(present), store_results=False, verbose=False)
    several = len(present) > 1  # else nothing could be the true label
    if several:
        for block, p, _ in blocks():
            inspector.update_confident_thresholds(*_among(present, given[block], p))
    parts = []
    for block, p, n_out in blocks():
        labels = given[block]
        if several:
            inspector.score_label_quality(*_among(present, labels, p))
        quality = [
            rank.get_label_quality_scores(labels, p, method=method) if len(labels) else np.empty(0)
            for method in ("self_confidence", "normalized_margin")
        ]
        parts.append(
            pl.DataFrame(
                {
                    "example_id": ids[block],
                    "label_noise": (1.0 - quality[0]).clip(0.0, 1.0),
                    "margin_noise": (1.0 - quality[1]).clip(0.0, 1.0),
                    "suggested_label": p.argmax(1),
                    "n_out": n_out,
                },
                schema_overrides={"label_noise": pl.Float64, "margin_noise": pl.Float64},
            )
        )
    frame = pl.concat(parts)
    most_noisy = pl.Series("is_issue", np.zeros(len(frame), bool))
    num = int(inspector.get_num_issues(silent=True)) if several and len(frame) else 0
    most_noisy[np.argpartition(-frame["label_noise"].to_numpy(), num - 1)[:num] if num else []] = True
    return frame.with_columns(most_noisy)


def out_of_fold(data: ExampleSet, ensemble: ReferenceEnsemble) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """What models that were not trained on an example say of it: what cleanlab's own methods ask for.

    Args:
        data: classification, any split.

    Returns:
        Ids (N,) ascending, labels (N,) and probabilities (N, K) of the examples of ``data`` that are in the ensemble's
        pool.

    Raises:
        NotApplicable, DataError: as :func:`label_quality`.
    """
    ordered = data.by_id()
    rows, columns = members("out_of_fold", ordered, ensemble, wants=("classes",))
    return ordered.example_id[rows], ordered.y[rows], np.concatenate([p for _, p, _ in _blocks(ensemble, columns)])


def _among(present: Ints, labels: Ints, p: NDArray[np.float64]) -> tuple[Ints, NDArray[np.float64]]:
    """Labels and probabilities over the classes that occur: a class without examples has no threshold of its own."""
    shares = np.maximum(p[:, present], np.finfo(float).tiny)
    return np.searchsorted(present, labels), shares / shares.sum(1, keepdims=True)


def _blocks(ensemble: ReferenceEnsemble, columns: Ints) -> Iterator[Block]:
    """(slice of ``columns``, mean probabilities (B, K) over the models not trained on each example, how many these are
    (B,)).

    Raises:
        DataError: an example that every model trained on, NaN or infinite logits; names the examples.
    """
    for block, logits in logits_of(ensemble, columns):
        out_MB = ~ensemble.keep[:, columns[block]]
        n_out = out_MB.sum(0, dtype=np.int64)
        if (n_out == 0).any():
            raise DataError(
                "every model trained on these examples", example_ids=ensemble.example_id[columns[block][n_out == 0]]
            )
        yield block, (softmax(logits) * out_MB[:, :, None]).sum(0) / n_out[:, None], n_out
