"""Every attack and audit on tasks without class logits: what was learnt by heart is found, what was never seen is
not."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from task_worlds import POOL, TRAIN, WORLDS, World

from attacks.membership import Evidence
from attacks.membership.exposure_audit import ExposureConfig, exposure, judge_exposure
from attacks.membership.population_umia import population_umia
from attacks.membership.retraining_null import Retrainings, against_retraining
from attacks.membership.shadow_audit import ShadowUnlearningConfig, shadow_unlearning_audit
from attacks.recipe_match import recipe_match
from attacks.relearning import relearn
from attacks.shadow_verdicts import judge_shadow_unlearning
from contracts.errors import NotApplicable
from contracts.methods import analysis, attack
from contracts.subject import Thresholds
from contracts.verdicts import Verdict
from recipes.ensemble import ReferenceEnsemble
from recipes.predict import read
from sources.planted_poison import plant_canaries
from stats import auc
from tasks.base import Reading
from unlearning.metrics import evaluate

READERS = [
    name for name in attack.names() if attack.get(name).spec.wants == ("reading",) and not attack.get(name).spec.base
]
CONFIG = ShadowUnlearningConfig(
    runs=27, targets=54, canaries=4, repeats=3, methods=("no-op", "again", "destroyed"), relearn_steps=5
)


@pytest.fixture(scope="module", params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]()


@pytest.fixture(scope="module")
def ensemble(world: World) -> ReferenceEnsemble:
    return world.ensemble()


def evidence_of(world: World, ensemble: ReferenceEnsemble, seen: np.ndarray, *, calibrated: bool = True) -> Evidence:
    """Of one model trained on the rows ``seen``."""
    model = world.fit(world.data.take(seen), 5)
    return Evidence.of_ensemble(
        ensemble,
        read(model, world.data).values[None],
        task=world.data.task,
        constants=world.data.constants,
        calibrated=calibrated,
    )


def scores_of(name: str, evidence: Evidence) -> np.ndarray:
    method = attack.get(name)
    return method(evidence, config=method.spec.config(), seed=0)[0]


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_members_are_found_and_nobody_in_a_model_that_saw_none(
    world: World, ensemble: ReferenceEnsemble, name: str, calibrated: bool
) -> None:
    assert {"loss", "lira_online", "rmia_online", "population", "reference", "gap"} <= set(READERS)
    scores = scores_of(name, evidence_of(world, ensemble, np.arange(TRAIN), calibrated=calibrated))
    assert scores.shape == (POOL,)
    # Whether an item is among the ten best says little where most are.
    assert auc(scores[:TRAIN], scores[TRAIN:]) > (0.52 if name == "gap" else 0.9)
    nobody = scores_of(name, evidence_of(world, ensemble, np.zeros(0, np.int64), calibrated=calibrated))
    if attack.get(name).spec.references:  # attacks that compare an example with itself
        assert abs(auc(nobody[:TRAIN], nobody[TRAIN:]) - 0.5) < 0.15


def test_attacks_on_whole_outputs_say_that_there_are_none(world: World, ensemble: ReferenceEnsemble) -> None:
    evidence = evidence_of(world, ensemble, np.arange(TRAIN))
    for name in ("entropy", "modified_entropy", "shadow_model"):
        with pytest.raises(NotApplicable, match="one vector of class logits"):
            scores_of(name, evidence)
    with pytest.raises(NotApplicable, match="whole outputs are not there"):
        Evidence.of_ensemble(ensemble, ensemble.reading, task=world.data.task, outputs=True)
    with pytest.raises(NotApplicable, match="attack entropy does not apply"):
        exposure(world.data, config=ExposureConfig(attacks=("entropy",)), seed=0, ensemble=ensemble)


def test_exposure_names_every_example_learnt_by_heart_and_none_of_a_blind_recipe(
    world: World, ensemble: ReferenceEnsemble
) -> None:
    config = ExposureConfig(attacks=("lira_online", "rmia_online"), fpr_caps=(0.05, 0.25))
    tables = exposure(world.data, config=config, seed=0, ensemble=ensemble)
    found = tables["exposure"].filter("exposed")["example_id"].unique()
    assert len(found) > 0.9 * TRAIN and set(found) <= set(world.data.example_id[:TRAIN].tolist())
    verdicts = judge_exposure(tables, Thresholds(max_target_auc=0.6))
    assert {f.verdict for _, f in verdicts} == {Verdict.FAIL}
    blind = exposure(world.data, config=config, seed=0, ensemble=world.ensemble(blind=True))
    assert not blind["exposure"]["exposed"].any()
    assert (blind["exposure_summary"]["auc"] - 0.5).abs().max() < 0.1


def test_bounds_on_epsilon_are_large_for_what_memorises(world: World, ensemble: ReferenceEnsemble) -> None:
    method = analysis.get("epsilon")
    rows = method(world.data, config=method.spec.config(), seed=0, ensemble=ensemble)["epsilon"]
    assert rows.filter(method="one_run")["eps_lower"][0] > 0.5
    blind = method(world.data, config=method.spec.config(), seed=0, ensemble=world.ensemble(blind=True))["epsilon"]
    assert blind["eps_lower"].max() < 0.5


@pytest.fixture(scope="module")
def shadow(world: World) -> dict[str, pl.DataFrame]:
    return shadow_unlearning_audit(
        world.data, config=CONFIG, seed=4, train_many=world.train_many, unlearn_from=world.unlearn_from
    )


def row_of(tables: dict[str, pl.DataFrame], method: str) -> dict[str, object]:
    return tables["u_lira"].row(by_predicate=pl.col("method") == method, named=True)


def test_shadow_runs_expose_what_was_not_removed_and_clear_retraining(shadow: dict[str, pl.DataFrame]) -> None:
    for method in ("none", "no-op"):
        row = row_of(shadow, method)
        assert row["auc"] > 0.95 and row["num_exposed"] > 0.8 * row["num_targets"] and row["population_auc"] > 0.9
        assert row["relearn_auc"] > 0.9
    for method in ("retrain", "again"):
        row = row_of(shadow, method)
        assert (
            row["auc_lo"] < 0.55 and row["auc_hi"] > 0.45 and abs(row["auc"] - 0.5) < 0.12 and row["num_exposed"] <= 1
        )
        assert abs(row["relearn_auc"] - 0.5) < 0.15
    assert abs(row_of(shadow, "again")["kept_acc_lost"]) < 0.05


def test_canaries_under_a_wrong_target_show_the_power_of_the_audit(
    world: World, shadow: dict[str, pl.DataFrame]
) -> None:
    assert row_of(shadow, "none")["canaries_exposed"] == row_of(shadow, "none")["num_canaries"] == 4
    assert row_of(shadow, "retrain")["canaries_exposed"] == 0
    rows = shadow["u_lira_canaries"].filter(method="none")
    given = "label" if world.data.y.dtype.kind == "i" else "target"
    assert rows[given].null_count() == 0 and rows["label" if given == "target" else "target"].null_count() == 4
    own = world.data.y[world.data.positions(rows["example_id"].to_numpy())]
    assert (rows[given].to_numpy() != own).all()
    assert (rows["repeats"] == (3 if world.data.task.repeatable else 1)).all()


def test_a_destroyed_model_has_lost_its_quality(shadow: dict[str, pl.DataFrame]) -> None:
    found = {(about, f.what): f for about, f in judge_shadow_unlearning(shadow, Thresholds())}
    lost = found["shadow/destroyed", "unlearning/quality"]
    assert lost.verdict is Verdict.FAIL and "quality lost retained" in lost.sentence
    for method, fails in (("none", True), ("no-op", True), ("again", False), ("retrain", False)):
        assert (found[f"shadow/{method}", "unlearning/examples"].verdict is Verdict.FAIL) == fails
        assert found[f"shadow/{method}", "unlearning/u_lira"].verdict is not (Verdict.PASS if fails else Verdict.FAIL)


def test_relearning_is_descent_on_the_tasks_losses_and_reads_signal_and_quality(world: World) -> None:
    data = world.data.take(np.arange(POOL))
    forgotten = np.arange(POOL) < TRAIN
    model = world.fit(data.take(np.arange(TRAIN, POOL)), 0)
    found = relearn(model, data, forgotten, steps=4, lr=0.01)
    np.testing.assert_array_equal(found.phi[0], read(model, data).signal)
    np.testing.assert_array_equal(found.quality[0], read(model, data).quality)
    assert found.phi[4, forgotten].mean() > found.phi[0, forgotten].mean()
    assert found.steps_to(float(found.quality[0, forgotten].mean()), forgotten) == 0


def test_the_set_itself_is_known_by_an_untouched_model_and_not_by_a_retrained_one(world: World) -> None:
    data, gone = world.data, np.arange(10)
    asked = np.concatenate([gone, np.arange(TRAIN, len(data))])
    kept = data.take(np.arange(10, TRAIN))
    signal = np.stack([read(world.fit(kept, 200 + r), data).signal[asked] for r in range(20)])
    null = Retrainings(signal=signal, num_set=10)
    untouched, retrained = (
        null.place(read(model, data).signal[asked], task=data.task)
        for model in (world.fit(data.take(np.arange(TRAIN)), 1), world.fit(kept, 2))
    )
    more = {"untouched": untouched, "alpha": 0.05, "level": 0.005}
    still, _ = against_retraining(untouched, null.null, **more)
    assert still.p_value < 1e-4 and still.shift > 1
    done, _ = against_retraining(retrained, null.null, **more)
    assert done.p_value > 0.01 and abs(done.shift) < 0.5 * still.shift


def test_the_recipe_is_recognised_and_another_is_not(world: World) -> None:
    unseen = world.data.take(np.arange(TRAIN, len(world.data)))
    train = world.data.take(np.arange(TRAIN))
    theirs = Reading(np.stack([read(world.fit(train, r), unseen).values for r in range(12)]))
    own, other = read(world.fit(train, 77), unseen), read(world.destroyed(), unseen)
    found = recipe_match(own, theirs, alpha=0.05)
    assert found.p_value > 0.01 and found.accuracy == own.quality.mean()
    assert recipe_match(other, theirs, alpha=0.05).p_value < 0.01


def test_population_attack_and_metrics_of_an_unlearned_model(world: World) -> None:
    data, train = world.data, np.arange(TRAIN)
    forget, retain, test = data.take(train[:20]), data.take(train[20:]), data.take(np.arange(TRAIN, len(data)))
    known, gone = world.fit(data.take(train), 0), world.fit(retain, 0)
    accuracy = [
        population_umia(read(model, forget).loss, read(model, test).loss, seed=0).accuracy for model in (known, gone)
    ]
    assert accuracy[0] > 0.8 and accuracy[1] < 0.68
    before, after = (evaluate(m, retain=retain, forget=forget, test=test, seed=0) for m in (known, gone))
    assert before["ua"] == pytest.approx(100 - 100 * read(known, forget).quality.mean())
    assert before["ta"] == pytest.approx(100 * read(known, test).quality.mean())
    assert before["ua"] + 5 < after["ua"] and before["mia_efficacy"] + 40 < after["mia_efficacy"]
    assert before["mia_entropy"] is before["mia_prob"] is before["mia_correctness"] is None
    shifted = dataclasses.replace(forget, task=data.task)
    assert evaluate(known, retain=retain, forget=shifted, test=test, seed=0) == before


def test_wrong_targets_are_wrong_and_of_the_task(world: World) -> None:
    larger, copies, originals = plant_canaries(world.data, count=6, repeats=1, seed=3)
    given = larger.y[larger.positions(copies[:, 0])]
    true = world.data.y[world.data.positions(originals)]
    assert (given != true).all() and larger.constants.keys() == world.data.constants.keys()
    known = world.data.y[:TRAIN]
    if world.data.task.gives("interactions"):
        users = np.asarray(larger.x)[larger.positions(copies[:, 0]), 0]
        met = set(zip(np.asarray(world.data.x)[:, 0].tolist(), world.data.y.tolist(), strict=True))
        assert not met & set(zip(users.tolist(), given.tolist(), strict=True))
    else:
        assert set(given) <= set(known)
        ranks = [np.searchsorted(np.sort(known), v) / len(known) for v in (given, true)]
        away = np.abs(ranks[0] - ranks[1])
        assert (np.minimum(away, 1 - away) > 0.2).all()
