"""The gate before every write: what it lets through, what it refuses and how it says so; the digest of a frame."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from warehouse_helpers import EL2N, EVERYTHING, score_frame

from contracts.errors import DataError
from contracts.schema import CHECKPOINTS, TABLES
from warehouse import frames

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
PART = {"part": "p"}
SCHEMA = {c.name: frames.POLARS[c.dtype] for c in EVERYTHING.columns}


def everything(**changed: Any) -> pl.DataFrame:
    rows: dict[str, Any] = {
        "example_id": [1, 2, 3],
        "part": ["p"] * 3,
        "number": [0.5, None, -0.0],
        "flag": [True, None, False],
        "text": ["x", None, ""],
        "at": [NOW, None, NOW],
        "facts": ['{"a": 1}', None, "[]"],
        "kind": ["a", "b", "a"],
        "shape": [[1.5, -2.0], None, []],
    }
    return pl.DataFrame(rows | changed, schema={**SCHEMA, **{k: None for k in changed}}, strict=False)


def test_good_rows_come_back_sorted_by_key_in_declared_order() -> None:
    frame = everything().reverse().select(reversed(everything().columns))
    assert frames.checked(EVERYTHING, frame, PART).equals(everything())


def test_a_missing_partition_column_is_filled_with_the_partition() -> None:
    assert frames.checked(EVERYTHING, everything().drop("part"), PART).equals(everything())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"example_id": [1, 2, -3]}, "1 values of example_id are below 0 (example ids: -3)"),
        ({"example_id": [1, 2, None]}, "1 values of example_id are null"),
        ({"example_id": [1.0, 2.0, 3.0]}, "example_id is Float64, declared int64"),
        ({"example_id": ["1", "2", "3"]}, "example_id is String, declared int64"),
        ({"example_id": [7, 7, 3]}, "1 rows repeat the key (example_id, part) (example ids: 7)"),
        ({"number": [math.nan, 1.0, 2.0]}, "1 values of number are NaN or infinite (example ids: 1)"),
        ({"number": [1.0, math.inf, -math.inf]}, "2 values of number are NaN or infinite (example ids: 2, 3)"),
        ({"flag": [1, 0, 1]}, "flag is Int64, declared bool"),
        ({"text": [1, 2, 3]}, "text is Int64, declared str"),
        ({"at": [NOW.replace(tzinfo=None)] * 3}, "declared timestamp"),
        ({"facts": ['{"a": NaN}', "{}", "{}"]}, "1 values of facts are not JSON text (example ids: 1)"),
        ({"facts": ["{}", "{", "{}"]}, "1 values of facts are not JSON text (example ids: 2)"),
        ({"facts": ["[" * 100_000, "{}", "{}"]}, "1 values of facts are not JSON text (example ids: 1)"),
        (
            {"shape": [[1.0], [math.nan], [1.0, None]]},
            "2 values of shape hold NaN, infinite or missing numbers (example ids: 2, 3)",
        ),
        ({"shape": [["a"], ["b"], []]}, "shape is List(String), declared floats"),
        ({"kind": ["a", "c", "b"]}, "1 values of kind are not one of a, b (example ids: 2)"),
        ({"kind": ["a", None, "b"]}, "1 values of kind are null, which is not allowed (example ids: 2)"),
        ({"part": ["p", "q", "p"]}, "1 values of part differ from the partition 'p' (example ids: 2)"),
    ],
)
def test_bad_rows_are_refused_by_column_reason_and_id(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError) as caught:
        frames.checked(EVERYTHING, everything(**changed), PART)
    assert told in str(caught.value) and "test.everything" in str(caught.value)


def test_above_the_range_names_the_bound_and_its_unit() -> None:
    with pytest.raises(DataError, match=r"1 values of el2n are above 1\.5 1 \(example ids: 5\)"):
        frames.checked(EL2N.table, score_frame([4, 5]).with_columns(el2n=pl.Series([1.5, 1.5000001])), {})


def test_missing_and_unknown_columns_are_named_together() -> None:
    frame = score_frame([1]).rename({"el2n": "eln2"}).with_columns(subject=pl.lit("digits"))
    with pytest.raises(DataError) as caught:
        frames.checked(EL2N.table, frame, {})
    for part in ("missing column el2n", "unknown column eln2, subject", "subject is added by the warehouse"):
        assert part in str(caught.value)


def test_the_partition_must_be_the_declared_one() -> None:
    for wrong in ({}, {"kind": "a"}, {"part": "p", "kind": "a"}):
        with pytest.raises(DataError, match=r"is partitioned by \(part\)"):
            frames.checked(EVERYTHING, everything(), wrong)


def test_too_few_rows_are_refused_only_where_the_spec_says_so() -> None:
    examples = next(t for t in TABLES if t.full_name == "data.examples")
    empty = pl.DataFrame(schema={c.name: frames.POLARS[c.dtype] for c in examples.columns})
    with pytest.raises(DataError, match="needs at least 1 rows, given 0"):
        frames.checked(examples, empty, {})
    assert frames.checked(EVERYTHING, everything().clear(), PART).height == 0


def test_a_table_whose_key_is_its_partition_holds_one_row() -> None:
    datasets = next(t for t in TABLES if t.full_name == "curation.datasets")
    row = {"dataset_id": "d", "method": "m", "num_examples": 1, "digest": "x", "config": "{}"}
    assert frames.checked(datasets, pl.DataFrame([row]), {"dataset_id": "d"}).height == 1
    with pytest.raises(DataError, match="1 rows repeat the key"):
        frames.checked(datasets, pl.DataFrame([row, {**row, "method": "n"}]), {"dataset_id": "d"})


@pytest.mark.parametrize(
    ("series", "kept"),
    [
        (pl.Series("number", [1, 2, 3], dtype=pl.Int8), [1.0, 2.0, 3.0]),
        (pl.Series("number", [0.5, 1.5, 2.5], dtype=pl.Float32), [0.5, 1.5, 2.5]),
        (pl.Series("number", [2**53, 0, 1], dtype=pl.Int64), [2.0**53, 0.0, 1.0]),
        (pl.Series("number", [2**53 + 1, 0, 1], dtype=pl.Int64), None),
        (pl.Series("example_id", [1, 2, 3], dtype=pl.UInt8), [1, 2, 3]),
        (pl.Series("example_id", [1, 2, 2**63], dtype=pl.UInt64), None),
        (pl.Series("text", ["a", "b", "a"], dtype=pl.Categorical), ["a", "b", "a"]),
        (pl.Series("text", [None, None, None], dtype=pl.Null), [None, None, None]),
        (pl.Series("at", [NOW] * 3, dtype=pl.Datetime("ms", "UTC")), [NOW] * 3),
        (pl.Series("at", [NOW] * 3, dtype=pl.Datetime("us", "Europe/Berlin")), None),
        (pl.Series("shape", [[0.5], None, []], dtype=pl.List(pl.Float32)), [[0.5], None, []]),
        (pl.Series("shape", [[1.0, 2.0]] * 3, dtype=pl.Array(pl.Float32, 2)), [[1.0, 2.0]] * 3),
    ],
)
def test_types_are_widened_only_when_nothing_is_lost(series: pl.Series, kept: list[Any] | None) -> None:
    frame = everything().with_columns(series)
    if kept is None:
        with pytest.raises(DataError, match=f"column {series.name} is"):
            frames.checked(EVERYTHING, frame, PART)
    else:
        assert frames.checked(EVERYTHING, frame, PART)[series.name].to_list() == kept


ROWS = st.lists(
    st.tuples(
        st.integers(0, 2**63 - 1),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.booleans(),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda d: d.replace(tzinfo=UTC)),
        st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    ),
    max_size=12,
    unique_by=lambda r: r[0],
)


def build(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    names = ["example_id", "number", "flag", "text", "at", "shape"]
    frame = pl.DataFrame(rows, schema={n: SCHEMA[n] for n in names}, orient="row")
    return frame.with_columns(part=pl.lit("p"), facts=pl.lit(None, pl.String), kind=pl.lit("a")).select(list(SCHEMA))


def digest(frame: pl.DataFrame) -> str:
    return frames.digest_of(frames.checked(EVERYTHING, frame, PART), EVERYTHING.columns)


@given(ROWS, st.randoms(use_true_random=False))
@settings(max_examples=60)
@pytest.mark.promise("C3")
def test_the_digest_ignores_the_order_of_rows(rows: list[tuple[Any, ...]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert digest(build(rows)) == digest(build(shuffled))


@given(ROWS.filter(bool), st.data())
@settings(max_examples=80)
def test_the_digest_feels_every_cell(rows: list[tuple[Any, ...]], data: st.DataObject) -> None:
    frame = build(rows)
    row = data.draw(st.integers(0, frame.height - 1))
    column = data.draw(st.sampled_from(["number", "flag", "text", "at", "shape"]))
    old = frame[column].to_list()[row]
    other = {"number": 0.125, "flag": True, "text": "é\x00", "at": NOW, "shape": [0.125, 0.5]}[column]
    new = data.draw(
        st.sampled_from(
            [None, other, {"text": "", "number": -2.5, "flag": False, "at": NOW + timedelta(1), "shape": []}[column]]
        )
    )
    hypothesis.assume(new != old)
    values = frame[column].to_list()
    values[row] = new
    changed = frame.with_columns(pl.Series(column, values, dtype=SCHEMA[column]))
    assert digest(changed) != digest(frame)


def test_text_cannot_slide_from_one_row_or_column_into_the_next() -> None:
    one = everything(text=["ab", "c", ""])
    two = everything(text=["a", "bc", ""])
    three = everything(text=["", "ab", "c"])
    assert len({digest(one), digest(two), digest(three)}) == 3
    assert digest(everything(text=[None, "", "x"])) != digest(everything(text=["", None, "x"]))


def test_a_slice_and_a_copy_have_one_digest() -> None:
    whole = pl.concat([everything(example_id=[10, 11, 12], text=["lead", "in", None]), everything()])
    assert digest(whole.slice(3, 3)) == digest(everything())


def test_the_digest_is_the_documented_one() -> None:
    """Recomputed by hand from the words of the module, so that another version of any library gives the same."""
    import hashlib
    import struct

    frame = pl.DataFrame({"example_id": [2, 1], "el2n": [1.0, 0.5], "spread": [None, 0.25], "wall_s": [3.0, 4.0]})
    columns = EL2N.table.columns
    header = '[[["example_id","int64"],["el2n","float64"],["spread","float64"],["wall_s","float64"]],2]'
    by_hand = header.encode() + b"all" + struct.pack("<qq", 1, 2) + b"all" + struct.pack("<dd", 0.5, 1.0)
    by_hand += bytes([0b10000000]) + struct.pack("<dd", 0.25, 0.0) + b"all" + struct.pack("<dd", 4.0, 3.0)
    assert frames.digest_of(frames.checked(EL2N.table, frame, {}), columns) == hashlib.sha256(by_hand).hexdigest()


def test_volatile_and_partition_columns_are_not_content() -> None:
    rows = [
        {
            "artifact_id": "a",
            "role": role,
            "recipe": "supervised",
            "seed": 0,
            "epochs": 1,
            "num_parameters": 1,
            "train_loss": 0.1,
            "train_quality": acc,
            "test_quality": 1.0,
            "retains": "",
            "wall_s": wall,
        }
        for role, acc, wall in (("target", 0.9, 1.0), ("target", 0.9, 2.0), ("early", 0.9, 1.0), ("target", 0.8, 1.0))
    ]
    found = [
        frames.digest_of(
            frames.checked(CHECKPOINTS, pl.DataFrame([row]), {"role": row["role"]}), frames.content_columns(CHECKPOINTS)
        )
        for row in rows
    ]
    assert found[0] == found[1] == found[2] != found[3]


def test_ten_ids_are_named_and_the_rest_counted() -> None:
    frame = score_frame(list(range(100))).with_columns(el2n=pl.lit(9.0))
    with pytest.raises(
        DataError, match=r"100 values of el2n are above 1\.5 1 \(example ids: 0, 1, .*, 9, \.\.\. 100 in all\)"
    ):
        frames.checked(EL2N.table, frame, {})


def test_a_million_rows_are_checked_and_digested_in_any_order_alike() -> None:
    n = 1_000_000
    order = np.random.default_rng(5).permutation(n)
    ordered = pl.DataFrame(
        {"example_id": np.arange(n), "el2n": np.arange(n) / n, "spread": np.ones(n), "wall_s": np.ones(n)}
    )
    columns = EL2N.table.columns
    one, two = (frames.checked(EL2N.table, f, {}) for f in (ordered, ordered[order]))
    assert frames.digest_of(one, columns) == frames.digest_of(two, columns)


def test_leap_and_daylight_saving_moments_are_kept_in_utc() -> None:
    moments = [datetime(2024, 2, 29, tzinfo=UTC), NOW, NOW + timedelta(hours=1)]
    assert frames.checked(EVERYTHING, everything(at=moments), PART)["at"].to_list() == moments
