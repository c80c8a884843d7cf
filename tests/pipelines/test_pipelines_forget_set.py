"""Forget sets by selector in a subject, stored as splits; unlearners named wrongly are refused at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import polars as pl
import pytest

from assets import Workspace
from assets.graph import subject_stages
from assets.needs import StageProvider
from contracts.digests import plain
from contracts.errors import UnknownName
from contracts.methods import unlearner
from contracts.subject import Subject
from pipelines.build import audit_job_name, subject_definitions
from pipelines.launchers import PipesLauncher
from tasks.base import named
from warehouse import Warehouse

SEARCH = {"upper_steps": 3, "lower_epochs": 1}
BY_UNLEARNER = {**SEARCH, "lower": "unlearner", "unlearner": "finetune"}
SPLITS = {
    "hardest": {"selector": "worst_case", "search": SEARCH},
    "easiest": {"selector": "easiest", "search": BY_UNLEARNER},
    "classes": {"selector": "worst_case", "search": {**SEARCH, "group": "class", "fraction": 0.2}},
    "moderate": {"selector": "moderate"},
}


def changed(small: Subject, **fields: Any) -> Subject:
    bare = {"scores": [], "analyses": [], "splits": [], "attacks": [], "unlearning": None}
    return Subject.from_mapping({**plain(small), **bare, **fields})


def with_sets(small: Subject, **fields: Any) -> Subject:
    splits = [{"name": name, "method": "forget_set", "config": config} for name, config in SPLITS.items()]
    return changed(small, splits=splits, **fields)


def with_unlearning(small: Subject, **finetune: Any) -> Subject:
    methods = [{"name": "finetune", "config": finetune}]
    return with_sets(small, unlearning={"split": "hardest", "methods": methods})


def test_a_forget_set_stands_on_the_model_and_on_the_unlearners(small: Subject) -> None:
    def stages(plan: Subject) -> dict[str, Any]:
        return {"/".join(s.path): s for s in subject_stages(plan)}

    made = stages(with_unlearning(small, epochs=1))
    for name in SPLITS:
        stage = made[f"curation/{name}"]
        assert {"/".join(dep.path) for dep in stage.deps} == {"data/examples", "models/target"}
        assert stage.trains, "the search takes its turn in the training pool"
    assert {"/".join(dep.path) for dep in made["unlearning/finetune"].deps} >= {"curation/hardest"}
    again = stages(with_unlearning(small, epochs=2))
    assert made["curation/easiest"].config != again["curation/easiest"].config, "its lower level is an unlearner"


def test_the_unlearners_of_a_subject_are_those_of_its_plan_or_all_that_apply(small: Subject) -> None:
    def methods(plan: Subject, task: str = "classification") -> tuple[str, ...]:
        return (
            StageProvider(SimpleNamespace(subject=plan, data=SimpleNamespace(task=named(task))), {}).unlearn().methods
        )  # type: ignore[arg-type]

    assert methods(with_unlearning(small)) == ("finetune",)
    for task in ("classification", "regression"):
        apply = {m.spec.name for m in unlearner if named(task).gives(*m.spec.wants)}
        assert set(methods(changed(small), task)) == apply and {"finetune", "retrain"} <= apply < set(unlearner.names())


@pytest.mark.journey
def test_forget_sets_are_stored_with_their_reasons(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path))
    plan = with_sets(small)
    resources = {"workspace": dg.ResourceDefinition.hardcoded_resource(Workspace(tmp_path, launcher=PipesLauncher()))}
    definitions = dg.Definitions.merge(subject_definitions(plan), dg.Definitions(resources=resources))
    stages = [("data", "examples"), ("models", "target"), *(("curation", name) for name in SPLITS)]
    with dg.DagsterInstance.ephemeral() as instance:
        definitions.resolve_job_def(audit_job_name(plan.subject)).execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey([plan.subject, *stage]) for stage in stages]
        )
    w = Warehouse.open(tmp_path)
    members = w.query(
        "SELECT dataset_id, example_id, role, reason, label FROM curation.members "
        "JOIN data.examples USING (subject, example_id)"
    )
    train = members.filter(pl.col("dataset_id") == "hardest").height
    for name, config in SPLITS.items():
        own = members.filter(pl.col("dataset_id") == name)
        forget = own.filter(pl.col("role") == "forget")
        assert own.height == train and forget["reason"].str.starts_with(str(config["selector"])).all()
        if name == "classes":
            assert set(own.filter(pl.col("role") == "retain")["label"]) & set(forget["label"]) == set()
            assert forget["label"].n_unique() == 2
        else:
            assert forget.height == round(0.1 * train)
    sets = {
        name: set(part["example_id"])
        for (name,), part in members.filter(pl.col("role") == "forget").group_by("dataset_id")
    }
    assert not sets["hardest"] & sets["easiest"]


NESTED = {"lower": "unlearner", "unlearner": "no_such"}


@pytest.mark.parametrize(
    "fields",
    [
        {"analyses": [{"name": "leaderboard", "config": {"methods": ["finetune", "no_such"]}}]},
        {"analyses": [{"name": "leaderboard", "config": {"search": NESTED}}]},
        {"analyses": [{"name": "forget_selectors", "config": {"search": NESTED}}]},
        {"analyses": [{"name": "shadow_unlearning", "config": {"methods": ["no_such"]}}]},
        {"scores": [{"name": "worst_case_forget", "config": NESTED}]},
        {"splits": [{"name": "random", "method": "forget_set", "config": {"selector": "easiest", "search": NESTED}}]},
    ],
    ids=["methods", "nested", "selectors", "shadow", "score", "split"],
)
def test_an_unlearner_of_no_such_name_is_refused_before_any_work(small: Subject, fields: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match=r"no_such.*finetune"):
        subject_stages(changed(small, **fields))
