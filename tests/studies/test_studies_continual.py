"""Measures of a stream by hand, the study of a stream on planted data, and a buffer that shows against one that does
not."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from contracts.errors import InvalidInput, NotApplicable
from contracts.progress import silent
from contracts.subject import Ensemble, Thresholds
from recipes.continual.rehearsal_free import RehearsalFreeConfig
from recipes.continual.replay import ReplayConfig
from recipes.continual.stream import Stream
from recipes.ensemble import train_ensemble
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from sources.example_set import ExampleSet
from studies.buffer_leak import BufferLeakConfig, buffer_leak, judge_buffer_leak
from studies.continual import ContinualRunsConfig, continual_runs
from studies.step_accuracy import forgetting, mean_drop, step_accuracy

NAN = np.nan


def test_forgetting_by_hand():
    accuracy = np.array([[0.9, NAN, NAN], [0.5, 0.8, NAN], [0.3, 0.7, 0.6]])
    wanted = (2 / 4 * (0.9 - 0.5) + 2 / 6 * (0.9 - 0.3) + 2 / 6 * (0.8 - 0.7)) / 2
    assert forgetting(accuracy, [2, 2, 2]) == pytest.approx(wanted)
    assert forgetting(accuracy, [4, 1, 1]) == pytest.approx((4 / 5 * 0.4 + 4 / 6 * 0.6 + 1 / 6 * 0.1) / 2)
    assert mean_drop(accuracy) == pytest.approx((0.6 + 0.1) / 2)


def test_nothing_is_forgotten_when_nothing_changes():
    same = np.array([[0.9, NAN, NAN], [0.9, 0.8, NAN], [0.9, 0.8, 0.6]])
    assert forgetting(same, [2, 3, 1]) == 0.0 == mean_drop(same)
    assert forgetting(np.array([[0.4]]), [2]) == 0.0 == mean_drop(np.array([[0.4]]))
    lost = np.array([[1.0, NAN, NAN], [0, 1.0, NAN], [0, 0, 1.0]])
    assert forgetting(lost, [2, 2, 2]) == pytest.approx((2 / 4 + 4 / 6) / 2) and mean_drop(lost) == 1.0
    with pytest.raises(InvalidInput):
        forgetting(same, [2, 2])


class Answers(nn.Module):
    """Fixed logits, looked up by the example's only feature."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x[:, 0].long()]


def examples(y: list[int], x: np.ndarray, classes: int, split: np.ndarray | None = None) -> ExampleSet:
    num = len(y)
    return ExampleSet(
        name="stream",
        task="classification",
        x=x.astype(np.float32),
        y=np.array(y, np.int64),
        example_id=np.random.default_rng(0).permutation(3 * num)[:num].astype(np.int64),
        split=np.array(["train"] * num) if split is None else split,
        owner=np.array([""] * num),
        content_hash=np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in x]),
        class_names=tuple(f"c{k}" for k in range(classes)),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )


def test_accuracies_are_over_the_classes_seen_and_within_the_step():
    test = examples([0, 1, 2, 3], np.arange(4)[:, None], 4)
    stream = Stream(step=np.zeros(0, np.int64), names=("a", "b"), classes=((0, 1), (2, 3)), pretrain=())
    steps = np.array([0, 0, 1, 1])
    # Example 0 is right within its step but loses to class 2; a class not yet seen (3) takes no part after the first
    # step.
    one = Answers([[1.0, 0, 0, 9], [0, 1.0, 0, 9], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    two = Answers([[1.0, 0, 2, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 1.0, 0]])
    found = step_accuracy([one, two], test, steps, stream)
    assert found.overall[0, 0] == 1.0 and np.isnan(found.overall[0, 1])
    assert found.overall[1].tolist() == [0.5, 0.5] and found.within[1].tolist() == [1.0, 0.5] and found.final == 0.5
    with pytest.raises(InvalidInput):
        step_accuracy([one], test, steps, stream)
    with pytest.raises(InvalidInput):
        step_accuracy([one, two], test, np.full(4, -1), stream)


def clusters(num: int = 480, *, classes: int = 4, dim: int = 20, noise: float = 1.0, seed: int = 0) -> ExampleSet:
    rng = np.random.default_rng(seed)
    y = np.arange(num) % classes
    x = rng.normal(size=(classes, dim))[y] + noise * rng.normal(size=(num, dim))
    split = np.where(np.arange(num) // classes % 2 == 1, "test", "train").astype("<U5")
    return examples(y.tolist(), x, classes, split)


def trainer(data: ExampleSet, recipe: str, config: object, **model: object) -> Trainer:
    build = builder("mlp", {"hidden": [32], **model}, input_shape=data.input_shape, num_outputs=data.num_classes)
    return Trainer(recipe=recipe, build=build, config=config)


STEPS = ((0, 1), (2, 3))


def test_the_study_finds_what_fine_tuning_forgets_and_replay_keeps():
    data = clusters(noise=0.5)
    found = {}
    for name, recipe, config in (
        ("naive", "rehearsal_free", RehearsalFreeConfig(steps=STEPS, epochs=15, lr=0.01, pred=0.0)),
        ("replay", "replay", ReplayConfig(steps=STEPS, epochs=15, lr=0.01, buffer=40)),
    ):
        told = []
        tables = continual_runs(
            data,
            config=ContinualRunsConfig(seeds=2),
            seed=0,
            progress=lambda *a, told=told: told.append(a),
            recipe=trainer(data, recipe, config),
        )
        assert [t[:2] for t in told] == [(1, 2), (2, 2)]
        steps, cka = tables["continual_steps"], tables["layer_cka"]
        assert steps.height == 2 * 3 and steps["num_test"].unique().to_list() == [120]
        assert set(cka["layer"]) == {"hidden.0", "head"}
        assert cka.filter(pl.col("after") == 1)["cka"].to_numpy() == pytest.approx(1.0)
        assert (cka.filter(pl.col("after") == 2)["cka"] < 1 - 1e-4).all()
        summary = {row["measure"]: row for row in tables["continual_summary"].iter_rows(named=True)}
        first = steps.filter((pl.col("repeat") == 0) & (pl.col("after") == 2))["accuracy"].to_list()
        both = steps.filter(pl.col("after") == 2).group_by("repeat").agg(pl.col("accuracy").mean())["accuracy"].mean()
        assert summary["final_accuracy"]["value"] == pytest.approx(both) and len(first) == 2
        assert summary["final_accuracy"]["low"] <= both <= summary["final_accuracy"]["high"]
        found[name] = {measure: row["value"] for measure, row in summary.items()}
    assert found["naive"]["mean_drop"] > 0.5 and found["naive"]["global_forgetting"] == pytest.approx(
        found["naive"]["mean_drop"] / 2
    )
    assert found["naive"]["local_forgetting"] < 0.2, "within a step the old classes are still told apart"
    assert found["replay"]["mean_drop"] < 0.1 and found["replay"]["final_accuracy"] > 0.9


def test_it_does_not_depend_on_the_order_of_the_rows_and_refuses_other_recipes():
    data = clusters(120)
    config = RehearsalFreeConfig(steps=STEPS, epochs=2)
    mixed = data.take(np.random.default_rng(1).permutation(len(data)))
    first, second = (
        continual_runs(
            d, config=ContinualRunsConfig(seeds=1), seed=0, progress=silent, recipe=trainer(d, "rehearsal_free", config)
        )
        for d in (data, mixed)
    )
    assert all(first[name].equals(second[name]) for name in first)
    assert first["continual_summary"]["low"].null_count() == 4
    with pytest.raises(NotApplicable, match="supervised does not"):
        continual_runs(
            data,
            config=ContinualRunsConfig(),
            seed=0,
            progress=silent,
            recipe=trainer(data, "supervised", SupervisedConfig()),
        )


@pytest.fixture(scope="module")
def hard() -> ExampleSet:
    """Labels that say nothing of the features: what is known of them is known by heart."""
    data = clusters(400, dim=40, noise=1.0, seed=3)
    y = np.random.default_rng(4).permutation(data.y)
    return dataclasses.replace(data, y=y)


def leak(data: ExampleSet, recipe: str, config: object) -> tuple[dict[str, pl.DataFrame], object]:
    plan = trainer(data, recipe, config, hidden=[64])
    ensemble = train_ensemble(
        plan.build,
        data,
        recipe=recipe,
        config=config,
        ensemble=Ensemble(num_models=24, population_fraction=0.5),
        seed=5,
        outputs=True,
    )
    tables = buffer_leak(data, config=BufferLeakConfig(), seed=0, progress=silent, ensemble=ensemble, recipe=plan)
    return tables, ensemble


def test_a_replay_buffer_shows_in_the_steps_it_was_drawn_in_and_not_in_the_last(hard):
    tables, ensemble = leak(hard, "replay", ReplayConfig(steps=STEPS, epochs=20, lr=0.01, buffer=24, batch=32))
    wide = {(row["attack"], row["step"], row["group"]): row for row in tables["buffer_leak"].iter_rows(named=True)}
    gap = {(row["attack"], row["step"]): row for row in tables["buffer_difference"].iter_rows(named=True)}
    for attack in ("lira_online", "rmia_online"):
        old = wide[attack, 1, "buffer"]
        assert old["auc_lo"] > 0.8 > wide[attack, 1, "rest"]["auc"], (
            "what was replayed is known by heart, the rest is not"
        )
        assert gap[attack, 1]["low"] > 0.1
        assert gap[attack, 2]["low"] < 0 < gap[attack, 2]["high"] or abs(gap[attack, 2]["difference"]) < 0.03
        assert wide[attack, 2, "members"]["auc_lo"] > 0.8
        assert old["auc"] - wide[attack, 1, "rest"]["auc"] == pytest.approx(gap[attack, 1]["difference"])
    assert wide["lira_online", 1, "buffer"]["num_members"] == pytest.approx(12, abs=1.5)
    assert ensemble.held.sum(1).tolist() == [24] * 24
    classes = tables["buffer_leak_classes"].filter(
        (pl.col("attack") == "lira_online") & (pl.col("step") == 1) & (pl.col("group") == "members")
    )
    mean = np.average(classes["auc"], weights=classes["num_examples"])
    assert mean == pytest.approx(wide["lira_online", 1, "members"]["auc"])


def test_without_a_buffer_there_are_members_alone(hard):
    tables, ensemble = leak(hard, "rehearsal_free", RehearsalFreeConfig(steps=STEPS, epochs=20, lr=0.01, batch=32))
    assert ensemble.held is None and tables["buffer_difference"].is_empty()
    assert set(tables["buffer_leak"]["group"]) == {"members"}
    lira = tables["buffer_leak"].filter(pl.col("attack") == "lira_online").sort("step")
    assert lira["auc_lo"][1] > 0.7 and lira["auc"][0] < lira["auc"][1], "the first step's members fade"
    plan = trainer(hard, "supervised", SupervisedConfig())
    with pytest.raises(NotApplicable, match="buffer_leak is about recipes"):
        buffer_leak(hard, config=BufferLeakConfig(), seed=0, progress=silent, ensemble=ensemble, recipe=plan)


def differences(*rows: tuple[str, int, float, float, float]) -> dict[str, pl.DataFrame]:
    names = ["attack", "step", "difference", "low", "high"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(step_name=pl.format("{}+", "step"))
    return {"buffer_difference": frame}


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.14, 0.26, "fail"), (0.02, 0.38, "inconclusive"), (-0.02, 0.04, "pass")]
)
def test_the_step_whose_buffer_shows_most_is_judged_with_all_steps_together(low, high, verdict):
    value, limits = (low + high) / 2, Thresholds(max_auc=0.6)
    rows = [("lira", n, value if n == 3 else value - 0.2, low, high) for n in (1, 2, 3, 4)]
    ((about, finding),) = judge_buffer_leak(differences(*rows), limits)
    assert (about, finding.what, finding.verdict.value, finding.judged) == (
        "buffer",
        "buffer_leak/lira",
        verdict,
        False,
    )
    assert "step 3 (3+)" in finding.sentence and finding.threshold == pytest.approx(0.1)
    half = 2.4977 / 1.95996 * (high - low) / 2  # z at 0.05 / 8, over z at 0.05 / 2
    assert finding.value == value
    assert (finding.low, finding.high) == (pytest.approx(value - half, abs=1e-4), pytest.approx(value + half, abs=1e-4))


def test_a_single_step_keeps_its_interval_and_no_buffer_has_no_finding():
    limits = Thresholds(max_auc=0.6)
    found = judge_buffer_leak(differences(("lira", 1, 0.2, 0.1, 0.3), ("rmia", 1, 0.2, 0.15, 0.3)), limits)
    assert [(f.what, f.low, f.high) for _, f in found] == [
        ("buffer_leak/lira", pytest.approx(0.1), pytest.approx(0.3)),
        ("buffer_leak/rmia", pytest.approx(0.15), pytest.approx(0.3)),
    ]
    assert (
        judge_buffer_leak(differences(("lira", 1, 0.9, 0.8, 1.0), ("lira", 2, 0.1, 0.0, 0.2)), limits)[0][1].high == 1
    )
    empty = {"buffer_difference": differences(("lira", 1, 0.2, 0.1, 0.3))["buffer_difference"].clear()}
    assert judge_buffer_leak(empty, limits) == []
