"""Rows with columns: Parquet as Hugging Face's ``datasets`` writes it, and JSON lines.

    parquet   data/SPLIT-00000-of-00001.parquet; images and masks as {bytes, path} with PNG, other arrays as lists of
              numbers; the footer names the features, so that ``datasets`` shows pictures and class names
    jsonl     SPLIT.jsonl; vectors as named numbers, arrays as nested lists, tokens as lists

Blocks of rows are written as they are read: memory is bounded by the block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contracts.errors import NotApplicable
from contracts.progress import Progress
from curation.export.blocks import blocks_of, splits
from curation.export.images import masks, pictures, refuse_unless_pictures
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens
from sources.rows import Rows


def parquet(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """See the module."""
    (folder / "data").mkdir()
    schema, done = _schema(data), 0
    for split, rows in splits(data):
        with pq.ParquetWriter(folder / "data" / f"{split}-00000-of-00001.parquet", schema) as writer:
            for part in blocks_of(data, rows):
                writer.write_table(pa.table(_columns(part, _values(part)), schema=schema))
                done += len(part)
                progress(done, len(data), "rows")


def jsonl(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """See the module."""
    done = 0
    for split, rows in splits(data):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for part in blocks_of(data, rows):
                columns = {name: list(values) for name, values in _columns(part, _plain(part, as_lists)).items()}
                for row in zip(*columns.values(), strict=True):
                    file.write(json.dumps(dict(zip(columns, row, strict=True)), allow_nan=False) + "\n")
                done += len(part)
                progress(done, len(data), "rows")


def _are_pictures(data: ExampleSet) -> bool:
    try:
        refuse_unless_pictures(data)
    except NotApplicable:
        return False
    return True


def _values(part: ExampleSet) -> dict[str, Any]:
    """The values of a block of examples as columns of Arrow: files of pictures and masks, or numbers."""
    if not _are_pictures(part):
        return _plain(part, as_arrow)
    names = pa.array([f"{example}.png" for example in part.example_id.tolist()])
    files = {"image": pictures(part)} | ({"mask": masks(part)} if part.task.gives("pixels") else {})
    return {
        kind: pa.StructArray.from_arrays([pa.array(every, pa.binary()), names], names=["bytes", "path"])
        for kind, every in files.items()
    }


def as_lists(values: NDArray[Any]) -> list[Any]:
    """(n, *shape) as n nested lists of Python's numbers."""
    return values.tolist()  # type: ignore[no-any-return]


def as_arrow(values: NDArray[Any]) -> pa.Array:
    """(n, *shape) as an Arrow array of n nested lists, without a Python object a number.

    >>> as_arrow(np.arange(4, dtype=np.uint8).reshape(2, 2, 1)).to_pylist()
    [[[0], [1]], [[2], [3]]]
    """
    array = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        num = int(np.prod(values.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(num + 1, dtype=np.int32) * values.shape[axis], array)
    return array


def _plain(data: ExampleSet, told: Callable[[NDArray[Any]], Any]) -> dict[str, Any]:
    """The values of a block of examples as columns; of arrays as ``told`` says.

    Raises:
        NotApplicable: examples that are no rows of numbers or tokens.
    """
    if isinstance(data.x, Tokens):
        flat, counted, lengths = data.x.texts(slice(0, len(data)))
        ends = np.cumsum(lengths)[:-1]
        return {
            "tokens": [part.tolist() for part in np.split(flat, ends)],
            "counts": [part.tolist() for part in np.split(counted, ends)],
        }
    if not isinstance(data.x, (np.ndarray, Rows)):
        raise NotApplicable(f"{data.name}: {type(data.x).__name__} are no rows of numbers or tokens")
    values = np.asarray(data.x[:])
    if data.feature_names:
        return {name: told(values[:, k]) for k, name in enumerate(data.feature_names)}
    return {"values": told(values)}


def _columns(data: ExampleSet, values: Mapping[str, Any]) -> dict[str, Any]:
    beside = {name: column.tolist() for name, column in sorted(data.columns.items())}
    single = data.labelled and data.y.ndim == 1
    label = {"label": data.y.tolist()} if single else {}
    if data.y.ndim > 1 and "mask" not in values:
        values = {**values, "mask": data.targets(slice(0, len(data))).tolist()}
    taken = {"example_id", *label}
    renamed = {name if name not in taken else f"{name}_": column for name, column in {**values, **beside}.items()}
    return {"example_id": data.example_id.tolist(), **renamed, **label}


def _schema(data: ExampleSet) -> pa.Schema:
    """Types of the columns, and in the footer what ``datasets`` calls them."""
    first = data.take(np.arange(1))
    values = _values(first)
    if _are_pictures(data):
        file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kinds: dict[str, pa.DataType] = dict.fromkeys(values, file)
    else:
        kinds = {name: _kind(data, name) for name in values}
    fields, features = [], {}
    for name, column in _columns(first, values).items():
        kind = kinds.get(name) or kinds.get(name.rstrip("_")) or pa.infer_type(column)
        if name == "label":
            kind = pa.int64() if data.class_names else pa.float64()
        fields.append(pa.field(name, kind))
        features[name] = _feature(data, name, kind)
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(fields, metadata=told)


def _kind(data: ExampleSet, name: str) -> pa.DataType:
    if isinstance(data.x, Tokens):
        return pa.list_(pa.int32() if name == "tokens" else pa.uint8())
    kind: pa.DataType = pa.from_numpy_dtype(data.x.dtype)
    if data.feature_names:
        return kind
    for _ in data.input_shape:
        kind = pa.list_(kind)
    return kind


def _feature(data: ExampleSet, name: str, kind: pa.DataType) -> dict[str, Any]:
    if name == "label" and data.class_names:
        return {"names": list(data.class_names), "_type": "ClassLabel"}
    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(data, "", kind.value_type), "_type": "List"}
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
