"""Needs are met alike in a stage and in the process of a job, and what cannot be met is refused as the plan loads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import InProcess

from assets import Workspace, subject_stages
from assets.needs import StageProvider, available
from assets.provider import JobProvider, Provider
from assets.stage import Run, materialize
from contracts.errors import NotApplicable
from contracts.methods import NEEDS, RecipeSpec, ScoreSpec, UnlearnerSpec, recipe, score, unlearner
from contracts.registry import Registry
from contracts.subject import Subject
from contracts.tables import Column
from recipes.checkpoints import arrays_digest, to_arrays

PLAN: dict[str, Any] = {
    "subject": "vines",
    "source": {"name": "sklearn", "config": {"dataset": "wine", "test_fraction": 0.4}},
    "model": {"name": "mlp", "config": {"hidden": [8]}},
    "recipe": {"name": "supervised", "config": {"epochs": 5, "batch": 8}},
    "early": {"seeds": 2, "epoch": 2},
    "ensemble": {"num_models": 4, "block": 4},
    "splits": [{"name": "random", "method": "random_fraction", "config": {"fraction": 0.2}}],
    "unlearning": {"split": "random", "methods": ["greedy"], "seeds": 1},
}
EVERYTHING = tuple(sorted(available("unlearner")))
GIVEN: dict[str, Any] = {}


def greedy(model, *, retain, forget, config, seed, progress, **needs):
    """Takes whatever a job can give, and gives the model back."""
    GIVEN.update(needs, started_from=model)
    return copy.deepcopy(model)


@contextmanager
def registered(registry: Registry[Any], spec: Any, function: Any) -> Iterator[None]:
    registry.names()
    registry(spec)(function)
    try:
        yield
    finally:
        del registry._methods[spec.name]


def digests(models: Any) -> list[str]:
    return [arrays_digest(to_arrays(model)) for model in models]


def test_every_word_is_met_in_a_stage_and_nothing_else_is_a_word():
    assert StageProvider.meets() == set(NEEDS)
    assert Provider.meets() < JobProvider.meets() < StageProvider.meets()
    kinds = ("score", "split", "dataset", "analysis", "unlearner", "attack", "source", "recipe")
    assert {need for kind in kinds for need in available(kind)} == set(NEEDS)
    assert not available("attack") and not available("source") and not available("recipe")


@pytest.mark.journey
def test_a_job_gives_what_a_stage_gives(tmp_path: Path):
    spec = UnlearnerSpec(name="greedy", doc="Takes everything.", needs=EVERYTHING)
    with registered(unlearner, spec, greedy):
        subject, workspace = Subject.from_mapping(PLAN), Workspace(tmp_path, launcher=InProcess())
        stages = {"/".join(stage.path): stage for stage in subject_stages(subject) if not stage.per_request}
        job = stages["unlearning/greedy"]
        assert {"/".join(dep.path) for dep in job.deps} >= {"models/early", "models/ensemble", "models/target"}
        for name in (*("/".join(dep.path) for dep in job.deps), "unlearning/greedy"):
            materialize(stages[name], workspace, run_id="r", request=None, context=None)
        upstream = {name: stages[f"models/{name}"] for name in ("target", "early", "ensemble")}
        run = Run(job, workspace, "r", None, None)
        here = StageProvider(run, upstream).provided(dataclasses.replace(spec, needs=EVERYTHING))
        assert set(GIVEN) == {*EVERYTHING, "started_from"}
        assert digests([GIVEN["started_from"], GIVEN["encoder"]]) == digests([here["encoder"]] * 2)
        assert GIVEN["encoder"] is not GIVEN["started_from"], "a copy of its own"
        assert digests(GIVEN["early_models"]) == digests(here["early_models"])
        np.testing.assert_array_equal(GIVEN["ensemble"].keep, here["ensemble"].keep)
        np.testing.assert_array_equal(GIVEN["ensemble"].example_id, here["ensemble"].example_id)
        np.testing.assert_array_equal(GIVEN["outputs"](run.data), here["outputs"](run.data))
        some = run.train.take(np.arange(30))
        assert digests([GIVEN["train"](some, 3)]) == digests([here["train"](some, 3)])
        ids = [some.example_id[:20], some.example_id[10:]]
        assert digests(GIVEN["train_many"](ids, [1, 2])) == digests(here["train_many"](ids, [1, 2]))
        assert digests(GIVEN["early_at"]([1])[1]) == digests(here["early_at"]([1])[1])
        assert GIVEN["evaluate"] is here["evaluate"]
        GIVEN.clear()


@pytest.mark.parametrize("need", sorted(set(NEEDS) - available("unlearner")))
def test_what_a_job_cannot_give_is_refused_as_the_plan_loads(need: str):
    words = rf"unlearning\.methods\[0\]: unlearner greedy needs {need}, .*train_many"
    spec = UnlearnerSpec(name="greedy", doc="Asks too much.", needs=("train", need))
    with registered(unlearner, spec, greedy), pytest.raises(NotApplicable, match=words):
        subject_stages(Subject.from_mapping(PLAN))


def test_a_score_has_no_splits_to_read():
    spec = ScoreSpec(
        name="odd",
        doc="Odd.",
        columns=(Column(name="odd", dtype="float64", doc="odd"),),
        value="odd",
        higher_means="odd",
        needs=("splits",),
    )
    with (
        registered(score, spec, lambda data: None),
        pytest.raises(NotApplicable, match=r"scores\[0\]: score odd needs splits"),
    ):
        subject_stages(Subject.from_mapping({**PLAN, "unlearning": None, "scores": ["odd"]}))


def test_early_models_of_a_recipe_without_any_are_refused_for_a_job():
    def plain(build, data, *, config, seed):
        return build(seed)

    spec = UnlearnerSpec(name="greedy", doc="Asks too much.", needs=("early_models",))
    with (
        registered(recipe, RecipeSpec(name="plain", doc="No early models."), plain),
        registered(unlearner, spec, greedy),
        pytest.raises(NotApplicable, match="greedy needs early_models, which the plan's recipe"),
    ):
        subject_stages(Subject.from_mapping({**PLAN, "recipe": "plain"}))
