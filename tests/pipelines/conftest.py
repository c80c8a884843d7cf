"""A tiny subject on real digits, audited once a session in a state folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import InProcess
from PIL import Image
from recorded_state import PLAN, run
from sklearn.datasets import load_digits, load_wine

from contracts.requests import ForgetRequest
from contracts.subject import Subject
from pipelines.home import dagster_home
from pipelines.subjects import write_subject

SMALL = {
    "subject": "small",
    "title": "a small audit of digits",
    "source": {"name": "sklearn", "config": {"dataset": "digits", "test_fraction": 0.5}},
    "model": {"name": "mlp", "config": {"hidden": [64]}},
    "recipe": {
        "name": "supervised",
        "config": {"lr": 0.1, "momentum": 0.9, "batch": 64, "epochs": 40, "schedule": "cosine"},
    },
    "early": {"seeds": 2, "epoch": 1},
    "ensemble": {"num_models": 16, "block": 8},
    "scores": ["el2n", "grand", "memorization", {"name": "near_duplicates", "config": {"ratio": 0.6, "chance": 0.5}}],
    "splits": [
        {"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}},
        {"name": "closed", "method": "closure", "config": {"split": "random"}},
    ],
    "analyses": [
        "influence",
        {"name": "dropout_inversion", "config": {"num_examples": 2, "steps": 20, "dlg_steps": 5}},
    ],
    "unlearning": {
        "split": "random",
        "methods": [{"name": "finetune", "config": {"epochs": 1}}],
        "seeds": 1,
        "closure": True,
    },
    "attacks": ["loss", "lira_online"],
}


@pytest.fixture(scope="session", autouse=True)
def _jobs_in_this_process() -> Iterator[None]:
    """What a command run by a test unlearns. ``test_pipelines_jobs`` starts a process for it, as people's do."""
    from assets import Workspace
    from pipelines.cli import audit

    def workspace_of(home: Path) -> Workspace:
        return Workspace(home, launcher=InProcess(), publish_every_s=audit.PUBLISH_EVERY_S)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "workspace_of", workspace_of)
        yield


@contextmanager
def as_before() -> Iterator[None]:
    """What commands, and Dagster in them, set in the process of the tests is as it was."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    variables = {name: os.environ.get(name) for name in ("PALIMPSEST_HOME", "DAGSTER_HOME")}
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    for name, value in variables.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with as_before():
        yield


@pytest.fixture(scope="session")
def small() -> Subject:
    return Subject.from_mapping(SMALL)


@pytest.fixture(scope="session")
def audited_once(tmp_path_factory: pytest.TempPathFactory, small: Subject) -> Path:
    """A state folder in which the small subject has been audited once."""
    from pipelines.cli.audit import run_subject

    home = tmp_path_factory.mktemp("state")
    with as_before():
        os.environ["PALIMPSEST_HOME"] = str(home)
        write_subject(small, home, comment="a test")
        run_subject(small, home, job="audit")
    return home


@pytest.fixture
def audited_home(audited_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``audited_once``, as the one that the environment names; Dagster's, too, as after a command."""
    monkeypatch.setenv("PALIMPSEST_HOME", str(audited_once))
    dagster_home()
    return audited_once


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small audit, recorded and published, with a forget request in the register. For copying: tests break it."""
    home = tmp_path_factory.mktemp("recorded") / "home"
    w = run(home, Subject.from_mapping(PLAN))
    now = {"received_at": "2026-01-01T00:00:00+00:00", "due_at": "2026-02-01T00:00:00+00:00"}
    w.requests.add(ForgetRequest(request_id="r-1", subject="wine", selector="ids", ids=(3,), **now))
    w.publish()
    return home


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``erasure_world``: an audited subject with an audited request r1 of its MARKER, and another
    subject. For copying."""
    import erasure_world as world

    root = tmp_path_factory.mktemp("erasure")
    with as_before():
        world.build(root)
    return root


@pytest.fixture(scope="session")
def erased_once(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any]]:
    """A copy with the marker planted everywhere, erased: the folder, the plan that was shown, the tables before."""
    import erasure_world as world
    import marker_search

    from assets import Workspace
    from pipelines import erasure

    copied = Path(shutil.copytree(finished / "state", tmp_path_factory.mktemp("erased") / "state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_HOME", str(copied))
        world.plant(copied)
        workspace, subject = Workspace(copied, launcher=world.Here()), world.plan_of(finished)
        before = world.tables_of(workspace.warehouse) | {"artifacts": world.artifacts_of(workspace.warehouse)}
        assert marker_search.holding(copied, world.MARKER), "the marker has to be there to be erased"
        shown = erasure.preview(subject, workspace, "r1")
        erasure.execute(subject, workspace, "r1")
    return copied, shown, before


@pytest.fixture(params=["csv", "parquet", "npz", "image_folder", "idx"])
def made_by_someone_else(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    digits = load_digits()
    images, labels = digits.images[:400].astype(np.uint8) * 15, digits.target[:400]
    wine = load_wine(as_frame=True).frame
    match request.param:
        case "csv":
            wine.to_csv(tmp_path / "wine.csv", index=False)
            return tmp_path / "wine.csv", ["--label", "target"]
        case "parquet":
            wine.rename(columns={"target": "cultivar"}).to_parquet(tmp_path / "wine.parquet")
            return tmp_path / "wine.parquet", ["--label", "cultivar"]
        case "npz":
            np.savez_compressed(tmp_path / "digits.npz", x=images, y=labels)
            return tmp_path / "digits.npz", []
        case "image_folder":
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                folder = tmp_path / "images" / f"digit-{label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{i}.png")
            return tmp_path / "images", []
        case _:
            folder = tmp_path / "idx"
            folder.mkdir()
            (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 400, 8, 8) + images.tobytes())
            (folder / "train-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 2049, 400) + labels.astype(np.uint8).tobytes()
            )
            return folder, []
