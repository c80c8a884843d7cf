"""The bundled sets against scikit-learn, planted noise, and detection of files that others wrote with their
defaults."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import datasets

from contracts.errors import ConfigError, DataError, NotApplicable, UnknownName, UnsafeFile
from contracts.methods import Asked, source
from sources.example_set import ExampleSet
from sources.loading import detect, load
from sources.planted import plant_label_noise


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("digits", (1797, 1, 8, 8), 10),
        ("breast_cancer", (569, 30), 2),
        ("wine", (178, 13), 3),
        ("diabetes", (442, 10), 0),
    ],
)
def test_bundled_sets(name, shape, classes):
    data = load("sklearn", {"dataset": name}, seed=1)
    bunch = getattr(datasets, f"load_{name}")()
    assert data.x.shape == shape and data.num_classes == classes
    np.testing.assert_array_equal(data.x.reshape(len(data), -1), bunch.data.astype(data.x.dtype))
    np.testing.assert_array_equal(data.y, bunch.target)
    np.testing.assert_array_equal(data.example_id, np.arange(shape[0]))
    assert (data.split == "test").sum() == round(0.25 * shape[0])
    if name == "digits":
        np.testing.assert_allclose(data.inputs(slice(None))[:, 0], bunch.images / 16)
    else:
        train = data.part("train").inputs(slice(None)).astype(np.float64)
        np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(train.std(0), 1, rtol=1e-4)
        assert len(data.feature_names) == shape[1]


def test_seed_decides_the_split_and_nothing_else():
    a, b, again = (load("sklearn", {}, seed=s) for s in (0, 1, 0))
    assert a.digest == again.digest != b.digest
    assert (a.split != b.split).any() and (a.content_hash == b.content_hash).all()


@pytest.mark.promise("C9")
def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    plant_label_noise(load("sklearn", {}), fraction=0.1, seed=0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_unknown_sources_and_fields_are_refused():
    with pytest.raises(
        UnknownName,
        match="idx, image_folder, image_masks, image_table, interactions, long_tail_mixture, node_table, npz, outputs",
    ):
        load("excel", {})
    with pytest.raises(ConfigError, match="no field datset"):
        load("sklearn", {"datset": "digits"})
    with pytest.raises(ConfigError, match="one of"):
        load("sklearn", {"dataset": "iris"})
    assert set(source.names()) >= {
        "idx",
        "image_folder",
        "interactions",
        "npz",
        "sklearn",
        "synthetic_interactions",
        "table",
    }
    assert ExampleSet is type(load("sklearn", {}))


@pytest.mark.parametrize("seed", range(5))
def test_planted_noise(seed):
    data = load("sklearn", {}, seed=seed)
    planted, flipped = plant_label_noise(data, fraction=0.1, seed=seed)
    changed = data.example_id[planted.y != data.y]
    np.testing.assert_array_equal(np.sort(changed), flipped)
    assert len(flipped) == round(0.1 * (data.split == "train").sum()) and flipped.dtype == np.int64
    assert set(planted.split[planted.positions(flipped)]) == {"train"}
    assert planted.y.min() >= 0 and planted.y.max() < 10 and (planted.content_hash == data.content_hash).all()
    order = np.random.default_rng(seed).permutation(len(data))
    again, same = plant_label_noise(data.take(order), fraction=0.1, seed=seed)
    np.testing.assert_array_equal(same, flipped)
    assert again.digest == planted.digest != data.digest
    np.testing.assert_array_equal(plant_label_noise(data, fraction=0.1, seed=seed + 1)[1] == 0, False)


def test_planted_classes_are_uniform_over_the_others():
    data = load("sklearn", {})
    shifts = np.concatenate(
        [
            (p.y - data.y)[data.split == "train"] % 10
            for p, _ in (plant_label_noise(data, fraction=1, seed=s) for s in range(4))
        ]
    )
    counts = np.bincount(shifts, minlength=10)
    expected = len(shifts) / 9
    assert counts[0] == 0 and np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)


def test_planting_is_refused_where_it_makes_no_sense():
    with pytest.raises(NotApplicable):
        plant_label_noise(load("sklearn", {"dataset": "diabetes"}), fraction=0.1, seed=0)
    for fraction in (0, -0.1, 1.1):
        with pytest.raises(ConfigError):
            plant_label_noise(load("sklearn", {}), fraction=fraction, seed=0)


def _csv(folder, frame):
    frame.to_csv(folder / "people.csv", index=False)
    return folder / "people.csv"


def _csv_with_index(folder, frame):
    frame.to_csv(folder / "people.csv")
    return folder / "people.csv"


def _parquet(folder, frame):
    frame.sample(frac=1, random_state=0).to_parquet(folder / "people.pq")
    return folder / "people.pq"


def _renamed(folder, frame):
    frame.to_parquet(folder / "people.csv")
    return folder / "people.csv"


def _npz(folder, frame):
    np.savez(folder / "arrays", X=np.random.default_rng(0).normal(size=(60, 3)), labels=np.arange(60) % 2)
    return folder / "arrays.npz"


def _unnamed_npz(folder, frame):
    np.savez_compressed(folder / "arrays", np.zeros((60, 9, 9), np.uint8), np.arange(60) % 2)
    return folder / "arrays.npz"


def _keras(folder, frame):
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder / "mnist.npz"


def _medmnist(folder, frame):
    x, y = np.zeros((20, 8, 8, 3), np.uint8), (np.arange(20) % 2)[:, None]
    np.savez(folder / "m.npz", train_images=x, train_labels=y, test_images=x, test_labels=y, val_images=x, val_labels=y)
    return folder / "m.npz"


def _folder(folder, frame):
    for k in range(8):
        target = folder / "pets" / "ab"[k % 2] / f"{k}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8 + k // 4), (k, 20, 30)).save(target)
    return folder / "pets"


@pytest.mark.parametrize(
    ("write", "name", "expected"),
    [
        (_csv, "table", {"label": "label"}),
        (_csv_with_index, "table", {"label": "label", "drop": [""]}),
        (_parquet, "table", {"label": "label", "drop": ["__index_level_0__"]}),
        (_renamed, "table", {"label": "label"}),
        (_npz, "npz", {"x": "X", "y": "labels"}),
        (_unnamed_npz, "npz", {"x": "arr_0", "y": "arr_1"}),
        (_keras, "npz", {}),
        (
            _medmnist,
            "npz",
            {
                f"{role}_{s}": f"{s}_{name}"
                for s in ("train", "test", "val")
                for role, name in (("x", "images"), ("y", "labels"))
            },
        ),
        (_folder, "image_folder", {"size": [8, 8]}),
    ],
)
def test_detection_of_what_others_wrote(tmp_path, frame, write, name, expected):
    path = write(tmp_path, frame)
    found, config, _ = detect(path)
    assert found == name
    assert {k: v for k, v in config.items() if k not in ("root", "file")} == expected
    assert load(found, config).num_examples in (8, 40, 60)


def test_detection_of_idx(tmp_path, write_idx, images):
    x, y = images
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", x)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", y)
    found, config, _ = detect(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert (found, config["labels"]) == ("idx", "t10k-labels-idx1-ubyte.gz")
    assert load(found, config).num_examples == 60
    write_idx(tmp_path / "train-images-idx3-ubyte", x)
    with pytest.raises(DataError, match="no labels lie beside it"):
        detect(tmp_path / "train-images-idx3-ubyte")
    write_idx(tmp_path / "train-labels-idx1-ubyte", y)
    found, config, _ = detect(tmp_path)
    assert (found, config) == ("idx", {"root": str(tmp_path.resolve())})
    assert load(found, config).num_examples == 120


def test_a_linked_file_is_taken_where_it_lies(tmp_path, frame):
    (tmp_path / "there").mkdir()
    (tmp_path / "here.csv").symlink_to(_csv(tmp_path / "there", frame))
    found, config, _ = detect(tmp_path / "here.csv")
    assert load(found, config).num_examples == 60


def test_roles_of_columns_are_guessed_by_name_and_content(tmp_path, frame):
    frame = frame.assign(
        id=np.arange(60)[::-1],
        split=["train", "train", "test"] * 20,
        note=[f"n{i} " * 3 for i in range(60)],
        day=pd.date_range("2024-01-01", periods=60),
        secret=[f"u{i}" for i in range(60)],
    )
    frame = pd.concat([frame.assign(id=frame["id"] + 60 * k, note=frame["note"] + str(k)) for k in range(2)])
    path = tmp_path / "d.parquet"
    frame.to_parquet(path, index=False)
    _, config, _ = detect(path, Asked(owner="person"))
    assert {k: config[k] for k in ("owner", "id", "split", "drop")} == {
        "owner": "person",
        "id": "id",
        "split": "split",
        "drop": ["note", "day"],
    }
    frame["id"] = 1  # not an id after all
    frame.to_parquet(path, index=False)
    with pytest.raises(ConfigError, match=r"column 'id' is called an id and cannot be one.*--owner id.*--drop id"):
        detect(path)


def test_the_label_must_be_known(tmp_path, frame):
    path = _csv(tmp_path, frame.rename(columns={"label": "sick"}))
    with pytest.raises(ConfigError, match=r"which column is the label\?.*--label.*'height'.*'sick'"):
        detect(path)
    assert detect(path, Asked(label="sick"))[1]["label"] == "sick"
    for more in ({"label": "ill"}, {"label": "sick", "owner": "who"}):
        with pytest.raises(ConfigError, match="is not a column"):
            detect(path, Asked(**more))
    with pytest.raises(ConfigError, match="could all be"):
        detect(_csv(tmp_path, frame.assign(y=1)))
    arrays = tmp_path / "a.npz"
    np.savez(arrays, x=np.zeros((9, 2)), sick=np.arange(9) % 2)
    with pytest.raises(DataError, match="pass --label"):
        detect(arrays)
    assert detect(arrays, Asked(label="sick"))[1]["y"] == "sick"
    with pytest.raises(ConfigError, match="no array who"):
        detect(arrays, Asked(label="sick", owner="who"))


def test_labels_are_not_named_where_there_are_no_columns(tmp_path, frame):
    with pytest.raises(ConfigError, match="--label"):
        detect(_folder(tmp_path, frame), Asked(label="x"))
    with pytest.raises(ConfigError, match="--owner"):
        detect(tmp_path / "pets", Asked(owner="x"))


def test_what_fits_nothing_lists_what_was_tried(tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero").write_bytes(b"")
    for name in ("x.bin", "empty", "zero"):
        with pytest.raises(DataError, match=r"no known kind.*known kinds: idx, image_folder, .*npz, table"):
            detect(tmp_path / name)
    with pytest.raises(DataError, match="does not exist"):
        detect(tmp_path / "nowhere")
    (tmp_path / "m.pt").write_bytes(b"\x80\x02}q\0.")
    with pytest.raises(UnsafeFile, match="pickle"):
        detect(tmp_path / "m.pt")


def test_no_test_split_and_wrong_task_are_refused(tmp_path):
    data = load("sklearn", {})
    assert dataclasses.replace(data, split=np.full(len(data), "train", "<U5")).validate().part("test").num_examples == 0
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2)), y=[0, 1, 0, 1], split=["train"] * 4)
    with pytest.raises(DataError, match="no test example"):
        load("npz", {"root": str(tmp_path), "file": "d.npz"})
