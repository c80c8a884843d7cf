"""The battery as a tool of others: it finds what is wrong and says so, and the scores that the documents print pass
it."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from contracts.methods import CuratorSpec, ScoreSpec
from contracts.params import Config, param
from contracts.registry import Method
from contracts.tables import Column
from palimpsest.testing import check_method, kind_of, make_world, method_of, world_for
from recipes.predict import read
from sources.example_set import ExampleSet

ROOT = Path(__file__).resolve().parents[2]
LOSS = Column(name="loss", dtype="float64", low=0, doc="the loss", direction="higher = harder")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CutConfig(Config):
    """How the pass is cut up."""

    batch: int = param(64, ge=1, le=1024, doc="examples at a time")


def sound(data: ExampleSet, *, config: Config, seed: int, model: nn.Module) -> pl.DataFrame:
    """The loss of every example."""
    data.check_targets()
    return pl.DataFrame({"example_id": data.example_id, "loss": read(model, data).loss})


def declared(function: Callable[..., Any], **changed: Any) -> Method[ScoreSpec]:
    """An unregistered score."""
    fields: dict[str, Any] = {
        "name": "of_a_test",
        "doc": "Loss of the audited model.",
        "source": "definition",
        "needs": ("model",),
        "wants": ("reading",),
        "columns": (LOSS,),
        "value": "loss",
        "higher_means": "harder",
    }
    return Method(ScoreSpec(**{**fields, **changed}), function)


def drawn(data, *, config, seed, model):
    """Noise of the global generator on every loss."""
    return sound(data, config=config, seed=seed, model=model).with_columns(
        loss=pl.col("loss") + np.random.random(len(data))  # noqa: NPY002
    )


def lost(data, *, config, seed, model):
    """The first example has no row."""
    return sound(data, config=config, seed=seed, model=model).sort("example_id").tail(-1)


def undefined(data, *, config, seed, model):
    """NaN for one example."""
    out = sound(data, config=config, seed=seed, model=model)
    return out.with_columns(loss=pl.when(pl.col("example_id") % 7 == 0).then(float("nan")).otherwise("loss"))


def by_place(data, *, config, seed, model):
    """Every example goes by its row."""
    return sound(data, config=config, seed=seed, model=model).with_columns(loss=np.arange(len(data)) * 1.0)


def left_training(data, *, config, seed, model):
    """The model is left in training mode."""
    out = sound(data, config=config, seed=seed, model=model)
    model.train()
    return out


def trusting(data, *, config, seed, model):
    """Labels outside the classes count as the nearest one."""
    clipped = dataclasses.replace(data, y=np.clip(data.y, 0, max(data.num_classes - 1, 0)))
    return sound(clipped, config=config, seed=seed, model=model)


def forgiving(data, *, config, seed, model):
    """A model of NaN has a loss of 0."""
    data.check_targets()
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        return pl.DataFrame({"example_id": data.example_id, "loss": np.zeros(len(data))})
    return sound(data, config=config, seed=seed, model=model)


def merging(data, *, config, seed, model):
    """The first of two rows of one id."""
    return sound(data, config=config, seed=seed, model=model).unique("example_id", keep="first")


def among_neighbours(data, *, config, seed, model):
    """Losses minus the smallest of the batch."""
    out = sound(data, config=config, seed=seed, model=model).sort("example_id")
    batch = np.arange(len(out)) // config.batch
    return out.with_columns(loss=pl.col("loss") - pl.col("loss").min().over(pl.Series(batch)))


def crashing(data, *, config, seed, model):
    """An empty set is a traceback of numpy."""
    out = sound(data, config=config, seed=seed, model=model)
    return out.with_columns(loss=pl.col("loss") + float(np.min(out["loss"].to_numpy())) * 0)


def single_precision(data, *, config, seed, model):
    """Takes float32 models alone."""
    data.check_targets()
    with torch.no_grad():
        logits = model(torch.from_numpy(data.inputs(slice(None))).float())
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.y), reduction="none")
    return pl.DataFrame({"example_id": data.example_id, "loss": loss.double().numpy()})


@pytest.mark.parametrize(
    ("function", "check", "changed"),
    [
        (drawn, "behaviour.repeatable", {}),
        (lost, "behaviour.output", {}),
        (undefined, "behaviour.output", {}),
        (by_place, "behaviour.order", {}),
        (left_training, "behaviour.untouched", {}),
        (trusting, "behaviour.spoilt_target", {"wants": ("classes",)}),
        (forgiving, "behaviour.broken_model", {}),
        (merging, "behaviour.same_id_twice", {}),
        (among_neighbours, "behaviour.batch_of_one", {"config": CutConfig}),
        (sound, "declarations.complete", {"source": ""}),
        (sound, "declarations.columns", {"columns": (dataclasses.replace(LOSS, direction=""),)}),
        (sound, "behaviour.output", {"columns": (dataclasses.replace(LOSS, high=0.01),)}),
        (sound, "declarations.signature", {"needs": ("early_models",)}),
        (sound, "behaviour.other_task", {"wants": ("reading", "classes")}),
    ],
    ids=lambda v: getattr(v, "__name__", v if isinstance(v, str) else ""),
)
def test_what_is_wrong_is_found_and_said(function: Callable[..., Any], check: str, changed: dict[str, Any]) -> None:
    with pytest.raises(AssertionError) as error:
        check_method(declared(function, **changed), everywhere=False)
    assert f"score of_a_test, {check} on classes: " in str(error.value)
    assert "promised: " in str(error.value)


@pytest.mark.parametrize(
    ("function", "error"), [(crashing, ValueError), (single_precision, RuntimeError)], ids=lambda v: v.__name__
)
def test_a_traceback_of_a_library_is_not_hidden(function: Callable[..., Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_method(declared(function), everywhere=False)


def test_a_sound_score_passes_everywhere() -> None:
    check_method(declared(sound))


def test_a_required_field_is_asked_for_and_can_be_given() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class NeedsOne(Config):
        share: float = param(gt=0, lt=1, doc="share to forget")

    def by_share(data: ExampleSet, *, config: NeedsOne, seed: int) -> pl.DataFrame:
        """The smallest ids are forgotten."""
        ids = np.sort(data.example_id[data.split == "train"])
        gone = np.arange(len(ids)) < config.share * len(ids)
        return pl.DataFrame(
            {"example_id": ids, "role": np.where(gone, "forget", "retain"), "reason": ["by id"] * len(ids)},
            schema={"example_id": pl.Int64, "role": pl.String, "reason": pl.String},
        )

    method = Method(CuratorSpec(name="by_share", doc="Forgets the smallest ids.", config=NeedsOne), by_share)
    with pytest.raises(AssertionError, match=r"required fields share: check_method\(method, config="):
        check_method(method)
    check_method(method, config={"share": 0.3})


def test_methods_are_told_by_their_declaration_and_worlds_by_what_they_want() -> None:
    with pytest.raises(AssertionError, match="sound is no registered method"):
        check_method(sound)
    assert kind_of(declared(sound)) == "score" and method_of(declared(sound)).function is sound
    assert world_for(declared(sound)).examples.name == "classes"
    assert world_for(declared(sound, wants=("interactions",))).examples.task.gives("interactions")
    assert world_for(declared(sound, wants=("tokens",))).examples.name == "texts"
    with pytest.raises(AssertionError, match=r"no built-in world.*make_world"):
        world_for(declared(sound, wants=("tokens", "interactions")))
    world = world_for(declared(sound))
    mine = make_world(world.examples, trainer=world.trainer)
    check_method(declared(sound), mine)
    with pytest.raises(AssertionError, match="object is no declaration"):
        kind_of(Method(object(), sound))  # type: ignore[type-var]


def printed(document: str, first: str) -> str:
    """The Python of a document whose code begins with ``first``."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = [textwrap.dedent(b) for b in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)]
    (found,) = [block for block in blocks if block.startswith(first)]
    return found


@pytest.mark.journey
@pytest.mark.parametrize(
    ("document", "first", "name"),
    [("README.md", "# my_package/loss_score.py", "final_loss"), ("CONTRIBUTING.md", '"""Margin of', "margin")],
)
def test_the_score_that_a_document_prints_passes_as_a_package_of_its_own(
    tmp_path: Path, document: str, first: str, name: str
) -> None:
    code = printed(document, first)
    ast.parse(code)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "its_score.py").write_text(code, encoding="utf-8")
    program = (
        f"from my_package.its_score import {name}\nfrom palimpsest.testing import check_method\ncheck_method({name})\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.journey
def test_the_package_is_light_until_the_battery_is_asked_for() -> None:
    program = (
        "import sys, palimpsest\n"
        "assert not {'torch', 'palimpsest.testing', 'pytest'} & set(sys.modules), 'palimpsest alone'\n"
        "import palimpsest.testing\n"
        "assert not {'pytest', 'transformers', 'dagster', 'duckdb'} & set(sys.modules), 'the battery'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
