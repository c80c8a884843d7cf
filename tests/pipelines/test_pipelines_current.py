"""What is current is not launched, only recorded as observed; what is stale is, with all that stands on it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets import stage as stages_at_work
from assets import subject_stages
from assets.current import UNCHANGED
from assets.dagster_view import key_of
from contracts.errors import JobFailed
from contracts.subject import Subject
from pipelines import outline
from pipelines.cli import audit
from warehouse import Warehouse

pytestmark = pytest.mark.journey


@pytest.fixture
def home(audited_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the audited state that a test may change."""
    copy = tmp_path / "state"
    shutil.copytree(audited_home, copy)
    monkeypatch.setenv("PALIMPSEST_HOME", str(copy))
    return copy


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What each run launched, as "stage/name"; nothing is trained: a launched stage counts as computed."""
    seen: list[set[str]] = []

    def spy(plan, workspace, instance, job, request, stages):  # type: ignore[no-untyped-def]
        seen.append({"/".join(stage.path) for stage in stages})
        return dict.fromkeys(stages, "computed in 0.0 s")

    monkeypatch.setattr(audit, "_launch", spy)
    return seen


def downstream(plan: Subject, *changed: str) -> set[str]:
    """The audit's stages of these names and everything that stands on them, told from the stages themselves."""
    found: set[str] = set()
    for stage in subject_stages(plan):
        if not stage.per_request and (
            "/".join(stage.path) in changed or any("/".join(dep.path) in found for dep in stage.deps)
        ):
            found.add("/".join(stage.path))
    return found


def observations(keys: list[dg.AssetKey]) -> list[int]:
    with dg.DagsterInstance.get() as instance:
        return [len(instance.fetch_observations(key, limit=100).records) for key in keys]


@pytest.mark.promise("A7")
def test_what_is_current_is_observed_and_not_launched(home: Path, small: Subject, launched: list[set[str]]) -> None:
    keys = [key_of(stage) for stage in subject_stages(small) if not stage.per_request]
    before = observations(keys)
    _, records = audit.run_subject(small, home, job="audit")
    assert not launched and len(records) == len(keys) and {r["state"] for r in records} == {UNCHANGED}
    assert observations(keys) == [n + 1 for n in before]


def test_a_changed_plan_launches_what_reads_the_change(home: Path, small: Subject, launched: list[set[str]]) -> None:
    inversion = dataclasses.replace(small.analyses[1], config={**small.analyses[1].config, "steps": 21})
    changed = dataclasses.replace(small, analyses=(small.analyses[0], inversion))
    expected = downstream(changed, "audits/dropout_inversion")
    assert "audits/dropout_inversion" in expected and not any(name.startswith("models/") for name in expected)
    audit.run_subject(changed, home, job="audit")
    assert launched == [expected]
    seeded = dataclasses.replace(small, seed=1)
    audit.run_subject(seeded, home, job="audit")
    assert launched[1] >= {stage for stage in downstream(seeded, "models/target")}


@pytest.mark.parametrize("name", ["small/models/ensemble", "small/scores/el2n", "small/reports/audit"])
def test_what_is_no_longer_there_is_made_again(home: Path, small: Subject, launched: list[set[str]], name: str) -> None:
    w = Warehouse.open(home)
    record = w.last_complete(name)
    assert record is not None
    if "scores" not in name:
        lost = next(o for o in record["outputs"] if o["kind"] == "artifact")
        (home / w.artifacts.describe(lost["name"]).path).unlink()  # of the report: the page that a person would open
    else:
        import duckdb

        with duckdb.connect(str(home / "warehouse" / "palimpsest.duckdb")) as con:
            con.execute("DELETE FROM meta.partitions WHERE name = 'scores.el2n'")
    audit.run_subject(small, home, job="audit")
    assert launched == [downstream(small, name.removeprefix("small/"))]


def test_what_the_sizes_allow_and_the_budget_are_said_before_the_work(
    home: Path, small: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise JobFailed("no work starts here")

    monkeypatch.setattr(audit, "_launch", never)
    with pytest.raises(JobFailed, match="no work starts"):
        audit.run_subject(dataclasses.replace(small, seed=1, budget_min=3.0), home, job="audit")
    said = capsys.readouterr().err
    assert "180 forgotten examples" in said and "budget: 3 minutes" in said


def test_a_raised_version_is_seen(
    home: Path, small: Subject, launched: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outline of the plan is remembered; with other code on disk it is made anew."""
    from contracts.methods import score

    method = score.get("el2n")
    raised = dataclasses.replace(method, spec=dataclasses.replace(method.spec, version=method.spec.version + 1))
    monkeypatch.setitem(score._methods, "el2n", raised)
    monkeypatch.setattr(outline, "code_digest", lambda: "another")
    monkeypatch.setattr(outline, "_keep", lambda *_: None)
    audit.run_subject(small, home, job="audit")
    assert launched == [downstream(small, "scores/el2n")]


def test_dagster_is_told_of_results_that_it_does_not_hold(home: Path, small: Subject, launched: list[set[str]]) -> None:
    shutil.rmtree(home / "history")
    audit.run_subject(small, home, job="audit")
    assert launched == [{"/".join(s.path) for s in subject_stages(small) if not s.per_request}]


# ---- the outline ---------------------------------------------------------------------------------------------------


def test_the_digest_of_the_code_changes_with_any_file_and_any_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now() -> str:
        outline.code_digest.cache_clear()
        return outline.code_digest()

    before = now()
    assert now() == before
    extra = tmp_path / "method.py"
    extra.write_text("a = 1\n")
    files = outline._code_files()
    assert {"assets/stage.py", "scoring/el2n.py", "pipelines/outline.py"} <= {
        str(path.relative_to(outline.ROOT)) for path in files
    }
    with monkeypatch.context() as patch:
        patch.setattr(outline, "_code_files", lambda: [*files, extra])
        added = now()
        extra.write_text("a = 2\n")
        assert len({before, added, now()}) == 3
    package = tmp_path / "site" / "plugin-1.0.dist-info"
    package.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "site"))
        installed = now()
        os.utime(package, ns=(1, 1))
        assert len({before, installed, now()}) == 3
    outline.code_digest.cache_clear()


def test_a_remembered_outline_that_was_changed_or_cut_is_made_anew(
    home: Path, small: Subject, launched: list[set[str]]
) -> None:
    kept = home / "outlines" / "small.json"
    whole = kept.read_bytes()
    for harmed in (whole[: len(whole) // 2], whole.replace(b'"version":', b'"version":1', 1), b"[]", b""):
        kept.write_bytes(harmed)
        audit.run_subject(small, home, job="audit")
        assert not launched and kept.read_bytes() == whole


def test_a_second_run_loads_no_library_of_the_methods(home: Path, small: Subject) -> None:
    """Torch, scikit-learn and the methods cost more than the whole look at what is current."""
    said = [
        subprocess.run(
            [sys.executable, "-c", _SECOND_RUN, str(home)], check=True, capture_output=True, text=True, cwd=outline.ROOT
        ).stdout.splitlines()[-1]
        for _ in range(2)
    ]
    assert said[-1] == "loaded []", said


_SECOND_RUN = """
import sys
from pathlib import Path
from pipelines.cli.audit import run_subject
from pipelines.subjects import load_subject
home = Path(sys.argv[1])
_, records = run_subject(load_subject("small", home), home, job="audit")
assert all(r["state"].startswith("unchanged") for r in records), records
print("loaded", [m for m in ("torch", "sklearn", "captum", "faiss", "great_expectations") if m in sys.modules])
"""


# ---- data of one's own, and contracts that do not hold
# -----------------------------------------------------------------


def table_of(tmp_path: Path) -> Subject:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    pl.DataFrame({f"f{i}": x[:, i] for i in range(4)} | {"label": (x[:, 0] > 0).astype(int)}).write_csv(
        tmp_path / "mine.csv"
    )
    return Subject.from_mapping(
        {
            "subject": "mine",
            "source": {"name": "table", "config": {"root": str(tmp_path), "file": "mine.csv", "label": "label"}},
            "model": {"name": "mlp", "config": {"hidden": [4]}},
            "recipe": {"name": "supervised", "config": {"lr": 0.1, "batch": 32, "epochs": 2}},
            "early": {"seeds": 2, "epoch": 1},
            "ensemble": {"num_models": 4},
            "scores": ["el2n"],
            "attacks": [],
        }
    )


def test_a_changed_data_file_and_a_failed_contract_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "state"
    monkeypatch.setenv("PALIMPSEST_HOME", str(home))
    plan = table_of(tmp_path)

    def states() -> dict[str, str]:
        return {r["asset"]: r["state"] for r in audit.run_subject(plan, home, job="audit")[1]}

    with monkeypatch.context() as patch:
        checked = stages_at_work._check
        patch.setattr(
            stages_at_work,
            "_check",
            lambda run, tables: (
                {**checked(run, tables), "passed": False, "problems": ["a planted problem"]}
                if run.asset == "mine/scores/el2n"
                else checked(run, tables)
            ),
        )
        with pytest.raises(JobFailed, match="mine/scores/el2n: check contract failed: a planted problem"):
            states()
    after_failure = states()
    assert after_failure["mine/scores/el2n"].startswith("computed"), "what broke its contract is not current"
    assert after_failure["mine/models/target"] == UNCHANGED
    assert set(states().values()) == {UNCHANGED}
    frame = pl.read_csv(tmp_path / "mine.csv")
    frame.with_columns(f0=pl.col("f0") + 1).write_csv(tmp_path / "mine.csv")
    assert not {name for name, state in states().items() if state == UNCHANGED} - {"mine/reports/audit"}


# ---- what is skipped is undamaged
# ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One bit in place; size, inode and the time of the last change stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.promise("B1")
@pytest.mark.parametrize(
    "name", ["small/models/target/weights", "small/audits/lira_online/shown.json", "small/reports/audit.html"]
)
def test_a_bit_that_flipped_in_a_result_has_it_made_again_and_that_is_said(
    home: Path, small: Subject, launched: list[set[str]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all that a stage left, also of what only the UI shows."""
    audit.run_subject(small, home, job="audit")
    audit.run_subject(small, home, job="audit")
    assert not launched, "a second and a third run have nothing to do"
    flip(next((home / "artifacts").glob(f"{name}.{'[0-9a-f]' * 16}.*")))
    capsys.readouterr()
    audit.run_subject(small, home, job="audit")
    asset = name.rpartition("/")[0] if "reports" not in name else "small/reports/audit"
    assert launched == [downstream(small, asset.removeprefix("small/"))]
    said = " ".join(capsys.readouterr().err.split())
    assert f"{asset} is made anew: " in said and "SHA-256" in said


@pytest.mark.promise("B1")
def test_a_damaged_result_is_made_again_with_the_digests_that_it_had(tmp_path: Path) -> None:
    from recorded_state import PLAN, run

    from warehouse.verify import verify

    home, plan = tmp_path / "home", Subject.from_mapping({**PLAN, "attacks": []})
    w = run(home, plan)

    def versions() -> dict[str, str]:
        names = ["/".join((plan.subject, *s.path)) for s in subject_stages(plan) if not s.per_request]
        return w.versions(name for name in names if "/reports/" not in name)  # a report says when it was made

    golden, head = versions(), w.ledger.head()
    run(home, plan, run_id="r2")
    assert w.ledger.head() == head, "nothing to do"
    damaged = next((home / "artifacts").glob("wine/models/target/weights.*.safetensors"))
    flip(damaged)
    assert not verify(Warehouse.existing(home)).whole
    run(home, plan, run_id="r3").publish()
    assert versions() == golden and w.ledger.head() != head
    assert verify(Warehouse.existing(home)).whole
