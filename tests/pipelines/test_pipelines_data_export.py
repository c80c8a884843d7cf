"""``palimpsest export SUBJECT SET --to DIR --format F``, from the audit to a folder that somebody else opens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from recorded_state import run
from typer.testing import CliRunner

from contracts import schema
from contracts.errors import ConfigError, IntegrityError, NotReady, UnknownName
from contracts.methods import AFTER_ERASURE, curator, maker
from contracts.subject import Subject
from curation.export.formats import verify_export
from palimpsest.testing.worlds import images
from pipelines.cli.app import app, main
from pipelines.subjects import write_subject
from warehouse import Warehouse

pytestmark = pytest.mark.journey

PLAN = {
    "subject": "pictures",
    "title": "three kinds of pictures | of <8 x 8>",
    "model": {"name": "mlp", "config": {"hidden": [8]}},
    "recipe": {"name": "supervised", "config": {"epochs": 2}},
    "scores": ["near_duplicates", "knn_disagreement"],
    "analyses": [{"name": "dataset_issues", "config": {"smallest": 10}}],
    "splits": [
        {"name": "covering", "method": "facility_location", "config": {"fraction": 0.25}},
        {"name": "dense", "method": "keep_hardest", "config": {"score": "knn_disagreement", "fraction": 0.5}},
        {"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}},
    ],
    "datasets": [{"name": "protected", "method": "cuda_unlearnable"}],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, data = tmp_path_factory.mktemp("pictures"), images().examples
    np.savez(folder / "p.npz", x=data.x, y=data.y, ids=data.example_id, split=data.split, owner=data.owner)
    config = {"root": str(folder), "file": "p.npz", "licence": "CC-BY-4.0"}
    plan = Subject.from_mapping(PLAN | {"source": {"name": "npz", "config": config}})
    home = folder / "state"
    write_subject(plan, home, comment="a test")
    run(home, plan).publish()
    return home


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))


def palimpsest(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_what_stays_of_a_split_is_written(home: Path, tmp_path: Path) -> None:
    said = palimpsest("export", "pictures", "dense", "--to", str(tmp_path / "out"), "--format", "folder")
    assert "27 examples of pictures/curation/dense" in said and verify_export(tmp_path / "out") == 27 + 6
    members = Warehouse.open(home).read(schema.MEMBERS, subject="pictures", partition={"dataset_id": "dense"})
    kept = set(members.filter(pl.col("role") == "keep")["example_id"])
    written = {int(path.stem): path for path in (tmp_path / "out").rglob("*.png")}
    assert set(written) == kept
    data = images().examples
    for example, path in written.items():
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image)[None], data.x[data.positions([example])[0]])
    assert "ann" not in (tmp_path / "out/README.md").read_text(), "no owner in the data sheet"


def test_another_role_and_the_test_examples(tmp_path: Path) -> None:
    words = ("export", "pictures", "random", "--format", "npz", "--role", "forget", "--test")
    palimpsest(*words, "--to", str(tmp_path / "out"))
    with np.load(tmp_path / "out/data.npz") as archive:
        train, test = ((archive["split"] == split).sum() for split in ("train", "test"))
        assert (train, test) == (11, 36) and len(set(archive["ids"])) == 47


def test_the_data_sheet_says_what_was_done_and_left_out(tmp_path: Path) -> None:
    palimpsest("export", "pictures", "dense", "--to", str(tmp_path / "out"), "--format", "parquet")
    sheet = (tmp_path / "out/README.md").read_text()
    for said in ("27 in train", "CC-BY-4.0", "knn_disagreement", "keep_hardest", "near duplicate, by near_duplicates"):
        assert said in sheet, said
    assert "three kinds of pictures \\| of &lt;8 x 8&gt;" in sheet, "a title is no table and no tag"
    left = sheet[sheet.index("## Left out") :]
    assert "drop; the reason of each is in excluded.csv | 27 |" in left
    excluded = pl.read_csv(tmp_path / "out/excluded.csv")
    assert excluded.height == 27 and excluded["reason"].str.contains("rank").all()
    page = (tmp_path / "out/datasheet.html").read_text()
    assert "&lt;8 x 8&gt;" in page and "<8 x 8>" not in page and "http" not in page.replace("https://doi", "")
    croissant = json.loads((tmp_path / "out/croissant.json").read_text())
    files = json.loads((tmp_path / "out/manifest.json").read_text())["files"]
    [file] = croissant["distribution"]
    assert file["sha256"] == files["data/train-00000-of-00001.parquet"]["sha256"]
    assert croissant["license"] == "CC-BY-4.0" and croissant["conformsTo"].endswith("croissant/1.0")


def test_a_made_set_is_written_too(tmp_path: Path) -> None:
    palimpsest("export", "pictures", "protected", "--to", str(tmp_path / "out"), "--format", "idx")
    content = (tmp_path / "out/train-images-idx3-ubyte").read_bytes()
    assert np.frombuffer(content, np.uint8, offset=16).reshape(54, 64).max(1).min() == 255
    assert "cuda_unlearnable made the set" in (tmp_path / "out/README.md").read_text()
    palimpsest("export", "pictures", "protected", "--to", str(tmp_path / "a"), "--format", "npz", "--test")
    with np.load(tmp_path / "a/data.npz") as archive:
        assert archive["x"].shape == (90, 1, 8, 8)
    with pytest.raises(ConfigError, match="has no roles"):
        palimpsest("export", "pictures", "protected", "--to", str(tmp_path / "b"), "--format", "npz", "--role", "keep")


def test_an_export_is_verified_without_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    palimpsest("export", "pictures", "dense", "--to", str(tmp_path / "out"), "--format", "webdataset")
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "nowhere"))
    assert "WHOLE 6 files" in palimpsest("verify", str(tmp_path / "out"))
    (tmp_path / "out/excluded.csv").write_text("example_id,role,reason\n")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert result.exit_code == 1 and "excluded.csv was changed" in " ".join(result.output.split())


def test_a_trace_says_what_a_forget_request_does_to_each_set(home: Path, tmp_path: Path) -> None:
    """An example of the pruned set and of the protected one: the first is chosen anew, of the second its row leaves."""
    w = Warehouse.open(home)
    members = w.read(schema.MEMBERS, subject="pictures", partition={"dataset_id": "dense"})
    dropped = members.filter(pl.col("role") == "drop")["example_id"][3]
    found = json.loads(CliRunner().invoke(app, ["trace", str(dropped), "--json"]).stdout)
    by = {row["set"]: row for row in found["after_erasure"]}
    assert set(by) == {"covering", "dense", "random", "protected"}
    assert (by["dense"]["effect"], by["dense"]["roles"], by["dense"]["made"]) == ("rebuild", "drop: 1", 0)
    assert (by["protected"]["effect"], by["protected"]["roles"], by["protected"]["made"]) == ("drop", "source: 1", 1)
    assert by["random"]["effect"] == "drop" and "pictures/curation/protected" in {r["where"] for r in found["touched"]}
    said = palimpsest("trace", str(dropped))
    assert "After a forget request:" in said and "the set is chosen anew" in said
    for name, spec in (("dense", curator.get("keep_hardest").spec), ("protected", maker.get("cuda_unlearnable").spec)):
        palimpsest("export", "pictures", name, "--to", str(tmp_path / name), "--format", "npz")
        assert AFTER_ERASURE[spec.after_erasure] in (tmp_path / name / "README.md").read_text()
        assert by[name]["what"] == AFTER_ERASURE[spec.after_erasure]


def test_an_owner_is_traced_by_name(home: Path) -> None:
    data = images().examples
    train = data.part("train")
    mine = set(train.example_id[train.owner == "ann"].tolist())
    found = json.loads(CliRunner().invoke(app, ["trace", "ann", "--json"]).stdout)
    held = {row["where"]: row["examples"] for row in found["touched"]}
    assert held["data.examples"] == (data.owner == "ann").sum() and held["pictures/curation/protected"] == len(mine)
    members = Warehouse.open(home).read(schema.MEMBERS, subject="pictures", partition={"dataset_id": "dense"})
    count = dict(members.filter(pl.col("example_id").is_in(list(mine))).group_by("role").len().iter_rows())
    [dense] = [row for row in found["after_erasure"] if row["set"] == "dense"]
    assert dense["roles"] == ", ".join(f"{role}: {n}" for role, n in sorted(count.items()))
    [protected] = [row for row in found["after_erasure"] if row["set"] == "protected"]
    assert protected["made"] == len(mine) and protected["effect"] == "drop"
    for words in (("trace", "nobody at all"), ("trace", "17", "--owner"), ("trace", "ann", "--subject", "other")):
        with pytest.raises(NotReady, match="belongs to"):
            palimpsest(*words)


def test_issues_are_stored_and_said_in_the_report(home: Path) -> None:
    w = Warehouse.open(home)
    issues = w.read("scores.dataset_issues", subject="pictures")
    assert {"outliers", "order", "imbalance", "group", "train_test", "near_constant"} == set(issues["issue"])
    said = w.read(schema.FINDINGS, subject="pictures").filter(pl.col("what").str.starts_with("dataset_issues/"))
    assert set(said["what"].str.strip_prefix("dataset_issues/")) == set(issues.filter("found")["issue"])
    assert not said["judged"].any()


def test_weights_of_a_covering_set_are_stored_and_exported(home: Path, tmp_path: Path) -> None:
    w = Warehouse.open(home)
    members = w.read(schema.MEMBERS, subject="pictures", partition={"dataset_id": "covering"})
    weights = w.read(schema.WEIGHTS, subject="pictures", partition={"dataset_id": "covering"})
    kept = set(members.filter(pl.col("role") == "keep")["example_id"])
    assert set(weights["example_id"]) == kept and weights["weight"].sum() == members.height == 54
    palimpsest("export", "pictures", "covering", "--to", str(tmp_path / "out"), "--format", "jsonl")
    rows = pl.read_ndjson(tmp_path / "out/train.jsonl")
    told = dict(weights.select("example_id", "weight").iter_rows())
    assert dict(rows.select("example_id", "weight").iter_rows()) == told
    excluded = pl.read_csv(tmp_path / "out/excluded.csv")
    assert excluded["reason"].str.contains("nearest to .* that facility_location chose").all()


def test_two_sets_of_a_subject_are_compared(home: Path) -> None:
    said = json.loads(CliRunner().invoke(app, ["diff", "pictures", "random:forget", "dense", "--json"]).stdout)
    read = Warehouse.open(home).read
    roles = {
        name: dict(
            read(schema.MEMBERS, subject="pictures", partition={"dataset_id": name})
            .select("example_id", "role")
            .iter_rows()
        )
        for name in ("random", "dense")
    }
    old = {e for e, role in roles["random"].items() if role == "forget"}
    new = {e for e, role in roles["dense"].items() if role == "keep"}
    assert said["counts"] == {"came": len(new - old), "left": len(old - new), "content": 0, "label": 0, "split": 0}
    rows = {row["example_id"]: row for row in said["rows"]}
    assert set(rows) == old ^ new
    assert all(row["reason"].startswith("now: knn_disagreement") for row in rows.values())
    assert all(row["reason"].endswith("(keep)" if e in new else "(drop)") for e, row in rows.items())
    protected = palimpsest("diff", "pictures", "dense", "protected")
    assert "to pictures/protected (54 examples): 27 came, 27 contents changed, nothing else." in protected
    assert "nothing changed" in palimpsest("diff", "pictures", "dense", "dense:keep")


def test_two_exports_are_compared_without_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (("a", ("random",)), ("b", ("dense",)), ("c", ("protected",))):
        palimpsest("export", "pictures", *words, "--to", str(tmp_path / name), "--format", "npz")
    stored = json.loads(CliRunner().invoke(app, ["diff", "pictures", "random", "dense", "--json"]).stdout)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "nowhere"))
    found = json.loads(CliRunner().invoke(app, ["diff", *(str(tmp_path / n) for n in "ab"), "--json"]).stdout)
    assert found["counts"] == stored["counts"] and "(pictures/curation/dense)" in found["sentence"]
    left = [row for row in found["rows"] if row["change"] == "left"]
    assert left and all(row["reason"].startswith("now: knn_disagreement") for row in left)
    assert "27 came, 27 contents changed" in palimpsest("diff", str(tmp_path / "b"), str(tmp_path / "c"))
    (tmp_path / "b/index.csv").write_text("example_id,split,label,content_sha256\n")
    with pytest.raises(IntegrityError, match=r"index\.csv was changed"):
        palimpsest("diff", str(tmp_path / "a"), str(tmp_path / "b"))


def test_what_cannot_be_compared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, kind, says in (
        (("pictures", "dense"), ConfigError, "pictures is no folder"),
        (("a",), ConfigError, "not 1 words"),
        (("pictures", "dense", "nothing"), UnknownName, "random"),
        (("pictures", "dense:forget", "dense"), UnknownName, "known: drop, keep"),
        ((str(tmp_path), str(tmp_path)), IntegrityError, "no whole export"),
    ):
        with pytest.raises(kind, match=says):
            palimpsest("diff", *words)
    monkeypatch.setattr("sys.argv", ["palimpsest", "diff", "pictures", "dense"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_wrong_words_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    to = ("--to", str(tmp_path / "out"))
    for words, kind, says in (
        (("dense", *to, "--format", "tfrecord"), UnknownName, "webdataset"),
        (("dense", *to, "--format", "npz", "--role", "forget"), UnknownName, "known: drop, keep"),
        (("nothing", *to, "--format", "npz"), UnknownName, "dense"),
        (("dense", *to, "--role", "keep"), ConfigError, "give --format"),
        (("dense", *to), ConfigError, "must end in one of"),
    ):
        with pytest.raises(kind, match=says):
            palimpsest("export", "pictures", *words)
    assert not list(tmp_path.iterdir())
