"""A table of what a model said: outputs, labels, who was a member, and optionally features; no model.

    outputs   (N, K) probabilities or logits: columns prob_<class> (p_, p0, proba_, logit_), one list column, one array;
              a single column is the probability (or log-odds) of the second of two classes
    label     one of the K classes: its name in the columns, or its place among them
    split     'train' and 'test', or true and false (1 and 0): was the row in the model's training set

Parquet, CSV and NumPy archives. What the model was given is not there, so ``x`` are the features, where there are any
(columns feature_<n>, emb_<n>, or an array), else the probabilities themselves; ``provenance['values']`` says which.

Probabilities become their logarithms, which softmax turns back. One that is exactly 0 was rounded, and counts as the
smallest number of its type: a float32 softmax of a sure model loses what tells members, and the sentence about the file
says in how many rows. Logits are better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, check_ids, to_float32
from sources.example_set import ExampleSet
from sources.files import MAX_BYTES, FileConfig, check_size, inside, manifest, root_folder
from sources.given_splits import read_splits
from sources.labels import Labels, encode_labels
from sources.npz import is_archive, members_of, open_archive, row_blocks
from sources.table_files import as_texts, column_names, kind_of, read_table

OUTPUTS, FEATURES = "outputs", "features"  # values of provenance["values"]
_SUM = 0.01  # rows of probabilities may miss 1 by as much: rounding to two decimals, not another quantity
_COLUMNS = {
    "logits": ("logit", "logits"),
    "probabilities": ("prob", "proba", "probability", "p"),
    "features": ("feature", "feat", "emb", "embedding"),
}
_WHOLE = {
    "logits": ("logits", "logit"),
    "probabilities": ("probabilities", "probs", "proba", "probability", "prob", "softmax", "outputs", "predictions"),
    "features": ("features", "embeddings", "embedding"),
}
_CALLED = {"logits": "logit", "probabilities": "prob"}  # how columns begin that say what they are
_LABELS = ("label", "labels", "target", "targets", "class", "y")
_SPLITS = ("split", "member", "is_member", "members", "in_train", "is_train")
_IDS = ("example_id", "ids", "id")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputsConfig(FileConfig):
    file: str = param(doc="name of the Parquet, CSV or NPZ file inside the root")
    outputs: tuple[str, ...] = param(doc="columns in the order of the classes; or one column of lists, or one array")
    scale: str = param(
        "auto", choices=("auto", "probabilities", "logits"), doc="auto: values from 0 to 1 are probabilities"
    )
    label: str = param(doc="column of the label")
    split: str = param(doc="column of 'train' and 'test', or of who was a member: true and false, 1 and 0")
    owner: str = param("", doc="column of whose data a row is")
    id: str = param("", doc="column of whole, unique ids")
    features: tuple[str, ...] = param(
        (), doc="columns of what describes the rows; or one column of lists, or one array"
    )
    class_names: tuple[str, ...] = param((), doc="names of the classes in the order of the outputs")


@dataclass(frozen=True, slots=True)
class _Stored:
    """Named columns (N,), lists or arrays (N, K) of one file."""

    path: Path
    num_rows: int
    names: tuple[str, ...]
    read: Callable[[str], np.ndarray]

    @property
    def origin(self) -> np.ndarray:
        """(N,) str, where each row lies."""
        return np.char.add(f"{self.path.name} row ", np.arange(1, self.num_rows + 1).astype(str))

    def column(self, name: str) -> np.ndarray:
        """Raises: DataError: there is none of that name, or it is no column."""
        found = self._known(name)
        if found.ndim == 2 and found.shape[1] == 1:
            found = found[:, 0]
        if found.ndim != 1:
            raise DataError(f"{self.path.name}: {name!r} has shape {found.shape}; one value a row is needed")
        return found

    def matrix(self, names: Sequence[str]) -> np.ndarray:
        """(N, K) numbers of K columns, of one column of lists, or of one array; in its own type of float.

        Raises:
            DataError: no numbers, or rows of different lengths.
        """
        parts = [self._known(name) for name in names]
        strange = [n for n, p in zip(names, parts, strict=True) if p.dtype.kind not in "iufb" or p.ndim > 2]
        if strange:
            raise DataError(
                f"{self.path.name}: {strange[0]!r} does not hold numbers, one or a row of them for each example"
            )
        found = np.column_stack(parts)
        return found if found.dtype.kind == "f" else found.astype(np.float64)

    def _known(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise DataError(f"{self.path.name} has no {name!r}; it has: {', '.join(self.names)}")
        found = self.read(name)
        if len(found) != self.num_rows:
            raise DataError(f"{self.path.name}: {name!r} has {len(found)} rows, {self.names[0]!r} has {self.num_rows}")
        return found


@source(
    SourceSpec(
        name=OUTPUTS,
        doc="A model's outputs in Parquet, CSV or NPZ: probabilities or logits, label, split or member, optionally "
        "features.",
        source="definition",
        config=OutputsConfig,
    )
)
def outputs(*, config: OutputsConfig, seed: int) -> ExampleSet:
    """The rows of the table as examples; :func:`outputs_of` reads what the model said of them.

    Raises:
        UnsafeFile: outside the root, or too large.
        DataError: columns that are missing, of different lengths or not finite; labels that are no class; no row of one
            of the splits.
    """
    path = outputs_file_of(config)
    stored = _open_stored(path, config.max_bytes)
    said, _ = _logits(stored, config)
    names = _class_names(config, said.shape[1])
    origin = stored.origin
    labels = _labels(stored.column(config.label), origin, names, explicit=bool(_suffixes(config) or config.class_names))
    split = _split(stored.column(config.split), origin, config.split)
    features = stored.matrix(config.features) if config.features else None
    x = to_float32(np.exp(said) if features is None else features)
    return assemble(
        x,
        labels.y,
        name=config.name or path.stem,
        task="classification",
        class_names=labels.class_names,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=check_ids(stored.column(config.id)) if config.id else None,
        split=split,
        origin=origin,
        owner=_owners(stored.column(config.owner)) if config.owner else None,
        feature_names=() if len(config.features) < 2 else config.features,
        provenance={
            "source": OUTPUTS,
            "values": OUTPUTS if features is None else FEATURES,
            "files": manifest(root_folder(config.root), [path]),
            "licence": config.licence,
            "notes": list(labels.notes),
        },
    )


def _owners(values: np.ndarray) -> np.ndarray:
    return np.array(as_texts(pl.Series(values)).fill_null("").to_list(), dtype=str)


def outputs_of(config: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """What the model said: float32 (N, K) logits in the order of the rows, and in how many rows a probability is
    exactly 0.

    Raises:
        As :func:`outputs`.
    """
    checked = OutputsConfig.from_mapping(config)
    stored = _open_stored(outputs_file_of(checked), checked.max_bytes)
    said, zeros = _logits(stored, checked)
    return said.astype(np.float32), zeros


def outputs_file(config: Mapping[str, Any]) -> Path:
    """The file that a plan's source names."""
    return outputs_file_of(OutputsConfig.from_mapping(config))


def outputs_file_of(config: OutputsConfig) -> Path:
    return inside(root_folder(config.root), config.file)


def looks_like_outputs(path: Path) -> bool:
    """Whether a file has columns that are called as a model's outputs are, and one that says who was a member.

    Columns p0, p1, ... are also what features are called: they are outputs where their rows sum to 1. Of a table whose
    columns only happen to be called so a person can say that it is none.
    """
    if is_archive(path):
        with open_archive(path) as archive:
            names = list(members_of(archive, path))
    else:
        names = column_names(path)
    said = _found(names, "logits") or _found(names, "probabilities")
    if not said or not any(name.lower() in _SPLITS for name in names):
        return False
    if not re.fullmatch(r"p\d+", said[0], re.IGNORECASE):
        return True
    rows = _open_stored(path.resolve(), MAX_BYTES).matrix(said)
    return bool(np.all((rows >= 0) & (rows <= 1)) and np.all(abs(rows.sum(1) - 1) <= _SUM))


def outputs_config(path: Path, asked: Asked) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration that reads a file, found by the names of its columns, and the columns that are left out.

    Raises:
        ConfigError: which columns are outputs, label or split cannot be told; the message lists what there is.
        DataError: not a readable file.
    """
    path = path.resolve()
    stored = _open_stored(path, MAX_BYTES)
    has = f"{path.name} has: {', '.join(stored.names)}"
    found = _found(stored.names, "logits") or _found(stored.names, "probabilities")
    if not found:
        raise ConfigError(
            "which columns are the model's outputs? They are called prob_<class> or logit_<class>, one a class, or "
            f"are one list column or array called probabilities or logits. {has}"
        )
    config: dict[str, Any] = {"root": str(path.parent), "file": path.name, "outputs": list(found)}
    if scale := next((scale for scale, called in _CALLED.items() if found[0].lower().startswith(called)), ""):
        config["scale"] = scale  # what they are called is what they have to be
    for option in ("task", "val", "drop"):
        if getattr(asked, option):
            raise ConfigError(
                f"--{option} has no place beside a table of outputs: only columns that are named are read"
            )
    for option in ("label", "owner", "id", "split"):
        name = getattr(asked, option)
        if name is not None and name not in stored.names:
            raise ConfigError(f"--{option} {name!r} is not there; {has}")
    config["label"] = asked.label or _one(stored, _LABELS, "the label (--label)", has)
    members = "the split ('train' and 'test'), or who was a member (true and false; --split)"
    config["split"] = asked.split or _one(stored, _SPLITS, members, has)
    if asked.owner is not None:
        config["owner"] = asked.owner
    if features := _found(stored.names, "features"):
        config["features"] = list(features)
    taken = {*found, *features, config["label"], config["split"], asked.owner}
    ids = [asked.id] if asked.id else [name for name in stored.names if name.lower() in _IDS and name not in taken]
    config |= {"id": ids[0]} if len(ids) == 1 else {}
    used = {*found, *features, *(config.get(role, "") for role in ("label", "split", "owner", "id"))}
    return config, tuple(name for name in stored.names if name not in used)


def _one(stored: _Stored, known: tuple[str, ...], what: str, has: str) -> str:
    guesses = [name for name in stored.names if name.lower() in known]
    if len(guesses) != 1:
        said = f"{', '.join(guesses)} could all be" if guesses else f"none is called {', '.join(known)}"
        raise ConfigError(f"which column is {what}? {said}. {has}")
    return guesses[0]


def _found(names: Sequence[str], role: str) -> tuple[str, ...]:
    """The columns of a role: one whole, or those of one prefix in the order of the file."""
    for whole in _WHOLE[role]:
        if match := [name for name in names if name.lower() == whole]:
            return (match[0],)
    for prefix in _COLUMNS[role]:
        match = [name for name in names if re.match(rf"{prefix}([_.].|\d+$)", name, re.IGNORECASE)]
        if len(match) > 1:
            return tuple(match)
    return ()


def _suffixes(config: OutputsConfig) -> tuple[str, ...]:
    """What the columns call the classes: ``cat`` of ``prob_cat``."""
    if len(config.outputs) < 2:
        return ()
    return tuple(re.split(r"[_.]|(?<=[a-zA-Z])(?=\d+$)", name, maxsplit=1)[-1] for name in config.outputs)


def _class_names(config: OutputsConfig, num_classes: int) -> tuple[str, ...]:
    names = config.class_names or _suffixes(config) or tuple(map(str, range(num_classes)))
    if len(names) != num_classes:
        raise DataError(f"{config.file}: {len(names)} class_names for {num_classes} outputs")
    return names


def _labels(values: np.ndarray, origin: np.ndarray, names: tuple[str, ...], *, explicit: bool) -> Labels:
    """Class indexes: by name where the outputs name their classes, else by place; texts without names are sorted."""
    if values.dtype.kind in "iub" and explicit and np.isin(values.astype(int).astype(str), names).all():
        values = values.astype(int).astype(str)
    elif values.dtype.kind == "b":
        values = values.astype(np.int64)
    if values.dtype.kind == "U" and not explicit:
        levels = tuple(np.unique(values).tolist())
        if len(levels) != len(names):
            raise DataError(
                f"{len(levels)} labels are text and there are {len(names)} outputs: which is which? Give class_names, "
                "or call the columns prob_<class>"
            )
        names = levels
    return encode_labels(values, origin, task="classification", class_names=names)


def _split(values: np.ndarray, origin: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind in "biuf":
        if not np.isin(values, (0, 1)).all():
            raise DataError(
                f"{name!r} says who was a member: true and false, or 1 and 0",
                where=origin[~np.isin(values, (0, 1))].tolist(),
            )
        split = np.where(values.astype(bool), "train", "test")
    else:
        words = np.char.lower(values.astype(str))
        truth = np.isin(words, ("true", "false"))
        split = np.where(truth, np.where(words == "true", "train", "test"), words)
    split = read_splits(split.astype(str), origin, name=name)
    if (unsure := split == "val").any():
        raise DataError(
            f"{name!r} calls {int(unsure.sum())} rows validation: a model that was chosen by them has seen them after "
            "all; leave them out, or call them 'test'",
            where=origin[unsure].tolist(),
        )
    for part, what in (
        ("train", "was in the model's training set"),
        ("test", "was kept out of the model's training set"),
    ):
        if not (split == part).any():
            raise DataError(f"{name!r} names no row that {what}: what members look like beside others cannot be told")
    return split


def _logits(stored: _Stored, config: OutputsConfig) -> tuple[np.ndarray, int]:
    """(N, K) float64, and the number of rows with a probability of exactly 0."""
    values = stored.matrix(config.outputs)
    where = f"{config.file}: outputs"
    check_size(values.nbytes, config.max_bytes, where)
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise DataError(
            f"{where} are NaN or infinite in {int(broken.sum())} rows", where=stored.origin[broken].tolist()
        )
    unit = bool((values >= 0).all() and (values <= 1).all())
    single = values.shape[1] == 1
    off = np.zeros(len(values), bool) if single else abs(values.sum(axis=1, dtype=np.float64) - 1) > _SUM
    scale = config.scale
    if scale == "auto":
        scale = "probabilities" if unit else "logits"
    if scale == "logits":
        z = values.astype(np.float64)
        return (np.column_stack([np.zeros(len(z)), z]) if single else z), 0
    if not unit:
        outside = ((values < 0) | (values > 1)).any(axis=1)
        raise DataError(
            f"{where} are no probabilities: values outside 0..1 in {int(outside.sum())} rows; logits are called "
            "logit_<class>, or logits",
            where=stored.origin[outside].tolist(),
        )
    if off.any():
        raise DataError(
            f"{where} do not sum to 1 in {int(off.sum())} of {len(off)} rows: probabilities of every class are needed, "
            "or logits (scale: logits)",
            where=stored.origin[off].tolist(),
        )
    p = np.column_stack([1 - values, values]) if single else values
    least = np.finfo(values.dtype).tiny
    return np.log(np.maximum(p, least).astype(np.float64)), int((p == 0).any(axis=1).sum())


def _open_stored(path: Path, max_bytes: int) -> _Stored:
    """Open a file without reading its values.

    Raises:
        DataError: neither Parquet, CSV nor NPZ.
        UnsafeFile: too large, or it holds a pickle.
    """
    check_size(path.stat().st_size, max_bytes, path.name)
    if is_archive(path):
        return _open_archive(path, max_bytes)
    if kind_of(path) is None:
        raise DataError(f"{path.name} is neither Parquet, CSV nor a NumPy archive")
    table = read_table(path.parent, path.name, max_bytes=max_bytes)
    return _Stored(path, table.num_rows, tuple(table.schema), lambda name: _of_series(table.column(name), path))


def _open_archive(path: Path, max_bytes: int) -> _Stored:
    with open_archive(path) as archive:
        members = members_of(archive, path)
    for name, member in members.items():
        check_size(member.info.file_size, max_bytes, f"{path.name}: {name}")

    def read(name: str) -> np.ndarray:
        with open_archive(path) as archive:
            blocks = list(row_blocks(archive, members[name]))
        found = np.concatenate(blocks) if blocks else np.empty(members[name].shape, members[name].dtype)
        return np.char.decode(found, "utf-8") if found.dtype.kind == "S" else found

    first = next(iter(members.values()), None)
    if first is None or not all(member.shape for member in members.values()):
        raise DataError(f"{path.name}: every array needs a row for each example")
    return _Stored(path, first.shape[0], tuple(members), read)


def _of_series(series: pl.Series, path: Path) -> np.ndarray:
    if series.null_count():
        raise DataError(
            f"{path.name}: column {series.name!r} is missing in {series.null_count()} rows",
            where=[f"row {i + 1}" for i in np.flatnonzero(series.is_null().to_numpy()).tolist()],
        )
    if isinstance(series.dtype, (pl.List, pl.Array)):
        lengths = series.list.len() if isinstance(series.dtype, pl.List) else None
        if lengths is not None and lengths.n_unique() != 1:
            raise DataError(f"{path.name}: the lists in {series.name!r} have {lengths.min()} to {lengths.max()} values")
        width = len(series[0]) if len(series) else 1
        flat = series.explode()
        if flat.null_count():
            raise DataError(f"{path.name}: column {series.name!r} holds missing values")
        return flat.to_numpy().reshape(len(series), width)
    if series.dtype in (pl.String, pl.Categorical, pl.Enum):
        return np.array(series.cast(pl.String).to_list(), dtype=str)
    return series.to_numpy()
