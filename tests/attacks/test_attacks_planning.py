"""What sizes allow, and whether whole audits of exactly removed sets come out so: real digits, real retrainings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from attacks.membership import Evidence, attack_report
from attacks.membership.population_umia import population_umia
from attacks.membership.retraining_null import against_retraining
from attacks.planning import against_retraining_allows, pass_probability, why_not
from attacks.verdicts import judge_against_retraining, judge_attack, judge_umia, worst
from contracts.errors import InvalidInput
from contracts.methods import attack
from contracts.subject import Ensemble, Thresholds
from contracts.verdicts import Verdict, overall

LIMITS = Thresholds()
PLAN = {"plain": 1, "reference": 2, "models": 3, "num_references": 32, "thresholds": LIMITS}


def test_more_examples_pass_more_often_and_more_tests_less() -> None:
    chances = [pass_probability(n, 449, **PLAN) for n in (89, 120, 180, 269, 600)]
    assert chances == sorted(chances) and chances[0] < 0.1 < 0.85 < chances[3] < chances[4] <= 1
    assert pass_probability(180, 449, **PLAN | {"models": 1}) > pass_probability(180, 449, **PLAN)
    assert pass_probability(180, 449, **PLAN | {"reference": 4}) < pass_probability(180, 449, **PLAN)
    loose = Thresholds(max_auc=0.7, max_umia=0.7)
    assert pass_probability(89, 449, **PLAN | {"thresholds": loose}) > 0.8


@pytest.mark.parametrize(
    ("sizes", "references", "reason"),
    [
        ((269, 85), 32, "85 unseen examples; 200 are needed"),
        ((40, 449), 32, "78 are needed"),
        ((269, 449), 8, "19 are needed"),
        ((1, 449), 32, "78 are needed"),
    ],
)
def test_what_cannot_pass_says_what_would_be_needed(sizes: tuple[int, int], references: int, reason: str) -> None:
    assert reason in why_not(*sizes, uses_references=True, num_references=references, thresholds=LIMITS)
    assert pass_probability(*sizes, **PLAN | {"num_references": references}) == 0.0


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput):
        pass_probability(-1, 449, **PLAN)
    with pytest.raises(InvalidInput):
        pass_probability(10, 449, **PLAN | {"models": 0})


@pytest.mark.parametrize("size", [1, 6, 100])
def test_what_a_set_judged_by_its_retrainings_can_carry(size: int) -> None:
    """400 exactly removed sets of independent examples, whose untouched model has just the trace that is named, or
    any."""
    rng = np.random.default_rng(size)
    chance, trace = against_retraining_allows(size, retrainings=20, thresholds=LIMITS)
    passed = {trace: 0, 1e6: 0}
    for _ in range(400):
        models = rng.normal(size=(21, size))
        for known in passed:
            found, _ = against_retraining(
                models[0], models[1:], untouched=np.full(size, known), alpha=LIMITS.alpha, level=LIMITS.alpha / 3
            )
            verdict = judge_against_retraining(found, what="a set", thresholds=LIMITS).verdict
            passed[known] += verdict is Verdict.PASS
    low, high = binom.interval(0.999, 400, chance)
    assert passed[1e6] <= high and passed[1e6] >= low - 12, "as often as named, however well the model knows the set"
    if chance > 0.9:
        low, high = binom.interval(0.999, 400, 0.8)
        assert low - 12 <= passed[trace] <= high + 12


def test_a_set_judged_by_its_retrainings_needs_rows_and_retrainings() -> None:
    for size, retrainings in ((0, 20), (5, 1)):
        with pytest.raises(InvalidInput, match="must be"):
            against_retraining_allows(size, retrainings=retrainings, thresholds=LIMITS)
    few, many = (against_retraining_allows(n, retrainings=20, thresholds=LIMITS) for n in (4, 400))
    assert few[0] < many[0] and few[1] > many[1]


@pytest.mark.stat
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [269, 89])
def test_audits_of_exact_removal_pass_as_often_as_computed_and_fail_in_at_most_alpha(size: int) -> None:
    """200 random sets of the digits, each removed by three retrainings, attacked and judged as an audit does."""
    from recipes.ensemble import train_ensemble
    from recipes.models import builder
    from recipes.predict import predict_logits, reading_of_outputs
    from recipes.schedule import SupervisedConfig
    from recipes.training import Trainer
    from sources.loading import load

    audits, models = 200, 3
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=0)
    config = SupervisedConfig(optimizer="sgd", lr=0.2, momentum=0.9, batch=64, epochs=60, schedule="cosine")
    build = builder("mlp", {"hidden": (64,)}, input_shape=data.input_shape, num_outputs=10)
    ensemble = train_ensemble(
        build,
        data,
        recipe="supervised",
        config=config,
        ensemble=Ensemble(num_models=64, block=64),
        seed=size,
        outputs=True,
    )
    trainer = Trainer(recipe="supervised", build=build, config=config)
    rng = np.random.default_rng(size)
    train = np.flatnonzero(data.split == "train")
    where, pool = data.positions(ensemble.example_id), ensemble.pool
    ids, outside = ensemble.example_id[pool], data.split[where][pool] == "test"
    tests = 2 * models * (3 + 1 + 2)
    found = []
    for start in range(0, audits, 20):
        sets = [rng.choice(train, size, replace=False) for _ in range(20)]
        trained = trainer.many(
            data,
            members=[np.setdiff1d(train, s) for s in sets for _ in range(models)],
            seeds=[models * start + k for k in range(20 * models)],
        )
        logits = np.stack([predict_logits(model, data) for model in trained]).reshape(20, models, len(data), -1)
        for number, (s, z) in enumerate(zip(sets, logits, strict=True)):
            reading = reading_of_outputs(data, z)
            evidence = Evidence.of_ensemble(
                ensemble,
                reading.values[:, where],
                z[:, where],
                task=data.task,
                constants=data.constants,
                calibrated=True,
            )
            member = np.isin(ids, data.example_id[s])
            shown = member | outside
            verdicts = []
            for name in ("loss", "lira_online", "rmia_online"):
                scores = attack.get(name)(evidence, config=attack.get(name).spec.config(), seed=0)
                references = 32 if attack.get(name).spec.references else None
                judged = {
                    k: judge_attack(
                        attack_report(row[shown], member[shown]),
                        what=name,
                        thresholds=LIMITS,
                        num_references=references,
                        num_tests=tests,
                    )
                    for k, row in enumerate(scores)
                }
                verdicts.append(worst(judged).verdict)
            unseen = np.flatnonzero((data.split == "test") & np.isin(data.y, data.y[s]))
            of_losses = {}
            for k, loss in enumerate(reading.loss):
                result = population_umia(loss[s], loss[unseen], seed=start + number)
                of_losses[k] = judge_umia(result, what="u_mia", thresholds=LIMITS, num_tests=tests)
            found.append(overall([*verdicts, worst(of_losses).verdict]))
    failed, passed = found.count(Verdict.FAIL), found.count(Verdict.PASS)
    assert failed <= binom.ppf(0.999, audits, LIMITS.alpha), failed
    computed = pass_probability(size, int(outside.sum()), **PLAN)
    low, high = binom.ppf([0.0005, 0.9995], audits, [max(computed - 0.04, 0.0), min(computed + 0.04, 1.0)])
    assert low <= passed <= high, (passed / audits, computed)
