"""The audit of digits end to end: 64 reference models, a forget set of 10%, about 225 unseen examples.

"No unlearning" is flagged, retraining is not; U-LiRA over 60 shadow runs tells fine-tuning from retraining in under a
minute.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import pytest
from planted_logits import LogitEvidence
from torch import nn

from attacks.membership import attack_report
from attacks.membership.population_umia import population_umia
from attacks.membership.shadow_runs import OUT, shadow_unlearning, three_state_design
from attacks.membership.unlearning import u_lira
from attacks.verdicts import judge_attack, judge_umia
from contracts.methods import attack
from contracts.subject import Ensemble, Thresholds
from contracts.verdicts import Verdict
from recipes.ensemble import train_ensemble
from recipes.models import build as build_model
from recipes.predict import predict_logits, read
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from sources.loading import load
from tasks import signals

ATTACKS = ("loss", "lira_online", "rmia_online")
RECIPE = SupervisedConfig(optimizer="sgd", lr=0.1, momentum=0.9, batch=64, epochs=80, schedule="cosine")


def mlp(seed: int) -> nn.Module:
    return build_model("mlp", {"hidden": [128]}, input_shape=(1, 8, 8), num_outputs=10, seed=seed)


@pytest.mark.journey
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_unlearning_is_flagged_and_retraining_is_not(seed: int) -> None:
    data = load("sklearn", {"dataset": "digits"}, seed=seed)
    train = data.part("train")
    ensemble = train_ensemble(
        mlp, data, recipe="supervised", config=RECIPE, ensemble=Ensemble(num_models=64), seed=seed, outputs=True
    )
    forget = np.sort(np.random.default_rng(seed).permutation(train.example_id)[: round(0.1 * len(train))])
    retained = train.subset(np.setdiff1d(train.example_id, forget))

    is_test = data.split[data.positions(ensemble.example_id)] == "test"
    candidates = np.concatenate([forget, ensemble.example_id[ensemble.pool & is_test]])
    column = np.searchsorted(ensemble.example_id, candidates)
    assert np.array_equal(ensemble.example_id[column], candidates)
    forgotten = np.isin(candidates, forget)
    population, logits = ~ensemble.pool, ensemble.logits
    assert logits is not None

    def findings(model: nn.Module) -> tuple[list[Verdict], Verdict, float, float]:
        evidence = LogitEvidence(
            example_id=candidates,
            labels=ensemble.labels[column],
            target_logits=predict_logits(model, data.subset(candidates))[None],
            reference_logits=logits[:, column],
            keep=ensemble.keep[:, column],
            population_labels=ensemble.labels[population],
            population_target_logits=predict_logits(model, data.subset(ensemble.example_id[population]))[None],
            population_reference_logits=logits[:, population],
        )
        verdicts = []
        for name in ATTACKS:
            method = attack.get(name)
            report = attack_report(method(evidence, config=method.spec.config(), seed=0)[0], forgotten)
            references = 64 if method.spec.references else None
            verdicts.append(
                judge_attack(
                    report, what=name, thresholds=Thresholds(), num_references=references, num_tests=len(ATTACKS)
                ).verdict
            )
        losses = signals.loss_from_log_odds(evidence.target_signal[0, 0])
        umia = population_umia(losses[forgotten], losses[~forgotten], seed=seed)
        return verdicts, judge_umia(umia, what="umia", thresholds=Thresholds()).verdict, umia.low, umia.high

    untouched, _, _, _ = findings(supervised(mlp, train, config=RECIPE, seed=1000 + seed))
    assert Verdict.FAIL in untouched
    retrained, population_verdict, low, high = findings(supervised(mlp, retained, config=RECIPE, seed=2000 + seed))
    assert Verdict.FAIL not in retrained and population_verdict is not Verdict.FAIL
    assert low <= 0.5 <= high


@pytest.mark.journey
def test_u_lira_on_digits_tells_fine_tuning_from_retraining() -> None:
    data = load("sklearn", {"dataset": "digits"}, seed=0).part("train")
    ids = np.random.default_rng(0).permutation(data.example_id)
    targets, base = np.sort(ids[:450]), np.sort(ids[450:])
    state = three_state_design(60, len(targets), seed=0)
    finetuning = SupervisedConfig(optimizer="sgd", lr=0.05, momentum=0.9, batch=64, epochs=10)

    def stacked(
        build, config: SupervisedConfig, members: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> list[nn.Module]:
        return StackedTrainer(build=build, config=config).train(
            data, members=[data.positions(np.sort(m)) for m in members], seeds=seeds
        )

    def signal(model: nn.Module) -> np.ndarray:
        return read(model, data.subset(targets)).signal

    start = time.process_time()
    kept = [np.concatenate([base, targets[row == 0]]) for row in state]
    models = stacked(mlp, RECIPE, [np.concatenate([base, targets[row != OUT]]) for row in state], range(60))
    tuned = stacked(lambda s: copy.deepcopy(models[s]), finetuning, kept, range(60))
    _, after = shadow_unlearning(
        state,
        targets,
        base,
        train=lambda _: models,
        unlearn=lambda run, *_: tuned[run],
        read=signal,
    )
    found = u_lira(after, state)
    assert time.process_time() - start < 60
    assert found.auc_low > 0.55

    retrained = stacked(mlp, RECIPE, kept, range(1000, 1060))
    assert abs(u_lira(np.stack([signal(m) for m in retrained]), state).auc - 0.5) < 0.03
