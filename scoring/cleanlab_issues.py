"""What cleanlab said of the labels somewhere else, imported: ``palimpsest.import_issues``.

    label_noise_i = 1 - label quality score of cleanlab          in [0, 1]; higher = noisier

The rows come from outside (``Datalab.get_issues("label")``, ``CleanLearning.find_label_issues``): which predictions
they rest on, and whether these were out of sample, is for whoever imported them to know. ``label_quality`` is
cleanlab's view of the predictions that are known here.

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021, arXiv
    1911.00068).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import DataError
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from sources.example_set import ExampleSet
from tasks.base import require

NAME = "cleanlab_issues"
_QUALITY = ("label_score", "label_quality")  # as Datalab and CleanLearning call one and the same number
_FLAG, _SUGGESTED = "is_label_issue", "predicted_label"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedConfig(Config):
    imported: str = param("", doc="digest of the imported rows; written when they are imported")


@score(
    ScoreSpec(
        name=NAME,
        wants=("classes",),
        doc="Label issues that cleanlab found elsewhere, imported.",
        source="Northcutt et al., Confident Learning, JAIR 2021 (arXiv 1911.00068)",
        config=ImportedConfig,
        needs=("imported",),
        columns=(
            Column(
                name="label_noise",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = noisier",
                doc="1 - cleanlab's label quality score",
            ),
            Column(name="is_issue", dtype="bool", doc="cleanlab called the label wrong"),
            Column(
                name="suggested_label", dtype="int64", low=0, nullable=True, doc="the class it suggested, if it did"
            ),
        ),
        value="label_noise",
        higher_means="noisier",
        calls=Call("noisy", column="is_issue"),
    )
)
def cleanlab_issues(data: ExampleSet, *, config: ImportedConfig, seed: int, imported: pl.DataFrame) -> pl.DataFrame:
    """The imported rows of examples that are in ``data``.

    Args:
        data: the training split, classification.
        config: which import it is.
        seed: not used.
        imported: (example_id, label_noise, is_issue, suggested_label), as :func:`read_issues` makes them.

    Returns:
        One row for each example of ``data`` that was imported, ordered by id; columns as declared.

    Raises:
        NotApplicable: not classification.
        DataError: ids used twice; labels that are no class; no example of ``data`` was imported.
    """
    require(data, NAME, "classes")
    data.check_targets()
    ids = data.by_id().example_id
    found = imported.filter(pl.col("example_id").is_in(ids.tolist())).sort("example_id")
    if len(ids) and not found.height:
        raise DataError(f"no example of {data.name} is among the imported issues", example_ids=ids)
    return found


def read_issues(issues: pl.DataFrame, data: ExampleSet) -> pl.DataFrame:
    """The label issues of a cleanlab frame in this score's columns, of the training examples among its rows, by id.

    Args:
        issues: ``example_id``; ``is_label_issue``; ``label_score`` or ``label_quality`` in [0, 1], higher = better; and
            ``predicted_label`` if it is there, as class index or as class name. Other columns are left out.
        data: both splits.

    Raises:
        DataError: a column is missing or not of its kind; ids that are not of ``data``, or used twice; scores outside
            [0, 1]; predicted labels that are no class; no training example at all.
    """
    quality = next((name for name in _QUALITY if name in issues.columns), "")
    missing = [name for name in ("example_id", _FLAG) if name not in issues.columns]
    missing += [] if quality else [" or ".join(_QUALITY)]
    if missing:
        raise DataError(f"the issues have no column {', '.join(missing)}; they have: {', '.join(issues.columns)}")
    for name, kind, fits in (
        ("example_id", "whole numbers", issues["example_id"].dtype.is_integer()),
        (_FLAG, "true or false", issues[_FLAG].dtype == pl.Boolean),
        (quality, "numbers", issues[quality].dtype.is_numeric()),
    ):
        if not fits or issues[name].null_count():
            raise DataError(f"column {name} of the issues must hold {kind} in every row, not {issues[name].dtype}")
    ids = issues["example_id"].cast(pl.Int64)
    doubled = ids.filter(ids.is_duplicated()).unique().to_numpy()
    if len(doubled):
        raise DataError("the issues have examples twice", example_ids=doubled)
    rows = data.positions(ids.to_numpy())
    score_ = issues[quality].cast(pl.Float64)
    outside = ~(score_.is_finite() & score_.is_between(0, 1))
    if outside.any():
        raise DataError(f"column {quality} of the issues lies outside 0..1", example_ids=ids.filter(outside).to_numpy())
    suggested = issues[_SUGGESTED] if _SUGGESTED in issues.columns else pl.Series([None] * issues.height)
    frame = pl.DataFrame(
        {
            "example_id": ids,
            "label_noise": 1.0 - score_,
            "is_issue": issues[_FLAG],
            "suggested_label": _indexes(suggested, data.class_names, ids),
        }
    )
    trained = frame.filter(pl.Series(data.split[rows] == "train"))
    if not trained.height:
        raise DataError(f"none of the {issues.height} issues is about a training example of {data.name}")
    return trained.sort("example_id")


def _indexes(labels: pl.Series, names: Sequence[str], ids: pl.Series) -> pl.Series:
    """Class indexes of labels that are indexes or names; null where there is none."""
    if labels.dtype == pl.Null or labels.dtype.is_integer():
        found = labels.cast(pl.Int64)
        wrong = ~found.is_between(0, len(names) - 1)
    else:
        found = labels.cast(pl.String).replace_strict(
            {name: k for k, name in enumerate(names)}, default=None, return_dtype=pl.Int64
        )
        wrong = found.is_null() & labels.is_not_null()
    if wrong.fill_null(False).any():
        bad = np.unique(ids.filter(wrong.fill_null(False)).to_numpy())
        raise DataError(f"column {_SUGGESTED} of the issues holds what is no class of the data", example_ids=bad)
    return found
