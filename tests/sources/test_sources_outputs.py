"""What a model said, in tables that other tools write; and tables that say it wrongly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.methods import Asked
from sources.loading import load
from sources.outputs import FEATURES, OUTPUTS, looks_like_outputs, outputs_config, outputs_of

NUM, CLASSES = 60, ("cat", "dog", "eel")


@pytest.fixture
def said():
    """Logits, probabilities, labels and who was a member."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (NUM, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return z, p, np.arange(NUM) % 3, np.arange(NUM) % 4 > 0


def frame_of(p, y, member, **more) -> pl.DataFrame:
    columns = {f"prob_{name}": p[:, k] for k, name in enumerate(CLASSES)}
    return pl.DataFrame({**columns, "label": [CLASSES[k] for k in y], "member": member, **more})


def read(path, **options):
    config, left_out = outputs_config(path, Asked(owner=options.pop("owner", None)))
    config |= options
    return load("outputs", config), outputs_of(config), left_out


def close(logits, p) -> None:
    shown = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(shown / shown.sum(1, keepdims=True), p, atol=1e-6)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_columns_of_probabilities(tmp_path, said, suffix):
    _, p, y, member = said
    path = tmp_path / f"out.{suffix}"
    frame = frame_of(p, y, member, who=["ann", "bob"] * 30, note=["x"] * NUM)
    frame.write_parquet(path) if suffix == "parquet" else frame.write_csv(path)
    data, (logits, zeros), left_out = read(path, owner="who")
    close(logits, p)
    assert zeros == 0 and left_out == ("note",) and data.class_names == CLASSES and data.owner[1] == "bob"
    np.testing.assert_array_equal(data.y, y)
    np.testing.assert_array_equal(data.split == "train", member)
    assert data.provenance["values"] == OUTPUTS and looks_like_outputs(path)


def test_logits_in_lists_with_features(tmp_path, said):
    z, _, y, member = said
    emb = np.random.default_rng(1).normal(size=(NUM, 4)).astype(np.float32)
    pl.DataFrame(
        {
            "logits": pl.Series(z.tolist(), dtype=pl.List(pl.Float64)),
            "target": y,
            "split": np.where(member, "Train", "test"),
            **{f"emb_{i}": emb[:, i] for i in range(4)},
        }
    ).write_parquet(tmp_path / "o.parquet")
    data, (logits, _), _ = read(tmp_path / "o.parquet")
    np.testing.assert_allclose(logits, z, rtol=1e-6)
    np.testing.assert_array_equal(data.x, emb)
    assert data.provenance["values"] == FEATURES and data.class_names == ("0", "1", "2")


def test_arrays(tmp_path, said):
    _, p, y, member = said
    np.savez(
        tmp_path / "o.npz", probs=p.astype(np.float32), y=y, member=member, features=p[:, :2], ids=np.arange(NUM) * 3
    )
    data, (logits, _), left_out = read(tmp_path / "o.npz")
    close(logits, p)
    assert left_out == () and data.input_shape == (2,) and data.example_id[2] == 6


@pytest.mark.parametrize("kind", ["probability", "logit"])
def test_one_column_is_the_second_class_of_two(tmp_path, said, kind):
    z = said[0][:, 0]
    p = 1 / (1 + np.exp(-z))
    frame = pl.DataFrame({kind: p if kind == "probability" else z, "label": (z > 0).astype(int), "member": said[3]})
    frame.write_parquet(tmp_path / "o.parquet")
    data, (logits, _), _ = read(tmp_path / "o.parquet")
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], z, atol=1e-5)
    assert data.num_classes == 2


def test_labels_are_names_in_the_columns_before_they_are_places(tmp_path, said):
    _, p, y, member = said
    columns = {f"p_{name}": p[:, k] for k, name in enumerate(("7", "5", "3"))}
    pl.DataFrame({**columns, "label": np.array([7, 5, 3])[y], "member": member}).write_parquet(tmp_path / "o.parquet")
    data, _, _ = read(tmp_path / "o.parquet")
    np.testing.assert_array_equal(data.y, y)
    assert data.class_names == ("7", "5", "3")


def test_a_rounded_zero_is_counted_and_stays_finite(tmp_path, said):
    _, p, y, member = said
    p = np.where(np.arange(NUM)[:, None] < 5, np.eye(3)[y], p).astype(np.float32)
    frame_of(p, y, member).write_parquet(tmp_path / "o.parquet")
    _, (logits, zeros), _ = read(tmp_path / "o.parquet")
    assert zeros == 5 and np.isfinite(logits).all()
    close(logits, p)


def broken(change):
    def write(path, p, y, member):
        arrays = {"probs": p.copy(), "y": y.copy(), "member": member.copy()}
        change(arrays)
        np.savez(path, **arrays)

    return write


def _nan(a):
    a["probs"][[3, 8], 1] = np.nan


def _halved(a):
    a["probs"][4:6] /= 2


def _negative(a):
    a["probs"][2] = [-0.2, 0.6, 0.6]


CASES = {
    "nan": (_nan, DataError, r"NaN or infinite in 2 rows \(o.npz rows 4, 9\)"),
    "sum": (_halved, DataError, r"do not sum to 1 in 2 of 60 rows.*o.npz rows 5, 6"),
    "rows": (lambda a: a.update(y=a["y"][:-1]), DataError, "'y' has 59 rows, 'probs' has 60"),
    "no tests": (lambda a: a.update(member=np.ones(NUM, bool)), DataError, "names no row that was kept out"),
    "no members": (lambda a: a.update(member=np.zeros(NUM, bool)), DataError, "names no row that was in"),
    "strange members": (lambda a: a.update(member=np.arange(NUM)), DataError, "true and false, or 1 and 0"),
    "labels": (lambda a: a["y"].__setitem__(0, 7), DataError, "out of range"),
    "text labels": (
        lambda a: a.update(y=np.array(["a", "b"] * 30)),
        DataError,
        "2 labels are text and there are 3 outputs",
    ),
    "text": (lambda a: a.update(probs=a["probs"].astype(str)), DataError, "does not hold numbers"),
    "no outputs": (lambda a: a.update(z=a.pop("probs")), ConfigError, "which columns are the model's outputs"),
    "no members named": (lambda a: a.pop("member"), ConfigError, "who was a member"),
    "two labels": (lambda a: a.update(label=a["y"]), ConfigError, "could all be"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_believed_is_refused(tmp_path, said, case):
    change, error, words = CASES[case]
    _, p, y, member = said
    path = tmp_path / "o.npz"
    broken(change)(path, p, y, member)
    with pytest.raises(error, match=words):
        read(path)


def test_what_is_called_probabilities_is_not_taken_for_logits_unless_that_is_said(tmp_path, said):
    _, p, y, member = said
    broken(_negative)(tmp_path / "o.npz", p, y, member)
    with pytest.raises(DataError, match=r"outside 0..1 in 1 rows; .*\(o.npz row 3\)"):
        read(tmp_path / "o.npz")
    assert np.allclose(read(tmp_path / "o.npz", scale="logits")[1][0][2], [-0.2, 0.6, 0.6])


def test_a_pickle_is_refused(tmp_path, said):
    _, p, y, member = said
    np.savez(tmp_path / "o.npz", probs=p.astype(object), y=y, member=member)
    with pytest.raises(UnsafeFile):
        read(tmp_path / "o.npz")


def test_a_table_of_features_is_no_table_of_outputs(tmp_path, said):
    pl.DataFrame({"prob_a": said[1][:, 0], "age": said[2], "label": said[2]}).write_csv(tmp_path / "t.csv")
    assert not looks_like_outputs(tmp_path / "t.csv")
    (tmp_path / "x.txt").write_text("hello")
    assert not looks_like_outputs(tmp_path / "x.txt")
