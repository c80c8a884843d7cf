"""The corrective report: which setting is chosen, what may be called corrected, planted harm that leaves or stays."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from torch import nn

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from contracts.methods import unlearner
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from sources.loading import load
from studies.corrective_report import (
    CorrectiveReportConfig,
    TriedMethod,
    choose_setting,
    corrective_report,
    corrects,
)

RECIPE = SupervisedConfig(lr=0.2, momentum=0.9, batch=64, epochs=25)
RETRAINING = {"k": -1, "lr": 0.2, "batch": 64, "epochs": 25}


class Subject:
    """The callables that the report is given, and what they were given."""

    def __init__(self) -> None:
        self.data = load("sklearn", {"dataset": "digits", "test_fraction": 0.5})
        self.build = builder("mlp", {"hidden": (32,)}, input_shape=self.data.input_shape, num_outputs=10)
        self.trained: list[ExampleSet] = []
        self.given: list[tuple[str, ExampleSet, ExampleSet, dict[str, Any]]] = []

    def train(self, data: ExampleSet, seed: int) -> nn.Module:
        self.trained.append(data)
        return supervised(self.build, data, config=RECIPE, seed=seed)

    def unlearn_from(
        self, model: nn.Module, name: str, *, changed: dict[str, Any], seed: int, **sets: Any
    ) -> nn.Module:
        self.given.append((name, sets["retain"], sets["forget"], changed))
        if changed.get("k") == 3:
            raise Diverged("as asked")
        method = unlearner.get(name)
        more = {"build": self.build} if "build" in method.spec.needs else {}
        return method(model, **sets, config=method.spec.config.from_mapping(changed), seed=seed, **more)

    def report(self, *, seed: int = 0, data: ExampleSet | None = None, **fields: Any) -> pl.DataFrame:
        return corrective_report(
            self.data if data is None else data,
            config=CorrectiveReportConfig.from_mapping(fields),
            seed=seed,
            train=self.train,
            unlearn_from=self.unlearn_from,
            clock=itertools.count(0.0, 0.5).__next__,
        )["corrective_report"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


@pytest.fixture(scope="module")
def poison(subject: Subject) -> pl.DataFrame:
    methods = [
        {"name": "eu_k", "settings": [RETRAINING]},
        {"name": "cf_k", "settings": [{"k": -1, "epochs": 0}, {"k": 3}, {"k": 1, "epochs": 1}]},
        {"name": "none"},
    ]
    return subject.report(methods=methods, identified=[0.1, 1.0])


def one(frame: pl.DataFrame, **where: Any) -> dict[str, Any]:
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


def test_a_setting_is_chosen_by_both_halves_and_the_first_of_equals():
    accuracy, wrong = np.array([0.90, 0.88, 0.60]), np.array([0.9, 0.5, 0.1])
    assert choose_setting(accuracy, wrong, before=0.9, most_lost=1.0) == 2  # merit 0.5, 0.69, 0.75
    assert choose_setting(accuracy, wrong, before=0.9, most_lost=0.02) == 1
    assert choose_setting(accuracy, wrong, before=0.9, most_lost=0.0) == 0
    assert choose_setting(accuracy, wrong, before=1.0, most_lost=0.0) == 2  # none is within: all are looked at
    assert choose_setting(accuracy[[0, 0]], wrong[[0, 0]], before=0.9, most_lost=1.0) == 0
    assert choose_setting(accuracy, np.zeros(3), before=0.9, most_lost=1.0) == 0  # accuracy alone
    assert choose_setting(accuracy[[0, 0]], np.array([0.9, 0.1]), before=0.9, most_lost=1.0) == 1  # delete_err alone
    assert choose_setting(np.array([np.nan, 0.1]), np.array([np.nan, 1.0]), before=0.9, most_lost=0.0) == 1
    assert choose_setting(accuracy, np.full(3, np.nan), before=0.9, most_lost=1.0) == 0
    with pytest.raises(DataError, match="diverged"):
        choose_setting(np.full(2, np.nan), wrong[:2], before=0.9, most_lost=1.0)


@pytest.mark.parametrize(
    ("gained", "lost", "status", "expected"),
    [
        (0.10, 0.02, "ok", True),
        (0.50, -0.10, "ok", True),
        (0.09, 0.00, "ok", False),
        (0.50, 0.03, "ok", False),
        (0.50, 0.00, "diverged", False),
        (0.50, None, "ok", False),
    ],
)
def test_what_may_be_reported_as_corrected(gained, lost, status, expected):
    before = {"acc_corr": 0.3, "acc_retain": 0.8}
    after = {"acc_corr": 0.3 + gained, "acc_retain": None if lost is None else 0.8 - lost, "status": status}
    assert corrects(after, before) == expected


def test_retraining_corrects_with_all_of_it_identified_only(poison: pl.DataFrame):
    before = one(poison, method="none", identified_fraction=0.0)
    assert before["attack_success"] > 0.9 and before["acc_retain"] > 0.85 and not before["corrected"]
    some, every = (one(poison, method="eu_k", identified_fraction=share) for share in (0.1, 1.0))
    assert not some["corrected"] and some["attack_success"] > 0.7
    assert every["corrected"] and every["acc_corr"] > before["acc_corr"] + 0.4 and every["delete_err"] < 0.3
    assert every["delete_acc"] > 0.5 > some["delete_acc"]
    # None of the others takes anything out.
    assert poison.filter(pl.col("corrected"))["method"].to_list() == ["eu_k"]
    same = one(poison, method="none", identified_fraction=1.0)
    columns = ("acc_clean", "acc_corr", "acc_retain", "attack_success", "manip_acc", "acc_validation")
    assert all(same[c] == before[c] for c in columns)


def test_one_setting_of_each_method_is_selected_and_says_what_it_was(poison: pl.DataFrame):
    chosen = poison.filter(pl.col("selected")).group_by("method", "identified_fraction").len()
    assert set(chosen["len"]) == {1} and chosen.height == 7
    for row in poison.filter(pl.col("method") == "cf_k").iter_rows(named=True):
        asked = [{"k": -1, "epochs": 0}, {"k": 3}, {"k": 1, "epochs": 1}][row["setting"]]
        assert json.loads(row["hparams"]) == asked
        assert row["status"] == ("diverged" if row["setting"] == 1 else "ok")
        assert (row["acc_clean"] is None) == (row["setting"] == 1) and not (row["selected"] and row["setting"] == 1)
    assert set(poison.filter(pl.col("identified_fraction") > 0)["unlearn_seconds"]) == {0.5}
    group = poison.filter((pl.col("method") == "cf_k") & (pl.col("identified_fraction") == 1.0))
    expected = choose_setting(
        group["acc_validation"].cast(float).fill_null(np.nan).to_numpy(),
        group["delete_err"].cast(float).fill_null(np.nan).to_numpy(),
        before=one(poison, method="none", identified_fraction=0.0)["acc_validation"],
        most_lost=1.0,
    )
    assert group.filter(pl.col("selected"))["setting"].to_list() == [expected]


def test_validation_examples_are_clean_and_are_never_trained_on(subject: Subject, poison: pl.DataFrame):
    train = subject.data.part("train")
    planted = subject.trained[0]
    held = np.setdiff1d(train.example_id, planted.example_id)
    assert abs(len(held) - 0.15 * len(train)) < 5 and one(poison, method="none", identified_fraction=0.0)
    for _, retain, forget, _ in subject.given:
        assert not np.isin(held, retain.example_id).any() and not np.isin(held, forget.example_id).any()
        assert set(retain.example_id) | set(forget.example_id) == set(planted.example_id)
    few, every = (next(f for n, _, f, _ in subject.given if n == "eu_k" and len(f) == size) for size in (4, 38))
    assert (every.y == 0).all() and set(few.example_id) < set(every.example_id)


def test_settings_are_checked_before_anything_is_trained(subject: Subject):
    count = len(subject.trained)
    with pytest.raises(ConfigError, match="no field beta"):
        subject.report(methods=[{"name": "scrub", "settings": [{"alpha": 1.0}, {"beta": 2.0}]}])
    with pytest.raises(ConfigError, match="twice"):
        CorrectiveReportConfig(methods=(TriedMethod(name="scrub"), TriedMethod(name="scrub")))
    with pytest.raises(ConfigError, match="lists none"):
        TriedMethod(name="scrub", settings=())
    with pytest.raises(ConfigError, match="two different classes"):
        CorrectiveReportConfig(classes=(1, 1))
    with pytest.raises(DataError, match="no test example"):
        subject.report(data=subject.data.part("train"))
    with pytest.raises(NotApplicable, match="chooses on held-out"):
        subject.report(validation=0.0001)
    assert len(subject.trained) == count


def test_the_order_of_the_rows_does_not_matter(subject: Subject):
    fields = {"methods": [{"name": "scrub", "settings": [{"epochs": 1}]}], "identified": [0.5]}
    fields |= {"manipulation": "confusion", "classes": [3, 8], "share": 0.1}
    mixed = subject.data.subset(np.random.default_rng(0).permutation(subject.data.example_id))
    first = subject.report(**copy.deepcopy(fields))
    assert first.equals(subject.report(data=mixed, **fields)) and first["acc_retain"].null_count() == 0
