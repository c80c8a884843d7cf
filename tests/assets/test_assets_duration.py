"""The forecast of an audit's duration: what it counts, and that it is taken from timed steps of the plan's own
recipe."""

from __future__ import annotations

import dataclasses
import math

import pytest

from assets import duration
from contracts.subject import Choice, Split, Subject
from sources.example_set import ExampleSet
from sources.loading import load

STEPS = 20 * math.ceil(1348 / 64)  # epochs x batches of the training split
HALVES = 20 * math.ceil(674 / 64)


def plan(**changed: object) -> Subject:
    return Subject.from_mapping(
        {
            "subject": "mine",
            "source": "sklearn",
            "model": "mlp",
            "recipe": {"name": "supervised", "config": {"batch": 64, "epochs": 20}},
            "early": {"seeds": 10, "epoch": 2},
            "splits": [{"name": "random", "method": "random_fraction"}],
            "unlearning": {"methods": [{"name": "finetune", "config": {"epochs": 5}}], "seeds": 2},
            "ensemble": {"num_models": 64},
            "attacks": ["lira_online"],
            **changed,
        }
    )


@pytest.fixture(scope="module")
def digits() -> ExampleSet:
    return load("sklearn", {})


def test_trainings_are_counted(digits: ExampleSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duration, "_a_step", lambda train: 0.01)  # seconds a step, alone or of eight models at once
    rest = duration._OVERHEAD_S
    alone = 1 + 10 * 2 / 20 + 2 * (1 + 5 / 20)  # audited; early; each seed a retraining and a finetuning
    together = 64 * 0.01 / 8 * HALVES
    assert duration.minutes(plan(), digits) * 60 == pytest.approx(rest + alone * 0.01 * STEPS + together)
    for without in ([], ["loss"]):  # reference models that nobody reads are not trained
        assert duration.minutes(plan(attacks=without), digits) * 60 == pytest.approx(rest + alone * 0.01 * STEPS)
    chosen = dataclasses.replace(
        plan(attacks=[]), splits=(Split(name="random", method="by_class", config={"class_name": "3"}),)
    )
    assert duration.minutes(chosen, digits) * 60 == pytest.approx(rest + (alone + 20) * 0.01 * STEPS)
    shadow = dataclasses.replace(plan(attacks=[]), analyses=(Choice(name="shadow_unlearning", config={"runs": 60}),))
    assert duration.minutes(shadow, digits) * 60 == pytest.approx(rest + (alone + 120) * 0.01 * STEPS)
    monkeypatch.setattr(duration, "_a_step", lambda train: 2.0)  # a slow model is not tried eight at a time
    assert duration.minutes(plan(), digits) * 60 == pytest.approx(rest + alone * 2 * STEPS + 64 * 2 * HALVES)


def test_a_step_is_the_difference_of_two_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lengths = [0.0], []
    monkeypatch.setattr(duration.time, "perf_counter", lambda: now[0])

    def train(steps: int) -> None:
        lengths.append(steps)
        now[0] += 0.3 + 0.004 * steps  # a start, and the steps

    assert duration._a_step(train) == pytest.approx(0.004) and lengths == [1, 1, 9, 33]
    monkeypatch.setattr(duration, "_SLOW_S", 0.2)
    assert duration._a_step(train) == pytest.approx(0.304)


def test_the_recipe_itself_is_timed(digits: ExampleSet) -> None:
    few = digits.take(digits.positions(digits.example_id[:200]))
    found = duration.minutes(plan(), few) * 60 - duration._OVERHEAD_S
    assert 0 < found < 600
