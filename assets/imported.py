"""Rows that were made elsewhere, imported for a score of the plan: kept beside its table, with where they are from.

An import is an artefact of the score's own stage. Its digest is in the score's configuration, so that another import is
another key. A stage that reads it takes out what is not to be kept: an example that has left the data, or has another
label now, leaves the import too, and with it everything that this program knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from assets.stage import Run
from contracts.errors import NotApplicable, NotReady
from recipes.checkpoints import arrays_digest
from sources.example_set import ExampleSet
from warehouse import Artifact, Warehouse

_LABEL = "label_then"  # of the example when it was imported
_NONE = -1


def keep(warehouse: Warehouse, asset: str, rows: pl.DataFrame, data: ExampleSet, made: Mapping[str, Any]) -> str:
    """Store rows for the score whose asset this is; the digest (64 hex digits) that its configuration has to name.

    Args:
        rows: example_id and columns of whole numbers from 0 on, null where there is none; of floats; or of bools.
        data: whose examples they are, as it is now.
        made: where the rows are from; JSON-able.
    """
    whole = [name for name in rows.columns if rows[name].dtype.is_integer()]
    columns = rows.with_columns(pl.col(whole).fill_null(_NONE))
    arrays = {name: columns[name].to_numpy() for name in rows.columns}
    arrays[_LABEL] = data.target_keys[data.positions(arrays["example_id"])]
    digest = arrays_digest(arrays)
    warehouse.artifacts.save(_name(asset), arrays, {**made, "digest": digest, "columns": rows.columns})
    return digest


def rows_of(run: Run) -> pl.DataFrame:
    """What was imported for this stage, without the examples that are no longer in the data as they were.

    Raises:
        NotApplicable: nothing was imported, or not what the plan names.
    """
    try:
        arrays, meta = run.warehouse.artifacts.load(_name(run.asset))
    except NotReady:
        arrays, meta = {}, {}
    if not arrays or meta["digest"] != run.stage.config["score"].imported:
        raise NotApplicable(
            f"{run.asset}: what the plan names was not imported into this state; see palimpsest.import_issues"
        )
    known = np.isin(arrays["example_id"], run.data.example_id)
    known[known] = run.data.target_keys[run.data.positions(arrays["example_id"][known])] == arrays[_LABEL][known]
    if not known.all():
        arrays = {name: values[known] for name, values in arrays.items()}
        run.warehouse.artifacts.save(_name(run.asset), arrays, meta)
    frame = pl.DataFrame({name: arrays[name] for name in meta["columns"]})
    whole = pl.selectors.integer()
    return frame.with_columns(pl.when(whole != _NONE).then(whole))


def kept(run: Run) -> list[Artifact]:
    """The artefact of the stage's import, for its record; none where there is no import."""
    name = _name(run.asset)
    return [run.warehouse.artifacts.describe(name)] if run.warehouse.artifacts.exists(name) else []


def _name(asset: str) -> str:
    return f"{asset}/imported"
