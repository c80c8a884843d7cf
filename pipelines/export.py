"""What a subject holds, for other programs: a score or the members of a curated set as a table, or the examples of a
curated set as a data set.

What is exported says where it is from: subject, asset, what a row is, the run and configuration that made it, and the
ledger's head. Parquet keeps that as key-value metadata, CSV and JSON in a file beside them (``NAME.csv.source.json``),
pandas in ``attrs``, ``datasets`` in ``info.description``, a
data set in its manifest and data sheet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from contracts import schema
from contracts.digests import canonical_json
from contracts.errors import ConfigError, NotReady, NotTrusted, UnknownName
from pipelines.interop import optional
from warehouse import fsio

if TYPE_CHECKING:
    from warehouse import Warehouse

_COMMON = ("run_id", "config_digest")
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
_WRITERS = (".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows, by example id, and where they are from (text -> text)."""

    frame: pl.DataFrame
    made: Mapping[str, str]


def remember(home: Path, subject: str, to: Path) -> None:
    """Note in the state folder that something of a subject was exported to a file or folder, so that an erasure can
    name it; nothing is noted in a folder that cannot be written."""
    path = str(to.expanduser().resolve())
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    told = canonical_json({"subject": subject, "path": path})
    with suppress(OSError):
        fsio.write_bytes(home / "exports" / f"{name}.json", told.encode() + b"\n")


def known_exports(home: Path, subject: str) -> list[str]:
    """Where things of a subject were exported to and still are; what is gone is no longer known."""
    found = []
    for path in sorted((home / "exports").glob("*.json")):
        told = json.loads(path.read_bytes())
        if told["subject"] == subject and Path(told["path"]).exists():
            found.append(told["path"])
    return found


def table(warehouse: Warehouse, subject: str, what: str) -> Table:
    """A current score of the subject, with all its columns, or a curated set: (example_id, role, reason).

    Args:
        what: name of the score or of the set; ``scores/NAME`` or ``curation/NAME`` where one name is both.

    Raises:
        UnknownName: neither is stored under that name; lists what is.
        NotTrusted: the score did not meet its gates, or its plan no longer lists it; says which.
        ConfigError: both are.
    """
    scores = warehouse.read(schema.SCORE_RUNS, subject=subject)
    sets = warehouse.read(schema.DATASETS, subject=subject)["dataset_id"].to_list()
    known = [*(f"scores/{name}" for name in scores["score"]), *(f"curation/{name}" for name in sets)]
    meant = [what] if "/" in what else [name for name in known if name.partition("/")[2] == what]
    if len(meant) > 1:
        raise ConfigError(f"{what!r} is a score and a curated set of {subject}: say {' or '.join(meant)}")
    if not meant or meant[0] not in known:
        raise UnknownName(f"score or curated set of {subject}", what, [n.partition("/")[2] for n in known])
    kind, _, name = meant[0].partition("/")
    stored, partition, facts = schema.MEMBERS.full_name, {"dataset_id": name}, {"row": schema.MEMBERS.doc}
    if kind == "scores":
        run = scores.row(by_predicate=pl.col("score") == name, named=True)
        if not run["passed"]:
            raise NotTrusted(f"score {name} of {subject} is not current: {run['reason']}")
        stored, partition = f"scores.{name}", {}
        facts = {"row": f"score {name}", "higher_means": run["higher_means"]}
    frame = warehouse.read(stored, subject=subject, partition=partition)
    writers = warehouse.read(stored, subject=subject, partition=partition, columns=_COMMON)
    facts |= {column: ", ".join(sorted(set(writers[column]))) for column in _COMMON}
    head = warehouse.ledger.head()
    return Table(
        frame.drop(partition).sort("example_id"),
        {"subject": subject, "asset": f"{subject}/{meant[0]}", **facts, "ledger_head": f"{head.seq}:{head.hash}"},
    )


def side_by_side(warehouse: Warehouse, subject: str, names: Sequence[str]) -> pl.DataFrame:
    """``example_id, split, label_name, owner`` and the value of each score, by example id; null where a score has none.

    Args:
        names: of scores, or ``score.column``; none: all that are current.

    Raises:
        UnknownName, NotReady, NotTrusted: see ``Warehouse.latest_score``.
    """
    frame = warehouse.read(schema.EXAMPLES, subject=subject).filter(pl.col("split") == "train")
    if not frame.height:
        raise NotReady(f"{subject} has not been audited yet; run: palimpsest audit {subject}")
    frame = frame.select("example_id", "split", "label_name", "owner")
    runs = warehouse.read(schema.SCORE_RUNS, subject=subject)
    for name in names or runs.filter("passed")["score"]:
        values = warehouse.latest_score(subject, name).select("example_id", pl.col("value").alias(name))
        frame = frame.join(values, on="example_id", how="left")
    return frame.sort("example_id")


def write(made: Table, to: Path) -> None:
    """Write a table to a file whose name says how: .parquet, .csv, .json, .jsonl. What cannot say in itself where it is
    from has a file ``<name>.source.json`` beside it.

    Raises:
        ConfigError: another suffix, or no such folder.
    """
    refuse_target(to)
    if to.suffix == ".parquet":
        made.frame.write_parquet(to, metadata={"palimpsest": json.dumps(dict(made.made))})
        return
    if to.suffix == ".csv":
        to.write_text(csv_of(made.frame), encoding="utf-8")
    elif to.suffix == ".json":
        made.frame.write_json(to)
    else:
        made.frame.write_ndjson(to)
    to.with_name(f"{to.name}.source.json").write_text(json.dumps(dict(made.made), indent=2) + "\n")


def csv_of(frame: pl.DataFrame) -> str:
    """A table as CSV that a spreadsheet computes nothing from: text that it would take for a formula, in a cell or a
    heading, gets an apostrophe before it (OWASP, CSV injection). Lists become JSON; numbers and everything else stay as
    they are.

    >>> print(csv_of(pl.DataFrame({"label": ["cat", "=1+1"], "value": [-1, 2]})), end="")
    label,value
    cat,-1
    '=1+1,2
    """
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    told = [[None if v is None else json.dumps(v, default=str) for v in frame[name].to_list()] for name in nested]
    frame = frame.with_columns(pl.Series(name, v, pl.String) for name, v in zip(nested, told, strict=True))
    text = pl.col(pl.String)
    safe = frame.with_columns(
        pl.when(text.str.head(1).is_in(_FORMULA_SIGNS)).then("'" + text).otherwise(text).name.keep()
    )
    return safe.rename({name: f"'{name}" for name in frame.columns if name.startswith(_FORMULA_SIGNS)}).write_csv()


def refuse_target(to: Path) -> None:
    """Raise :class:`ConfigError` for a file that :func:`write` cannot make."""
    if to.suffix not in _WRITERS:
        raise ConfigError(f"{to} must end in one of {', '.join(_WRITERS)}: the ending says what is written")
    if to.is_dir() or not to.absolute().parent.is_dir():
        raise ConfigError(f"{to} cannot be written: " + ("it is a folder" if to.is_dir() else "no such folder"))


def to_pandas(made: Table) -> Any:
    """As ``pandas.DataFrame``."""
    frame = made.frame.to_pandas()
    frame.attrs["palimpsest"] = dict(made.made)
    return frame


def to_datasets(made: Table) -> Any:
    """As Hugging Face ``datasets.Dataset``.

    Raises:
        ConfigError: the package is not installed; says how.
    """
    datasets = optional("datasets", "an export to Hugging Face datasets")
    info = datasets.DatasetInfo(description=json.dumps(dict(made.made)))
    return datasets.Dataset(made.frame.to_arrow(), info=info)


OBJECTS: Mapping[str, Callable[[Table], Any]] = {
    "polars": lambda made: made.frame,
    "pandas": to_pandas,
    "datasets": to_datasets,
}
