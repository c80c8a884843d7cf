"""TopoMortar by its path: sizes, labels, groups, and lists and files that are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from topomortar_folder import GROUPS, write_topomortar

from contracts.errors import DataError
from sources.topomortar import TopoMortarConfig, topomortar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_topomortar(tmp_path_factory.mktemp("topomortar"))


@pytest.fixture
def own(folder):
    """The folder, whose lists and three of whose files are put back afterwards."""
    home = folder / "dataset"
    files = [home / name for name in ("splits.yaml", "dataset_types.txt")]
    files += [home / "train" / "noisy" / "003.png", home / "test" / "accurate" / "100.png"]
    files += [home / "test" / "images" / "100.png"]
    before = {file: file.read_bytes() for file in files}
    yield folder
    for file, content in before.items():
        file.write_bytes(content)


def read(folder, **fields):
    return topomortar(config=TopoMortarConfig(root=str(folder), **fields), seed=0).validate()


def test_the_splits_are_50_20_350_and_the_small_one_10(folder) -> None:
    data = read(folder)
    assert (data.split == "train").sum() == 50 and (data.split == "test").sum() == 350
    assert data.class_names == ("brick", "mortar") and data.input_shape == (3, 8, 8)
    assert (read(folder, small=True).split == "train").sum() == 10
    whole = read(folder, val="train")
    assert (whole.split == "train").sum() == 70 and any("20 validation" in note for note in whole.provenance["notes"])
    domain = data.columns["domain"][data.split == "test"]
    assert {g: int((domain == g).sum()) for g in ("id", *GROUPS)} == dict.fromkeys(("id", *GROUPS), 50)
    plain = read(folder, shifted=False)
    assert len(plain) == 100 and set(plain.columns["domain"]) == {"id"}


@pytest.mark.parametrize(("labels", "row"), [("accurate", 0), ("noisy", 1), ("pseudo", 2)])
def test_training_walls_have_the_labels_asked_for_and_test_walls_accurate_ones(folder, labels, row) -> None:
    data = read(folder, labels=labels)
    y, train = np.asarray(data.y), data.split == "train"
    wanted = [row, 7] if row else [0, 7]
    assert all(sorted(set(np.flatnonzero(mask.any(1)))) == wanted for mask in y[train])
    assert all(sorted(set(np.flatnonzero(mask.any(1)))) == [0, 7] for mask in y[~train])
    number = np.array([int(origin[-7:-4]) for origin in data.origin])
    assert (y[:, -1].argmax(1) == number % 8).all()  # each picture has its own mask


def test_ids_do_not_depend_on_the_order_of_the_lists(folder, own) -> None:
    before, lists = read(folder).example_id, own / "dataset" / "splits.yaml"
    lines = lists.read_text().splitlines()
    at = lines.index("  train:")
    end = lines.index("  val:")
    lists.write_text("\n".join([*lines[: at + 1], *sorted(lines[at + 1 : end]), *lines[end:]]))
    np.testing.assert_array_equal(read(own).example_id, before)


def test_what_is_wrong_is_named(own) -> None:
    home = own / "dataset"
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(home / "train" / "noisy" / "003.png")
    with pytest.raises(DataError, match="other than 0 and 255") as caught:
        read(own, labels="noisy")
    assert "dataset/train/noisy/003.png" in str(caught.value)
    assert len(read(own)) == 400
    mask = np.asarray(Image.open(home / "test" / "accurate" / "100.png")).copy()
    large = np.kron(mask, np.ones((16, 16), np.uint8))
    large[68, 68] = 8  # as in one of the published masks
    Image.fromarray(large).save(home / "test" / "accurate" / "100.png")
    picture = home / "test" / "images" / "100.png"
    Image.open(picture).resize((128, 128)).save(picture)
    data = read(own, size=(16, 16))
    assert any("1 masks hold other values" in note for note in data.provenance["notes"]) and set(np.unique(data.y)) == {
        0,
        1,
    }
    (home / "test" / "accurate" / "100.png").unlink()
    with pytest.raises(DataError, match=r"100\.png"):
        read(own)
    types = home / "dataset_types.txt"
    types.write_text(types.read_text().replace("200,colors\n", ""))
    with pytest.raises(DataError, match="200"):
        read(own)
    types.write_text("a,b\n")
    with pytest.raises(DataError, match="ID and group"):
        read(own)


@pytest.mark.parametrize(
    "text", ["", "1: [", "{2: {}}", "{1: {train: [], val: []}}", "[1]", "1: {train: 3, val: [], test: []}"]
)
def test_lists_that_are_none_are_refused(own, text) -> None:
    (own / "dataset" / "splits.yaml").write_text(text)
    with pytest.raises(DataError, match="no list of walls"):
        read(own)


def test_a_wall_in_two_splits_is_refused(own) -> None:
    lists = own / "dataset" / "splits.yaml"
    lists.write_text(lists.read_text().replace("dataset/test/images/071.png", "dataset/train/images/001.png"))
    with pytest.raises(DataError, match="twice"):
        read(own)
