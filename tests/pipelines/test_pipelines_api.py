"""``import palimpsest``: what the functions give is what the command gives; export, and cleanlab both ways."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cleanlab
import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet
import pytest
from polars.testing import assert_frame_equal
from recorded_state import PLAN, run
from typer.testing import CliRunner

import palimpsest
from assets import Workspace, imported, subject_stages
from contracts.errors import ConfigError, DataError, NotApplicable, NotReady, NotTrusted, UnknownName
from contracts.subject import Subject
from palimpsest.results import Closing, stored
from pipelines.cli.app import app
from pipelines.export import csv_of
from pipelines.subjects import load_subject, write_subject
from scoring.cleanlab_issues import read_issues
from sources.loading import load
from warehouse import Warehouse

pytestmark = pytest.mark.journey

ROOT = Path(__file__).resolve().parents[2]
SPLITS = [
    {"name": "few", "method": "random_fraction", "config": {"fraction": 0.1}},
    {"name": "el2n", "method": "top_score", "config": {"score": "el2n", "count": 5}},
]
WINE = {**PLAN, "title": "<b>wine</b>", "scores": ["el2n", "label_quality"], "splits": SPLITS}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder in which wine has been audited; not to be written to."""
    home = tmp_path_factory.mktemp("api")
    plan = Subject.from_mapping(WINE)
    write_subject(plan, home, comment="a test")
    run(home, plan)
    return home


@pytest.fixture
def home(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for tests that write; the one that the environment names."""
    shutil.copytree(recorded, tmp_path / "state")
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def command(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def python(code: str, folder: Path, **env: str) -> str:
    """What a fresh Python says in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_no_library_and_works_beside_files_of_the_same_names(recorded: Path, tmp_path: Path) -> None:
    for name in ("assets", "reports", "sources", "pipelines", "contracts"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not the package that was meant')\n")
    heavy = "('torch', 'dagster', 'polars', 'numpy', 'pandas', 'duckdb', 'sklearn', 'typer')"
    code = (
        f"import sys; import palimpsest; assert not [m for m in {heavy} if m in sys.modules]; "
        f"print(palimpsest.scores('wine', home={str(recorded)!r}).height)"
    )
    assert python(code, tmp_path) == "89\n"


def test_a_new_state_folder_is_said_and_one_for_nothing_is_taken_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(palimpsest.PalimpsestError, match="unknown subject 'nobody'"):
        palimpsest.audit("nobody", home=tmp_path / "new")
    assert f"State: {tmp_path / 'new'} (new, " in capsys.readouterr().err and not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(palimpsest.PalimpsestError, match="unknown subject 'nobody'"):
        palimpsest.audit("nobody", home=tmp_path / "old")
    assert capsys.readouterr().err == "" and (tmp_path / "old").exists()


def test_every_name_says_what_it_takes_gives_and_refuses() -> None:
    for name in palimpsest.__all__:
        said = getattr(palimpsest, name).__doc__ or ""
        assert len(said) > 50 and (name == "PalimpsestError" or "Raises:" in said), name


def test_reading_gives_what_the_command_gives(home: Path) -> None:
    frame = palimpsest.query("SELECT * FROM scores.latest WHERE subject = $s ORDER BY ALL", s="wine")
    said = command("sql", "SELECT * FROM scores.latest WHERE subject = 'wine' ORDER BY ALL", "-f", "csv")
    assert_frame_equal(frame, pl.read_csv(said.encode(), schema=frame.schema), abs_tol=1e-12)
    hardest = palimpsest.query("hardest", subject="wine", limit=3)
    asked = command("sql", "--named", "hardest", "--param", "subject=wine", "--param", "limit=3", "-f", "csv")
    assert hardest["example_id"].to_list() == pl.read_csv(asked.encode())["example_id"].to_list()
    report = palimpsest.report("wine")
    assert str(report.path) == command("report", "wine").strip() and report.path.is_file()
    assert palimpsest.load_plan("wine") == load_subject("wine", home)
    with pytest.raises(UnknownName, match="wine"):
        palimpsest.load_plan("beer")
    with pytest.raises(NotReady, match="palimpsest audit digits"):
        palimpsest.report("digits")
    with pytest.raises(palimpsest.PalimpsestError, match="SELECT"):
        palimpsest.query("DROP TABLE data.examples")


def test_scores_side_by_side_and_alone(home: Path) -> None:
    latest = palimpsest.query("SELECT * FROM scores.latest WHERE subject = 'wine'")
    frame = palimpsest.scores("wine")
    assert frame.columns == ["example_id", "split", "label_name", "owner", "el2n", "label_quality"]
    assert set(frame["split"]) == {"train"} and frame["example_id"].is_sorted()
    for name in ("el2n", "label_quality"):
        kept = latest.filter(pl.col("score") == name).select("example_id", pl.col("value").alias(name))
        assert_frame_equal(frame.select("example_id", name).drop_nulls(), kept.sort("example_id"))
    assert palimpsest.scores("wine", "el2n.el1n").columns[-1] == "el2n.el1n"
    with pytest.raises(UnknownName, match="el2n"):
        palimpsest.scores("wine", "grand")
    with pytest.raises(NotReady, match="palimpsest audit digits"):
        palimpsest.scores("digits")


def test_examples_and_members_are_those_behind_the_rows(home: Path) -> None:
    data, chosen = palimpsest.examples("wine"), palimpsest.members("wine", "el2n")
    assert chosen.columns == ["example_id", "role", "reason"]
    top = palimpsest.scores("wine", "el2n").sort("el2n", descending=True).head(5)
    assert set(chosen.filter(pl.col("role") == "forget")["example_id"]) == set(top["example_id"])
    names = np.asarray(data.class_names)[data.subset(top["example_id"].to_numpy()).y]
    assert names.tolist() == top["label_name"].to_list()
    with pytest.raises(UnknownName, match="few"):
        palimpsest.members("wine", "many")


def test_another_state_for_one_call(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with pytest.raises(NotReady):
        palimpsest.scores("wine", home=other)
    assert os.environ["PALIMPSEST_HOME"] == str(home) and not other.exists()
    assert palimpsest.scores("wine").height
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {"PALIMPSEST_HOME": ""}
    code = "import palimpsest\ntry: palimpsest.query('SELECT 1')\nexcept palimpsest.PalimpsestError as e: print(e)"
    assert "there is no state in this folder" in python(code, empty, **env) and not list(empty.iterdir())


@pytest.mark.promise("B9")
def test_a_report_is_shown_in_a_cell_and_everything_in_it_is_escaped(home: Path) -> None:
    report = palimpsest.report("wine")
    shown = report._repr_html_()
    assert "&lt;b&gt;wine&lt;/b&gt;" in shown and "<b>wine" not in shown and "<script" not in shown
    assert len(shown) < 30_000
    for part in (*(a.question for a in report.judgement.answers), report.verdict.upper(), "attack/loss"):
        assert part in shown, part
    rows = palimpsest.query("SELECT about, what, verdict FROM audits.findings WHERE subject = 'wine' ORDER BY ALL")
    assert_frame_equal(report.findings.select(rows.columns).sort(rows.columns), rows)
    assert report.answers["question"].to_list() == [a.question for a in report.judgement.answers]


def test_a_notebook_shows_an_error_as_one_message(tmp_path: Path) -> None:
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell; "
        "Shell.instance(colors='nocolor').run_cell('import palimpsest; palimpsest.load_plan(\"beer\")')"
    )
    said = python(code, tmp_path, PALIMPSEST_HOME=str(tmp_path), IPYTHONDIR=str(tmp_path / "ipython")).splitlines()
    assert len(said) == 1 and said[0].startswith("UnknownName: unknown subject 'beer'; known: "), said


def test_the_proof_that_closed_a_request_is_its_report(home: Path) -> None:
    store, name = Warehouse.open(home).artifacts, "wine/request_reports/r9/closing"
    store.save_bytes(f"{name}.html", b"<p>closed</p>")
    checks = [{"what": "the source", "found": "none of the rows"}]
    store.save_json(f"{name}.json", {"subject": "wine", "request": "r9", "ground": "retrained", "checks": checks})
    closing = stored(home, f"{name}.html")
    assert isinstance(closing, Closing) and "retrained" in repr(closing) and closing.path.is_file()
    assert closing.checks.rows() == [("the source", "none of the rows")]


def test_a_table_becomes_a_subject_and_its_plan_may_be_changed(tmp_path: Path, home: Path) -> None:
    frame = palimpsest.examples("wine")
    table = pl.DataFrame(np.asarray(frame.x), schema=list(frame.feature_names)).with_columns(
        kind=pl.Series(np.asarray(frame.class_names)[frame.y]), person=pl.Series([f"p{i % 9}" for i in range(178)])
    )
    table.write_csv(tmp_path / "mine.csv")
    plan = palimpsest.init("mine", tmp_path / "mine.csv", label="kind", owner="person")
    assert plan == palimpsest.load_plan("mine") and plan.unlearning is not None
    fewer = dataclasses.replace(plan, scores=plan.scores[:1])
    assert palimpsest.save_plan(fewer).is_relative_to(home) and palimpsest.load_plan("mine") == fewer
    with pytest.raises(ConfigError, match="exists already"):
        palimpsest.save_plan(palimpsest.load_plan("digits"))
    with pytest.raises(ConfigError, match=r"no option lable.*label"):
        palimpsest.init("again", tmp_path / "mine.csv", lable="kind")


def test_a_request_is_looked_up_shown_and_answered(home: Path) -> None:
    unseen = palimpsest.examples("wine").part("test").example_id[:2].tolist()
    request = palimpsest.request("wine", ids=unseen, request_id="r1")
    assert request.example_id == tuple(sorted(unseen)) and "2 examples: 2 in test" in repr(request)
    assert "<li>2 examples: 2 in test</li>" in request._repr_html_()
    answer = request.run()
    assert isinstance(answer, str) and "nothing to unlearn" in answer
    assert "audited" in command("request", "show", "wine", "r1")
    with pytest.raises(ConfigError, match="exactly one"):
        palimpsest.request("wine")
    with pytest.raises(ConfigError, match=r"no option person.*owner"):
        palimpsest.request("wine", person="ann")


# --- export -------------------------------------------------------------------------------------------------------


def test_a_table_as_every_kind_of_file_and_object(home: Path, tmp_path: Path) -> None:
    kept = Warehouse.existing(home).read("scores.el2n", subject="wine")
    for ending, read in {
        "parquet": pl.read_parquet,
        "csv": pl.read_csv,
        "json": pl.read_json,
        "jsonl": pl.read_ndjson,
    }.items():
        path = palimpsest.export("wine", "scores/el2n", tmp_path / f"el2n.{ending}")
        assert_frame_equal(read(path).cast(dict(kept.schema)), kept, check_exact=ending == "parquet")
    assert_frame_equal(pl.from_pandas(palimpsest.export("wine", "label_quality", "pandas")), _quality(home))
    there = palimpsest.export("wine", "few", "datasets")
    assert isinstance(there, datasets.Dataset) and set(there["role"]) == {"forget", "retain"}
    facts = json.loads(pyarrow.parquet.read_metadata(tmp_path / "el2n.parquet").metadata[b"palimpsest"])
    assert facts["asset"] == "wine/scores/el2n" and facts["run_id"] == "r1" and facts["higher_means"] == "harder"
    for ending in ("csv", "json", "jsonl"):
        assert json.loads((tmp_path / f"el2n.{ending}.source.json").read_text()) == facts
    assert not (tmp_path / "el2n.parquet.source.json").exists()
    head = Warehouse.existing(home).ledger.head()
    assert facts["ledger_head"] == f"{head.seq}:{head.hash}"
    assert json.loads(there.info.description)["asset"] == "wine/curation/few"
    assert palimpsest.export("wine", "label_quality", "pandas").attrs["palimpsest"]["config_digest"]


def _quality(home: Path) -> pl.DataFrame:
    return Warehouse.existing(home).read("scores.label_quality", subject="wine")


def test_a_spreadsheet_computes_nothing_from_a_csv(home: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a=1", "", None, "'", "1-1", "\n=1"]
    frame = pl.DataFrame({"=name": texts, "value": [-1.5] * len(texts), "wh": [b"x".decode()] * len(texts)})
    back = pl.read_csv(csv_of(frame).encode())
    assert back.columns == ["'=name", "value", "wh"] and (back["value"] == -1.5).all()
    shown = back["'=name"].to_list()
    assert shown[:6] == ["'" + text for text in texts[:6]] and shown[6:9] == ["a=1", "", None]
    assert shown[9:] == texts[9:]
    said = command("sql", "SELECT '=2*3' AS a, -1 AS b", "-f", "csv")
    assert said.split() == ["a,b", "'=2*3,-1"]


def test_the_command_exports_the_same_bytes(home: Path, tmp_path: Path) -> None:
    palimpsest.export("wine", "few", tmp_path / "a.parquet")
    said = command("export", "wine", "few", "--to", str(tmp_path / "b.parquet"))
    assert "89 rows of wine/curation/few" in said
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_what_cannot_be_exported_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    for what, to, error, words in (
        ("el2n", "x.parquet", ConfigError, "scores/el2n or curation/el2n"),
        ("nothing", "x.parquet", UnknownName, "few, label_quality"),
        ("few", "x.xlsx", ConfigError, "csv, .json, .jsonl, .parquet"),
        ("few", "none/x.csv", ConfigError, "no such folder"),
    ):
        with pytest.raises(error, match=words):
            palimpsest.export("wine", what, tmp_path / to)
        with pytest.raises(error, match=words):
            command("export", "wine", what, "--to", str(tmp_path / to))
    assert not [path for path in tmp_path.iterdir() if path.name != "state"]
    run(home, Subject.from_mapping({**WINE, "scores": ["el2n"]}), "r2")
    with pytest.raises(NotTrusted, match="no longer lists"):
        palimpsest.export("wine", "label_quality", "pandas")


def test_without_the_optional_package_one_sentence_names_the_command(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for call in (
        lambda: palimpsest.export("wine", "few", "datasets"),
        lambda: palimpsest.out_of_fold("wine").datalab(),
    ):
        with pytest.raises(ConfigError, match=r"datasets, which is not installed: .*pip install .*\[notebook\]"):
            call()


# --- cleanlab, both ways ------------------------------------------------------------------------------------------


def test_what_cleanlab_is_given_is_out_of_fold(home: Path) -> None:
    given = palimpsest.out_of_fold("wine")
    data = palimpsest.examples("wine")
    assert np.array_equal(given.labels, data.y[data.positions(given.example_id)])
    np.testing.assert_allclose(given.pred_probs.sum(1), 1, atol=1e-12)
    made, _ = Warehouse.existing(home).artifacts.load("wine/models/ensemble/result")
    column = int(np.flatnonzero(made["example_id"] == given.example_id[3])[0])
    z = made["logits"][~made["keep"][:, column], column].astype(float)
    np.testing.assert_allclose(given.pred_probs[3], (np.exp(z) / np.exp(z).sum(1, keepdims=True)).mean(0), atol=1e-12)
    found = cleanlab.filter.find_label_issues(given.labels, given.pred_probs, n_jobs=1)
    assert found.shape == given.labels.shape
    with pytest.raises(NotReady, match="palimpsest audit digits"):
        palimpsest.out_of_fold("digits")
    with pytest.raises(NotApplicable, match="interactions"):
        palimpsest.out_of_fold("interactions")


def _datalab(given: palimpsest.OutOfFold) -> pd.DataFrame:  # type: ignore[name-defined]
    lab = given.datalab()
    alone = {"clean_learning_kwargs": {"find_label_issues_kwargs": {"n_jobs": 1}}}  # its own processes may hang
    lab.find_issues(pred_probs=given.pred_probs, issue_types={"label": alone})
    return lab.get_issues("label")


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.rename:DeprecationWarning")  # within cleanlab
def test_what_cleanlab_finds_is_a_score_of_the_plan(home: Path) -> None:
    given = palimpsest.out_of_fold("wine")
    issues = _datalab(given)
    frame = palimpsest.import_issues("wine", issues, example_id=given.example_id)
    data = palimpsest.examples("wine")
    train = np.isin(given.example_id, data.part("train").example_id)
    assert frame["example_id"].to_list() == given.example_id[train].tolist()
    np.testing.assert_allclose(frame["label_noise"], 1 - issues["label_score"].to_numpy()[train], atol=1e-12)
    assert frame["is_issue"].to_list() == issues["is_label_issue"].to_numpy()[train].tolist()
    assert frame["suggested_label"].to_list() == issues["predicted_label"].to_numpy()[train].tolist()
    assert "cleanlab_issues" in palimpsest.scores("wine").columns  # published at once
    placed = palimpsest.query("SELECT DISTINCT num_scores FROM scores.agreement WHERE subject = 'wine'")
    assert placed["num_scores"].max() == 3
    plan = load_subject("wine", home)
    assert [c.name for c in plan.scores] == ["el2n", "label_quality", "cleanlab_issues"]
    asked = palimpsest.request("wine", score="cleanlab_issues", count=4)
    worst = frame.sort("label_noise", descending=True).head(4)
    assert set(asked.example_id) == set(worst["example_id"])
    # an audit computes nothing of it anew, keeps it current, and a split may choose by it
    noisy = {"name": "noisy", "method": "top_score", "config": {"score": "cleanlab_issues", "count": 4}}
    more = Subject.from_mapping({**WINE, "scores": [*WINE["scores"], _choice(plan)], "splits": [*SPLITS, noisy]})
    run(home, more, "r2")
    assert set(palimpsest.members("wine", "noisy").filter(pl.col("role") == "forget")["example_id"]) == set(
        worst["example_id"]
    )
    assert palimpsest.export("wine", "cleanlab_issues", "pandas").attrs["palimpsest"]["run_id"].startswith("import-")
    _, made = Warehouse.existing(home).artifacts.load("wine/scores/cleanlab_issues/imported")
    assert made["by"] == f"cleanlab {cleanlab.__version__}" and made["digest"] == plan.scores[-1].config["imported"]
    assert "WHOLE" in command("verify")


def _choice(plan: Subject) -> dict[str, object]:
    return {"name": plan.scores[-1].name, "config": plan.scores[-1].config}


def test_another_import_replaces_the_first(home: Path) -> None:
    ids = palimpsest.examples("wine").part("train").example_id[:6]
    frame = pl.DataFrame(
        {"example_id": ids, "is_label_issue": [True] + [False] * 5, "label_quality": [0.1] + [0.9] * 5}
    )
    first = palimpsest.import_issues("wine", frame)
    again = palimpsest.import_issues("wine", frame.with_columns(is_label_issue=pl.lit(False)).to_pandas())
    assert first["is_issue"].sum() == 1 and again["is_issue"].sum() == 0
    assert first["suggested_label"].null_count() == 6
    assert len(load_subject("wine", home).scores) == 3
    by_index = frame.to_pandas().set_index("example_id")
    assert_frame_equal(palimpsest.import_issues("wine", by_index), first)


def test_issues_that_cannot_be_read_are_refused_and_nothing_is_stored(home: Path) -> None:
    data = palimpsest.examples("wine")
    ids = data.part("train").example_id[:3]
    good = pl.DataFrame({"example_id": ids, "is_label_issue": [True, False, False], "label_score": [0.1, 0.8, 0.9]})
    named = good.with_columns(predicted_label=pl.Series(data.class_names))
    assert read_issues(named, data).sort("label_noise", descending=True)["suggested_label"].to_list() == [0, 1, 2]
    for bad, words in (
        (good.drop("example_id"), "example_id="),
        (good.drop("is_label_issue"), "is_label_issue"),
        (good.drop("label_score"), "label_score or label_quality"),
        (good.with_columns(label_score=pl.Series([0.1, 1.2, 0.3])), "outside 0..1"),
        (good.with_columns(example_id=pl.Series([1001, 1002, 1003])), "not in wine"),
        (pl.concat([good, good]), "twice"),
        (good.with_columns(predicted_label=pl.Series(["ale", "ale", "ale"])), "no class"),
        (good.with_columns(predicted_label=pl.Series([0, 1, 3])), "no class"),
        (good.with_columns(is_label_issue=pl.Series([1, 0, 0])), "true or false"),
    ):
        with pytest.raises(DataError, match=words):
            palimpsest.import_issues("wine", bad)
    for strange, words in ((np.array([True, False]), "ndarray"), (good, "2 example ids were given for 3")):
        with pytest.raises(DataError, match=words):
            palimpsest.import_issues("wine", strange, example_id=[1, 2])
    assert not (home / "subjects" / "wine" / "imported.yaml").exists()
    assert not Warehouse.existing(home).artifacts.exists("wine/scores/cleanlab_issues/imported")
    with pytest.raises(NotReady, match="palimpsest audit digits"):
        digits = palimpsest.examples("digits").part("train").example_id[:3]
        palimpsest.import_issues("digits", good.with_columns(example_id=pl.Series(digits)))


def test_an_example_that_leaves_the_data_leaves_the_import(home: Path) -> None:
    data = load("sklearn", {"dataset": "wine", "test_fraction": 0.5}, seed=0)
    ids = data.part("train").example_id[:6]
    frame = pl.DataFrame({"example_id": ids, "is_label_issue": [True] * 6, "label_score": [0.1] * 6})
    palimpsest.import_issues("wine", frame)
    plan = load_subject("wine", home)
    stage = next(s for s in subject_stages(plan) if s.path == ("scores", "cleanlab_issues"))
    rest = data.subset(np.setdiff1d(data.example_id, ids[:2]))
    warehouse = Workspace(home, launcher=None).warehouse  # type: ignore[arg-type]
    work = SimpleNamespace(warehouse=warehouse, asset=stage.asset(None), stage=stage, data=rest)
    kept = imported.rows_of(work)  # type: ignore[arg-type]
    assert set(kept["example_id"]) == set(ids[2:])
    arrays, _ = warehouse.artifacts.load("wine/scores/cleanlab_issues/imported")
    assert not np.isin(ids[:2], arrays["example_id"]).any() and len(arrays["example_id"]) == 4
    files = (home / "artifacts" / "wine" / "scores" / "cleanlab_issues").glob("imported*.safetensors")
    assert all(int(ids[0]).to_bytes(8, "little") not in path.read_bytes() for path in files)
