"""Examples that were made out of others: protected, distilled, aggregated ones; and how they are kept as arrays.

    made example m   values x'_m and a target y'_m of the task of the originals, under an id of its own
    drawn_from       (m, i) for every original i that the values or the target of m were computed from
    learnt_from      every original that all of them were computed from, by way of models: not said again for each m

An example that was made from one original may bear its id; one made from many has an id that no original has. The
owner of a made example is nobody: whose data it is follows from what it was drawn from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import polars as pl

from contracts.errors import DataError, NotApplicable
from sources.example_set import ExampleSet
from sources.identity import Content

_KEPT = ("x", "y", "example_id", "center", "scale")
_COLUMN = "columns/"  # before the name of a column among the arrays


@dataclass(frozen=True, eq=False, kw_only=True)
class Made:
    """A data set of made examples.

    Attributes:
        examples: (M) of them, all of the training split, in ascending order of their ids.
        drawn_from: (made_id, example_id), int64, sorted, each pair once; every made example has at least one.
        learnt_from: int64 ids of originals that every made example was computed from besides: models were trained on
            them, and the examples on the models.
        judged_on: int64 ids of originals that nothing was made from and that figures in ``tables`` are of.
        tables: what its maker says of the made examples besides, ``{table.name: frame}``, without the data set's name.
    """

    examples: ExampleSet
    drawn_from: pl.DataFrame
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    learnt_from: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    judged_on: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def sources(self) -> np.ndarray:
        """Ids of the originals that it was made from, one by one or all together, ascending."""
        return np.union1d(self.drawn_from["example_id"].to_numpy(), self.learnt_from)

    def roles(self, train: np.ndarray) -> np.ndarray:
        """What each of ``train``, ids of originals, was to it: "source" of some example by name, "learnt_from" by all,
        "judged_on", or "unused"."""
        roles = np.full(len(train), "unused", "<U11")
        for role, ids in (
            ("judged_on", self.judged_on),
            ("learnt_from", self.learnt_from),
            ("source", self.drawn_from["example_id"].to_numpy()),
        ):
            roles[np.isin(train, ids)] = role
        return roles

    def some(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """At most ``num`` of the made examples, spread evenly: their positions, ascending, and of each the smallest id
        of an original that it was drawn from; int64 both."""
        rows = np.unique(np.linspace(0, len(self.examples) - 1, num).astype(int))
        first = self.drawn_from.group_by("made_id").agg(pl.col("example_id").min()).sort("made_id")
        return rows, first["example_id"].to_numpy()[rows]

    def validate(self, originals: ExampleSet) -> Self:
        """Refuse what cannot be kept; return self.

        Raises:
            DataError: examples that are none (``ExampleSet.validate``), a made example drawn from nothing, or drawn
                from what is no training example of ``originals``.
        """
        self.examples.validate()
        wanted = {"made_id": pl.Int64, "example_id": pl.Int64}
        if dict(self.drawn_from.schema) != wanted:
            raise DataError(f"drawn_from is {dict(self.drawn_from.schema)}, not {wanted}")
        if self.drawn_from.is_duplicated().any():
            raise DataError("drawn_from names a pair twice")
        made, named = self.examples.example_id, self.drawn_from["made_id"].unique().to_numpy()
        if len(nothing := np.setdiff1d(made, named)):
            raise DataError(f"{len(nothing)} made examples are drawn from nothing", example_ids=nothing)
        if len(unknown := np.setdiff1d(named, made)):
            raise DataError(
                f"drawn_from speaks of {len(unknown)} made examples that there are not", example_ids=unknown
            )
        train = originals.example_id[originals.split == "train"]
        if len(both := np.intersect1d(self.sources, self.judged_on)):
            raise DataError(f"{len(both)} examples that it was made from judge it too", example_ids=both)
        if len(strange := np.setdiff1d(np.union1d(self.sources, self.judged_on), train)):
            raise DataError(
                f"{len(strange)} examples that it was made from are no training examples of {originals.name}",
                example_ids=strange,
            )
        return self

    def kept(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The examples as arrays and a JSON-able meta, for the store; :func:`made_from` reads them back.

        Raises:
            NotApplicable: examples that are not arrays of numbers, or columns of text.
        """
        data = self.examples
        if not isinstance(data.x, np.ndarray):
            raise NotApplicable(
                f"{data.name}: made data sets are kept as arrays of numbers, not {type(data.x).__name__}"
            )
        if text := sorted(name for name, column in data.columns.items() if column.dtype.kind == "U"):
            raise NotApplicable(
                f"{data.name}: column {text[0]!r} is text; made data sets keep columns of whole numbers"
            )
        meta = {
            "name": data.name,
            "task": data.task.name,
            "class_names": list(data.class_names),
            "feature_names": list(data.feature_names),
            "provenance": dict(data.provenance),
        }
        arrays = {name: np.ascontiguousarray(getattr(data, name)) for name in _KEPT}
        return arrays | {_COLUMN + name: np.ascontiguousarray(c) for name, c in data.columns.items()}, meta


def made_examples(
    like: ExampleSet,
    *,
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    example_id: np.ndarray,
    provenance: Mapping[str, Any],
    columns: Mapping[str, np.ndarray] | None = None,
) -> ExampleSet:
    """Made examples of the task, classes and input scale of others.

    Args:
        like: the originals.
        x: (M, *shape) of the originals' dtype; y: (M,) targets; example_id: (M,) int64.
        provenance: how they were made, JSON-able; no secrets.
        columns: int64 (M,) each, what is known of them besides; none of the originals' go with them.
    """
    num = len(example_id)
    return dataclasses.replace(
        like,
        name=name,
        x=x,
        y=y,
        example_id=example_id,
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, "", "<U1"),
        content_hash=Content(x).hashes(),
        origin=None,
        columns=dict(columns or {}),
        whole=None,
        provenance=provenance,
    ).by_id()


def made_from(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> ExampleSet:
    """The examples that :meth:`Made.kept` gave.

    Raises:
        DataError: arrays are missing, or do not fit together.
    """
    if missing := sorted(set(_KEPT) - set(arrays)):
        raise DataError(f"a made data set lacks {', '.join(missing)}")
    num = len(arrays["example_id"])
    return ExampleSet(
        name=meta["name"],
        task=meta["task"],
        x=arrays["x"],
        y=arrays["y"],
        example_id=arrays["example_id"],
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, "", "<U1"),
        content_hash=Content(arrays["x"]).hashes(),
        class_names=tuple(meta["class_names"]),
        center=arrays["center"],
        scale=arrays["scale"],
        feature_names=tuple(meta["feature_names"]),
        provenance=meta["provenance"],
        columns={name.removeprefix(_COLUMN): c for name, c in arrays.items() if name.startswith(_COLUMN)},
    ).validate()
