"""The examples of a subject: arrays side by side, each row known by its stable id.

    x (N, *shape)      uint8 images (N, C, H, W), float32 images (N, C, H, W), or float32 features (N, D)
                       ranking (implicit feedback): int64 (N, 1), the index of the user
    y (N,)             int64 class index in [0, K), float64 target, or int64 index of the item
    inputs(rows)       float32 (B, *shape) = (x - center) * scale, what a model sees; ranking: the int64 user indexes

Ranking: one interaction (user, item) is one example, at most one a pair; class_names are the items' names, owner is the
user's raw id, provenance["num_users"] the number of users. An item may lack a training example: a cold item.

``x`` is an ndarray, a memory map, or ``sources.rows.Rows`` (a lazy array over memory maps): index it with
``x[rows]`` or go through ``inputs``; do not call ndarray methods on it. center and scale are fitted on the training
split once and kept by every subset, so a model sees an example the same way whichever part it comes from.
Not a tensor data set and not a loader: batching and shuffling belong to the recipes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from contracts.digests import canonical_json, plain
from contracts.errors import ConfigError, DataError
from sources.columns import check_columns, digested, in_order, taken
from sources.payloads import masks
from sources.payloads.arrays import payload_of
from sources.payloads.base import Affine, Payload
from sources.payloads.graph import Graph
from tasks.base import Constants, Task, named

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ExampleSet:
    """Labelled examples with stable ids.

    Attributes:
        name: the data set, for people.
        task: what is learnt, an object of ``tasks``; a name is looked up.
        x: (N, *shape) raw values; see the module. Or another payload: ``Tokens``, ``Graph``, ``Pairs``.
        y: (N,) int64 in [0, K) or float64, as the task declares; or a class a pixel, uint8 or int64 (N, H, W), in
            memory or on disk.
        example_id: (N,) int64, unique, >= 0, stable for ever.
        split: (N,) "<U5", "train" or "test".
        owner: (N,) str, whose data it is, "" for nobody's. Raw here; the warehouse stores a salted token.
        content_hash: (N,) "<U64", SHA-256 of the raw values of the example (C order, little-endian, -0.0 as 0.0).
        class_names: K names in the order of the class (or item) indexes; () for regression.
        center, scale: float32, broadcast over ``shape``; fitted on the training split.
        feature_names: D names for feature vectors, else ().
        provenance: source, files with their SHA-256, licence, how it was split; "notes": what was read otherwise than
            it was written, or left out, and why, sentences for people; JSON-able.
        origin: (N,) str, where each example lies in its source (a file's path below the root, "people.csv row 7"), for
            people to look up; not part of the digest. None where the source has no such thing.
        columns: (N,) int64 or str each, what is known of an example besides (client, domain, step, group, ...); no
            features.
        whole: constants of the whole data set that readings are taken with (``constants``); a subset has its whole's.
    """

    name: str
    task: Task
    x: Any
    y: np.ndarray
    example_id: np.ndarray
    split: np.ndarray
    owner: np.ndarray
    content_hash: np.ndarray
    class_names: tuple[str, ...]
    center: np.ndarray
    scale: np.ndarray
    feature_names: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    origin: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    whole: Constants | None = None

    def __post_init__(self) -> None:
        if isinstance(self.task, str):
            object.__setattr__(self, "task", named(self.task))

    def __repr__(self) -> str:
        return f"ExampleSet({self.name!r}, {self.num_examples} x {self.input_shape}, {self.task.describe(self)})"

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def num_examples(self) -> int:
        return len(self.example_id)

    @property
    def num_classes(self) -> int:
        """K, the number of items for ranking; 0 for regression."""
        return len(self.class_names)

    @property
    def num_users(self) -> int:
        """Users of interactions, whether or not they occur in this part of the data; 0 for other data."""
        return int(self.provenance.get("num_users", 0))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @cached_property
    def payload(self) -> Payload:
        """The values, whatever they are."""
        return payload_of(self.x)

    @cached_property
    def affine(self) -> Affine:
        """Center and scale."""
        return Affine(self.center, self.scale)

    @property
    def labelled(self) -> bool:
        """Whether ``y`` says something: classes, items or numbers. Else a payload is its own target (tokens, pairs)."""
        return bool(self.class_names) or self.y.dtype.kind == "f"

    @property
    def target_keys(self) -> np.ndarray:
        """(N,) equal where two examples have the same target: the targets as they are, of masks their digests."""
        return self.y if self.y.ndim == 1 else masks.labels_of(self.y, self.class_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over task, class names, and (id, split, label, owner, content hash) of every example ordered by id;
        over columns and what examples share, where there are any; over the task's version, once it is not the first.

        Everything that is read of the data stands on it, so a task that reads models otherwise makes it all anew."""
        order = np.argsort(self.example_id, kind="stable")
        about = {"task": self.task.name, "class_names": self.class_names} | digested(self.columns, self.payload.shared)
        if self.task.spec.version > 1:
            about["task_version"] = self.task.spec.version
        state = hashlib.sha256(canonical_json(about).encode())
        for start in range(0, len(order), 65536):
            rows = order[start : start + 65536]
            before, after = (self.example_id, self.split), (self.owner, self.content_hash, *in_order(self.columns))
            columns = [c[rows].tolist() for c in before], [c[rows].tolist() for c in after]
            told = [*columns[0], masks.told(self.y, rows, self.task.target_digest), *columns[1]]
            state.update(json.dumps(told, separators=(",", ":")).encode())
        return state.hexdigest()

    @cached_property
    def constants(self) -> Constants:
        """What a reading needs of the whole data set, the same for every subset of it and every model."""
        return self.task.constants(self) if self.whole is None else self.whole

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.example_id, kind="stable")

    def column(self, name: str, *, asked: str) -> np.ndarray:
        """The column (N,) of that name; ``asked`` is the field of a configuration that names it.

        Raises:
            ConfigError: there is none; says which there are.
        """
        if name not in self.columns:
            known = ", ".join(map(repr, self.columns)) or "none"
            raise ConfigError(f"{asked} = {name!r} is no column of {self.name}; its columns: {known}")
        return self.columns[name]

    def positions(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        """Row of each id, in the order asked.

        Raises:
            DataError: an id is unknown (named) or not a whole number.
        """
        wanted = _as_ids(ids)
        if not len(self) and len(wanted):
            raise DataError(f"{len(wanted)} ids are not in {self.name}", example_ids=wanted)
        if not len(wanted):
            return np.empty(0, np.int64)
        ordered = self.example_id[self._order]
        slot = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        unknown = ordered[slot] != wanted
        if unknown.any():
            raise DataError(f"{int(unknown.sum())} ids are not in {self.name}", example_ids=wanted[unknown])
        return self._order[slot]

    def subset(self, ids: Iterable[int] | np.ndarray) -> ExampleSet:
        """The examples of these ids, in the order asked. ``x`` on disk is not read: an index is kept.

        Raises:
            DataError: an id is unknown or asked twice.
        """
        wanted = _as_ids(ids)
        doubled = _doubled(wanted)
        if len(doubled):
            raise DataError("a subset cannot hold an example twice", example_ids=doubled)
        return self.take(self.positions(wanted))

    def take(self, rows: np.ndarray) -> ExampleSet:
        """The examples in these rows (positions, not ids), in the order asked. ``x`` on disk is not read: an index is
        kept."""
        return self._with(self.payload.take(rows), rows)

    def only(self, rows: np.ndarray) -> ExampleSet:
        """As ``take``, and nothing of the others is left: of a graph, the subgraph that these nodes induce."""
        return self._with(self.payload.only(rows), rows)

    def without(self, ids: Iterable[int] | np.ndarray) -> ExampleSet:
        """All examples but those of these ids, some of which may be unknown, and nothing of them: of a graph, nodes
        that are no examples stay."""
        gone = np.isin(self.example_id, _as_ids(ids))
        return self._with(self.payload.without(np.flatnonzero(gone)), np.flatnonzero(~gone))

    def without_edges(self, pairs: Sequence[tuple[int, int]]) -> ExampleSet:
        """The same nodes without the edges between these pairs of ids, in either direction.

        Raises:
            ConfigError: the examples are no nodes of a graph.
        """
        if not isinstance(self.payload, Graph):
            raise ConfigError(f"{self.name} has no edges to leave out: its examples are no nodes of a graph")
        return dataclasses.replace(self, x=self.payload.without_edges(np.array(pairs, np.int64).reshape(-1, 2)))

    def among(self, other: ExampleSet | None = None) -> ExampleSet:
        """The same examples; of the graph that they are nodes of, the subgraph that they and the examples of ``other``
        induce. Examples that share nothing are as they are."""
        found = self.payload.among(None if other is None else other.payload)
        return self if found is self.payload else self._with(found, np.arange(len(self)))

    def _with(self, x: Any, rows: np.ndarray) -> ExampleSet:
        return dataclasses.replace(
            self,
            x=x,
            y=masks.taken(self.y, rows),
            **{k: getattr(self, k)[rows] for k in ("example_id", "split", "owner", "content_hash")},
            columns=taken(self.columns, rows),
            origin=None if self.origin is None else self.origin[rows],
            whole=self.constants,
        )

    def by_id(self) -> ExampleSet:
        """The same examples in ascending order of their ids; this very set, nothing copied, when they are in it
        already.

        Raises:
            DataError: an id occurs twice.
        """
        return self if (self.example_id[1:] > self.example_id[:-1]).all() else self.subset(np.sort(self.example_id))

    def part(self, split: str) -> ExampleSet:
        """The examples of one split, "train" or "test", in their order here."""
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not one of 'train', 'test'")
        return self.take(np.flatnonzero(self.split == split))

    def inputs(self, rows: slice | np.ndarray) -> Any:
        """What a model sees of these rows (positions, not ids), fresh memory.

        float32 (B, *shape), (x - center) * scale in float32; indexes (int64) as they are, as they name rows and are no
        numbers; a dict of arrays for other payloads, see ``sources.payloads.base``.
        """
        return self.payload.inputs(rows, self.affine)

    def targets(self, rows: slice | np.ndarray) -> Any:
        """What a model's answers to these rows (positions, not ids) are compared with, fresh memory: labels (B,), masks
        int64 (B, H, W), or what the payload itself holds where labels say nothing: tokens int64 (B, T), the second of
        a pair."""
        own = None if self.labelled else self.payload.targets(rows, self.affine)
        return masks.targets_of(self.y, rows) if own is None else own

    def validate(self) -> Self:
        """Refuse what cannot be audited, naming the examples; return self. One pass over ``x`` in bounded blocks.

        Raises:
            DataError: empty, columns of unequal length or wrong type, duplicate or negative ids, labels out of range or
                not finite, a class (or the whole set) without a training example, values that are NaN or Inf.
        """
        self._check_columns()
        self._check_ids_and_splits()
        self.task.check(self)
        self._check_values()
        plain(dict(self.provenance))
        return self

    def refusal(self, message: str, chosen: np.ndarray) -> DataError:
        """The error about the chosen rows (a mask or positions), which names where they lie, or their ids."""
        where = () if self.origin is None else self.origin[chosen].tolist()
        return DataError(f"{self.name}: {message}", example_ids=self.example_id[chosen], where=where)

    def _check_columns(self) -> None:
        num = len(self.example_id)
        if num == 0:
            raise DataError(f"{self.name} holds no examples")
        masks.check_shape(
            self.y,
            num=num,
            dtype=self.task.target_dtype,
            shape=self.input_shape,
            masks=self.task.gives("pixels"),
            name=self.name,
        )
        wanted = {"example_id": "int64", "split": "<U5", "owner": "<U", "content_hash": "<U64"}
        for column, dtype in wanted.items():
            values = getattr(self, column)
            if values.shape != (num,):
                raise DataError(f"{self.name}: {column} has shape {values.shape}, the ids have ({num},)")
            if not (values.dtype.kind == "U" if dtype == "<U" else values.dtype == np.dtype(dtype)):
                raise DataError(f"{self.name}: {column} has dtype {values.dtype}, not {dtype}")
        if self.origin is not None and (self.origin.shape != (num,) or self.origin.dtype.kind != "U"):
            raise DataError(f"{self.name}: origin is {self.origin.dtype} {self.origin.shape}, not text ({num},)")
        if len(self.x) != num:
            raise DataError(f"{self.name}: {len(self.x)} rows of values for {num} ids")
        check_columns(self.name, self.columns, num)
        if self.task.gives("interactions"):
            if (self.x.dtype, self.input_shape) != (np.int64, (1,)):
                raise DataError(
                    f"{self.name}: x is {self.x.dtype} {self.x.shape}; ranking needs user indexes, int64 (N, 1)"
                )
        else:
            try:
                self.payload.check()
            except DataError as error:
                raise DataError(f"{self.name}: {error}") from None
        if self.feature_names and len(self.feature_names) != self.input_shape[0]:
            raise DataError(f"{self.name}: {len(self.feature_names)} feature names for {self.input_shape[0]} features")

    def check_targets(self) -> None:
        """Refuse labels that are no class (item) of these data, or numbers that are not finite.

        Raises:
            DataError: names the examples.
        """
        self.task.check_targets(self)

    def _check_ids_and_splits(self) -> None:
        doubled = _doubled(self.example_id)
        if len(doubled):
            raise DataError(f"{self.name}: {len(doubled)} ids are used more than once", example_ids=doubled)
        if (self.example_id < 0).any():
            raise DataError(f"{self.name}: ids must be >= 0", example_ids=self.example_id[self.example_id < 0])
        strange = ~np.isin(self.split, SPLITS)
        if strange.any():
            raise self.refusal(f"split {str(self.split[strange][0])!r} is not one of 'train', 'test'", strange)
        if not (self.split == "train").any():
            raise DataError(f"{self.name} has no training example")

    def _check_values(self) -> None:
        for what, affine in (("center", self.center), ("scale", self.scale)):
            if affine.dtype != np.float32 or not np.isfinite(affine).all():
                raise DataError(f"{self.name}: {what} must be finite float32")
            try:
                fits = np.broadcast_shapes(affine.shape, self.input_shape) == self.input_shape
            except ValueError:
                fits = False
            if not fits:
                raise DataError(f"{self.name}: {what} has shape {affine.shape}, examples have {self.input_shape}")
        if not self.scale.all():
            raise DataError(f"{self.name}: scale must not be 0")
        for message, bad in self.payload.faults(self.affine, labelled=self.labelled):
            if bad.any():
                raise self.refusal(message, bad)


def _as_ids(ids: Iterable[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if array.ndim != 1:
        raise DataError(f"ids must be one-dimensional, not of shape {array.shape}")
    if not array.size:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise DataError(f"example ids are whole numbers, not {array.dtype}")
    if array.dtype.kind == "u" and (array > np.iinfo(np.int64).max).any():
        raise DataError(f"id {array.max()} is larger than 2**63 - 1")
    return array.astype(np.int64, copy=False)


def _doubled(ids: np.ndarray) -> np.ndarray:
    values, counts = np.unique(ids, return_counts=True)
    return values[counts > 1]
