"""Tables: pandas' own files read back, one-hot by hand, and every refusal by column and example."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigError, DataError, UnsafeFile
from sources.loading import load


def _load(path, label="label", seed=0, **config):
    return load("table", {"root": str(path.parent), "file": path.name, "label": label} | config, seed=seed)


def _write(frame, path, **more):
    if path.suffix == ".parquet":
        frame.to_parquet(path, **more)
    else:
        frame.to_csv(path, **({"index": False} | more))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_by_hand(tmp_path, frame, suffix):
    data = _load(_write(frame, tmp_path / f"d{suffix}"), owner="person")
    assert data.feature_names == ("height", "visits", "smoker", "town=Bonn", "town=Köln", "town=Ulm")
    assert data.class_names == ("no", "yes") and data.y.tolist() == [0, 1] * 30
    assert data.owner.tolist() == frame["person"].tolist()
    np.testing.assert_array_equal(data.x[:, 0], frame["height"].astype(np.float32))
    np.testing.assert_array_equal(data.x[:, 1], frame["visits"])
    np.testing.assert_array_equal(data.x[:, 2], frame["smoker"])
    for k, town in enumerate(["Bonn", "Köln", "Ulm"]):
        np.testing.assert_array_equal(data.x[:, 3 + k], frame["town"] == town)
    train = data.split == "train"
    scaled = data.inputs(slice(None))
    np.testing.assert_allclose(scaled[train, :2].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[train, :2].std(0), 1, rtol=1e-4)
    np.testing.assert_array_equal(scaled[:, 2:], data.x[:, 2:])  # 0/1 columns stay
    assert (data.split == "test").sum() == 15


def test_csv_and_parquet_have_one_digest(tmp_path, frame):
    assert _load(_write(frame, tmp_path / "a.csv")).digest == _load(_write(frame, tmp_path / "b.parquet")).digest


def test_ids_survive_another_order_of_the_rows(tmp_path, frame):
    frame["nr"] = np.arange(60) * 3 + 11
    straight = _load(_write(frame, tmp_path / "a.parquet"), id="nr", owner="person", seed=4)
    mixed = _load(
        _write(frame.sample(frac=1, random_state=1), tmp_path / "b.parquet", index=False),
        id="nr",
        owner="person",
        seed=4,
    )
    assert "nr" not in straight.feature_names
    np.testing.assert_array_equal(np.sort(straight.example_id), frame["nr"])
    assert straight.digest == mixed.digest and straight.example_id.tolist() != mixed.example_id.tolist()
    np.testing.assert_allclose(straight.center, mixed.center, rtol=1e-6)


def test_levels_come_from_the_training_split(tmp_path, frame):
    frame["part"] = ["test" if i % 4 == 3 else "train" for i in range(60)]
    frame.loc[frame["part"] == "test", "town"] = ["Mars"] * 14 + ["Ulm"]
    data = _load(_write(frame, tmp_path / "d.csv"), split="part", drop=["person"])
    assert data.split.tolist() == frame["part"].tolist()
    assert [n for n in data.feature_names if n.startswith("town")] == ["town=Bonn", "town=Köln", "town=Ulm"]
    towns = data.part("test").x[:, 3:6]
    assert towns[:14].sum() == 0 and towns[14].tolist() == [0, 0, 1]


@given(words=st.lists(st.sampled_from(["", "a", "b", "a b", 'q"q', "c,d", "é", "=", "\n"]), min_size=12, max_size=40))
def test_one_hot_equals_a_loop(tmp_path_factory, words):
    words = [w or "empty" for w in words]
    frame = pd.DataFrame(
        {"w": words, "z": np.arange(len(words)), "label": ["x", "y"] * (len(words) // 2) + ["x"] * (len(words) % 2)}
    )
    data = _load(_write(frame, tmp_path_factory.mktemp("t") / "d.csv"))
    seen = sorted({w for w, s in zip(words, data.split, strict=True) if s == "train"})
    assert data.feature_names == (*[f"w={w}" for w in seen], "z")
    for row, word in enumerate(words):
        assert data.x[row, :-1].tolist() == [float(word == level) for level in seen]


def test_types_that_others_use(tmp_path):
    num = 40
    table = pa.table(
        {
            "i8": pa.array(np.arange(num) % 7, pa.int8()),
            "u64": pa.array(np.arange(num), pa.uint64()),
            "f16": pa.array(np.arange(num).astype(np.float16)),
            "dec": pa.array(np.arange(num)).cast(pa.decimal128(22, 2)),
            "cat": pa.array(["u", "v"] * (num // 2)).dictionary_encode(),
            "big": pa.array(["s"] * num, pa.large_string()),
            "label": pa.array([True, False] * (num // 2)),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    data = _load(tmp_path / "d.parquet")
    assert data.feature_names == ("i8", "u64", "f16", "dec", "cat=u", "cat=v", "big=s")
    np.testing.assert_array_equal(data.x[:, 3], np.arange(num))
    assert data.class_names == ("False", "True") and data.y[0] == 1
    frame = pl.DataFrame(
        {"a": range(num), "e": pl.Series(["x", "y"] * 20, dtype=pl.Enum(["y", "x"])), "label": [0, 1] * 20}
    )
    frame.write_parquet(tmp_path / "e.parquet")
    assert _load(tmp_path / "e.parquet").feature_names == ("a", "e=x", "e=y")


def test_task_and_categorical_numbers(tmp_path, frame):
    frame["price"] = np.random.default_rng(0).normal(300, 50, 60)
    path = _write(frame, tmp_path / "d.csv")
    data = _load(path, label="price", categorical=["visits"], drop=["person", "label"])
    assert data.task.name == "regression" and data.class_names == ()
    np.testing.assert_array_equal(data.y, frame["price"])
    levels = [n for n in data.feature_names if n.startswith("visits=")]
    assert levels == sorted(levels) and len(levels) > 10
    assert _load(path, label="visits", task="regression", drop=["person"]).task.name == "regression"


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators_are_found(tmp_path, frame, separator):
    want = _load(_write(frame, tmp_path / "a.csv")).digest
    path = _write(frame, tmp_path / "b.csv", sep=separator)
    assert _load(path).digest == want == _load(path, separator=separator).digest
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as Excel writes it
    assert _load(path).digest == want


def _with(frame, column, row, value):
    frame = frame.astype({column: object}) if isinstance(value, str) or value is None else frame.copy()
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("change", "config", "message", "ids"),
    [
        (lambda f: _with(f, "height", 7, np.nan), {}, "'height' is missing", [7]),
        (lambda f: _with(f, "height", 9, np.inf), {}, "column .height. is NaN, infinite or", None),
        (lambda f: _with(f, "town", 3, None), {}, "'town' is missing", [3]),
        (lambda f: _with(f, "label", 5, None), {}, "'label' is missing", [5]),
        (lambda f: f.assign(nr=np.arange(60) // 2), {"id": "nr"}, "more than once", list(range(30))),
        (lambda f: _with(f.assign(nr=np.arange(60.0)), "nr", 2, np.nan), {"id": "nr"}, "'nr' is missing", [2]),
        (lambda f: f.assign(nr=[f"k{i}" for i in range(60)]), {"id": "nr"}, "whole numbers", []),
        (lambda f: f.assign(part="train"), {"split": "part"}, "no test example", []),
        (lambda f: f.assign(part=["train"] * 59 + ["hold"]), {"split": "part"}, "'hold'", [59]),
        (lambda f: f.assign(label=[1.0, 0.5] * 30), {"task": "classification"}, "not whole", list(range(1, 60, 2))),
        (lambda f: f.assign(label=[1, 0, -1] * 20), {}, "negative", list(range(2, 60, 3))),
        (lambda f: f.assign(label="same"), {}, "at least 2", []),
        (lambda f: f.assign(text=[f"t{i}" for i in range(60)]), {"max_levels": 20}, "'text' has .* levels", []),
        (lambda f: f, {"label": "nope"}, "no column 'nope'; columns are: 'height'", []),
        (lambda f: f, {"drop": ["nope"]}, "no column 'nope'", []),
        (lambda f: f, {"drop": ["height", "visits", "smoker", "town", "person"]}, "no feature column", []),
        (lambda f: f[:0], {}, "no rows", []),
        (lambda f: f.assign(label=["a"] + ["b"] * 59, part=["test"] + ["train"] * 59), {"split": "part"}, "'a'", None),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_refused(tmp_path, frame, change, config, message, ids, suffix):
    with pytest.raises(DataError, match=message) as error:
        _load(_write(change(frame), tmp_path / f"d{suffix}"), **config)
    if ids is not None:
        named = error.value.where and [int(where.rsplit(" ", 1)[1]) - 1 for where in error.value.where]
        assert list(named or error.value.example_ids) == ids  # rows, or the ids where these themselves are wrong


def test_dates_and_nested_columns_are_named(tmp_path, frame):
    for extra in (pd.date_range("2024-01-01", periods=60), [[1, 2], [3]] * 30, [{"a": 1}] * 60, [b"x"] * 60):
        path = _write(frame.assign(odd=extra), tmp_path / "d.parquet")
        with pytest.raises(DataError, match=r"'odd'.*'drop'"):
            _load(path)
        _load(path, drop=["odd"])


def test_saved_row_index_is_not_a_feature(tmp_path, frame):
    path = tmp_path / "d.csv"
    frame.to_csv(path)
    with pytest.raises(DataError, match="saved row index"):
        _load(path)
    assert "" not in _load(path, drop=[""]).feature_names
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match="saved row index"):
        _load(tmp_path / "d.parquet")


def test_two_roles_for_one_column_are_refused(tmp_path, frame):
    with pytest.raises(ConfigError, match="'label' has two roles"):
        _load(_write(frame, tmp_path / "d.csv"), drop=["label"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", "'a' appears 2 times"),
        (b"1.5,2,3\n4,5,6\n", "no header row"),
        (b"a,label\n1,x\n2,y,z,w\n", "cannot be read as CSV"),
        (b"", "neither Parquet"),
        (b"\n\n", "neither Parquet"),
        (b"just one column\n1\n", "neither Parquet"),
        (b"PAR1 and nothing else PAR1", "not a readable Parquet"),
        (b"a,label\n\xff\xfe,x\n", "is not UTF-8"),
        (b"\xff\xfea\0,\0b\0\n\0", "neither Parquet"),
        (b"a," + b"x" * 2_000_000 + b"\n1,2\n", "longer than"),
    ],
)
@pytest.mark.promise("B2")
def test_files_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(DataError, match=message):
        _load(tmp_path / "d")


def test_rows_shorter_than_the_header_are_missing_values(tmp_path):
    (tmp_path / "d.csv").write_text("a,b,label\n1,2,x\n3\n5,6,y\n7,8,x\n")
    with pytest.raises(DataError, match="missing"):
        _load(tmp_path / "d.csv")


@pytest.mark.promise("B5")
def test_sizes_are_checked_before_allocation(tmp_path, frame, peak_below):
    many = pd.DataFrame({"c": [f"{i % 90}" for i in range(20_000)], "label": [0, 1] * 10_000})
    path = _write(many, tmp_path / "d.parquet")
    with peak_below(20e6), pytest.raises(UnsafeFile, match="encoded features"):
        _load(path, categorical=["c"], max_bytes=2_000_000)
    pq.write_table(
        pa.table({"a": pa.array(np.zeros(3_000_000)), "label": pa.array(np.zeros(3_000_000))}), tmp_path / "z.parquet"
    )
    assert (tmp_path / "z.parquet").stat().st_size < 100_000
    with pytest.raises(UnsafeFile, match="48,000,000 bytes"):
        _load(tmp_path / "z.parquet", max_bytes=10_000_000)
    with pytest.raises(UnsafeFile, match="max_bytes"):
        _load(_write(frame, tmp_path / "e.csv"), max_bytes=1024)
    frame["person"] = ["x" * 100_000] + ["y"] * 59  # as numpy text every row would take 400 kB
    with peak_below(8e6), pytest.raises(UnsafeFile, match="'person'"):
        _load(_write(frame, tmp_path / "f.parquet"), owner="person", max_bytes=10_000_000)


@pytest.mark.promise("B2")
def test_truncated_and_damaged_parquet_is_a_typed_error(tmp_path, frame):
    path = _write(frame, tmp_path / "d.parquet")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in [0, 3, 8, *rng.integers(9, len(content), 20)]:
        path.write_bytes(content[:cut])
        with pytest.raises((DataError, UnsafeFile)):
            _load(path)
    # Values may change unseen (see sources/table_files.py); but nothing other than our own errors may come out.
    for at in rng.integers(0, len(content), 200):
        flipped = bytearray(content)
        flipped[at] ^= 0xFF
        path.write_bytes(flipped)
        try:
            data = _load(path)
        except (DataError, UnsafeFile):
            continue
        assert data.num_examples == 60


def test_names_are_not_patterns(tmp_path, frame):
    _write(frame, tmp_path / "a.csv")
    assert _load(_write(frame, tmp_path / "d[1]*.csv")).num_examples == 60
    assert _load(_write(frame, tmp_path / "d[1]*.parquet")).num_examples == 60
