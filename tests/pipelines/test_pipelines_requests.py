"""One person's request from init to its end: registered on rows that are shown, run on those rows or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from contracts import schema
from contracts.errors import DataError, InvalidInput, JobFailed, PalimpsestError, StateError, UnknownName
from contracts.requests import RequestState
from contracts.subject import Subject
from pipelines.cli.app import app
from pipelines.cli.audit import run_subject
from warehouse import Warehouse

NAMES = [f"person{i:03d}@example.org" for i in range(60)]


def palimpsest(*arguments: str) -> str:
    """What a command that ends well prints; a known error is raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1), result.output
    return " ".join(result.output.split())  # however narrow the terminal is


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    data = load_breast_cancer(as_frame=True).frame.iloc[:300, 20:]
    frame = pl.from_pandas(data).with_columns(owner=pl.Series([NAMES[i % 50] for i in range(300)]))
    return frame.with_columns(owner=pl.when(pl.int_range(300) == 7).then(pl.lit("only@example.org")).otherwise("owner"))


@pytest.fixture
def mine(tmp_path: Path, table: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV with owners, of which a small plan was made; the path of the CSV."""
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    path = tmp_path / "people.csv"
    table.write_csv(path)
    palimpsest("init", "mine", "--data", str(path), "--label", "target", "--owner", "owner")
    plan = tmp_path / "state" / "subjects" / "mine" / "defs.yaml"
    body = yaml.safe_load(plan.read_text())
    body["attributes"] |= {
        "model": {"name": "mlp", "config": {"hidden": [8]}},
        "recipe": {"name": "supervised", "config": {"lr": 0.1, "momentum": 0.9, "batch": 32, "epochs": 4}},
        "early": {"seeds": 2, "epoch": 1},
        "ensemble": {"num_models": 4},
        "scores": ["el2n"],
        "analyses": [],
        "attacks": ["loss"],
        "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
        "unlearning": {"split": "random", "methods": [], "seeds": 1},
    }
    plan.write_text(yaml.safe_dump(body))
    return path


def warehouse(mine: Path) -> Warehouse:
    return Warehouse.open(mine.parent / "state")


def test_what_a_request_names_is_shown_and_nonsense_is_refused(mine: Path) -> None:
    said = palimpsest("request", "add", "mine", "--owner", NAMES[3], "--id", "r1")
    assert "6 examples: " in said and "in train" in said and "classes: " in said
    assert "retrainings without them" in said and "request close" in said
    stored = warehouse(mine).requests
    assert (
        stored.pins("r1").height == 6
        and stored.get("r1").num_examples == stored.pins("r1").filter(pl.col("split") == "train").height
    )
    for given, error, says in (
        (("--owner", "person3@example.org"), DataError, "did you mean"),
        (("--owner", "nobody at all"), DataError, "51 owners"),
        (("--class", "benign"), DataError, "classes are: 0, 1"),
        (("--ids", "3,100000"), DataError, "1 ids are not of mine: 100000"),
        (("--where", "label = 1"), PalimpsestError, "palimpsest audit mine"),
    ):
        with pytest.raises(error, match=says):
            palimpsest("request", "add", "mine", *given, "--id", "r2")
    assert warehouse(mine).requests.list("mine").height == 1, "what is refused is not on the register"
    with pytest.raises(UnknownName, match="known"):
        palimpsest("request", "list", "no-such-subject")
    with pytest.raises(PalimpsestError, match="palimpsest request run mine r1"):
        palimpsest("report", "r1")


def test_predicates_are_checked_when_they_are_registered(audited_home: Path) -> None:
    for where, says in (
        ("1 = 1", "all 899 training examples"),
        ("1 = 0", "names no example"),
        ("label = 1; DROP TABLE data.examples", "cannot be parsed"),
        ("label = ", "predicate"),
        ("colour = 'red'", "colour"),
    ):
        with pytest.raises((DataError, InvalidInput), match=says):
            palimpsest("request", "add", "small", "--where", where, "--id", "nonsense")
    assert "nonsense" not in palimpsest("request", "list", "small")
    said = palimpsest("request", "add", "small", "--where", "label = 1", "--id", "ones", "--unverified")
    assert "classes: 1 " in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.with_row_index().filter(pl.col("index") != 2).drop("index"), r"changed"),
        (lambda t: t.filter(pl.col("owner") != NAMES[3]), r"\d+ (gone|changed)"),
        (lambda t: t.with_columns(pl.col("worst area") + (pl.col("owner") == NAMES[3])), "6 changed"),
        (
            lambda t: t.with_columns(
                owner=pl.when(pl.int_range(pl.len()) == 9).then(pl.lit(NAMES[3])).otherwise("owner")
            ),
            "1 new",
        ),
    ],
    ids=["a row before them removed", "theirs removed", "values changed", "one more"],
)
def test_a_request_is_run_on_the_rows_it_was_registered_for_or_not_at_all(
    mine: Path, table: pl.DataFrame, change, says: str
) -> None:
    """Another person's row must never be unlearned in place of theirs, whatever has happened to the file since."""
    palimpsest("request", "add", "mine", "--owner", NAMES[3], "--id", "r1")
    change(table).write_csv(mine)
    with pytest.raises(DataError, match=says) as refused:
        palimpsest("request", "run", "mine", "r1")
    assert "Nothing was removed" in str(refused.value) and "request withdraw mine r1" in str(refused.value)
    assert warehouse(mine).requests.get("r1").state is RequestState.VERIFIED
    assert not warehouse(mine).read(schema.EXAMPLES, subject="mine").height, "it is told before any work"


def test_the_run_itself_compares_the_rows_too(audited_home: Path, small: Subject) -> None:
    """A run that the sensor starts, or data that change while an audit is under way."""
    palimpsest("request", "add", "small", "--ids", "1,2,5", "--id", "moved", "--unverified")
    requests = Warehouse.open(audited_home).requests
    requests.pin("moved", requests.pins("moved").with_columns(pin=pl.lit("0" * 64)))
    requests.advance("moved", RequestState.VERIFIED, note="a test")
    with pytest.raises(JobFailed, match="3 changed"):
        run_subject(small, audited_home, job="forget", request="moved")
    requests.advance("moved", RequestState.REFUSED, note="a test")


def test_a_score_that_names_other_examples_now_is_refused(audited_home: Path, small: Subject) -> None:
    """The score was computed anew since: what the person who registered it was shown is not what would be unlearned."""
    from assets.request_rows import pins, resolve
    from sources import load

    palimpsest("request", "add", "small", "--score", "el2n", "--count", "4", "--id", "other", "--unverified")
    w = Warehouse.open(audited_home)
    data = load(small.source.name, small.source.config, seed=small.seed)
    named = resolve(w.requests.get("other").request, data, w)
    shown = np.append(named[:3], np.setdiff1d(data.example_id[data.split == "train"], named)[0])
    w.requests.pin("other", pins(data, shown, w.salt()))
    w.requests.advance("other", RequestState.VERIFIED, note="a test")
    with pytest.raises(JobFailed, match=rf"1 new \({named[3]}\), 1 named no longer \({shown[3]}\)"):
        run_subject(small, audited_home, job="forget", request="other")
    w.requests.advance("other", RequestState.REFUSED, note="a test")


def test_one_persons_row_from_init_to_closed(mine: Path) -> None:
    palimpsest("request", "add", "mine", "--owner", "only@example.org", "--id", "r1", "--unverified")
    with pytest.raises(StateError, match="only a verified request"):
        palimpsest("request", "run", "mine", "r1")
    assert "verified" in palimpsest("request", "verify", "mine", "r1")
    in_training = warehouse(mine).requests.get("r1").num_examples == 1
    with pytest.raises(StateError, match="only an audited one"):
        palimpsest("request", "close", "mine", "r1", "--by", "Ann", "--why", "too early")
    said = palimpsest("request", "run", "mine", "r1")
    if not in_training:
        assert "not trained on them" in said
        return
    assert "Is what retrain removed gone?" in said
    assert "palimpsest request close mine r1 --by NAME" in said, "it says how to go on"
    entry = warehouse(mine).requests.get("r1")
    assert entry.state is RequestState.AUDITED, "one row: exact retraining cannot be told to have worked"
    facts = json.loads(warehouse(mine).artifacts.load_bytes("mine/request_reports/r1/audit.json"))
    assert facts["verdict"] == "inconclusive"
    with pytest.raises(PalimpsestError, match="by a named person"):
        palimpsest("request", "close", "mine", "r1", "--by", " ", "--why", "exact retraining")
    said = palimpsest("request", "close", "mine", "r1", "--by", "Ann Lee", "--why", "exact retraining, row deleted")
    assert "closed by Ann Lee" in said and "inconclusive" in said
    assert "closed by Ann Lee: exact retraining" in palimpsest("request", "show", "mine", "r1")
    head = warehouse(mine).ledger.head()
    palimpsest("request", "run", "mine", "r1")
    assert warehouse(mine).ledger.head() == head, "what is current is not done again"


def test_a_person_whose_rows_are_all_in_the_test_split_is_answered(mine: Path) -> None:
    from pipelines.subjects import load_subject
    from sources import load

    plan = load_subject("mine", mine.parent / "state")
    data = load(plan.source.name, plan.source.config, seed=plan.seed)
    tested = data.example_id[data.split == "test"][:2]
    said = palimpsest("request", "add", "mine", "--ids", ",".join(map(str, tested)), "--id", "r1")
    assert "2 in test" in said and "nothing to unlearn" in said
    assert "the audited model was not trained on them" in palimpsest("request", "run", "mine", "r1")
    assert warehouse(mine).requests.get("r1").state is RequestState.CLOSED


def test_hold_extend_withdraw(mine: Path) -> None:
    palimpsest("request", "add", "mine", "--owner", NAMES[3], "--id", "r1")
    due = warehouse(mine).requests.get("r1").due_at
    assert "request verify mine r1" in palimpsest("request", "hold", "mine", "r1", "--why", "identity in doubt")
    with pytest.raises(StateError, match="on_hold"):
        palimpsest("request", "run", "mine", "r1")
    palimpsest("request", "verify", "mine", "r1", "--note", "seen a passport")
    palimpsest("request", "extend", "mine", "r1", "--why", "many requests")
    entry = warehouse(mine).requests.get("r1")
    assert entry.due_at > due and entry.state is RequestState.VERIFIED
    assert entry.events["note"].to_list()[-1].endswith("many requests")
    with pytest.raises(PalimpsestError, match="3 months after receipt"):
        palimpsest("request", "extend", "mine", "r1", "--why", "more", "--to", "2099-01-01")
    assert "withdrawn" in palimpsest("request", "withdraw", "mine", "r1")
    for again in ("verify", "withdraw"):
        with pytest.raises(StateError, match="none: it is final"):
            palimpsest("request", again, "mine", "r1")
    with pytest.raises(StateError, match="nothing left to extend"):
        palimpsest("request", "extend", "mine", "r1", "--why", "late")
    assert "withdrawn" in palimpsest("request", "list", "mine")
    assert warehouse(mine).verify_tables() == []
