from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import CheckBroken
from contracts.methods import EXAMPLE_ID
from contracts.schema import ATTACK_REPORTS, EXAMPLES, FINDINGS, MEMBERS, TABLES
from contracts.tables import COMMON, Column, TableSpec
from warehouse import expectations
from warehouse.expectations import CheckReport, CheckResult, check, suite

ROOT = Path(__file__).resolve().parents[2]
SECRET = "ann@example.org"
SPEC = TableSpec(
    schema="scores",
    name="made_up",
    doc="d",
    key=("kind", "example_id"),
    partition=("kind",),
    min_rows=1,
    columns=(
        Column(name="kind", dtype="str", doc="kind"),
        EXAMPLE_ID,
        Column(name="share", dtype="float64", doc="share", low=0, high=1),
        Column(name="free", dtype="float64", doc="any finite number", nullable=True),
        Column(name="level", dtype="int64", doc="level", low=1, high=3, nullable=True),
        Column(name="colour", dtype="str", doc="colour", choices=("red", "green")),
        Column(name="note", dtype="str", doc="words"),
        Column(name="at", dtype="timestamp", doc="when", nullable=True),
    ),
)


def good(rows: int = 4) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "kind": ["a", "b"] * (rows // 2),
            "example_id": [i // 2 for i in range(rows)],
            "share": [0.0, 1.0] * (rows // 2),
            "free": [None, -1e300] * (rows // 2),
            "level": [1, None] * (rows // 2),
            "colour": ["red", "green"] * (rows // 2),
            "note": [SECRET, ""] * (rows // 2),
            "at": [datetime(2026, 1, 1, tzinfo=UTC), None] * (rows // 2),
        },
        schema_overrides={
            "example_id": pl.Int64,
            "share": pl.Float64,
            "free": pl.Float64,
            "level": pl.Int64,
            "kind": pl.String,
            "colour": pl.String,
            "note": pl.String,
            "at": pl.Datetime("us", "UTC"),
        },
    )


def put(frame: pl.DataFrame, column: str, row: int, value: object) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame[column].dtype))


def failed(report: CheckReport) -> list[CheckResult]:
    return [r for r in report.results if not r.passed]


def test_the_suite_follows_from_the_declaration_alone() -> None:
    made = Counter(
        (
            e.configuration.type,
            e.configuration.kwargs.get("column", ",".join(e.configuration.kwargs.get("column_list", ()))),
        )
        for e in suite(SPEC).expectations
    )
    null, between = "expect_column_values_to_not_be_null", "expect_column_values_to_be_between"
    assert made == Counter(
        [
            ("expect_table_columns_to_match_set", ""),
            ("expect_table_row_count_to_be_between", ""),
            *[(null, c) for c in ("kind", "example_id", "share", "colour", "note")],
            *[(between, c) for c in ("example_id", "share", "free", "level")],
            ("expect_column_values_to_be_in_set", "colour"),
            ("expect_compound_columns_to_be_unique", "kind,example_id"),
        ]
    )


@pytest.mark.parametrize("spec", TABLES, ids=lambda s: s.full_name)
@pytest.mark.parametrize("stored", [False, True])
def test_every_table_has_columns_rows_nulls_finiteness_and_key_checked(spec: TableSpec, stored: bool) -> None:
    made = [e.configuration for e in suite(spec, stored=stored).expectations]
    columns = spec.all_columns if stored else spec.columns
    assert {c.name for c in columns} == set(made[0].kwargs["column_set"])
    assert made[1].kwargs["min_value"] == spec.min_rows
    nulls = {m.kwargs["column"] for m in made if m.type == "expect_column_values_to_not_be_null"}
    assert nulls == {c.name for c in columns if not c.nullable}
    ranges = {m.kwargs["column"]: m.kwargs for m in made if m.type == "expect_column_values_to_be_between"}
    assert {c.name for c in columns if c.dtype == "float64"} <= set(ranges)
    assert all(np.isfinite([k["min_value"], k["max_value"]]).all() for k in ranges.values())
    key = made[-1].kwargs.get("column_list") or [made[-1].kwargs["column"]]
    assert set(key) == {*spec.key, *spec.partition, *(["subject"] if stored else [])}


def test_good_rows_pass_with_and_without_the_warehouses_columns() -> None:
    assert check(SPEC, good()).problems() == []
    stored = good().with_columns(subject=pl.lit("digits"), run_id=pl.lit("r"), config_digest=pl.lit("c"))
    report = check(SPEC, stored)
    assert (report.passed, report.broken, report.rows, report.table) == (True, False, 4, "scores.made_up")
    two = pl.concat([stored, stored.with_columns(subject=pl.lit("wine"))])
    assert check(SPEC, two).passed, "a key is unique within a subject"
    assert not check(SPEC, pl.concat([stored, stored])).passed


@pytest.mark.parametrize(
    ("column", "value", "expectation"),
    [
        ("share", float("nan"), "between"),
        ("share", float("inf"), "between"),
        ("share", -1e-9, "between"),
        ("share", None, "not_be_null"),
        ("free", float("nan"), "between"),
        ("free", float("-inf"), "between"),
        ("level", 4, "between"),
        ("level", 0, "between"),
        ("colour", "blue", "in_set"),
        ("colour", None, "not_be_null"),
        ("note", None, "not_be_null"),
        ("example_id", -1, "between"),
    ],
)
def test_one_bad_value_is_found_and_its_example_named(column: str, value: object, expectation: str) -> None:
    frame = put(good(), column, 3, value)
    report = check(SPEC, frame)
    (bad,) = failed(report)
    assert (report.passed, report.broken) == (False, False)
    assert (bad.column, bad.unexpected_count, bad.example_ids) == (column, 1, (frame["example_id"][3],))
    assert expectation in bad.expectation
    assert bad.observed == "1 of 4 rows"


def test_a_repeated_key_is_found_compound_and_single() -> None:
    (bad,) = failed(check(SPEC, put(put(good(), "kind", 1, "a"), "colour", 1, "red")))
    assert (bad.column, bad.unexpected_count, bad.example_ids) == ("kind, example_id", 2, (0,))
    single = TableSpec(schema="scores", name="one", doc="d", columns=(EXAMPLE_ID,), key=("example_id",))
    (bad,) = failed(check(single, pl.DataFrame({"example_id": [5, 7, 5]})))
    assert (bad.expectation, bad.example_ids) == ("expect_column_values_to_be_unique", (5,))
    assert check(single, pl.DataFrame({"example_id": [5, 7]})).passed


def test_an_empty_frame_passes_only_where_it_may() -> None:
    (bad,) = failed(check(SPEC, good(0)))
    assert bad.observed == "0 rows, at least 1 needed"
    assert check(
        MEMBERS, pl.DataFrame(schema={c.name: pl.Int64 if c.dtype == "int64" else pl.String for c in MEMBERS.columns})
    ).passed


def test_missing_and_unknown_columns_are_bad_data_not_a_broken_check() -> None:
    report = check(SPEC, good().drop("share").with_columns(shares=pl.lit(0.5)))
    (bad,) = failed(report)
    assert not report.broken
    assert bad.observed == "missing share; unknown shares"


def test_what_could_not_run_is_broken_and_never_passed() -> None:
    report = check(SPEC, good().with_columns(share=pl.lit(SECRET)))
    (bad,) = failed(report)
    assert (report.passed, report.broken, bad.broken, bad.column) == (False, True, True, "share")
    assert "TypeError" in bad.observed
    assert "could not be checked" in report.problems()[0]
    assert SECRET not in repr(report)


def test_a_failure_of_the_whole_tool_is_check_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(frame: object) -> object:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(expectations, "_batch", fails)
    with pytest.raises(CheckBroken, match=r"scores\.made_up could not run: RuntimeError$"):
        check(SPEC, good())


def test_at_most_ten_ids_and_no_value_of_the_data() -> None:
    frame = good(100).with_columns(colour=pl.lit("mauve " + SECRET), share=pl.lit(77.125))
    report = check(SPEC, frame)
    by_column = {r.column: r for r in failed(report)}
    assert set(by_column) == {"share", "colour"}
    for r in by_column.values():
        assert r.unexpected_count == 100
        assert 1 <= len(r.example_ids) <= 10
    assert "mauve" not in repr(report)
    assert "77.125" not in repr(report)


def test_text_that_nothing_reads_never_leaves_polars() -> None:
    shown = expectations._exposed(SPEC, good(), stored=False)
    assert SECRET not in shown.to_csv()
    assert shown["kind"].tolist() == [1, 2, 1, 2]
    assert shown["note"].tolist() == [0.0] * 4


_value = st.one_of(st.none(), st.sampled_from([float("nan"), float("inf"), -0.5, 0.0, 0.5, 1.0, 2.0]))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", None]),
            st.integers(-1, 3),
            _value,
            _value,
            st.sampled_from([None, 0, 1, 3, 4]),
            st.sampled_from(["red", "green", "blue", None]),
        ),
        max_size=8,
    )
)
def test_counts_are_those_of_a_plain_loop(rows: list[tuple]) -> None:
    frame = good(0).vstack(
        pl.DataFrame([(*r, "n", None) for r in rows], schema=good(0).schema, orient="row") if rows else good(0)
    )
    counts = {(r.expectation.removeprefix("expect_"), r.column): r.unexpected_count for r in check(SPEC, frame).results}

    def number(values: list, low: float, high: float) -> int:
        return sum(v is not None and not (low <= v <= high) for v in values)

    columns = [list(c) for c in zip(*rows, strict=True)] or [[] for _ in range(6)]
    kind, ids, share, free, level, colour = columns
    keys = Counter(zip(kind, ids, strict=True))
    assert counts["column_values_to_not_be_null", "kind"] == kind.count(None)
    assert counts["column_values_to_not_be_null", "share"] == share.count(None)
    assert counts["column_values_to_be_between", "share"] == number(share, 0, 1)
    assert counts["column_values_to_be_between", "free"] == number(free, -1e308, 1e308)
    assert counts["column_values_to_be_between", "level"] == number(level, 1, 3)
    assert counts["column_values_to_be_between", "example_id"] == number(ids, 0, 1e308)
    assert counts["column_values_to_be_in_set", "colour"] == sum(c not in ("red", "green", None) for c in colour)
    assert counts["compound_columns_to_be_unique", "kind, example_id"] == sum(n for n in keys.values() if n > 1)


def test_real_tables_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = pl.DataFrame(
        {
            "stage": ["d/audits/findings"] * 2,
            "kind": ["attack", ""],
            "about": ["target"] * 2,
            "method": ["", "m"],
            "judged": [True, False],
            "what": ["a", "b"],
            "verdict": ["pass", "fail"],
            "sentence": ["s"] * 2,
            "value": [0.5, None],
            "low": [None, None],
            "high": [None, None],
            "threshold": [0.6, 0.6],
        },
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )
    assert check(FINDINGS, findings).problems() == []
    assert not check(FINDINGS, findings.with_columns(verdict=pl.lit("maybe"))).passed
    rates = {c.name: [0.5] for c in ATTACK_REPORTS.columns if c.dtype == "float64"}
    report = pl.DataFrame(
        {"audited": ["t"], "attack": ["a"], "seed": [0], "n_pos": [1], "n_neg": [1], "reliable": [False]} | rates
    )
    assert check(ATTACK_REPORTS, report).problems() == []
    examples = pl.DataFrame(
        {
            "example_id": [1, 2],
            "split": ["train", "test"],
            "label": [None, None],
            "label_name": ["", ""],
            "target": [0.5, -2.0],
            "owner": ["", ""],
            "content_hash": ["x", "y"],
            "origin": [None, None],
        },
        schema_overrides={"label": pl.Int64, "origin": pl.String},
    )
    assert check(EXAMPLES, examples).problems() == []


@pytest.mark.journey
def test_it_is_silent_and_leaves_no_file(tmp_path: Path) -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error'); sys.path.insert(0, sys.argv[1])\n"
        "import polars as pl; from contracts.schema import MEMBERS; from warehouse import expectations as e\n"
        "assert 'great_expectations' not in sys.modules, 'importing it is slow'\n"
        "f = pl.DataFrame({'dataset_id': ['d'] * 50, 'example_id': range(50), 'role': ['forget'] * 50, 'reason': [''] "
        "* 50})\n"
        "assert e.check(MEMBERS, f).passed and not e.check(MEMBERS, f.vstack(f)).passed"
    )
    environment = os.environ | {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)], cwd=tmp_path / "work", env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_report_is_plain_data() -> None:
    report = check(SPEC, put(good(), "share", 0, 2.0))
    lines = report.problems()
    assert lines == ["scores.made_up: share: column values to be between: 1 of 4 rows (example ids: 0)"]
    assert json.dumps(lines)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hash(report)
    assert len(COMMON) == 3


@pytest.mark.slow
def test_a_million_rows_take_about_a_second() -> None:
    n = 1_000_000
    spec = TableSpec(
        schema="scores",
        name="big",
        doc="d",
        key=("example_id",),
        columns=(EXAMPLE_ID, *(Column(name=c, dtype="float64", doc="d", low=0, high=1) for c in ("a", "b", "c"))),
    )
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"example_id": np.arange(n), **{c: rng.random(n) for c in ("a", "b", "c")}})
    check(spec, frame.head(10))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert check(spec, frame).passed
        times.append(time.perf_counter() - start)
    assert min(times) < 2.5
