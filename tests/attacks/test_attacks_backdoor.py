"""Backdoors: the rates against their definitions, the audit on planted harm in real images."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
from shadow_world import Subject, gaussians

from attacks.backdoor import accuracy, attack_success_rate, confusion_rate
from attacks.backdoor_audit import BackdoorConfig, backdoor_audit
from contracts.errors import ConfigError, DataError, Diverged, InvalidInput, NotApplicable
from recipes.schedule import SupervisedConfig
from sources.example_set import ExampleSet
from sources.loading import load
from stats import clopper_pearson


def logits_of(answers: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes)[answers]


def test_success_leaves_out_what_is_of_the_target_class_anyway() -> None:
    labels, answers = np.array([0, 0, 1, 1, 2, 2]), [0, 0, 0, 1, 0, 2]
    found = attack_success_rate(logits_of(answers), labels, target=0)
    low, high = clopper_pearson(2, 4)
    assert (found.value, found.n, found.low, found.high) == (0.5, 4, float(low), float(high))
    # A perfect model has no backdoor, though a third of its answers are the target.
    assert attack_success_rate(logits_of(labels.tolist()), labels, target=0).value == 0.0
    everybody = attack_success_rate(logits_of([0, 0]), np.array([0, 0]), target=0)
    assert everybody.n == 0 and everybody.value is None and everybody.low is None


def test_corrected_accuracy_leaves_out_nothing() -> None:
    found = accuracy(logits_of([0, 0, 0, 0]), np.array([0, 1, 2, 0]))
    assert (found.value, found.n) == (0.5, 4)


def test_confusion_is_between_the_two_classes_only() -> None:
    labels, answers = np.array([0, 0, 1, 1, 2, 2]), [1, 2, 0, 1, 0, 1]
    found = confusion_rate(logits_of(answers), labels, classes=(0, 1))
    assert (found.value, found.n) == (0.5, 4)


def test_rates_refuse_what_does_not_fit() -> None:
    with pytest.raises(InvalidInput, match="target"):
        attack_success_rate(logits_of([0]), np.array([0]), target=3)
    with pytest.raises(InvalidInput, match="fit"):
        accuracy(logits_of([0, 1]), np.array([0]))
    with pytest.raises(InvalidInput, match="finite"):
        accuracy(np.array([[np.nan, 0.0]]), np.array([0]))
    with pytest.raises(InvalidInput, match="labels"):
        accuracy(logits_of([0]), np.array([3]))


@pytest.fixture(scope="module")
def digits() -> Subject:
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.5})
    recipe = SupervisedConfig(optimizer="sgd", lr=0.2, momentum=0.9, batch=64, epochs=40)
    return Subject(data, recipe=recipe, hidden=64)


def audit(subject: Subject, *, data: ExampleSet | None = None, seed: int = 0, **config: Any) -> pl.DataFrame:
    return backdoor_audit(
        data or subject.data,
        config=BackdoorConfig.from_mapping({"methods": ["no-op"], **config}),
        seed=seed,
        train=subject.train,
        unlearn_from=subject.unlearn_from,
    )["backdoor"]


def cell(frame: pl.DataFrame, method: str, fraction: float) -> dict[str, Any]:
    return frame.row(
        by_predicate=(pl.col("method") == method) & (pl.col("identified_fraction") == fraction), named=True
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_backdoor_is_planted_stays_when_part_of_it_does_and_goes_with_all_of_it(digits: Subject, seed: int) -> None:
    frame = audit(digits, seed=seed)
    poisoned = cell(frame, "none", 0.0)
    assert poisoned["attack_success_lo"] > 0.9 and poisoned["acc_clean"] > 0.9 and poisoned["acc_corr"] < 0.2
    assert poisoned["num_manipulated"] == round(0.05 * 898) and poisoned["num_identified"] == 0
    assert poisoned["num_attacked"] == int(((digits.data.split == "test") & (digits.data.y != 0)).sum())
    # Retraining with a tenth of it identified fails: it is no reference here. With all of it, the backdoor is gone.
    assert cell(frame, "retrain", 0.1)["attack_success_lo"] > 0.8
    clean = cell(frame, "retrain", 1.0)
    assert (
        clean["attack_success_hi"] < 0.1
        and clean["acc_corr"] > poisoned["acc_corr"] + 0.4
        and clean["delete_err"] < 0.2
    )
    # A method that does nothing leaves every figure where it was, whatever is identified.
    for fraction in (0.1, 0.5, 1.0):
        noop = cell(frame, "no-op", fraction)
        assert all(
            noop[c] == poisoned[c] for c in ("acc_clean", "acc_corr", "acc_retain", "attack_success", "manip_acc")
        )
        assert noop["delete_err"] > 0.9
    assert [cell(frame, "no-op", f)["num_identified"] for f in (0.1, 0.5, 1.0)] == [4, 22, 45]


def test_confusion_of_two_classes(digits: Subject) -> None:
    frame = audit(digits, manipulation="confusion", classes=[3, 8], share=0.1, identified=[1.0])
    confused, cured = cell(frame, "none", 0.0), cell(frame, "retrain", 1.0)
    assert confused["attack_success"] > 0.3 > 0.15 > cured["attack_success"]
    assert confused["acc_retain"] > 0.9 and cured["acc_corr"] > confused["acc_corr"] + 0.2
    test = digits.data.part("test")
    assert confused["num_attacked"] == int(np.isin(test.y, (3, 8)).sum())
    overall = cured["acc_corr"] * confused["num_attacked"] + cured["acc_retain"] * (
        len(test) - confused["num_attacked"]
    )
    assert cured["acc_clean"] == pytest.approx(overall / len(test))


def test_random_labels_have_no_target() -> None:
    frame = audit(Subject(gaussians()), manipulation="random_label", share=0.3, identified=[0.5, 1.0])
    assert frame["attack_success"].null_count() == len(frame) and frame["acc_retain"].null_count() == len(frame)
    assert (frame["acc_corr"] == frame["acc_clean"]).all()


def test_the_unlearner_is_handed_the_manipulated_copy_and_only_the_identified_part(digits: Subject) -> None:
    given: list[tuple[ExampleSet, ExampleSet]] = []

    def spy(model: Any, *, retain: ExampleSet, forget: ExampleSet, **_: Any) -> Any:
        given.append((retain, forget))
        return copy.deepcopy(model)

    digits.unlearners["spy"] = spy
    before = digits.data.digest, digits.data.x.copy()
    audit(digits, methods=["spy"], identified=[0.5], share=0.1)
    retain, forget = given[0]
    train = digits.data.part("train")
    assert set(retain.example_id) | set(forget.example_id) == set(train.example_id)
    assert len(forget) == 45 and (forget.y == 0).all() and (forget.x[:, :, -3:, -3:] == 16).all()
    left = (retain.x[:, :, -3:, -3:] == 16).all(axis=(1, 2, 3))
    assert left.sum() == 45  # the unidentified half stays in the retain set
    assert digits.data.digest == before[0] and np.array_equal(digits.data.x, before[1])


def test_order_of_the_rows_and_repeats(digits: Subject) -> None:
    small = Subject(gaussians())
    config: dict[str, Any] = {"manipulation": "confusion", "identified": [1.0], "repeats": 2, "share": 0.2}
    first = audit(small, **config)
    mixed = small.data.subset(np.random.default_rng(0).permutation(small.data.example_id))
    assert first.equals(audit(small, data=mixed, **config)) and first["repeat"].to_list() == [0, 0, 0, 1, 1, 1]
    figures = first.filter(pl.col("method") == "retrain").select("acc_clean", "acc_corr", "manip_acc")
    assert figures.row(0) != figures.row(1)


def test_divergence_is_a_row_and_what_does_not_apply_is_refused(digits: Subject) -> None:
    def unstable(model: Any, **_: Any) -> Any:
        raise Diverged("loss nan in epoch 1")

    small = Subject(gaussians())
    small.unlearners["unstable"] = unstable
    row = cell(audit(small, methods=["unstable"], manipulation="confusion", identified=[1.0]), "unstable", 1.0)
    assert row["status"] == "diverged" and row["acc_clean"] is None and row["num_identified"] > 0
    with pytest.raises(NotApplicable, match="patch of an image"):
        audit(small)
    with pytest.raises(ConfigError):
        audit(digits, target=10)
    with pytest.raises(ConfigError):
        BackdoorConfig(classes=(1, 1))
    with pytest.raises(ConfigError):
        BackdoorConfig(identified=(0.1, 0.1))
    with pytest.raises(NotApplicable):
        audit(
            small, data=dataclasses.replace(small.data, task="regression", y=small.data.y.astype(float), class_names=())
        )
    with pytest.raises(DataError, match="no test example"):
        audit(small, data=small.data.part("train"))
