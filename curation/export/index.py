"""The examples of an exported folder by id, beside the format's own files: what a later version is compared with.

FOLDER/index.csv      example_id, split, label (name of the class, or the target), content_sha256
FOLDER/excluded.csv   example_id, role, reason of the training examples that are not in it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from contracts.errors import IntegrityError
from curation.difference import INDEX_SCHEMA, REASONS_SCHEMA, Version
from curation.export.formats import MANIFEST, verify_export
from sources.example_set import ExampleSet

INDEX, EXCLUDED = "index.csv", "excluded.csv"
_BLOCK = 16_384  # rows of the index that are told at a time


def index_of(data: ExampleSet) -> pl.DataFrame:
    """(example_id, split, label, content_sha256) of every example, by id; label null where there is none, and where it
    is more than one number, content "" where it is not known."""
    label: list[str | None] = [None] * len(data)
    if data.labelled and data.y.ndim == 1:
        label = [data.class_names[k] if data.class_names else repr(k) for k in data.y.tolist()]
    columns = {
        "example_id": data.example_id,
        "split": data.split,
        "label": label,
        "content_sha256": data.content_hash.astype(np.str_),
    }
    return pl.DataFrame(columns, schema=INDEX_SCHEMA).sort("example_id")


def index_csv(data: ExampleSet) -> Iterator[str]:
    """``index_of`` as CSV, part after part: its memory does not grow with the examples."""
    order = np.argsort(data.example_id, kind="stable")
    for start in range(0, len(order), _BLOCK):
        part = index_of(data.take(order[start : start + _BLOCK]))
        yield part.write_csv(include_header=start == 0)


def read_version(folder: Path) -> Version:
    """What an exported folder holds, once it is known to be whole.

    Raises:
        IntegrityError: it is no whole export, or one of an earlier release, without ``index.csv``.
    """
    verify_export(folder)
    if not (folder / INDEX).exists():
        raise IntegrityError(f"{folder} has no {INDEX}: it was exported by an earlier release; export it again")
    try:
        made = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["made"]
        found = pl.read_csv(folder / INDEX, schema=INDEX_SCHEMA)
        reasons = pl.DataFrame(schema=REASONS_SCHEMA)
        if (folder / EXCLUDED).exists():
            reasons = pl.read_csv(folder / EXCLUDED, schema=REASONS_SCHEMA)
    except (pl.exceptions.PolarsError, ValueError, KeyError) as error:
        raise IntegrityError(f"{folder} is no whole export: {INDEX} or {EXCLUDED} cannot be read ({error})") from error
    return Version(
        name=f"{folder} ({made['asset']})" if "asset" in made else str(folder),
        examples=found.with_columns(pl.col("content_sha256").fill_null("")),
        reasons=reasons.with_columns(pl.col("reason").fill_null("")),
    )
