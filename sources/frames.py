"""Results as frames in the columns and types that a table's declaration gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from contracts.tables import TableSpec

_TYPES: dict[str, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "str": pl.String(),
    "floats": pl.List(pl.Float64()),
}


def schema_of(spec: TableSpec) -> dict[str, pl.DataType]:
    """Polars type of each of the table's own columns, in their order."""
    return {c.name: _TYPES[c.dtype] for c in spec.columns}


def frame_of(
    spec: TableSpec, values: Sequence[Mapping[str, Any]] | Mapping[str, Any], *, nan_to_null: bool = True
) -> pl.DataFrame:
    """The table's own columns, in its order and types.

    Args:
        values: rows, in which a missing value is null, or whole columns by name; what the table does not declare is
            left out.
        nan_to_null: NaN means "undefined" here; without it NaN stays, and the gate before the warehouse refuses it.
    """
    schema = schema_of(spec)
    if isinstance(values, Mapping):
        frame = pl.DataFrame({name: values[name] for name in schema}, schema=schema)
    else:
        frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in values], schema=schema)
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None)) if nan_to_null else frame
