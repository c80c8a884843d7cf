"""Where reference models come from: each policy from a tiny plan to its page, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from in_process import InProcess
from safetensors.torch import load_file, save_file

from assets import Workspace, subject_stages
from assets.expected import expectations, of_references
from assets.stage import materialize
from contracts import schema
from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable, PalimpsestError
from contracts.subject import Ensemble, Subject
from pipelines.cli import app as command
from pipelines.cli.audit import quick_plan
from pipelines.subjects import write_subject
from recipes.checkpoints import load_arrays, read_checkpoint
from recipes.ensemble import ReferenceEnsemble
from recipes.given import given_ensemble
from recipes.plan import load_examples, model_builder, trainer
from recipes.predict import predict_logits, read

pytestmark = pytest.mark.journey

WINE: dict[str, Any] = {
    "subject": "brought",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.5}},
    "model": {"name": "mlp", "config": {"hidden": [32]}, "alike": 10},
    "recipe": {"name": "supervised", "config": {"lr": 0.05, "momentum": 0.9, "batch": 16, "epochs": 12}},
    "attacks": ["loss", "lira_online", "rmia_online"],
    "early": {"seeds": 1, "epoch": 1},
}
NUM = 9  # a design of one's own has as many as it has


def carry_out(subject: Subject, home: Path) -> Workspace:
    workspace = Workspace(home, launcher=InProcess(), publish_every_s=1e9)
    for stage in subject_stages(subject):
        if not stage.per_request:
            materialize(stage, workspace, run_id="r", request=None, context=None)
    workspace.warehouse.publish()
    return workspace


def with_policy(policy: Any, **more: Any) -> Subject:
    changed = {**WINE, **more}
    return Subject.from_mapping(
        {**changed, "ensemble": {"num_models": NUM, **changed.get("ensemble", {}), "policy": policy}}
    )


def bring(folder: Path, **recipe: Any) -> dict[str, Any]:
    """Models of the recipe, or of another, on rows drawn one by one; of the test split half are seen by none."""
    plain = Subject.from_mapping(
        {**WINE, "recipe": {"name": "supervised", "config": {**WINE["recipe"]["config"], **recipe}}}
    )
    data, rng = load_examples(plain), np.random.default_rng(4)
    test = np.flatnonzero(data.split == "test")
    unseen = rng.permutation(test)[: len(test) // 2]
    seen = rng.random((NUM, len(data))) < 0.5
    seen[:, unseen] = False
    seen[:, np.flatnonzero(data.split == "train")[:3]] = True  # three that all of them saw
    members = [np.flatnonzero(row) for row in seen]
    models = trainer(plain, data).many(data, members=members, seeds=list(range(NUM)))
    folder.mkdir()
    rows = []
    for m, (model, own) in enumerate(zip(models, members, strict=True)):
        save_file(model.state_dict(), folder / f"net-{m}.safetensors")
        rows.append(pl.DataFrame({"model": f"net-{m}", "example_id": data.example_id[own]}))
    pl.concat(rows).sample(fraction=1.0, shuffle=True, seed=0).write_csv(folder / "members.csv")
    return {"name": "given", "folder": str(folder), "members": str(folder / "members.csv"), "each_side": 2}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return bring(tmp_path_factory.mktemp("brought") / "set")


def table_of(policy: dict[str, Any]) -> pl.DataFrame:
    return pl.read_csv(policy["members"])


@pytest.fixture(scope="module")
def audited(policy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Workspace]:
    splits = [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.3}}]
    unlearning = {"split": "random", "methods": ["retrain"], "seeds": 1}
    scores = ["memorization", "label_quality"]
    subject = with_policy(policy, splits=splits, unlearning=unlearning, scores=scores, analyses=["influence"])
    return subject, carry_out(subject, tmp_path_factory.mktemp("state"))


class TestGiven:
    def test_the_ensemble_is_what_these_models_say_and_saw(self, audited: Any, policy: dict[str, Any]) -> None:
        subject, workspace = audited
        arrays, meta = workspace.warehouse.artifacts.load("brought/models/ensemble/result")
        found, data = ReferenceEnsemble.from_arrays(arrays, meta), workspace.examples(subject)
        build, view = model_builder(subject, data), data.subset(found.example_id)
        saw = table_of(policy)
        for m in range(NUM):
            model = build(0)
            load_arrays(model, read_checkpoint(Path(policy["folder"]) / f"net-{m}.safetensors"))
            np.testing.assert_allclose(found.reading[m], read(model.eval(), view).values, rtol=1e-12)
            np.testing.assert_array_equal(found.outputs[m], predict_logits(model.eval(), view))
            own = saw.filter(model=f"net-{m}")["example_id"].to_numpy()
            np.testing.assert_array_equal(found.keep[m], np.isin(found.example_id, own))
        inside = saw.group_by("example_id").len()
        count = dict(zip(inside["example_id"], inside["len"], strict=True))
        pool = {i for i, n in count.items() if 2 <= n <= NUM - 2}
        assert set(found.example_id[found.pool].tolist()) == pool and len(pool) < len(count)
        tests = set(data.example_id[data.split == "test"].tolist())
        assert set(found.example_id[~found.pool].tolist()) == tests - set(count)
        assert set(meta["given"]) == {*(f"net-{m}.safetensors" for m in range(NUM)), "members.csv"}

    def test_every_reader_counts_the_sides_that_there_are(self, audited: Any, policy: dict[str, Any]) -> None:
        w = audited[1].warehouse
        inside = table_of(policy).group_by("example_id").len(name="saw")
        for query in (
            "SELECT example_id, n_in, n_out FROM audits.attack_scores WHERE attack = 'lira_online'",
            "SELECT example_id, n_in, n_out FROM scores.memorization",
        ):
            rows = w.query(query).join(inside, on="example_id")
            assert rows.height > 50 and rows["n_in"].equals(rows["saw"].cast(rows["n_in"].dtype), check_names=False)
            assert (rows["n_in"] + rows["n_out"] == NUM).all() and rows["n_in"].n_unique() > 3
        reports = w.query("SELECT DISTINCT audited, attack FROM audits.attack_reports WHERE attack <> 'u_mia'")
        assert len(reports) == 9 and set(reports["attack"]) == {"loss", "lira_online", "rmia_online"}

    def test_the_recipe_is_tested_on_one_of_them_and_the_page_is_written(self, audited: Any) -> None:
        w = audited[1].warehouse
        match = w.read(schema.RECIPE_MATCH, subject="brought").row(0, named=True)
        finding = w.query("SELECT * FROM audits.findings WHERE about = 'references'").row(0, named=True)
        assert match["num_models"] == 10 and finding["value"] == match["p_value"] > 0.05 and not finding["judged"]
        assert finding["sentence"].startswith("The given reference model could be one of the stated recipe")
        pages = list(audited[1].home.rglob("*.html"))
        assert pages and any(f"{NUM}, given" in page.read_text() for page in pages)

    def test_what_it_can_carry_is_said_before(self, audited: Any) -> None:
        subject, workspace = audited
        told = of_references(subject, workspace.examples(subject))
        assert f"{NUM} given reference models" in told[0] and "in and out of 2" in told[0] and "supervised" in told[-1]
        assert "are not in the pool" in expectations(subject, workspace.examples(subject))[0]
        assert quick_plan(subject).ensemble == subject.ensemble  # there are as many as there are

    def test_another_file_is_another_ensemble_and_another_place_is_not(
        self, policy: dict[str, Any], tmp_path: Path
    ) -> None:
        moved = tmp_path / "moved"
        moved.mkdir()
        for file in Path(policy["folder"]).iterdir():
            (moved / file.name).write_bytes(file.read_bytes())
        there = {**policy, "folder": str(moved), "members": str(moved / "members.csv")}
        here, elsewhere = with_policy(policy), with_policy(there)
        stages = [next(s for s in subject_stages(p) if s.path == ("models", "ensemble")) for p in (here, elsewhere)]
        assert stages[0].config_digest == stages[1].config_digest and not stages[0].trains
        workspace = Workspace(tmp_path, launcher=InProcess())
        before = workspace.outside(here, stages[0].reads)
        assert before == workspace.outside(elsewhere, stages[1].reads)
        first = moved / "net-0.safetensors"
        save_file({k: v + 1 for k, v in load_file(first).items()}, first)
        assert workspace.outside(elsewhere, "references") != before

    def test_models_of_another_recipe_clear_nobody(self, tmp_path: Path) -> None:
        other = bring(tmp_path / "set", epochs=1, lr=0.001)
        subject = with_policy({**other, "each_side": 3}, thresholds={"max_target_auc": 0.95})
        w = carry_out(subject, tmp_path / "state").warehouse
        rows = {(r["about"], r["what"]): r for r in w.query("SELECT * FROM audits.findings").to_dicts()}
        match = rows["references", "recipe"]
        assert match["verdict"] == "inconclusive" and match["judged"] and match["value"] < 0.01
        assert "is not one of the stated recipe" in match["sentence"]
        for what in ("lira_online", "rmia_online"):
            assert rows["target", f"attack/{what}"]["verdict"] != "pass"
        assert "Measured on something else" not in rows["target", "attack/loss"]["sentence"]


def unknown_id(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([table, pl.DataFrame({"model": ["net-0"], "example_id": [123456789]})])


def missing_file(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    (folder / "net-3.safetensors").unlink()
    return table


def saw_everything(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    everything = pl.DataFrame({"model": "net-1", "example_id": table["example_id"].unique()})
    return pl.concat([table.filter(pl.col("model") != "net-1"), everything.select("model", "example_id")])


def no_row(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("model") != "net-2")


def twice(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([table, table.head(1)])


def other_shape(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    weights = load_file(folder / "net-5.safetensors")
    name = next(n for n, v in weights.items() if v.ndim == 2)
    save_file({**weights, name: weights[name][:-1].contiguous()}, folder / "net-5.safetensors")
    return table


def nobody_unseen(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    data = load_examples(Subject.from_mapping(WINE))
    rest = np.setdiff1d(data.example_id, table["example_id"].to_numpy())
    return pl.concat([table, pl.DataFrame({"model": "net-0", "example_id": rest}).select("model", "example_id")])


def other_column(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    return table.rename({"example_id": "row"})


def few(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    some = table["example_id"].unique().sort().head(15).to_list()
    return table.filter(pl.col("example_id").is_in(some))


def one_more(folder: Path, table: pl.DataFrame) -> pl.DataFrame:
    (folder / "net-9.safetensors").write_bytes((folder / "net-0.safetensors").read_bytes())
    return pl.concat([table, table.filter(model="net-0").with_columns(model=pl.lit("net-9"))])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (unknown_id, ["members.csv", "1 ids are not in", "123456789"]),
        (missing_file, ["no .safetensors of: net-3"]),
        (saw_everything, ["net-1 saw all", "saw 1 to"]),
        (no_row, ["no row for models", "net-2", "1 at least"]),
        (twice, ["rows twice", "example ids:"]),
        (other_shape, ["net-5.safetensors is not of the plan's model", "has shape"]),
        (nobody_unseen, ["every test example was seen", "one that none saw is needed"]),
        (other_column, ["no column 'example_id'", "'row'"]),
        (few, ["examples were seen by 2 models (ensemble.policy.each_side)", "20 are needed"]),
        (one_more, ["num_models = 9", "holds 10", "state 10"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_set_is_refused_before_any_work(
    harm: Callable[[Path, pl.DataFrame], pl.DataFrame],
    words: list[str],
    policy: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for file in Path(policy["folder"]).glob("*.safetensors"):
        (folder / file.name).write_bytes(file.read_bytes())
    harm(folder, table_of(policy)).write_csv(folder / "members.csv")
    wrong = {**policy, "folder": str(folder), "members": str(folder / "members.csv")}
    data = load_examples(Subject.from_mapping(WINE))
    with pytest.raises(PalimpsestError):
        of_references(with_policy(wrong), data)
    home = tmp_path / "state"
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    write_subject(with_policy(wrong), home, comment="a test")
    monkeypatch.setattr("sys.argv", ["palimpsest", "audit", "brought"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and all(word in told for word in words), told
    assert told.rpartition("Error: ")[0].rpartition(" ")[2] in ("Config", "Data"), told
    warehouse = Workspace(home, launcher=InProcess()).warehouse
    assert warehouse.completions(["brought/data/examples", "brought/models/target"]) == {}


def test_given_models_may_keep_no_outputs_and_need_not_be_balanced(policy: dict[str, Any]) -> None:
    subject = with_policy(policy)
    data = load_examples(subject)
    found = given_ensemble(model_builder(subject, data), data, ensemble=subject.ensemble)
    assert found.logits is None and found.spoken is not None and found.each_side == 2
    strict = {**found.meta(), "each_side": None}
    with pytest.raises(PalimpsestError, match="exactly half"):
        ReferenceEnsemble.from_arrays(found.to_arrays(), strict)
    with pytest.raises(PalimpsestError, match="in and out of 4"):
        ReferenceEnsemble.from_arrays(found.to_arrays(), {**strict, "each_side": 4})


class TestNone:
    @pytest.mark.parametrize(
        ("listed", "where"),
        [
            ({"attacks": ["loss", "lira_online"]}, r"attacks\[1\]: attack lira_online"),
            ({"scores": ["el2n", "memorization"]}, r"scores\[1\]: score memorization"),
            ({"analyses": ["exposure"]}, r"analyses\[0\]: analysis exposure"),
        ],
        ids=str,
    )
    def test_what_reads_references_is_refused_as_the_plan_loads(self, listed: dict[str, Any], where: str) -> None:
        plan = with_policy("none", ensemble={"num_models": 8}, **{"attacks": [], **listed})
        with pytest.raises(NotApplicable, match=rf"{where} reads reference models, .*none.*retrain, adapters, given"):
            subject_stages(plan)
        subject_stages(dataclasses.replace(plan, ensemble=Ensemble(num_models=8)))

    def test_the_others_run_to_the_page(self, tmp_path: Path) -> None:
        plan = with_policy("none", ensemble={"num_models": 8}, attacks=["loss", "population"])
        workspace = carry_out(plan, tmp_path)
        assert "No reference models" in of_references(plan, workspace.examples(plan))[0]
        assert workspace.warehouse.last_complete("brought/models/ensemble") is None
        reports = workspace.warehouse.query("SELECT DISTINCT attack FROM audits.attack_reports")
        assert set(reports["attack"]) == {"loss", "population"} and list(tmp_path.rglob("*.html"))


def texts(root: Path, num: int = 48) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(20)]
    with (root / "texts.jsonl").open("w") as file:
        for row in range(num):
            text = " ".join([f"w{row % 20}", *rng.choice(words, rng.integers(3, 8))])
            file.write(json.dumps({"text": text, "split": "test" if row % 2 else "train"}) + "\n")
    config = {"root": str(root), "file": "texts.jsonl", "split": "split", "tokenizer": "words"}
    return {
        "subject": "words",
        "source": {"name": "text", "config": config},
        "model": {"name": "tiny_llama", "config": {"hidden": 16, "intermediate": 24, "layers": 1, "heads": 2}},
        "attacks": ["lira_online"],
        "thresholds": {"max_target_auc": 0.95},
        "ensemble": {"num_models": 4, "policy": "adapters"},
    }


LORA = {"name": "lora", "config": {"rank": 4, "epochs": 8, "batch": 8, "lr": 0.02}}


class TestAdapters:
    def test_to_the_page_on_the_base_of_the_audited_model(self, tmp_path: Path) -> None:
        subject = Subject.from_mapping({**texts(tmp_path), "recipe": LORA})
        workspace = carry_out(subject, tmp_path / "state")
        w, data = workspace.warehouse, workspace.examples(subject)
        arrays, meta = w.artifacts.load("words/models/ensemble/result")
        found = ReferenceEnsemble.from_arrays(arrays, meta)
        build = model_builder(subject, data)
        one_base = trainer(subject, data)
        one_base = dataclasses.replace(one_base, build=lambda seed: build(subject.seed))
        seeds = [derive_seed("reference", derive_seed(0, "ensemble") % 2**31, m) for m in range(4)]
        view = data.subset(found.example_id)
        for m in (0, 3):  # what the recipe gives on that base, merged: the sum is rounded
            alone = one_base.many(view, members=[np.flatnonzero(found.keep[m])], seeds=[seeds[m]])[0]
            np.testing.assert_allclose(found.reading[m], read(alone, view).values, rtol=2e-4, atol=2e-4)
        assert w.query("SELECT 1 FROM audits.findings WHERE about = 'references'").is_empty()
        reports = w.query("SELECT DISTINCT attack FROM audits.attack_reports")
        assert len(reports) == 1 and list((tmp_path / "state").rglob("*.html"))
        told = of_references(subject, data)
        assert len(told) == 1 and "4 reference models, adapters of rank 4 on one tiny_llama" in told[0]

    def test_beside_a_model_of_another_recipe_they_clear_nobody(self, tmp_path: Path) -> None:
        small = {"name": "causal_lm", "config": {"lr": 0.01, "batch": 16, "epochs": 4}}
        policy = {"name": "adapters", "config": {"rank": 2, "epochs": 3}}
        subject = Subject.from_mapping(
            {**texts(tmp_path), "recipe": small, "ensemble": {"num_models": 4, "policy": policy}}
        )
        workspace = carry_out(subject, tmp_path / "state")
        rows = workspace.warehouse.query("SELECT * FROM audits.findings")
        match = rows.filter(about="references").row(0, named=True)
        assert match["judged"] and match["verdict"] == "inconclusive" and "trained by causal_lm" in match["sentence"]
        assert "pass" not in set(rows.filter(pl.col("what").str.contains("lira"))["verdict"])
        assert match["sentence"] in of_references(subject, workspace.examples(subject))

    def test_what_they_cannot_carry_is_refused_before_any_work(self, tmp_path: Path) -> None:
        plan = with_policy("adapters", ensemble={"num_models": 8})
        with pytest.raises(NotApplicable, match=r"ensemble.policy adapters does not apply to wine"):
            of_references(plan, load_examples(plan))
        both = Subject.from_mapping(
            {**texts(tmp_path), "recipe": LORA, "ensemble": {"policy": {"name": "adapters", "config": {"rank": 2}}}}
        )
        with pytest.raises(ConfigError, match=r"as recipe.config says"):
            of_references(both, load_examples(both))


def digests(policy: Any, **more: Any) -> dict[str, str]:
    config = {"source": {"name": "sklearn", "config": {"dataset": "wine"}}, "model": "mlp", "recipe": "supervised"}
    ensemble = {"num_models": 8} if policy is None else {"num_models": 8, "policy": policy}
    subject = Subject.from_mapping(
        {"subject": "golden", **config, "ensemble": ensemble, "attacks": ["loss", "lira_online"], **more}
    )
    stages = {"/".join(stage.path): stage.config_digest for stage in subject_stages(subject)}
    return {"plan": subject.digest(), "ensemble": subject.ensemble.digest(), **stages}


def test_the_default_policy_is_in_no_digest_and_every_other_is() -> None:
    """What was stored before there were policies is current under the default one."""
    golden = digests(None)
    assert golden["plan"] == "1b649d02d606fb244a5380b5dda380346593d6606dac58c90cd231e545c5d1d2"
    assert golden["models/ensemble"] == "082fe2acb25b3d902456d5ec3f55ac69b4487f8dbd92b6bf3ced46bcb1e469fb"
    assert Ensemble().digest() == "b1dc1a6f09aa8ccdc31d9d516f29c74d696576daf5e1939147a4da93f85f253d"
    assert digests("retrain") == golden == digests({"name": "retrain"})
    given = {"name": "given", "folder": "a", "members": "a/b.csv"}
    keys = [digests(policy)["models/ensemble"] for policy in ("retrain", "adapters", given, {**given, "each_side": 3})]
    assert len(set(keys)) == 4
    found = [digests(policy)["audits/findings"] for policy in ("retrain", "adapters", given)]
    assert len(set(found)) == 3
    assert digests("none", attacks=["loss"])["audits/loss"] != digests("retrain", attacks=["loss"])["audits/loss"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("given", "needs folder, members"),
        ({"name": "given", "folder": "x"}, "needs members"),
        ({"name": "none", "folder": "x"}, "no folder: only given"),
        ({"name": "retrain", "config": {"rank": 2}}, "only adapters has one"),
        ({"name": "adapters", "each_side": 4}, "no each_side"),
        ("borrowed", "one of 'retrain', 'adapters', 'given', 'none'"),
    ],
    ids=str,
)
def test_a_policy_says_what_it_has(policy: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_policy(policy, ensemble={"num_models": 8})


def test_a_table_of_outputs_has_no_models_to_refer_to() -> None:
    outputs = {"subject": "s", "source": {"name": "outputs"}, "model": "outputs"}
    for policy in ("adapters", {"name": "given", "folder": "a", "members": "b"}):
        with pytest.raises(ConfigError, match="there are only its outputs"):
            Subject.from_mapping({**outputs, "ensemble": {"policy": policy}})
