"""Every built-in plan names what it spends, and what that cannot carry is said with the number that would do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from assets.expected import expectations
from contracts.subject import Subject
from pipelines.subjects import attributes_of
from sources.loading import load

PLANS = sorted(Path("pipelines/defs").glob("*/defs.yaml"))


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.parent.name)
def test_a_plan_names_its_models_its_runs_and_its_minutes(path: Path) -> None:
    attributes = yaml.safe_load(path.read_text())["attributes"]
    assert attributes["budget_min"] > 0 and attributes["ensemble"]["num_models"] >= 4
    for listed in attributes.get("analyses", []):
        if (listed if isinstance(listed, str) else listed["name"]) == "shadow_unlearning":
            assert listed["config"]["runs"] >= 60 and listed["config"]["targets"] > 0


def digits(**changes: object) -> Subject:
    plan = Subject.from_mapping(attributes_of(Path("pipelines/defs/digits/defs.yaml")))
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data():  # type: ignore[no-untyped-def]
    return load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=0)


def test_a_plan_that_can_pass_says_how_often(data) -> None:  # type: ignore[no-untyped-def]
    (said,) = expectations(digits(), data)
    assert "270 forgotten examples against 449 unseen ones" in said and "probability 0.9" in said


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"models": 20}, "19 are needed"),
        ({"fraction": 0.05}, "78 are needed"),
        ({"population": 0.9}, "200 are needed"),
    ],
)
def test_what_a_plan_cannot_carry_names_the_number_that_would_do(data, changes, needed) -> None:  # type: ignore[no-untyped-def]
    plan = digits()
    if "models" in changes or "population" in changes:
        ensemble = dataclasses.replace(
            plan.ensemble, num_models=changes.get("models", 64), population_fraction=changes.get("population", 0.5)
        )
        plan = dataclasses.replace(plan, ensemble=ensemble)
    else:
        split = dataclasses.replace(plan.splits[0], config={"fraction": changes["fraction"]})
        plan = dataclasses.replace(plan, splits=(split, *plan.splits[1:]))
    (said,) = expectations(plan, data)
    assert needed in said and "inconclusive at best" in said


def test_other_sets_and_approximate_methods_are_announced(data) -> None:  # type: ignore[no-untyped-def]
    plan = digits()
    assert plan.unlearning is not None
    other = dataclasses.replace(
        plan, unlearning=dataclasses.replace(plan.unlearning, split="easiest", decides="finetune")
    )
    said = expectations(other, data)
    assert "20 retrainings without it" in said[0] and said[1].startswith("finetune is approximate")
    bare = dataclasses.replace(other, analyses=())
    assert "does not list the analysis shadow_unlearning" in expectations(bare, data)[1]
    assert expectations(dataclasses.replace(plan, unlearning=None), data) == []
