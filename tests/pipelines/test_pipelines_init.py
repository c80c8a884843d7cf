"""From ``palimpsest init`` to the examples that its plan loads: nothing of a user's data is dropped or guessed without
a word."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from assets import data as data_stage
from contracts.errors import ConfigError, DataError, PalimpsestError, UnsafeFile
from contracts.methods import Asked
from contracts.schema import EXAMPLES
from pipelines.cli.app import app
from pipelines.cli.init import Planned, plan_for
from pipelines.subjects import load_subject
from recipes.plan import load_examples
from sources.example_set import ExampleSet
from sources.loading import load

RNG = np.random.default_rng(0)


def read(path: Path, **asked: object) -> Planned:
    """What init plans for these data; the plan loads the very examples that it was sized by."""
    found = plan_for("mine", path, Asked(**asked), model="mlp")  # type: ignore[arg-type]
    assert load_examples(found.plan).digest == found.examples.digest
    return found


def said(found: Planned, *words: str) -> bool:
    return any(all(word in note for word in words) for note in found.notes)


def pictures(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 5), dtype=np.uint8)).save(root / name)
    return root


def table(path: Path, num: int = 60, **columns: object) -> Path:
    frame = pd.DataFrame({"a": np.arange(num) / 7, "label": ["no", "yes"] * (num // 2)} | columns)
    frame.to_csv(path, index=False)
    return path


# Splits


@pytest.mark.parametrize(
    ("layout", "train", "test"),
    [
        ("{split}/{label}/{i}.png", "Training", "Testing"),
        ("{split}/{label}/{i}.png", "TRAIN", "TEST"),
        ("{split}/{label}/{i}.png", "seg_train", "seg_test"),
        ("{split}/{split}/{label}/{i}.png", "seg_train", "seg_test"),
        ("{split}/{split}/{label}/{i}.png", "training_set", "test_set"),
        ("archive/data/{split}/{label}/{i}.png", "train", "test"),
        ("{split}/{label}/{i}.png", "train", "evaluation"),
    ],
)
def test_folders_that_speak_of_splits(tmp_path: Path, layout: str, train: str, test: str) -> None:
    names = [layout.format(split=s, label=c, i=i) for s in (train, test) for c in ("cat", "dog") for i in range(4)]
    found = read(pictures(tmp_path / "d", names))
    assert found.examples.class_names == ("cat", "dog") and found.examples.origin.tolist() == names
    assert found.examples.split.tolist() == ["train"] * 8 + ["test"] * 8
    assert found.examples.provenance["split"] == "the data's own"


@pytest.mark.parametrize("word", ["val", "valid", "Validation"])
@pytest.mark.parametrize(
    ("val", "split"), [(None, (8, 4)), ("drop", (8, 4)), ("train", (10, 4)), ("test", (8, 6))], ids=str
)
def test_validation_is_kept_apart_and_named(tmp_path: Path, word: str, val: str | None, split: tuple[int, int]) -> None:
    sizes = {"train": 4, word: 1, "test": 2}
    names = [f"{s}/{c}/{i}.png" for s, num in sizes.items() for c in "ab" for i in range(num)]
    found = read(pictures(tmp_path, names), val=val)
    assert tuple((found.examples.split == s).sum() for s in ("train", "test")) == split
    taken = {None: "left out of the audit", "drop": "left out", "train": "trained on", "test": "tested on"}[val]
    assert said(found, "2 validation pictures are", taken)
    is_val = np.char.startswith(found.examples.origin, word)
    assert is_val.sum() == (0 if val in (None, "drop") else 2)


def test_validation_without_a_test_split(tmp_path: Path) -> None:
    root = pictures(tmp_path, [f"{s}/{c}/{i}.png" for s in ("train", "val") for c in "ab" for i in range(4)])
    found = read(root)
    assert (found.examples.split == "test").sum() == 8 and said(found, "8 validation pictures are the test split")
    assert said(read(table(tmp_path / "d.csv"), val="drop"), "no rows are for validation")
    found = read(root, val="drop")
    assert len(found.examples) == 8 and said(found, "left out", "a test split is drawn from the others")


def test_folders_beside_the_splits_are_named(tmp_path: Path) -> None:
    names = [f"{s}/{c}/{i}.png" for s in ("seg_train", "seg_test") for c in "ab" for i in range(3)]
    found = read(pictures(tmp_path, [*names, "seg_pred/1.png"]))
    assert len(found.examples) == 12 and said(found, "left out", "seg_pred")
    with pytest.raises(DataError, match="'train' and 'training' both speak of the train split"):
        read(pictures(tmp_path / "two", ["train/a/1.png", "training/a/1.png", "test/a/1.png"]))


def test_a_folder_of_pictures_without_classes_is_no_class(tmp_path: Path) -> None:
    """As competitions give them: the test pictures have no label. "train" and "test" were the classes of that."""
    names = [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(6)]
    found = read(pictures(tmp_path, [*names, *(f"test/{i}.png" for i in range(4))]))
    assert found.examples.class_names == ("cat", "dog") and sorted(found.examples.origin.tolist()) == names
    assert said(found, "test is left out", "no label") and (found.examples.split == "test").sum() == 3


def test_splits_below_each_class_are_splits(tmp_path: Path) -> None:
    names = [
        f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s, n in (("train", 4), ("val", 2), ("test", 3)) for i in range(n)
    ]
    found = read(pictures(tmp_path, names))
    assert found.examples.class_names == ("cat", "dog") and said(found, "below each class")
    assert (
        sum("/train/" in origin for origin in found.examples.part("train").origin)
        == 8
        == len(found.examples.part("train"))
    )
    assert len(found.examples.part("test")) == 6 and said(found, "4 validation pictures are left out")
    odd = read(
        pictures(tmp_path / "odd", [f"{c}/{o}/{i}.png" for c in "ab" for o in ("train", "ann") for i in range(3)])
    )
    assert odd.examples.provenance["split"].startswith("stratified"), "not every folder speaks of a split"


def test_a_file_beside_the_only_folder_hides_nothing(tmp_path: Path) -> None:
    names = [f"data/{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(4)]
    root = pictures(tmp_path, names)
    for name in ("README.md", "data/LICENSE"):
        (root / name).write_text("hello")
    found = read(root)
    assert found.examples.class_names == ("a", "b") and sorted(found.examples.origin.tolist()) == sorted(names)
    assert said(found, "in no class folder", "README.md", "LICENSE")


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    found = read(pictures(tmp_path, [f"{c}/{i}.png" for c in ("bus", "train", "test_tube") for i in range(3)]))
    assert found.examples.class_names == ("bus", "test_tube", "train")


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [("train", "test", "val"), ("Training", "Testing", "Validation"), ("TRAIN", "TEST", "dev"), ("tra in", "test", "")],
)
def test_columns_of_splits(tmp_path: Path, train: str, test: str, val: str) -> None:
    path = table(tmp_path / "d.csv", split=([train] * 4 + [test, val or test]) * 10)
    if train == "tra in":
        with pytest.raises(ConfigError, match=r"column 'split' holds .*cannot be known.*--drop split"):
            read(path)
        return
    found = read(path)
    assert found.examples.split.tolist() == (["train"] * 4 + ["test"]) * 10
    assert said(found, "10 validation rows are left out") and said(found, "'split'", "by its name")
    assert found.examples.origin.tolist() == [f"d.csv row {i + 1}" for i in range(60) if i % 6 < 5]
    assert len(read(path, val="train").examples.part("train")) == 50
    assert len(read(path, drop=("split",)).examples) == 60


@pytest.mark.parametrize("values", [[0, 1] * 30, [0.0, 1.0] * 30])
def test_a_split_of_numbers_is_refused_with_the_reason(tmp_path: Path, values: list[float]) -> None:
    path = table(tmp_path / "d.csv", split=values, part=values)
    with pytest.raises(ConfigError, match=r"column 'split' holds 0.*1.*which of them is training cannot be known"):
        read(path)
    with pytest.raises(DataError, match=r"split 'part' holds 0.*, 1.*which of them is training cannot be known"):
        read(path, split="part", drop=("split",))
    words = table(tmp_path / "e.csv", part=["train", "hold", "test"] * 20)
    with pytest.raises(DataError, match=r"'hold', which is none of train, training.*\(e.csv rows 2, 5, "):
        read(words, split="part")


@pytest.mark.parametrize(
    ("x", "y"),
    [("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("{}_images", "{}_labels"), ("X{}", "y{}"), ("{}_data", "{}_targets")],
)
def test_arrays_that_speak_of_splits(tmp_path: Path, x: str, y: str) -> None:
    sizes = {"train": 20, "test": 8, "val": 4}
    arrays = {}
    for word, num in sizes.items():
        arrays |= {x.format(word): RNG.normal(size=(num, 3)), y.format(word): np.arange(num) % 2}
    np.savez(tmp_path / "d.npz", **arrays, meta=np.arange(3))
    if x == "X{}":  # no word stands alone in "Xtrain"
        with pytest.raises(DataError, match="x_train, y_train, x_test, y_test; it has: Xtrain"):
            read(tmp_path / "d.npz")
        return
    found = read(tmp_path / "d.npz")
    assert found.examples.split.tolist() == ["train"] * 20 + ["test"] * 8
    assert said(found, "4 validation examples are left out") and said(found, "arrays left out", "meta")
    assert found.examples.origin[20] == f"{x.format('test')}[0]"
    everything = read(tmp_path / "d.npz", val="train").examples
    assert (everything.split == "train").sum() == 24
    np.testing.assert_array_equal(everything.x[28:], arrays[x.format("val")].astype(np.float32))


def test_training_arrays_alone_have_a_test_split_drawn(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_train=RNG.normal(size=(40, 3)), y_train=np.arange(40) % 2)
    assert (read(tmp_path / "d.npz").examples.split == "test").sum() == 10
    np.savez(tmp_path / "e.npz", x=RNG.normal(size=(40, 3)), y=np.arange(40) // 20, part=["train", "test"] * 20)
    assert (read(tmp_path / "e.npz", split="part").examples.split == "test").sum() == 20


# Ids


def test_ids_are_taken_refused_or_explained(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", id=np.arange(60) + 5)
    found = read(path)
    assert found.examples.example_id.tolist() == list(range(5, 65)) and said(found, "'id' holds the example ids")
    assert "id" in read(path, drop=("id",)).plan.source.config["drop"]
    found = read(table(tmp_path / "f.csv", id=np.arange(60.0) + 5))
    assert found.examples.example_id.tolist() == list(range(5, 65)) and said(found, "ids are written as floats")
    for bad, why in (
        ([7] * 60, "used more than once"),
        (np.arange(60) / 2, "must be whole numbers, not 0.5"),
        (np.arange(60) - 1, "must lie in 0"),
        ([None, *range(59)], "is missing .* in 1 rows"),
    ):
        with pytest.raises(
            ConfigError, match=rf"'id' is called an id and cannot be one: .*{why}.*--owner id.*--drop id"
        ):
            read(table(tmp_path / "bad.csv", id=bad))
    found = read(table(tmp_path / "t.csv", id=[f"A-{i}" for i in range(60)]))
    assert "id" not in found.plan.source.config and said(found, "'id' is left out", "holds text", "whole numbers")
    with pytest.raises(DataError, match=r"must be whole numbers, not .* such as 'A-0'.*origin"):
        read(tmp_path / "t.csv", id="id")


def test_numbers_that_only_name_rows_are_pointed_out(tmp_path: Path) -> None:
    found = read(
        table(tmp_path / "d.csv", PassengerId=np.arange(60) * 2 + 1, age=np.arange(60), patient=["p", "q"] * 30)
    )
    assert said(found, "column 'patient' is read as a feature: --owner patient")
    assert said(found, "'PassengerId'", "--id PassengerId or --drop PassengerId") and not said(found, "'age'")
    found = read(tmp_path / "d.csv", id="PassengerId", owner="patient")
    assert (
        not said(found, "patient")
        and found.examples.feature_names == ("a", "age")
        and found.examples.example_id[2] == 5
    )


# Numbers, columns left out


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = table(
        tmp_path / "d.csv",
        price=[f"${1000 + i:,}.50" for i in range(60)],
        share=[f"{i} %" for i in range(60)],
        debt=[f"({i + 1:,})" for i in range(60)],
        euro=[f"{i},5 €" for i in range(60)],
        zip=["90210", "10115"] * 30,
    )
    found = read(path)
    assert found.examples.feature_names == ("a", "price", "share", "debt", "euro", "zip")
    np.testing.assert_array_equal(found.examples.x[:, 1], np.arange(60) + np.float32(1000.5))
    np.testing.assert_array_equal(found.examples.x[:, 2:5].T, [np.arange(60), -1 - np.arange(60), np.arange(60) + 0.5])
    for name, text in (("price", "$1,000.50"), ("share", "0 %"), ("debt", "(1)"), ("euro", "0,5 €")):
        assert said(found, f"column '{name}'", f"text such as '{text}' is read as the number")


def test_decimal_commas_and_blanks_behind_separators(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        "size; weight; label\n" + "".join(f"{i},25; 1.{100 + i},5; {'ja' if i % 2 else 'nein'}\n" for i in range(40))
    )
    found = read(tmp_path / "d.csv")
    np.testing.assert_array_equal(found.examples.x, [[i + 0.25, 1100.5 + i] for i in range(40)])
    assert found.examples.class_names == ("ja", "nein") and found.examples.feature_names == ("size", "weight")
    (tmp_path / "e.csv").write_text("a, town, label\n" + "".join(f' {i}, "Ulm, {i % 2}", {i % 2}\n' for i in range(40)))
    found = read(tmp_path / "e.csv")
    assert found.examples.feature_names == ("a", "town=Ulm, 0", "town=Ulm, 1") and found.examples.x[7, 0] == 7
    (tmp_path / "f.csv").write_text("\n\n" + '"height\n(cm)",label\n' + "".join(f"{i},{i % 2}\n" for i in range(40)))
    assert read(tmp_path / "f.csv").examples.feature_names == ("height\n(cm)",)


def test_the_line_that_excel_writes_above_a_header_and_lines_of_old_macs(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        "\ufeffsep=;\n" + "size;label\n" + "".join(f"{i},5;{'ab'[i % 2]}\n" for i in range(20))
    )
    found = read(tmp_path / "d.csv")
    assert found.examples.feature_names == ("size",) and found.examples.x[:2, 0].tolist() == [0.5, 1.5]
    assert found.examples.origin[0] == "d.csv row 1"
    (tmp_path / "m.csv").write_bytes(b"size,label\r" + b"1,a\r2,b\r" * 9)
    with pytest.raises(DataError, match=r"m\.csv: its lines end in carriage returns alone"):
        read(tmp_path / "m.csv")


def test_each_column_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    path = table(
        tmp_path / "d.csv",
        num=400,
        note=[f"text {i}" for i in range(400)],
        day=pd.date_range("2024-01-01", periods=400),
        blank=[None] * 400,
        name=[f"n{i}" for i in range(90)] * 4 + ["m"] * 40,
    )
    frame = pd.read_csv(path, parse_dates=["day"]).assign(pair=[{"u": 1}] * 400, ragged=[[1.0], [1.0, 2.0]] * 200)
    frame.insert(0, "Unnamed: 0", range(400))
    frame.to_parquet(tmp_path / "d.parquet")
    found = read(tmp_path / "d.parquet")
    for name, why in (
        ("Unnamed: 0", "a saved row index"),
        ("note", "text of 400 different values, more than 100"),
        ("day", "turn them into numbers"),
        ("blank", "it is empty"),
        ("pair", "no number, no category and no list"),
        ("ragged", "its lists have 1 to 2 numbers"),
    ):
        assert said(found, f"column '{name}' is left out", why), name
    assert set(found.plan.source.config["drop"]) == {"Unnamed: 0", "note", "day", "blank", "pair", "ragged"}
    assert said(read(path), "'day' is left out", "dates or times written as text ('2024-01-01')")
    with pytest.raises(ConfigError, match="--drop 'nme' is not a column"):
        read(path, drop=("nme",))


def test_where_nothing_is_left_to_learn_from_each_column_says_why(tmp_path: Path) -> None:
    rows = {
        "emb": [[1.0] * (2 + i % 2) for i in range(60)],
        "note": [f"text {i}" for i in range(60)],
        "label": [0, 1] * 30,
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(
        DataError, match=r"no column to learn from: .*'emb' .* 2 to 3 numbers.*; column 'note' .* free text"
    ):
        read(tmp_path / "d.parquet")


def test_columns_of_one_value_are_said_and_nothing_else_is_no_data(tmp_path: Path) -> None:
    found = read(table(tmp_path / "d.csv", site="Ulm", year=2024, paid=True))
    assert said(found, "one value in all rows", "3 of the columns", "'site', 'year', 'paid'")
    assert set(found.examples.feature_names) == {"a", "site=Ulm", "year", "paid"}, "a given model may want them"
    assert not said(read(table(tmp_path / "e.csv")), "one value")
    with pytest.raises(DataError, match=r"d.csv has no column to learn from: one value in all rows.*: 3 of the"):
        read(tmp_path / "d.csv", drop=("a",))


def test_rows_without_an_owner_are_counted(tmp_path: Path) -> None:
    found = read(table(tmp_path / "d.csv", person=[None if i in (3, 9) else i % 20 for i in range(60)]), owner="person")
    assert said(found, "2 examples have no owner") and set(found.examples.owner) == {"", *map(str, range(20))}
    assert not said(read(table(tmp_path / "e.csv", person=[i % 20 for i in range(60)]), owner="person"), "no owner")
    assert not said(read(table(tmp_path / "f.csv")), "no owner"), "nobody asked for owners"


def test_missing_values_name_rows_and_what_to_do(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", hp=["130", "?", "150"] * 20)
    with pytest.raises(DataError, match=r"'hp' is missing.* in 20 rows.*--drop.*\(d.csv rows 2, 5, 8,"):
        read(path)
    assert read(path, drop=("hp",)).examples.feature_names == ("a",)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, 1e39])
def test_values_that_are_no_float32_name_column_and_rows(tmp_path: Path, wrong: float) -> None:
    rows = {"a": np.arange(60) / 7, "hp": [1.0, wrong, 2.0] * 20, "emb": [[1.0, 2.0 + i] for i in range(60)]}
    pl.DataFrame({**rows, "label": ["no", "yes"] * 30}).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"'hp' is NaN, infinite or .* in 20 rows: .*--drop.*\(d.parquet rows 2, 5, 8,"):
        read(tmp_path / "d.parquet")
    pl.DataFrame({**rows, "hp": 1.0, "emb": [[1.0, wrong]] * 60, "label": ["no", "yes"] * 30}).write_parquet(
        tmp_path / "e.parquet"
    )
    with pytest.raises(DataError, match=r"'emb' is NaN, infinite or .* in 60 rows"):
        read(tmp_path / "e.parquet")


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        ([-1, 1] * 30, ("-1", "1"), "labels -1, 1 are classes 0, 1"),
        ([1, 2, 3] * 20, ("1", "2", "3"), "labels 1, 2, 3 are classes 0, 1, 2"),
        ([0, 5, 9] * 20, ("0", "5", "9"), "labels 0, 5, 9 are classes 0, 1, 2"),
        ([0.0, 1.0] * 30, ("0", "1"), "labels are written as floats (0, 1); --task regression"),
        (np.eye(3)[np.arange(60) % 3], ("0", "1", "2"), "labels of shape (60, 3) are one-hot"),
        ((np.arange(60) % 2).reshape(60, 1, 1), ("0", "1"), "labels of shape (60, 1, 1) are read as (60,)"),
    ],
    ids=["signs", "from one", "gaps", "floats", "one-hot", "extra axes"],
)
def test_labels_are_mapped_and_the_mapping_is_shown(
    tmp_path: Path, labels: list[float] | np.ndarray, names: tuple[str, ...], note: str
) -> None:
    np.savez(tmp_path / "d.npz", x=RNG.normal(size=(60, 2)), y=labels)
    found = read(tmp_path / "d.npz")
    assert found.examples.class_names == names and said(found, note)
    assert found.examples.y.tolist() == [i % len(names) for i in range(60)]
    if np.ndim(labels) == 1:
        same = read(table(tmp_path / "d.csv", label=labels))
        assert same.examples.y.tolist() == found.examples.y.tolist() and said(same, note)


def test_the_task_may_be_said(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv", label=[0.0, 1.0, 2.0] * 20)
    assert read(path).examples.num_classes == 3
    assert read(path, task="regression").examples.task.name == "regression"
    path = table(tmp_path / "e.csv", label=[f"$1,{i:03}" for i in range(200, 260)])
    with pytest.raises(DataError, match=r"60 examples in 60 classes.*--task regression"):
        read(path)
    found = read(path, task="regression")
    assert found.examples.y.tolist() == list(range(1200, 1260)) and said(found, "label 'label'", "'$1,200'")


# Parquet, Hugging Face, shards, JSON lines


def test_a_parquet_of_many_columns_is_opened_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {f"c{i}": RNG.normal(size=40) for i in range(400)} | {"label": np.arange(40) % 2}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    opened = []

    class Counted(pq.ParquetFile):
        def __init__(self, *args: object, **more: object) -> None:
            opened.append(args)
            super().__init__(*args, **more)

    monkeypatch.setattr(pq, "ParquetFile", Counted)
    found = plan_for("mine", tmp_path / "d.parquet", Asked(), model="mlp")
    assert found.examples.input_shape == (400,) and len(opened) < 10


def hugging_face(path: Path, names: list[str], *, num: int = 20, start: int = 0, bad: tuple[int, ...] = ()) -> None:
    """As ``datasets.Dataset.to_parquet`` writes an Image and a ClassLabel."""
    rows = []
    for i in range(start, start + num):
        out = io.BytesIO()
        Image.fromarray(np.full((6, 5, 3), i, np.uint8)).save(out, "PNG")
        rows.append({"bytes": b"junk" if i in bad else out.getvalue(), "path": f"{i}.png"})
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    made = pa.table({"image": rows, "label": [i % 2 for i in range(start, start + num)], "caption": ["c"] * num})
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


def test_picture_columns_and_shards_of_hugging_face(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    hugging_face(folder / "train-00000-of-00002.parquet", ["cat", "dog"])
    hugging_face(folder / "train-00001-of-00002.parquet", ["cat", "dog"], start=20)
    hugging_face(folder / "validation-00000-of-00001.parquet", ["cat", "dog"], start=60)
    hugging_face(folder / "test-00000-of-00001.parquet", ["cat", "dog"], start=40)
    (folder / "README.md").write_text("# cats and dogs")
    found = read(folder)
    assert found.plan.source.name == "image_table" and found.examples.class_names == ("cat", "dog")
    assert found.examples.input_shape == (3, 6, 5) and len(found.examples) == 60
    by_place = dict(zip(found.examples.origin, found.examples.x[:, 0, 0, 0], strict=True))
    assert by_place["train-00001-of-00002.parquet row 3"] == 22 and (found.examples.split == "test").sum() == 20
    assert said(found, "20 validation rows are left out") and said(found, "columns left out", "caption")
    assert said(found, "the names of the files say")
    with pytest.raises(DataError, match=r"is one of 2 shards; --data .*data reads all of them"):
        read(folder / "train-00000-of-00002.parquet")
    (tmp_path / "torn").mkdir()
    for number in range(3):
        whole = (folder / "test-00000-of-00001.parquet").read_bytes()
        (tmp_path / "torn" / f"{number}.parquet").write_bytes(whole if number else whole[:-9])
    (tmp_path / "torn" / "2.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"0.parquet is not .*2.parquet is not .*2 of 3 shards cannot be read"):
        read(tmp_path / "torn")
    hugging_face(tmp_path / "bad.parquet", ["cat", "dog"], bad=(3, 7))
    with pytest.raises(DataError, match=r"2 of 20 pictures cannot be read: bad.parquet row 4 .*; bad.parquet row 8 "):
        read(tmp_path / "bad.parquet")


def test_embeddings_json_lines_and_shards_of_tables(tmp_path: Path) -> None:
    rows = [{"vector": [i, i / 2, -i], "town": "ab"[i % 2], "label": i % 2} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    fixed = pa.array([row["vector"] for row in rows], pa.list_(pa.float32(), 3))
    pq.write_table(pa.table({"vector": fixed, "town": ["a", "b"] * 20, "label": [0, 1] * 20}), tmp_path / "d.parquet")
    want = read(tmp_path / "d.jsonl").examples
    assert want.feature_names == ("vector[0]", "vector[1]", "vector[2]", "town=a", "town=b")
    np.testing.assert_array_equal(want.x[:, :3], [row["vector"] for row in rows])
    assert read(tmp_path / "d.json").examples.digest == read(tmp_path / "d.parquet").examples.digest == want.digest
    folder = tmp_path / "parts"
    folder.mkdir()
    table(folder / "train.csv", 40)
    table(folder / "test.csv", 20)
    found = read(folder)
    assert (found.examples.split == "test").sum() == 20 and found.plan.source.config["file"] == "parts"
    table(folder / "test.csv", 20, extra=1)
    with pytest.raises(DataError, match=r"no shards of one table: column 'extra' is in one of them only.*single file"):
        read(folder)


# Broken files, unknown kinds


def test_corrupt_pictures_are_all_named_at_once(tmp_path: Path) -> None:
    root = pictures(tmp_path, [f"{c}/{i:02}.png" for c in "ab" for i in range(20)])
    good = (root / "a" / "00.png").read_bytes()
    for i in range(6):
        (root / "a" / f"{i:02}.png").write_bytes(good[:40])  # the header is whole
        (root / "b" / f"{i:02}.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"12 of 40 pictures cannot be read: a/00.png .*a/05.png.*; \.\.\. 2 more$"):
        read(root)
    (root / "c").mkdir()
    (root / "d").mkdir()
    with pytest.raises(DataError, match="class folder 'c', 'd' holds no images; 2 such folders in all"):
        read(root)


def test_what_is_not_kept_of_pictures_is_said(tmp_path: Path) -> None:
    for number, mode in enumerate(["RGBA", "LA", "CMYK", "L", "RGB", "RGB", "RGB", "RGB"]):
        path = tmp_path / "p" / "ab"[number % 2] / f"{number}.{'tif' if mode == 'CMYK' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (6, 5, len(mode)), dtype=np.uint8).squeeze()
        Image.fromarray(noise, mode=mode).save(path)
    found = read(tmp_path / "p")
    assert found.examples.input_shape == (3, 6, 5)
    assert said(found, "2 of 8 pictures have transparency, which is dropped")
    assert said(found, "1 of 8 pictures are CMYK, and are read as RGB")
    assert said(found, "1 of 8 pictures are grey, and are read as RGB")
    grey = read(pictures(tmp_path / "q", [f"{c}/{i}.png" for c in "ab" for i in range(4)]))
    assert grey.examples.input_shape == (1, 6, 5) and not said(grey, "pictures")


def test_junk_is_passed_over_and_said(tmp_path: Path) -> None:
    root = pictures(tmp_path / "d", [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    (root / "__MACOSX" / "a").mkdir(parents=True)
    (root / "__MACOSX" / "a" / "._0.png").write_bytes(b"\0\5\26\7")
    (root / "a" / ".DS_Store").write_bytes(b"\0")
    (root / "README.txt").write_text("pets")
    found = read(root)
    assert found.examples.class_names == ("a", "b") and len(found.examples) == 8
    assert said(found, "passed over", "__MACOSX", ".DS_Store") and said(found, "in no class folder", "README.txt")


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("d.csv", "a,label\n1,x\n".encode("utf-16"), "UTF-16 text, as Excel saves .*; save it as 'CSV UTF-8'"),
        ("d.csv", "a,label\n1,x\n".encode("utf-16-le"), "UTF-16 text without a mark; save it as UTF-8"),
        ("d.csv", "größe,label\n1,x\n".encode("latin-1"), "byte 0xf6 at 2 is not UTF-8"),
        ("notes.txt", b"Dear all,nothing\n" * 0 + b"Dear all\nnothing here\n", "text without columns .*'Dear all'"),
        ("d.csv", b"", "it is empty"),
        ("d.csv", b"\n\n\n", "blank lines only"),
        ("d.csv.gz", b"\x1f\x8b\x08\0\0\0\0\0", "compressed by gzip; unpack it"),
        ("d.xlsx", b"PK\3\4....[Content_Types].xml", "an Excel workbook; save the sheet as CSV"),
        ("d.zip", b"PK\3\4....cats/1.png", "a zip archive; unpack it"),
        ("d.h5", b"\x89HDF\r\n", "an HDF5 file"),
        ("d.npy", b"\x93NUMPY\1\0v\0{'descr': '<f8'}", r"a single array \(.npy\)"),
        ("d.png", b"\x89PNG\r\n", "a single picture; give the folder"),
        ("d.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow stream, as Hugging Face"),
        ("d.bin", bytes(range(256)), "its bytes are no text"),
    ],
)
def test_the_cause_of_no_known_kind_is_said(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"is no known kind of data: .*{cause}"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        ({}, "it is empty"),
        ({".DS_Store": b""}, "it is empty but for .DS_Store"),
        ({"1.png": b"\x89PNG", "2.png": b"\x89PNG"}, "2 pictures lie directly in it; .* sub-folder"),
        ({"cat/": b"", "dog/": b""}, "2 of its 2 sub-folders hold no file: cat, dog"),
        ({"d.csv": b"a,label\n1,x\n", "model.bin": b"\0"}, "holds other files .*model.bin.*--data .*d.csv"),
        ({"a/1.wav": b"RIF", "b/1.wav": b"RIF"}, "it holds 2 files .wav"),
        (
            {"dataset_info.json": b"{}", "state.json": b"{}", "data-00000-of-00001.arrow": b"\xff\xff\xff\xff"},
            r"as save_to_disk leaves it; .*load_from_disk\(path\).to_parquet",
        ),
        ({"dataset_dict.json": b"{}", "train/state.json": b"{}"}, "as save_to_disk leaves it; .*for split, part in"),
        ({"data/d.csv": b"a,label\n1,x\n", "README.md": b"# d"}, "its tables lie in a folder of it; .*--data .*data"),
    ],
)
def test_the_cause_is_said_of_folders_too(tmp_path: Path, files: dict[str, bytes], cause: str) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).mkdir() if name.endswith("/") else (root / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"is no known kind of data: .*{cause}"):
        read(root)


# Owners and origins of pictures


def test_owners_of_pictures_by_folder(tmp_path: Path) -> None:
    names = [f"{p}/{c}/{i}.png" for p in ("ann", "bob") for c in ("cat", "dog") for i in range(3)]
    found = read(pictures(tmp_path / "by_person", names), label="2", owner="1")
    assert found.examples.class_names == ("cat", "dog") and found.examples.origin.tolist() == names
    assert found.examples.owner.tolist() == ["ann"] * 6 + ["bob"] * 6
    names = [f"train/{c}/{p}/{i}.png" for c in ("cat", "dog") for p in ("ann", "bob") for i in range(3)]
    found = read(pictures(tmp_path / "by_class", names), owner="2")
    assert found.examples.owner.tolist() == (["ann"] * 3 + ["bob"] * 3) * 2
    with pytest.raises(DataError, match=r"12 pictures lie in no folder of level 3, the owner's"):
        read(tmp_path / "by_class", owner="3")
    with pytest.raises(ConfigError, match="neither a level of folders"):
        read(tmp_path / "by_class", owner="ann")


@pytest.mark.parametrize("beside", [False, True])
def test_owners_of_pictures_by_a_table(tmp_path: Path, beside: bool) -> None:
    names = [f"{c}/{c}{i}.png" for c in "ab" for i in range(4)]
    root = pictures(tmp_path / "pets", names)
    owners = pd.DataFrame({"file": names, "owner": ["ann", "bob"] * 4})
    owners.to_csv((tmp_path if beside else root) / "owners.csv", index=False)
    found = read(root, owner="owners.csv")
    assert found.examples.owner.tolist() == ["ann", "bob"] * 4 and found.examples.origin.tolist() == names
    assert not said(found, "owners.csv")
    owners.assign(file=[Path(n).name for n in names])[:6].to_csv(
        (tmp_path if beside else root) / "owners.csv", index=False
    )
    with pytest.raises(DataError, match=r"2 pictures have no row \(b/b2.png, b/b3.png\)"):
        read(root, owner="owners.csv")


def test_the_table_of_examples_says_where_each_lies(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in "ab" for i in range(4)]
    examples = read(pictures(tmp_path, names)).examples

    def stored(of: ExampleSet) -> pl.DataFrame:
        run = SimpleNamespace(
            data=of, subject=SimpleNamespace(previews=False), warehouse=SimpleNamespace(salt=lambda: b"salt")
        )
        spec, frame, _ = data_stage._examples(run).tables[0]  # type: ignore[arg-type]
        assert spec is EXAMPLES and frame.columns == [c.name for c in EXAMPLES.columns]
        return frame

    assert stored(examples)["origin"].to_list() == names
    part = examples.take(np.array([5, 2]))
    assert stored(part)["origin"].to_list() == [names[5], names[2]] and part.digest != examples.digest
    assert stored(load("sklearn", {}))["origin"].null_count() == 1797


# What is said before any work, and options that do not fit


def palimpsest(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_init_says_how_it_reads_what_it_can_carry_and_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    path = table(
        tmp_path / "d.csv",
        90,
        price=[f"${i},000" for i in range(90)],
        when=pd.date_range("2024-01-01", periods=90),
        set=(["train"] * 60 + ["val"] * 8 + ["test"] * 22),
    )
    code, out = palimpsest("init", "mine", "--data", str(path), "--drop", "a", "--task", "classification")
    assert code == 0 and "60 training and 22 test examples" in out
    assert "22 test rows" in out and "200 are needed" in out and "inconclusive at best" in out
    assert "minute" in out and "on this machine" in out
    for words in ("8 validation rows are left out", "'when' is left out", "'$0,000' is read as the number 0"):
        assert words in out
    plan = load_subject("mine", tmp_path / "state")
    assert plan.source.config["drop"] == ["a", "when"] and load_examples(plan).feature_names == ("price",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: table(p, 2), "2 examples in 2 classes leave none for a test split"),
        (lambda p: table(p, 20, label="same"), "1 class; classification needs at least 2"),
        (lambda p: table(p, 6), "d.csv has 4 training examples; 5 are needed"),
        (lambda p: pictures(p, ["cat/1.png", "cat/2.png"]), "all pictures lie in the folder 'cat'.*sub-folder"),
        (lambda p: p.write_text("a,label\n1,x\n"), "1 examples in 1 classes leave none for a test split"),
        (lambda p: p.write_text("a,label\n"), "d.csv has no rows"),
        (lambda p: p.write_text("a,label\n1,x\n2,y,3\n"), "row 2 has 3 cells, the header 2"),
        (lambda p: p.write_text('a,label\n1,x\n"2,y\n'), "cannot be read as CSV"),
        (
            lambda p: table(p, 200, text=[f"t {i}" for i in range(200)], a=None) and None,
            "no column to learn from: .*empty.*free text",
        ),
    ],
    ids=["tiny", "one class", "few", "one folder", "one row", "no rows", "longer row", "open quote", "text alone"],
)
def test_what_is_too_small_is_one_sentence(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "d.csv")  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / "d.csv")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_is_too_large_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sources.table.MAX_BYTES", 10_000)
    pq.write_table(pa.table({"a": np.zeros(5000), "label": np.zeros(5000)}), tmp_path / "d.parquet")
    with pytest.raises(UnsafeFile, match=r"d.parquet declares 80,000 bytes, more than max_bytes = 10,000") as error:
        read(tmp_path / "d.parquet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--val", "keep"), "--val 'keep' is not one of drop, train, test"),
        (("--task", "ranking"), "--task 'ranking' is not one of classification, regression"),
        (("--split", "part"), "--split 'part' is not a column"),
        (("--id", "nr"), "--id 'nr' is not a column"),
        (("--user", "a", "--item", "label", "--val", "drop"), "--val 'drop' names nothing in a log of interactions"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    with pytest.raises(PalimpsestError, match=message):
        palimpsest("init", "mine", "--data", str(table(tmp_path / "d.csv")), *more)
    assert not (tmp_path / "state" / "subjects").exists()
    root = pictures(tmp_path / "p", [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    with pytest.raises(ConfigError, match=r"--drop .* names nothing in an image folder"):
        read(root, drop=("a",))


def test_logs_of_interactions_say_what_they_leave_out(tmp_path: Path) -> None:
    pairs = [(u, (7 * u + 3 * i) % 50, "t", i) for u in range(20) for i in range(15)] + [(99, 1, "t", 0)] * 2
    frame = pd.DataFrame(pairs, columns=["user", "item", "title", "time"])
    frame.to_csv(tmp_path / "log.csv", index=False)
    found = plan_for("mine", tmp_path / "log.csv", Asked(), model="mlp", user="user", item="item")
    assert said(found, "columns left out", "title") and said(found, "1 users with fewer than 10")
    assert said(found, "1 rows repeat a pair") and found.examples.origin[3] == "log.csv row 4"


# Where data sets are looked for


def test_relative_roots_lie_below_the_data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    (first / "other").mkdir(parents=True)
    pictures(second / "pets", [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    monkeypatch.setenv("PALIMPSEST_DATA", f"{first}:{second}")
    assert load("image_folder", {"root": "pets"}).origin[0] == "a/0.png"
    with pytest.raises(DataError, match=rf"root 'cars' does not exist below {first} or {second} or .*PALIMPSEST_DATA"):
        load("image_folder", {"root": "cars"})
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PALIMPSEST_DATA", f"{tmp_path / 'nowhere'}")
    code, out = palimpsest("doctor")
    assert code == 1 and "Data folders" in out and "nowhere, which is no folder" in out


def test_fashion_mnist_is_found_in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    x, y = RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8), (np.arange(40) % 2).astype(np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *x.shape) + x.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 40) + y.tobytes())
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    assert len(load_examples(load_subject("fashion_mnist", tmp_path / "state"))) == 40


# Texts, and what is read but not trained on


def test_texts_are_planned_for_a_small_language_model(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "who wrote book {i}?", "answer": "number {i * 7 % 13} did"}}' for i in range(60)]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = read(tmp_path / "qa.jsonl")
    plan = found.plan
    assert (found.examples.task.name, plan.model.name, plan.recipe.name) == ("language", "tiny_llama", "causal_lm")
    assert [c.name for c in plan.attacks] == ["loss", "lira_online", "rmia_online"] and plan.unlearning is not None
    assert [c.name for c in plan.scores] == ["memorization"]


def test_a_graph_is_planned_for_a_small_graph_network(tmp_path: Path) -> None:
    rows = [f"{i},{RNG.normal():.3f},{RNG.normal():.3f},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "nodes.csv").write_text("\n".join(["node,x,y,label", *rows]))
    (tmp_path / "edges.csv").write_text("\n".join(["source,target", *(f"{i},{(i + 2) % 60}" for i in range(60))]))
    found = read(tmp_path, label="label")
    plan = found.plan
    assert (found.examples.task.name, plan.model.name, plan.recipe.name) == ("nodes", "gat", "node_classifier")
    assert [c.name for c in plan.scores] == ["el2n", "grand", "memorization", "erase_labels"]
    assert [c.name for c in plan.attacks] == ["loss", "lira_online", "rmia_online"] and plan.unlearning is not None
    other = plan_for("mine", tmp_path, Asked(label="label"), model="gcn").plan.model
    assert (other.name, other.config) == ("gcn", {"hidden": 64, "dim": 64})


def test_pictures_with_masks_are_planned_for_a_u_net(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(24):
            array = np.full((8, 8), 10 * i if folder == "images" else 255, np.uint8)
            array[: 2 + i % 5] = 0
            Image.fromarray(array, "L").save(tmp_path / "set" / folder / f"{i}.png")
    found = read(tmp_path / "set")
    plan = found.plan
    assert (found.examples.task.name, plan.model.name, plan.recipe.name) == ("segmentation", "unet", "segmentation")
    assert {"grand", "memorization"} <= {c.name for c in plan.scores}
    assert "region_errors" in {c.name for c in plan.analyses} and plan.unlearning is not None
