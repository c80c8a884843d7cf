"""Great Expectations suites generated from a table's declaration, and the report of running one on a frame.

The declaration alone makes the suite: exactly the declared columns, at least ``min_rows`` rows, no null where none is
allowed, every number finite and within its range, choices, and the key unique within a partition.

What Great Expectations does by itself that this bridge does not let through: NaN counts as a missing value, so ranges
pass on it (here NaN reaches it as +infinity, which no range holds); an empty frame passes everything (the row count is
always checked); an expectation that could not run is merely unsuccessful (here *broken*, never bad data, never passed);
results print the offending values (here only counts and example ids; text that no expectation reads never leaves
polars).

Not the gate before a write (``warehouse.frames``): this runs on what is stored, for people and for asset checks.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl

from contracts.errors import CheckBroken
from contracts.tables import COMMON, Column, TableSpec

if TYPE_CHECKING:
    import great_expectations as gx

MAX_IDS = 10
_LARGEST = sys.float_info.max
_COMMON = tuple(c.name for c in COMMON)
_ERROR = re.compile(r"^([\w.]*(?:Error|Exception|Warning))\b", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One expectation.

    Attributes:
        expectation: Great Expectations' name of it.
        column: the column, several joined by ", ", or "" for the whole table.
        passed: it ran and holds.
        broken: it could not run; nothing is known about the data.
        unexpected_count: rows against it.
        example_ids: at most ten of their example ids; empty in tables without any.
        observed: what was found, in words, without values of the data.
    """

    expectation: str
    column: str
    passed: bool
    broken: bool = False
    unexpected_count: int = 0
    example_ids: tuple[int, ...] = ()
    observed: str = ""

    def __str__(self) -> str:
        """One line for people: what, where, what was found, whose rows."""
        name = self.expectation.removeprefix("expect_").replace("_", " ")
        ids = f" (example ids: {', '.join(map(str, self.example_ids))})" if self.example_ids else ""
        state = "could not be checked: " if self.broken else ""
        return f"{self.column or 'table'}: {name}: {state}{self.observed}{ids}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """The outcome of a suite on one frame.

    Attributes:
        table: full name of the table. ``rows``: rows looked at.
        passed: every expectation ran and holds.
        broken: at least one could not run; then ``passed`` is False, and the data may or may not be good.
        results: one an expectation, in the order of the suite.
    """

    table: str
    rows: int
    passed: bool
    broken: bool
    results: tuple[CheckResult, ...]

    def problems(self) -> list[str]:
        """One line an expectation that did not hold or could not run."""
        return [f"{self.table}: {r}" for r in self.results if not r.passed]


def suite(spec: TableSpec, *, stored: bool = False) -> gx.ExpectationSuite:
    """The suite of a table, from its declaration alone.

    Args:
        spec: the table.
        stored: with the columns that the warehouse adds (subject, run_id, config_digest); the key is then unique
            within a subject.
    """
    with _quiet():
        import great_expectations as gx

        gxe: Any = importlib.import_module("great_expectations.expectations")
        columns = spec.all_columns if stored else spec.columns
        made: list[Any] = [
            gxe.ExpectTableColumnsToMatchSet(column_set=[c.name for c in columns], exact_match=True),
            gxe.ExpectTableRowCountToBeBetween(min_value=spec.min_rows),
        ]
        for c in columns:
            if not c.nullable:
                made.append(gxe.ExpectColumnValuesToNotBeNull(column=c.name))
            if _bounded(c):
                low = -_LARGEST if c.low is None else c.low
                high = _LARGEST if c.high is None else c.high
                made.append(gxe.ExpectColumnValuesToBeBetween(column=c.name, min_value=low, max_value=high))
            if c.choices:
                made.append(gxe.ExpectColumnValuesToBeInSet(column=c.name, value_set=list(c.choices)))
        key = _key(spec, stored=stored)
        if len(key) == 1:
            made.append(gxe.ExpectColumnValuesToBeUnique(column=key[0]))
        elif key:
            made.append(gxe.ExpectCompoundColumnsToBeUnique(column_list=list(key), ignore_row_if="never"))
        return gx.ExpectationSuite(name=spec.full_name, expectations=made)


def check(spec: TableSpec, frame: pl.DataFrame) -> CheckReport:
    """Run the suite of ``spec`` on ``frame``. Nothing is written and nothing is sent; the data decides no exception.

    Args:
        spec: the table.
        frame: its rows, with or without the warehouse's own columns (all three of them).

    Raises:
        CheckBroken: Great Expectations failed as a whole.
    """
    stored = set(_COMMON) <= set(frame.columns)
    expected = suite(spec, stored=stored)
    declared = {c.name for c in (spec.all_columns if stored else spec.columns)}
    absent = declared - set(frame.columns)
    expected.expectations = [e for e in expected.expectations if not _columns_of(e.configuration.kwargs) & absent]
    with _quiet():
        try:
            by_id = _validated(_batch(_exposed(spec, frame, stored=stored)), expected)
        except Exception as error:
            raise CheckBroken(f"the check of {spec.full_name} could not run: {type(error).__name__}") from error
    results = tuple(_result(by_id[_identity(e.configuration)], frame, declared) for e in expected.expectations)
    broken = any(r.broken for r in results)
    return CheckReport(
        table=spec.full_name, rows=frame.height, broken=broken, passed=all(r.passed for r in results), results=results
    )


def _validated(batch: Any, expected: gx.ExpectationSuite) -> dict[tuple[str, str], Any]:
    """What Great Expectations says of each expectation.

    Which rows are against it is asked of those alone that do not hold: it takes as long again as to tell that some are.
    """
    wanted = expected.expectations
    found: dict[tuple[str, str], Any] = {}
    details = {
        "result_format": "SUMMARY",
        "partial_unexpected_count": MAX_IDS,
        "exclude_unexpected_values": True,
    }
    for result_format in ({"result_format": "BOOLEAN_ONLY"}, details):
        expected.expectations = [
            e for e in wanted if (of := found.get(_identity(e.configuration))) is None or not of.success
        ]
        if expected.expectations:
            outcome = batch.validate(expected, result_format=result_format)
            found |= {_identity(r.expectation_config): r for r in outcome.results}
    expected.expectations = wanted
    return found


def _identity(configuration: Any) -> tuple[str, str]:
    """An expectation's name and where it looks."""
    return configuration.type, _where(configuration.kwargs)


def _bounded(column: Column) -> bool:
    return column.dtype == "float64" or (column.dtype == "int64" and (column.low, column.high) != (None, None))


def _key(spec: TableSpec, *, stored: bool) -> tuple[str, ...]:
    """Columns that are unique together over several partitions (and subjects)."""
    return tuple(dict.fromkeys([*(["subject"] if stored else []), *spec.partition, *spec.key])) if spec.key else ()


def _exposed(spec: TableSpec, frame: pl.DataFrame, *, stored: bool) -> Any:
    """A pandas frame with the same columns and rows, holding only what the suite reads.

    Numbers with bounds and choices keep their values (NaN becomes +infinity), keys become codes, all else becomes
    0 or missing: enough for the null check.
    """
    key = _key(spec, stored=stored)
    columns = {c.name: c for c in spec.all_columns}
    shown = []
    for name in frame.columns:
        column, value = columns.get(name), frame[name]
        if value.dtype.is_float():
            value = value.fill_nan(float("inf"))
        if column is not None and name in key and not column.choices and not value.dtype.is_numeric():
            value = value.cast(pl.String).rank("dense")
        elif column is None or not (name in key or _bounded(column) or column.choices):
            value = pl.select(pl.when(value.is_null()).then(None).otherwise(pl.lit(0.0))).to_series()
        shown.append(value.alias(name))
    return pl.DataFrame(shown).to_pandas()


def _batch(frame: Any) -> Any:
    """The frame as a batch of Great Expectations."""
    return _whole().get_batch({"dataframe": frame})


@lru_cache(maxsize=1)
def _whole() -> Any:
    """What takes a frame whole, in a context that lives in memory only. It keeps nothing of a frame, and making it
    takes a quarter of a check."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    return (
        context.data_sources.add_pandas("frames")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("whole")
    )


def _result(found: Any, frame: pl.DataFrame, declared: set[str]) -> CheckResult:
    name, where = found.expectation_config.type, _where(found.expectation_config.kwargs)
    error = _error(found.exception_info)
    if error:
        return CheckResult(expectation=name, column=where, passed=False, broken=True, observed=error)
    result: Mapping[str, Any] = found.result
    count = int(result.get("unexpected_count") or 0)
    if name == "expect_table_columns_to_match_set":
        missing, extra = sorted(declared - set(frame.columns)), sorted(set(frame.columns) - declared)
        count = len(missing) + len(extra)
        told = [f"missing {', '.join(missing)}" if missing else "", f"unknown {', '.join(extra)}" if extra else ""]
        observed = "; ".join(filter(None, told)) or f"{len(declared)} columns"
    elif name == "expect_table_row_count_to_be_between":
        observed = f"{frame.height} rows, at least {found.expectation_config.kwargs['min_value']} needed"
    else:
        observed = f"{count} of {frame.height} rows"
    return CheckResult(
        expectation=name,
        column=where,
        passed=bool(found.success),
        unexpected_count=count,
        observed=observed,
        example_ids=_ids(result.get("partial_unexpected_index_list") or (), frame),
    )


def _ids(positions: Any, frame: pl.DataFrame) -> tuple[int, ...]:
    if "example_id" not in frame.columns or not frame["example_id"].dtype.is_integer():
        return ()
    chosen = frame["example_id"].gather([int(p) for p in positions]).drop_nulls().unique(maintain_order=True)
    return tuple(chosen.to_list()[:MAX_IDS])


def _error(info: Any) -> str:
    """The kind of exception that kept an expectation from running; "" when it ran. Messages may quote data: left
    out."""
    entries = [info] if "raised_exception" in (info or {}) else list((info or {}).values())
    raised = [e for e in entries if isinstance(e, Mapping) and e.get("raised_exception")]
    if not raised:
        return ""
    kinds = _ERROR.findall("\n".join(f"{e.get('exception_traceback')}" for e in raised))
    return ", ".join(dict.fromkeys(k.rsplit(".", 1)[-1] for k in kinds)) or "an exception of unknown kind"


def _columns_of(kwargs: Mapping[str, Any]) -> set[str]:
    return {kwargs["column"]} if "column" in kwargs else set(kwargs.get("column_list", ()))


def _where(kwargs: Mapping[str, Any]) -> str:
    return str(kwargs.get("column") or ", ".join(kwargs.get("column_list", ())))


@contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry and no warnings of Great Expectations and pandas; exceptions pass."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
