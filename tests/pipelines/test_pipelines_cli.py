"""The command line as a stranger meets it: exit status, messages, and data made by other tools."""

from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from rich.text import Text
from sklearn.datasets import load_diabetes, load_wine
from typer.testing import CliRunner

from contracts.errors import PalimpsestError
from contracts.methods import Asked
from contracts.subject import Model
from contracts.verdicts import Finding, Verdict
from pipelines.cli.app import app
from pipelines.cli.doctor import EXTRAS, find_version, requirements
from pipelines.cli.init import _ranking, plan_for
from pipelines.cli.terminal import not_on_path, summary
from pipelines.subjects import load_subject
from reports import findings_frame, rows
from warehouse import Warehouse

runner = CliRunner()


def palimpsest(*words: str) -> tuple[int, str]:
    result = runner.invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_init_understands_data_made_by_someone_else(
    made_by_someone_else: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    path, more = made_by_someone_else
    code, out = palimpsest("init", "mine", "--data", str(path), *more)
    assert code == 0 and "palimpsest audit mine" in out
    plan = load_subject("mine", tmp_path / "state")
    assert plan.unlearning is not None and {"el2n", "memorization", "near_duplicates"} <= {c.name for c in plan.scores}


def test_init_plans_what_the_task_of_the_data_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    pairs = [(f"u{u}", f"i{(7 * u + 3 * i) % 50}") for u in range(20) for i in range(15)]
    pd.DataFrame(pairs, columns=["user", "item"]).drop_duplicates().to_csv(tmp_path / "log.csv", index=False)
    load_diabetes(as_frame=True).frame.to_csv(tmp_path / "diabetes.csv", index=False)
    code, out = palimpsest("init", "clicks", "--data", str(tmp_path / "log.csv"))
    assert code == 0 and "20 users" in out
    clicks = load_subject("clicks", tmp_path / "state")
    assert (clicks.model.name, clicks.recipe.name) == ("mf", "bpr")
    assert [c.name for c in clicks.scores] == ["memorization", "personal_loss"]
    assert [c.name for c in clicks.analyses] == ["influence", "exposure", "recsys_eval"]
    assert [s.method for s in clicks.splits] == [
        "random_fraction",
        "denoise_implicit",
    ] and clicks.unlearning is not None
    assert [c.name for c in clicks.attacks] == ["loss", "lira_online", "rmia_online"]
    code, out = palimpsest("init", "sugar", "--data", str(tmp_path / "diabetes.csv"), "--label", "target")
    assert code == 0 and "regression" in out
    sugar = load_subject("sugar", tmp_path / "state")
    assert [c.name for c in sugar.scores] == [
        "grand",
        "memorization",
        "near_duplicates",
    ] and sugar.unlearning is not None
    assert [c.name for c in sugar.analyses] == ["influence", "train_test_duplicates", "exposure"]
    assert [c.name for c in sugar.attacks] == ["loss", "lira_online", "rmia_online"]


def test_init_takes_logs_of_interactions_under_any_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    pairs = [(f"u{u}", (7 * u + 3 * i) % 50, 3.5, i) for u in range(20) for i in range(15)]
    frame = pd.DataFrame(pairs, columns=["userId", "movieId", "rating", "timestamp"])
    frame.to_csv(tmp_path / "ratings.csv", index=False)
    code, out = palimpsest("init", "movies", "--data", str(tmp_path / "ratings.csv"))
    assert code == 0 and "20 users" in out and "every row counts, whatever its 'rating'" in out
    frame.columns = ["who", "what", "rating", "when"]
    frame.to_csv(tmp_path / "other.csv", index=False)
    path = str(tmp_path / "other.csv")
    with pytest.raises(PalimpsestError, match="--user and --item"):
        palimpsest("init", "others", "--data", path)
    code, _ = palimpsest("init", "others", "--data", path, "--user", "who", "--item", "what", "--time", "when")
    plans = [load_subject(name, tmp_path / "state") for name in ("movies", "others")]
    assert code == 0 and plans[0].recipe == plans[1].recipe and plans[0].model == plans[1].model
    roles = [{r: plan.source.config[r] for r in ("user", "item", "rating", "time")} for plan in plans]
    assert list(roles[1].values()) == ["who", "what", "rating", "when"]
    for more, said in (
        (("--user", "who"), "together"),
        (("--user", "who", "--item", "what", "--label", "rating"), "together"),
        (("--user", "who", "--item", "thing"), "'thing' is not a column"),
    ):
        with pytest.raises(PalimpsestError, match=said):
            palimpsest("init", "bad", "--data", path, *more)


@pytest.mark.parametrize(("interactions", "steps"), [(1_600, 25), (25_000, 24), (1_000_000, 488), (20_000_000, 9765)])
def test_recommenders_are_trained_by_their_size(interactions: int, steps: int) -> None:
    """Some 20 steps an epoch at least, 60 epochs, and no more than about 100,000 steps in all."""
    plan = _ranking(interactions, Model(name="mf"))
    recipe = plan["recipe"]["config"]
    assert abs(interactions / recipe["batch"] - steps) < 15 and recipe["epochs"] * steps <= 100_000
    assert recipe["epochs"] == (60 if interactions <= 1_000_000 else 10)
    (compared,) = [choice for choice in plan["analyses"] if isinstance(choice, dict)]
    assert {k: compared["config"][k] for k in ("lr", "batch", "epochs", "reg")} == {
        k: recipe[k] for k in ("lr", "batch", "epochs", "reg")
    }


def test_init_refuses_what_it_cannot_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    frame = pd.DataFrame({"a": [1.0, 2.0, float("nan")] * 20, "species": ["x", "y", "x"] * 20})
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    with pytest.raises(PalimpsestError, match="label"):
        palimpsest("init", "mine", "--data", str(tmp_path / "gaps.csv"))
    with pytest.raises(PalimpsestError, match="a"):
        palimpsest("init", "mine", "--data", str(tmp_path / "gaps.csv"), "--label", "species")
    with pytest.raises(PalimpsestError, match="does not exist"):
        palimpsest("init", "mine", "--data", str(tmp_path / "nothing.csv"))
    with pytest.raises(PalimpsestError, match="subject"):
        palimpsest("init", "../mine", "--data", str(tmp_path / "gaps.csv"))
    assert not (tmp_path / "state" / "subjects").exists()


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    load_wine(as_frame=True).frame.to_csv(tmp_path / "wine.csv", index=False)
    with pytest.raises(PalimpsestError):
        plan_for("mine", tmp_path / "wine.csv", Asked(label="target"), model="cnn")


def test_sql_speaks_table_csv_json_and_refuses_writing(audited_home: Path) -> None:
    query = "SELECT score, count(*) AS n FROM scores.latest GROUP BY score ORDER BY score"
    assert "el2n" in palimpsest("sql", query)[1]
    rows = json.loads(palimpsest("sql", query, "--format", "json")[1])
    assert {row["score"] for row in rows} >= {"el2n", "grand"}
    assert palimpsest("sql", query, "--format", "csv")[1].startswith("score,n\n")
    for evil in (
        "DROP TABLE data.examples",
        "COPY data.examples TO '/tmp/out.csv'",
        "ATTACH '/tmp/x.db'",
        "SELECT * FROM read_csv('/etc/passwd')",
    ):
        with pytest.raises(PalimpsestError):
            palimpsest("sql", evil)
    code, out = palimpsest("sql")
    assert code == 0 and "--named NAME" in out
    with pytest.raises(PalimpsestError, match="known"):
        palimpsest("sql", "--named", "no-such-query")


def test_a_narrow_terminal_gets_records_in_place_of_broken_columns(audited_home: Path) -> None:
    result = runner.invoke(
        app, ["sql", "--named", "agreement", "--param", "limit=2", "--param", "subject=small"], env={"COLUMNS": "80"}
    )
    assert result.exit_code == 0 and "row 2" in result.output and "\u2026" not in result.output
    assert any(line.split()[:1] == ["high"] and len(line.split()) > 1 for line in result.output.splitlines())


def test_the_summary_keeps_names_whole_and_what_decides_apart() -> None:
    long = "r20261129-113000-" + "x" * 40
    found = [
        (
            f"{long}/retrain",
            Finding(
                what="attack/lira_online",
                verdict=Verdict.PASS,
                sentence="s",
                value=0.546,
                low=0.502,
                high=0.59,
                threshold=0.6,
                kind="attack",
                method="retrain",
            ),
        ),
        (
            "random/finetune",
            Finding(what="gap", verdict=Verdict.FAIL, sentence="s", value=6.0, method="finetune", judged=False),
        ),
        ("target", Finding(what="exposure/" + "y" * 64, verdict=Verdict.FAIL, sentence="s", value=96.0, judged=False)),
        ("random/none", Finding(what="attack/loss", verdict=Verdict.FAIL, sentence="s", method="none")),
    ]
    made = rows(findings_frame(found))
    for width in (80, None):
        text = Text.from_markup("\n".join(summary(made, title="Audit of [mine]", width=width))).plain
        lines = text.splitlines()
        assert all(name in text for name in (f"  {long}/retrain", "exposure/" + "y" * 64, "Audit of [mine]"))
        heads = [line.partition(":")[0] for line in lines if line and not line.startswith(" ") and ":" in line]
        assert heads == ["Judged", "Compared with the method in use", "For information", "Control"]
        assert width is None or all(len(line) <= width for line in lines)
    (whole,) = [line for line in lines if "lira_online" in line]
    assert whole.split() == ["lira_online", "pass", "0.546", "(0.502\u20130.590)", "0.600"]


def test_what_is_printed_to_try_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("palimpsest", "activate"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "palimpsest"), "audit"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert not_on_path() == f"source {tmp_path / 'activate'}"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not_on_path() == ""


def test_doctor_says_in_sentences_what_is_there_and_how_to_get_the_rest(audited_home: Path) -> None:
    Warehouse.open(audited_home).ledger.append("note", {"what": "an entry that is not published yet"})
    code, out = palimpsest("doctor")
    out = " ".join(out.split())  # however narrow the terminal is
    assert code == 0 and "Nothing that is needed is missing." in out, out
    assert f"State: {audited_home} (named by PALIMPSEST_HOME)" in out and "entries, whole up to" in out
    assert not re.search(r"[A-Z]\w+\(|PosixPath|<[a-z_.]+ ", out), "no Python objects"
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(extras) == set(EXTRAS)
    for extra in extras:
        assert f"Optional [{extra}]: " in out and f"| `{extra}` |" in readme
        missing = [name for name in requirements(extra) if not find_version(name)]
        assert (f"-e '.[{extra}]'" in out) == bool(missing)


@pytest.mark.journey
def test_every_named_query_answers(audited_home: Path) -> None:
    from warehouse import queries

    assert len(queries.names()) >= 12
    for name in queries.names():
        has_subject = "subject" in queries.get(name).params
        for shape in ("table", "csv"):
            asked = ["--param", "subject=small"] if has_subject else []
            code, _ = palimpsest("sql", "--named", name, "-f", shape, *asked)
            assert code == 0, (name, shape)


def test_lists_leave_as_json_in_a_csv(audited_home: Path) -> None:
    query = "SELECT ['a', '=b'] AS l, {'k': 1} AS s, NULL::INT[] AS n, '=x' AS t"
    code, out = palimpsest("sql", query, "-f", "csv")
    (row,) = csv.DictReader(io.StringIO(out))
    assert code == 0 and (json.loads(row["l"]), json.loads(row["s"])) == (["a", "=b"], {"k": 1})
    assert row["n"] == "" and row["t"] == "'=x"


def test_request_register_from_the_command_line(audited_home: Path) -> None:
    code, out = palimpsest("request", "add", "small", "--ids", "1,2", "--id", "cli-1", "--unverified")
    assert code == 0 and "cli-1" in out
    assert "received" in palimpsest("request", "list", "small")[1]
    with pytest.raises(PalimpsestError, match="verified"):
        palimpsest("request", "run", "small", "cli-1")
    palimpsest("request", "refuse", "small", "cli-1", "--why", "Art. 17(3)(b)")
    shown = palimpsest("request", "show", "small", "cli-1")[1]
    assert "refused" in shown and "Art. 17(3)(b)" in shown
    with pytest.raises(PalimpsestError, match="exactly one"):
        palimpsest("request", "add", "small", "--ids", "1", "--class", "3")
    with pytest.raises(PalimpsestError, match="whole numbers"):
        palimpsest("request", "add", "small", "--ids", "1,x")
    with pytest.raises(PalimpsestError, match="known: el2n, grand"):
        palimpsest("request", "add", "small", "--score", "elton", "--count", "3")
    with pytest.raises(PalimpsestError, match="go with --score"):
        palimpsest("request", "add", "small", "--ids", "1", "--count", "3")
    with pytest.raises(PalimpsestError, match="needs one of them"):
        palimpsest("request", "add", "small", "--score", "el2n", "--fraction", "0")
    asked = ("--score", "el2n", "--count", "3", "--end", "lowest", "--id", "cli-2", "--unverified")
    assert palimpsest("request", "add", "small", *asked)[0] == 0
    shown = palimpsest("request", "show", "small", "cli-2")[1]
    assert "el2n" in shown and "lowest" in shown and "3" in shown


def test_report_trace_verify_and_doctor(audited_home: Path) -> None:
    code, out = palimpsest("report", "small")
    assert code == 0 and Path(out.strip()).exists()
    with pytest.raises(PalimpsestError, match=r"no report of 'digits'.*palimpsest audit digits"):
        palimpsest("report", "digits")
    with pytest.raises(PalimpsestError, match=r"unknown subject or forget request 'nothing'.*known: .*small"):
        palimpsest("report", "nothing")
    train_id = "0"
    assert palimpsest("trace", train_id, "--subject", "small")[0] == 0
    assert palimpsest("verify", "--ledger")[0] == 0
    assert "torch" in palimpsest("doctor")[1]


def test_an_unknown_subject_names_the_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    known = "digits, digits_distilled, digits_leaderboard, emoji_masks, emoji_protected, emoji_styles, fashion_mnist"
    with pytest.raises(PalimpsestError, match=known):
        palimpsest("audit", "nothing")


def test_the_version_is_said_and_help_keeps_its_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert palimpsest("--version") == (0, f"palimpsest {project['version']}\n")
    code, out = palimpsest("--help")
    assert code == 0 and "listens on 127.0.0.1 only and refuses" in out, "lines end where the terminal does"
    assert not (tmp_path / "state").exists()
