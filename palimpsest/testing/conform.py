"""Whether an output is what a declaration says it is, and when two outputs are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from contracts.errors import PalimpsestError
from contracts.registry import Method
from contracts.tables import Column, TableSpec
from palimpsest.testing.kinds import kind_of
from sources.example_set import ExampleSet
from sources.made import Made, made_from

DTYPES: dict[str, Any] = {
    "int64": pl.Int64,
    "float64": pl.Float64,
    "bool": pl.Boolean,
    "str": pl.String,
    "floats": pl.List(pl.Float64),
}
_OF_THEIR_OWN = {"ensemble", "ensemble_outputs", "imported"}  # needs that speak of some examples only


def claim(holds: Any, message: str) -> None:
    """Raise :class:`AssertionError` with the message unless it holds; also where Python leaves out its asserts."""
    if not holds:
        raise AssertionError(message)


def outcome(run: Callable[[], Any]) -> Any:
    """The output, or the typed error; anything else that is raised goes through."""
    try:
        return run()
    except PalimpsestError as error:
        claim(len(str(error)) > 10, f"an error explains itself; this one says {str(error)!r}")
        return error


def check_column(values: pl.Series, column: Column) -> None:
    """Dtype, nulls, finiteness, range and choices."""
    name = column.name
    claim(values.dtype == DTYPES[column.dtype], f"{name} is {values.dtype}, declared {column.dtype}")
    claim(column.nullable or values.null_count() == 0, f"{name} has nulls and is not declared nullable")
    known = values.drop_nulls()
    if column.dtype == "float64":
        claim(known.is_finite().all(), f"{name} is not finite")
    if column.low is not None:
        claim((known >= column.low).all(), f"{name} is {known.min()!r}, below {column.low}")
    if column.high is not None:
        claim((known <= column.high).all(), f"{name} is {known.max()!r}, above {column.high}")
    if column.choices:
        claim(known.is_in(list(column.choices)).all(), f"{name} is none of {', '.join(column.choices)}")


def check_output(method: Method[Any], out: Any, data: ExampleSet) -> None:
    """The output is what the declaration says.

    Raises:
        AssertionError: says what it is not.
    """
    spec, kind = method.spec, kind_of(method)
    if kind == "score":
        _check_score(spec, out, data)
    elif kind == "analysis":
        _check_tables(spec, out)
    elif kind == "curator":
        wanted = {"example_id": pl.Int64, "role": pl.String, "reason": pl.String}
        wanted |= {"weight": pl.Int64} if spec.weighs else {}
        claim(out.schema == wanted, f"a curator gives ({', '.join(wanted)}), not {out.schema}")
        if spec.weighs:
            known = out["weight"].drop_nulls()
            claim((known >= 1).all() and known.sum() <= len(out), "weights count an example twice, or none")
        train = sorted(data.example_id[data.split == "train"].tolist())
        claim(
            sorted(out["example_id"].to_list()) == train, "a curator gives every training example a role, exactly once"
        )
        claim(set(out["role"]) <= set(spec.roles), f"roles {set(out['role'])} are not among {spec.roles}")
        claim(
            out["reason"].null_count() == 0 and (out["reason"] != "").all(),
            "every role has a reason, for people to read",
        )
    elif kind == "maker":
        claim(isinstance(out, Made), f"a maker gives a sources.made.Made, not {type(out).__name__}")
        out.validate(data)
        claim((np.diff(out.examples.example_id) > 0).all(), "made examples are in ascending order of their ids")
        claim(set(out.examples.owner) == {""}, "a made example bears an owner's name")
        claim(made_from(*out.kept()).digest == out.examples.digest, "what is kept of it is not what was made")
        _check_frames(spec.tables, {n: f.with_columns(dataset_id=pl.lit("made")) for n, f in out.tables.items()})
    elif kind == "source":
        claim(isinstance(out, ExampleSet), f"a source gives an ExampleSet, not {type(out).__name__}")
        out.validate()
    elif kind == "attack":
        claim(out.dtype == np.float64 and out.ndim == 2, f"an attack gives float64 (T, N), not {out.dtype} {out.shape}")
        claim(not np.isinf(out).any(), "a score is infinite; NaN says that it is undefined")
    else:
        claim(np.isfinite(out).all(), "a parameter or buffer of the model is not finite")


def _check_score(spec: Any, out: Any, data: ExampleSet) -> None:
    declared = ["example_id", *(c.name for c in spec.columns)]
    claim(set(out.columns) == set(declared), f"columns {out.columns} are not the declared {declared}")
    check_column(out["example_id"], spec.table.columns[0])
    for column in spec.columns:
        check_column(out[column.name], column)
    ids = out["example_id"].to_numpy()
    claim(set(ids) <= set(data.example_id), "ids that are not in the data")
    claim(len(set(ids)) == len(ids), "an example is scored twice")
    if not _OF_THEIR_OWN & set(spec.needs):
        claim(len(ids) == len(data), f"{len(data) - len(ids)} of {len(data)} examples have no row")


def _check_tables(spec: Any, out: Any) -> None:
    from reports.plots import table_png

    _check_frames(spec.tables, out)
    for picture in spec.pictures:
        if picture.is_chart:
            drawn = table_png(picture, out[picture.table])
            claim(drawn.startswith(b"\x89PNG"), f"picture {picture.title!r} cannot be drawn")


def _check_frames(tables: Sequence[TableSpec], out: Mapping[str, pl.DataFrame]) -> None:
    names = {table.name for table in tables}
    claim(set(out) == names, f"tables {set(out)} are not the declared {names}")
    for table in tables:
        frame = out[table.name]
        columns = {c.name for c in table.columns}
        claim(set(frame.columns) == columns, f"{table.name}: columns {frame.columns} are not the declared {columns}")
        for column in table.columns:
            check_column(frame[column.name], column)
        claim(not frame.select(table.key).is_duplicated().any(), f"{table.name}: key {table.key} is not unique")


def comparable(method: Method[Any], out: Any) -> Any:
    """A form in which equal outputs are equal, whatever the order of their rows."""
    kind = kind_of(method)
    if kind in ("score", "curator"):
        return out.sort("example_id")
    if kind == "maker":
        data = out.examples
        made = pl.DataFrame({"made_id": data.example_id, "y": data.y, "content": data.content_hash})
        return {"examples": made, "drawn_from": out.drawn_from, **{k: out.tables[k] for k in sorted(out.tables)}}
    if kind == "analysis":
        return {name: frame.sort(frame.columns) for name, frame in sorted(out.items())}
    return out.digest if kind == "source" else out


def same(a: Any, b: Any) -> bool:
    """To the bit."""
    if isinstance(a, pl.DataFrame):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else bool(a == b)


def check_close(first: pl.DataFrame, second: pl.DataFrame, *, tolerance: float) -> None:
    """Equal but for rounding: numbers within ``tolerance`` of the column's scale, all else exactly."""
    first, second = first.sort("example_id"), second.sort("example_id")
    claim(first.columns == second.columns and first["example_id"].equals(second["example_id"]), "other examples")
    for name in first.columns:
        a, b = first[name], second[name]
        if a.dtype != pl.Float64:
            claim(a.equals(b), f"{name} differs")
            continue
        claim(a.is_null().equals(b.is_null()), f"{name} is null elsewhere")
        scale = max(float(a.abs().max() or 0.0), 1e-12)  # type: ignore[arg-type]
        apart = float((a - b).abs().max() or 0.0)  # type: ignore[arg-type]
        claim(apart <= tolerance * scale, f"{name} differs by {apart / scale:.2g} of its scale, over {tolerance:g}")
