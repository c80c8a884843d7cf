"""Rows with columns: Parquet as Hugging Face's ``datasets`` writes it, and JSON lines.

    parquet   data/SPLIT-00000-of-00001.parquet; images and masks as {bytes, path} with PNG, other arrays as lists of
              numbers; the footer names the features, so that ``datasets`` shows pictures and class names
    jsonl     SPLIT.jsonl; vectors as named numbers, arrays as nested lists, tokens as lists

Blocks of rows are written as they are read: memory is bounded by the block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import NotApplicable
from contracts.progress import Progress
from curation.export.images import masks, pictures, refuse_unless_pictures
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens
from sources.rows import Rows

_BLOCK = 4096


def parquet(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """See the module."""
    (folder / "data").mkdir()
    schema, done = _schema(data), 0
    for split in np.unique(data.split):
        part = data.part(str(split))
        with pq.ParquetWriter(folder / "data" / f"{split}-00000-of-00001.parquet", schema) as writer:
            for rows, values in _blocks(part):
                writer.write_table(pa.table(_columns(part, rows, values), schema=schema))
                progress(done + rows.stop, len(data), "rows")
        done += len(part)


def jsonl(data: ExampleSet, folder: Path, progress: Progress) -> None:
    """See the module."""
    done = 0
    for split in np.unique(data.split):
        part = data.part(str(split))
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for start in range(0, len(part), _BLOCK):
                rows = slice(start, min(start + _BLOCK, len(part)))
                columns = {name: list(values) for name, values in _columns(part, rows, _plain(part, rows)).items()}
                for row in zip(*columns.values(), strict=True):
                    file.write(json.dumps(dict(zip(columns, row, strict=True)), allow_nan=False) + "\n")
                progress(done + rows.stop, len(data), "rows")
        done += len(part)


def _are_pictures(data: ExampleSet) -> bool:
    try:
        refuse_unless_pictures(data)
    except NotApplicable:
        return False
    return True


def _blocks(data: ExampleSet) -> Iterator[tuple[slice, Mapping[str, Any]]]:
    if _are_pictures(data):
        for rows, images in pictures(data):
            names = [f"{example}.png" for example in data.example_id[rows]]
            files = {"image": images} | ({"mask": masks(data, rows)} if data.task.gives("pixels") else {})
            yield (
                rows,
                {
                    kind: [{"bytes": b, "path": n} for b, n in zip(every, names, strict=True)]
                    for kind, every in files.items()
                },
            )
        return
    for start in range(0, len(data), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(data)))
        yield rows, _plain(data, rows)


def _plain(data: ExampleSet, rows: slice) -> dict[str, Any]:
    """The values of a block as columns of plain lists.

    Raises:
        NotApplicable: examples that are no rows of numbers or tokens.
    """
    if isinstance(data.x, Tokens):
        flat, counted, lengths = data.x.texts(rows)
        ends = np.cumsum(lengths)[:-1]
        return {
            "tokens": [part.tolist() for part in np.split(flat, ends)],
            "counts": [part.tolist() for part in np.split(counted, ends)],
        }
    if not isinstance(data.x, (np.ndarray, Rows)):
        raise NotApplicable(f"{data.name}: {type(data.x).__name__} are no rows of numbers or tokens")
    values = np.asarray(data.x[rows])
    if data.feature_names:
        return {name: values[:, k].tolist() for k, name in enumerate(data.feature_names)}
    return {"values": values.tolist()}


def _columns(data: ExampleSet, rows: slice, values: Mapping[str, Any]) -> dict[str, Any]:
    beside = {name: column[rows].tolist() for name, column in sorted(data.columns.items())}
    single = data.labelled and data.y.ndim == 1
    label = {"label": data.y[rows].tolist()} if single else {}
    if data.y.ndim > 1 and "mask" not in values:
        values = {**values, "mask": data.targets(rows).tolist()}
    taken = {"example_id", *label}
    renamed = {name if name not in taken else f"{name}_": column for name, column in {**values, **beside}.items()}
    return {"example_id": data.example_id[rows].tolist(), **renamed, **label}


def _schema(data: ExampleSet) -> pa.Schema:
    """Types of the columns, and in the footer what ``datasets`` calls them."""
    first = next(_blocks(data))
    rows = slice(0, 1)
    if _are_pictures(data):
        file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        kinds: dict[str, pa.DataType] = dict.fromkeys(first[1], file)
    else:
        kinds = {name: _kind(data, name) for name in first[1]}
    fields, features = [], {}
    for name, column in _columns(data, rows, {n: v[:1] for n, v in first[1].items()}).items():
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
