"""A model of one's own: a module from the working folder, weights that somebody else trained, outputs without a
model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import ModuleType

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

from assets import Workspace, subject_stages
from assets.stage import materialize
from contracts import schema
from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.subject import Subject
from pipelines.cli.app import app
from pipelines.cli.audit import run_subject
from pipelines.launchers import PipesLauncher
from pipelines.subjects import load_subject
from recipes import models
from recipes.plan import model_builder
from warehouse import Warehouse

pytestmark = pytest.mark.journey

NETS = '''
"""A stranger's models; the helper lies beside them."""
from math import prod

import torch
from torch import nn

from stranger_parts import block


def build(input_shape, num_outputs, width=16):
    return nn.Sequential(nn.Flatten(), block(prod(input_shape), width), nn.Linear(width, num_outputs))


class Odd(nn.Module):
    how = ""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.out = nn.Linear(prod(input_shape), num_outputs)

    def forward(self, x):
        z = self.out(x.flatten(1))
        match self.how:
            case "nan":
                return z / (x.flatten(1)[:, :1] == 0)
            case "tuple":
                return z, x
            case "dict":
                return {"logits": z}
            case "narrow":
                return z[:, :-1]
            case "raises":
                raise KeyError("no such thing")
            case "cuda":
                return z.to("cuda")
            case "training" if self.training:
                return z, z
            case "detached":
                return z.detach()
        return z


def __getattr__(name):
    if name.startswith("odd_"):
        return type(name, (Odd,), {"how": name.removeprefix("odd_")})
    raise AttributeError(f"module has no attribute {name!r}")


def on_cuda(input_shape, num_outputs):
    return build(input_shape, num_outputs).cuda()


def fails(input_shape, num_outputs):
    raise RuntimeError("on two\\nlines")
'''


def palimpsest(*words: str) -> str:
    """What a command that ends well prints; a known error is raised, which ``main`` turns into exit 2."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1), result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's working folder: modules and data."""
    place = tmp_path_factory.mktemp("work")
    (place / "stranger_nets.py").write_text(NETS)
    (place / "stranger_parts.py").write_text(
        "from torch import nn\n\n\ndef block(a, b):\n    return nn.Sequential(nn.Linear(a, b), nn.ReLU())\n"
    )
    (place / "stranger_division.py").write_text("1 / 0\n")
    (place / "stranger_exit.py").write_text("import sys\nsys.exit(3)\n")
    (place / "stranger_syntax.py").write_text("def f(:\n")
    (place / "stranger_missing.py").write_text("import no_such_module_here\n")
    (place / "stranger_borrows.py").write_text("from scoring import anything\n")
    for name in ("assets", "scoring", "statistics", "polars"):
        (place / f"{name}.py").write_text("def build(input_shape, num_outputs): ...\n")
    digits = load_digits()
    split = np.where(np.arange(400) % 2 == 0, "train", "test")
    np.savez(place / "digits.npz", x=digits.images[:400].astype(np.uint8) * 15, y=digits.target[:400], split=split)
    return place


@pytest.fixture
def home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def small(plan: Subject, **more: object) -> Subject:
    """The plan, cut down to what a test can wait for."""
    config = {**plan.recipe.config, "epochs": 30, "lr": 0.1, "batch": 32}
    unlearning = plan.unlearning and dataclasses.replace(plan.unlearning, seeds=1)
    less = {
        "recipe": dataclasses.replace(plan.recipe, config=config),
        "model": dataclasses.replace(plan.model, alike=10),
        "early": dataclasses.replace(plan.early, seeds=1, epoch=1),
        "ensemble": dataclasses.replace(plan.ensemble, num_models=4, block=4),
        "unlearning": unlearning,
        "scores": (),
        "analyses": (),
    }
    return dataclasses.replace(plan, **{**less, **more})


def trained(nets: ModuleType, split: str, *, epochs: int = 30, seed: int = 5, width: int = 16) -> nn.Module:
    """What a stranger does in plain PyTorch: images from 0 to 1, SGD with momentum, a cosine to 0."""
    stored = np.load("digits.npz")
    rows = np.flatnonzero(np.isin(stored["split"], split.split("+")))
    x, y = torch.tensor(stored["x"][rows, None] / 255, dtype=torch.float32), torch.tensor(stored["y"][rows])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nets.build((1, 8, 8), 10, width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1))
        for _ in range(epochs):
            for batch in torch.randperm(len(y)).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
            schedule.step()
    return model


@pytest.fixture(scope="module")
def nets(folder: Path) -> ModuleType:
    return __import__(models._imported("stranger_nets:build", str(folder)).__module__)


REFUSED = {
    "stranger_nets:odd_nan": "answers NaN or infinity to 64 of 64 training examples",
    "stranger_nets:odd_tuple": "to a tuple in eval mode; one tensor",
    "stranger_nets:odd_dict": "to a dict in eval mode; one tensor",
    "stranger_nets:odd_narrow": r"to \(2, 9\); \(2, 10\) or, a class a pixel, \(2, 10, 8, 8\) is needed",
    "stranger_nets:odd_raises": "fails in eval mode on 2 examples.*KeyError: 'no such thing'",
    "stranger_nets:odd_training": "to a tuple in train mode",
    "stranger_nets:odd_detached": "fails to be trained",
    "stranger_nets:fails": "fails to be built: RuntimeError: on two lines",
    "stranger_nets:nothing": "cannot be imported: module has no attribute 'nothing'",
    "stranger_division:f": "cannot be imported: ZeroDivisionError: division by zero",
    "stranger_exit:f": "cannot be imported: SystemExit: 3",
    "stranger_syntax:f": "stranger_syntax.py is not Python",
    "stranger_missing:f": "No module named 'no_such_module_here'",
    "stranger_nowhere:f": "No module named 'stranger_nowhere'",
    "assets:build": r"assets.py cannot be imported: 'assets' is also the name of a package of this program",
    "polars:build": r"polars.py cannot be imported: 'polars' is also the name of a package of this program or of its "
    r"lib",
    "statistics:build": "'statistics' is also the name of a module of Python's own library",
    "stranger_borrows:f": r"scoring.py cannot be imported: 'scoring' is also the name of a package of this program",
}


@pytest.mark.parametrize("name", REFUSED)
def test_init_refuses_what_the_audit_would_in_one_sentence(name: str, folder: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]) as error:
        palimpsest("init", "mine", "--data", "digits.npz", "--model", name)
    assert "\n" not in str(error.value) and not (home / "subjects").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no CUDA")
@pytest.mark.parametrize("name", ["on_cuda", "odd_cuda"])
def test_a_model_that_asks_for_cuda_is_told_what_to_leave_out(name: str, folder: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no CUDA here: leave \.cuda\(\) .* out"):
        palimpsest("init", "mine", "--data", "digits.npz", "--model", f"stranger_nets:{name}")


def test_the_audit_refuses_what_init_refuses(folder: Path, home: Path) -> None:
    """A plan may be written by hand: the same check stands before the training."""
    palimpsest("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build")
    plan = load_subject("mine", home)
    odd = dataclasses.replace(plan, model=dataclasses.replace(plan.model, name="stranger_nets:odd_nan"))
    workspace = Workspace(home, launcher=PipesLauncher())
    examples, target = subject_stages(odd)[:2]
    materialize(examples, workspace, run_id="r", request=None, context=None)
    with pytest.raises(ConfigError, match="answers NaN or infinity to 64 of 64 training examples"):
        materialize(target, workspace, run_id="r", request=None, context=None)


def test_the_folder_and_the_source_of_an_own_module_are_on_record(
    folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = palimpsest("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build")
    assert "model stranger_nets:build" in said
    monkeypatch.chdir(tmp_path)  # whoever loads the plan may be anywhere
    plan = load_subject("mine", home)
    assert plan.model.folder == str(folder)
    keys = {stage.path: stage.config_digest for stage in subject_stages(plan)}
    parts = folder / "stranger_parts.py"
    before = parts.read_text()
    try:
        parts.write_text(before + "# another version\n")
        changed = {stage.path: stage.config_digest for stage in subject_stages(plan)}
        with pytest.raises(ConfigError, match="is not the one that this process has loaded"):
            model_builder(plan, Workspace(home, launcher=PipesLauncher()).examples(plan))
    finally:
        parts.write_text(before)
    assert {p for p in keys if keys[p] != changed[p]} >= {("models", "target"), ("models", "ensemble")}
    assert keys["data", "examples"] == changed["data", "examples"]


def test_a_plan_whose_module_is_gone_leaves_the_others_as_they_are(
    folder: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The code location of the UI loads: the plan that cannot says why, as an asset, and the built-in subjects are
    there."""
    from pipelines.definitions import subject_or_error, workspace
    from pipelines.subjects import BUILT_IN

    palimpsest("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build")
    plan = home / "subjects" / "mine" / "defs.yaml"
    plan.write_text(plan.read_text().replace(str(folder), str(tmp_path / "gone")).replace("stranger_nets", "gone_nets"))
    parts = [
        subject_or_error("mine", plan, home),
        subject_or_error("diabetes", BUILT_IN / "diabetes" / "defs.yaml", home),
    ]
    loaded = dg.Definitions.merge(*parts, dg.Definitions(resources={"workspace": workspace}))
    keys = {tuple(key.path) for key in loaded.resolve_asset_graph().get_all_asset_keys()}
    assert {key for key in keys if key[0] == "mine"} == {("mine", "plan", "cannot_be_loaded")}
    assert ("diabetes", "models", "target") in keys and "gone_nets" in caplog.text


def test_subjects_that_differ_in_dashes_alone_do_not_take_the_others_along(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of Dagster know no dash: two of one name, and no subject would have had a schedule or a sensor."""
    from pipelines import definitions
    from pipelines.subjects import BUILT_IN

    palimpsest("init", "my-digits", "--data", "digits.npz")
    with pytest.raises(ConfigError, match=r"'my_digits' and 'my-digits' differ in - and _ alone"):
        palimpsest("init", "my_digits", "--data", "digits.npz")
    plan = home / "subjects" / "my-digits" / "defs.yaml"
    for name in ("my_digits", "digits-distilled"):  # by hand; a built-in one comes first whatever its name
        own = home / "subjects" / name / "defs.yaml"
        own.parent.mkdir()
        own.write_text(plan.read_text().replace("my-digits", name))
    files = {path.parent.name: path for path in sorted((home / "subjects").glob("*/defs.yaml"))}
    files["digits_distilled"] = BUILT_IN / "digits_distilled" / "defs.yaml"
    monkeypatch.setattr(definitions, "subject_files", lambda home: dict(sorted(files.items())))
    repository = definitions.defs().get_repository_def()
    assert {"audit_my_digits", "audit_digits_distilled"} <= set(repository.job_names)
    refused = {key.path[0] for key in repository.assets_defs_by_key if key.path[1:] == ["plan", "cannot_be_loaded"]}
    assert refused == {"my_digits", "digits-distilled"}


class TestAGivenCheckpoint:
    """Trained by a stranger in plain PyTorch, saved with torch.save."""

    def test_from_a_pt_file_to_the_answer(
        self, folder: Path, home: Path, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = trained(nets, "train").state_dict()
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, "net.pt")
        said = palimpsest("import-checkpoint", "net.pt", "--name", "net")
        assert "4 arrays" in said and "--checkpoint imported/net" in said
        init = ("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build")
        said = palimpsest(*init, "--checkpoint", "imported/net")
        assert "accuracy 1.000 in training" in said and "inputs unit" in said and "as given" in said
        monkeypatch.chdir(tmp_path)
        plan = load_subject("mine", home)
        assert plan.model.checkpoint == "imported/net"
        plan = small(plan, unlearning=None, splits=(), attacks=plan.attacks[1:2])
        run_subject(plan, home, job="audit")
        w = Warehouse.open(home)
        arrays, _ = w.artifacts.load("mine/models/target/weights")
        assert set(arrays) == set(weights) and all(np.array_equal(arrays[k], v.numpy()) for k, v in weights.items())
        rows = w.read(schema.FINDINGS, subject="mine")
        match = w.read(schema.RECIPE_MATCH, subject="mine").row(0, named=True)
        finding = rows.filter(pl.col("about") == "references").row(0, named=True)
        assert match["num_models"] == 10 and match["num_examples"] == 200 and match["likeness"] > 0.9
        assert finding["value"] == match["p_value"] and finding["judged"] == (match["p_value"] < 0.05)
        assert set(rows["about"]) == {"target", "references"}
        page = w.artifacts.load_bytes("mine/reports/audit.html").decode()
        assert "as given by imported/net, not trained here" in page and "of the stated recipe" in page
        _, again = run_subject(plan, home, job="audit")
        assert {r["state"] for r in again} == {"unchanged: nothing was recomputed"}
        result = CliRunner().invoke(app, ["verify"])
        assert result.exit_code == 0, result.output

    def test_its_key_is_the_digest_of_the_file(self, folder: Path, home: Path, nets: ModuleType) -> None:
        model = trained(nets, "train", epochs=3)
        save_file(model.state_dict(), "net.safetensors")
        palimpsest(
            "init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build", "--checkpoint", "net.safetensors"
        )
        plan = load_subject("mine", home)
        workspace = Workspace(home, launcher=PipesLauncher())
        first = workspace.outside(plan, "model")
        target = next(s for s in subject_stages(plan) if s.path == ("models", "target"))
        assert target.reads == "model" and not target.trains and len(first) == 64
        save_file({k: v + 1 for k, v in model.state_dict().items()}, "net.safetensors")
        assert workspace.outside(plan, "model") != first
        Path("net.safetensors").unlink()
        with pytest.raises(ConfigError, match="is no file"):
            workspace.outside(plan, "model")

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            (
                lambda s: {k: v[:8] if k.startswith("2") else v for k, v in s.items()},
                ConfigError,
                r"'2\.\w+' has shape \(8",
            ),
            (lambda s: {k: v for k, v in s.items() if k != "2.bias"}, ConfigError, "missing 2.bias"),
            (lambda s: {**s, "3.weight": s["2.bias"] + 1}, ConfigError, "unexpected 3.weight"),
            (lambda s: {k: v.double() for k, v in s.items()}, ConfigError, "has dtype float64"),
            (lambda s: {k: v * float("nan") for k, v in s.items()}, ConfigError, "not finite"),
        ],
        ids=["shape", "missing", "unexpected", "dtype", "nan"],
    )
    def test_weights_of_another_model_are_refused_by_name(self, folder, home, nets, change, error, words) -> None:
        save_file(change({k: v.contiguous() for k, v in nets.build((1, 8, 8), 10).state_dict().items()}), "other.st")
        init = ("init", "x", "--data", "digits.npz", "--model", "stranger_nets:build")
        with pytest.raises(error, match=words):
            palimpsest(*init, "--checkpoint", "other.st", "--inputs", "unit")
        assert not (home / "subjects").exists()

    def test_a_whole_pickled_model_and_other_files_are_refused(self, folder: Path, home: Path) -> None:
        init = ("init", "x", "--data", "digits.npz", "--model", "stranger_nets:build", "--checkpoint")
        torch.save(nn.Linear(2, 2), "whole.pt")
        with pytest.raises(UnsafeFile, match=r"asks for torch\.nn"):
            palimpsest(*init, "whole.pt")
        with pytest.raises(DataError, match="no readable safetensors file"):
            palimpsest(*init, "stranger_nets.py")
        with pytest.raises(ConfigError, match=r"is no file, and not imported \(nothing was imported\)"):
            palimpsest(*init, "imported/none")
        with pytest.raises(ConfigError, match="there is no --checkpoint"):
            palimpsest(*init[:-1], "--inputs", "raw")

    def test_untouched_weights_are_said_to_know_nothing(self, folder: Path, home: Path, nets: ModuleType) -> None:
        torch.save(trained(nets, "train", epochs=0).state_dict(), "untouched.pt")
        said = palimpsest(
            "init", "x", "--data", "digits.npz", "--model", "stranger_nets:build", "--checkpoint", "untouched.pt"
        )
        assert "no better than always giving the same answer" in said

    def test_retraining_is_no_ground_for_closing_where_the_model_is_never_retrained(
        self, folder: Path, home: Path, nets: ModuleType
    ) -> None:
        save_file(nets.build((1, 8, 8), 10).state_dict(), "any.safetensors")
        init = ("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build")
        palimpsest(*init, "--checkpoint", "any.safetensors")
        plan = load_subject("mine", home)
        with pytest.raises(ConfigError, match="never trained again"):
            dataclasses.replace(plan, unlearning=dataclasses.replace(plan.unlearning, closing="retrained"))

    @pytest.mark.parametrize(("split", "epochs"), [("train", 0), ("train+test", 30)], ids=["untouched", "leaked"])
    def test_a_model_of_no_such_recipe_never_passes(
        self, split: str, epochs: int, folder: Path, home: Path, nets: ModuleType
    ) -> None:
        torch.save(trained(nets, split, epochs=epochs).state_dict(), "odd.pt")
        palimpsest("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build", "--checkpoint", "odd.pt")
        plan = small(load_subject("mine", home))
        run_subject(plan, home, job="audit")
        rows = Warehouse.open(home).read(schema.FINDINGS, subject="mine")
        match = rows.filter(pl.col("about") == "references").row(0, named=True)
        assert match["verdict"] == "inconclusive" and match["judged"]
        assert ("taken for unseen" in match["sentence"]) == (split != "train")
        with_references = rows.filter((pl.col("about") == "target") & (pl.col("what") != "attack/loss"))
        assert with_references.height and "pass" not in set(with_references["verdict"])
        assert set(rows["about"]) >= {"random/none", "random/retrain", "random/finetune"}
        of_given = rows.filter(pl.col("method").is_in(["none", "finetune"]) & pl.col("what").is_in(["gap", "quality"]))
        assert of_given.height and set(of_given["verdict"]) == {"inconclusive"}
        retrained = rows.filter((pl.col("method") == "retrain") & (pl.col("what") == "gap"))
        assert retrained["verdict"].to_list() == ["pass"], "retraining is the recipe's own"


def test_an_own_module_from_init_to_the_answer(
    folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, attacked and unlearned, by jobs in processes of their own, from a folder that is not the working one."""
    palimpsest("init", "mine", "--data", "digits.npz", "--model", "stranger_nets:build")
    monkeypatch.chdir(tmp_path)
    plan = small(load_subject("mine", home))
    run_subject(plan, home, job="audit")
    about = set(Warehouse.open(home).read(schema.FINDINGS, subject="mine")["about"])
    assert {"target", "random/none", "random/retrain", "random/finetune"} <= about and "references" not in about


class TestOutputsOnly:
    @pytest.fixture
    def table(self, folder: Path, home: Path, nets: ModuleType) -> pl.DataFrame:
        model = trained(nets, "train", epochs=60).eval()
        stored = np.load("digits.npz")
        x = torch.tensor(stored["x"][:, None] / 255, dtype=torch.float32)
        with torch.no_grad():
            p, hidden = model(x).softmax(1).numpy(), model[:2](x).numpy()
        columns = {f"prob_{k}": p[:, k] for k in range(10)} | {f"emb_{i}": hidden[:, i] for i in range(16)}
        return pl.DataFrame(columns).with_columns(label=stored["y"], split=stored["split"], remark=pl.lit("-"))

    def test_from_the_table_to_an_honest_answer(self, table: pl.DataFrame, home: Path) -> None:
        table.write_parquet("outputs.parquet")
        said = palimpsest("init", "said", "--data", "outputs.parquet", "--outputs")
        assert "200 members and 200 others by 'split'" in said and "16 features" in said and "not read: remark" in said
        assert "lira_online" in said.split("they need the model:")[1].split("Plan:")[0]
        plan = load_subject("said", home)
        assert {c.name for c in plan.attacks} == {"loss", "entropy", "modified_entropy", "gap", "population"}
        assert {c.name for c in plan.scores} == {
            "output_error",
            "output_label_quality",
            "knn_disagreement",
            "knn_shapley",
            "near_duplicates",
        }
        plan = dataclasses.replace(plan, scores=(*plan.scores, *Subject.from_mapping(LISTED).scores))
        plan = dataclasses.replace(plan, attacks=(plan.attacks[2], *Subject.from_mapping(LISTED).attacks))
        run_subject(plan, home, job="audit")
        w = Warehouse.open(home)
        rows = w.read(schema.FINDINGS, subject="said")
        assert set(rows["about"]) == {"target"} and rows["judged"].all() and "pass" not in set(rows["verdict"])
        refused = rows.filter(pl.col("what") == "attack/lira_online").row(0, named=True)
        assert refused["verdict"] == "inconclusive" and "needs reference models" in refused["sentence"]
        runs = {r["score"]: r for r in w.read(schema.SCORE_RUNS, subject="said").iter_rows(named=True)}
        assert not runs["el2n"]["passed"] and "needs early models; there are only" in runs["el2n"]["reason"]
        error = w.query("SELECT avg(error) AS e, count(*) AS n FROM scores.output_error WHERE subject = 'said'")
        assert error["n"][0] == 200 and 0 < error["e"][0] < 0.2
        page = w.artifacts.load_bytes("said/reports/audit.html").decode()
        assert "no model was here, and none was trained" in page

    def test_what_is_called_as_outputs_are_is_read_as_outputs_unless_it_is_none(
        self, table: pl.DataFrame, home: Path
    ) -> None:
        table.select(pl.exclude("^emb_.*$")).write_csv("looks.csv")
        assert "a model's outputs in looks.csv" in palimpsest("init", "a", "--data", "looks.csv")
        assert load_subject("a", home).outputs_only
        assert {c.name for c in load_subject("a", home).scores} == {"output_error", "output_label_quality"}
        palimpsest("init", "b", "--data", "looks.csv", "--no-outputs")
        assert not load_subject("b", home).outputs_only

    def test_columns_called_p0_and_on_are_outputs_where_they_sum_to_1(self, table: pl.DataFrame, home: Path) -> None:
        said = [name for name in table.columns if re.match(r"p(rob|roba)?[_.]", name)]
        numbered = table.select(pl.exclude("^emb_.*$")).rename({name: f"p{k}" for k, name in enumerate(said)})
        numbered.write_parquet("numbered.parquet")
        assert "a model's outputs in numbered.parquet" in palimpsest("init", "c", "--data", "numbered.parquet")
        assert load_subject("c", home).outputs_only
        numbered.with_columns(p0=pl.col("p0") + 0.1).write_parquet("pixels.parquet")
        palimpsest("init", "d", "--data", "pixels.parquet")
        assert not load_subject("d", home).outputs_only

    def test_columns_are_what_they_are_called_or_are_refused(self, table: pl.DataFrame, home: Path) -> None:
        """Values above 1 under the name of probabilities were taken for logits without a word."""
        table.with_columns(pl.col("prob_0") + 1.5).write_parquet("above.parquet")
        with pytest.raises(DataError, match=r"no probabilities: values outside 0..1 in 400 rows"):
            palimpsest("init", "e", "--data", "above.parquet")
        table.select(pl.exclude("^prob_.*$"), logits=pl.concat_list(pl.col("^prob_.*$"))).write_parquet("named.parquet")
        palimpsest("init", "f", "--data", "named.parquet")
        assert load_subject("f", home).source.config["scale"] == "logits"
        for given in (("--model", "stranger_nets:build"), ("--checkpoint", "net.pt")):
            with pytest.raises(ConfigError, match=f"there is no model, and {given[0]} {given[1]} names one"):
                palimpsest("init", "g", "--data", "named.parquet", "--outputs", *given)

    @pytest.mark.parametrize(
        ("gap", "verdict", "words"),
        [
            (0.0, "inconclusive", "clears nobody"),
            pytest.param(2.0, "fail", "tells members"),
        ],
        ids=["nothing", "much"],
    )
    def test_attacks_without_references_convict_and_never_clear(
        self, gap: float, verdict: str, words: str, folder: Path, home: Path
    ) -> None:
        """Outputs drawn so that nothing, or much, can be said of 600 members among 1,200."""
        rng = np.random.default_rng(0)
        member, label = np.arange(1200) % 2 == 0, rng.integers(0, 2, 1200)
        z = (rng.normal(1, 1, 1200) + gap * member) * np.where(label == 0, 1, -1)
        frame = pl.DataFrame({"logit_0": z, "logit_1": np.zeros(1200), "label": label, "member": member})
        frame.write_parquet("drawn.parquet")
        palimpsest("init", "drawn", "--data", "drawn.parquet")
        plan = load_subject("drawn", home)
        loss = tuple(choice for choice in plan.attacks if choice.name == "loss")
        run_subject(dataclasses.replace(plan, scores=(), attacks=loss), home, job="audit")
        row = Warehouse.open(home).read(schema.FINDINGS, subject="drawn").row(0, named=True)
        assert (row["verdict"], row["judged"]) == (verdict, True) and words in row["sentence"]


LISTED = {
    "subject": "x",
    "source": {"name": "outputs"},
    "model": "outputs",
    "scores": ["el2n"],
    "attacks": ["lira_online"],
}
