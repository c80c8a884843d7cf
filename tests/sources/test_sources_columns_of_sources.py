"""step, domain, client, group and kept columns of tables, archives and pictures: beside the examples, no features."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import polars as pl
import pytest
from PIL import Image

from contracts.errors import ConfigError, DataError
from sources.loading import load

NUM = 40


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": rng.normal(170, 9, NUM),
            "label": np.where(np.arange(NUM) % 2, "yes", "no"),
            "ward": [f"w{i % 4}" for i in range(NUM)],
            "day": np.arange(NUM) // 10,
            "site": rng.integers(0, 5, NUM),
            "night": rng.random(NUM) < 0.5,
        }
    )


def _table(folder, config):
    frame = _frame()
    frame.to_csv(folder / "t.csv", index=False)
    return "table", {"file": "t.csv", "label": "label"} | config, frame


def _archive(folder, config):
    frame = _frame()
    more = {
        name: frame[name].to_numpy(dtype=str if name == "ward" else None) for name in ("ward", "day", "site", "night")
    }
    np.savez(folder / "t.npz", x=frame[["height"]].to_numpy(), y=np.arange(NUM) % 2, **more)
    return "npz", {"file": "t.npz"} | config, frame


def _pictures(folder, config):
    frame, rng = _frame(), np.random.default_rng(1)
    content = []
    for _ in range(NUM):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 5), dtype=np.uint8)).save(out, "PNG")
        content.append(out.getvalue())
    pl.from_pandas(frame.drop(columns="height")).with_columns(image=pl.Series(content)).write_parquet(
        folder / "t.parquet"
    )
    return "image_table", {"file": "t.parquet", "label": "label"} | config, frame


@pytest.mark.parametrize("write", [_table, _archive, _pictures])
def test_columns_are_kept_and_are_no_features(tmp_path, write):
    config = {"step": "day", "domain": "ward", "client": "site", "keep": ("night",)}
    name, config, frame = write(tmp_path, config)
    data = load(name, config | {"root": str(tmp_path)})
    assert data.columns.keys() == {"step", "domain", "client", "night"}
    for column, of in (("step", "day"), ("domain", "ward"), ("client", "site"), ("night", "night")):
        want = frame[of].astype(np.int64 if of != "ward" else str).tolist()
        assert data.columns[column].tolist() == want
    assert data.input_shape in {(1,), (1, 4, 5)}


def test_rows_moved_or_taken_out_change_no_other_id(tmp_path):
    config = {"client": "ward", "step": "day"}
    whole = {}
    frame = _frame()
    frame["height"] = 1.0  # ids differ by label and columns alone
    for turn, rows in enumerate([np.arange(NUM), np.random.default_rng(3).permutation(NUM), np.arange(1, NUM)]):
        folder = tmp_path / str(turn)
        folder.mkdir()
        now = frame.iloc[rows].reset_index(drop=True)
        now.to_csv(folder / "t.csv", index=False)
        data = load(
            "table", {"root": str(folder), "file": "t.csv", "label": "label", "drop": ("site", "night"), **config}
        )
        keys = zip(data.y.tolist(), data.columns["client"].tolist(), data.columns["step"].tolist(), strict=True)
        found = {}
        for example, key in zip(data.example_id.tolist(), keys, strict=True):
            found.setdefault(key, set()).add(example)
        whole = whole or found
        assert all(found[key] <= whole[key] for key in found)
        assert sum(map(len, found.values())) == len(rows)


def test_validation_rows_that_are_left_out_take_their_columns_along(tmp_path):
    split = np.array((["train"] * 6 + ["val"] * 2 + ["test"] * 2) * 4)
    np.savez(
        tmp_path / "t.npz",
        x=np.random.default_rng(0).normal(size=(NUM, 2)),
        y=np.arange(NUM) % 2,
        split=split,
        c=np.arange(NUM),
    )
    data = load("npz", {"root": str(tmp_path), "file": "t.npz", "client": "c"})
    assert data.columns["client"].tolist() == np.flatnonzero(split != "val").tolist()


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"step": "when"}, DataError, "'when'"),
        ({"domain": "height"}, DataError, "'height' holds .* whole numbers and text are kept"),
        ({"domain": "label"}, ConfigError, "'label' is kept, and is the label"),
        ({"domain": "ward", "drop": ("ward",)}, ConfigError, "'ward' is kept"),
        ({"keep": ("step",), "step": "day"}, ConfigError, "kept twice"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused_by_name(tmp_path, config, error, says):
    name, config, _ = _table(tmp_path, config)
    with pytest.raises(error, match=says):
        load(name, config | {"root": str(tmp_path)})


def test_missing_values_are_named_by_row(tmp_path):
    frame = _frame().astype({"ward": object})
    frame.loc[[3, 8], "ward"] = None
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"'ward' is missing.*t\.csv rows 4, 9"):
        load("table", {"root": str(tmp_path), "file": "t.csv", "label": "label", "client": "ward"})


def test_pictures_in_folders_take_them_from_levels_and_from_a_table(tmp_path, image_tree):
    rng = np.random.default_rng(0)
    files = {
        f"{d}/{c}/{i}.png": rng.integers(0, 256, (4, 4), dtype=np.uint8)
        for d in ("photo", "sketch")
        for c in "ab"
        for i in range(6)
    }
    image_tree(tmp_path, files)
    names = sorted(files)
    table = pd.DataFrame(
        {"file": names, "visit": np.arange(len(names)), "owner": [f"o{i % 3}" for i in range(len(names))]}
    )
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "about.csv", index=False)
    config = {"root": str(tmp_path), "label_level": 2, "domain": "1", "step": "visit", "owner_table": "about.csv"}
    data = load("image_folder", config)
    assert data.columns["domain"].tolist() == [name.split("/")[0] for name in data.origin]
    assert data.columns["step"].tolist() == [names.index(name) for name in data.origin]
    assert data.owner.tolist() == [f"o{names.index(name) % 3}" for name in data.origin]
    table.drop(columns="owner").to_csv(tmp_path / "about.csv", index=False)
    assert set(load("image_folder", config).owner.tolist()) == {""}
    with pytest.raises(ConfigError, match="'visit' is no level of folders"):
        load("image_folder", {k: v for k, v in config.items() if k != "owner_table"})
    with pytest.raises(DataError, match="no column 'time'"):
        load("image_folder", config | {"step": "time"})
