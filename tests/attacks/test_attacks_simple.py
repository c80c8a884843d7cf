"""The attacks without a likelihood ratio, each against a loop over its definition."""

from __future__ import annotations

import numpy as np
import pytest
from planted_logits import LogitEvidence

from attacks.membership.metrics import tpr_at_fpr
from contracts.errors import InvalidInput
from contracts.methods import attack
from tasks.signals import log_odds, modified_entropy


def run(name: str, evidence: LogitEvidence, seed: int = 0, **config: object) -> np.ndarray:
    method = attack.get(name)
    return method(evidence, config=method.spec.config.from_mapping(config), seed=seed)


def test_gap_has_the_balanced_accuracy_that_overfitting_explains(planted) -> None:
    evidence = planted(0, examples=500)
    scores = run("gap", evidence)
    for t in range(evidence.num_targets):
        right = evidence.target_logits[t].argmax(axis=-1) == evidence.labels
        member = evidence.keep[t]
        balanced = (scores[t][member].mean() + (1 - scores[t][~member]).mean()) / 2
        assert balanced == pytest.approx(0.5 + (right[member].mean() - right[~member].mean()) / 2)


def test_population_and_reference_equal_their_loops(planted, references_of) -> None:
    for case in ({"seed": 0}, {"seed": 1, "self_targets": False}, {"seed": 2, "balanced": False, "models": 9}):
        evidence = planted(**case)
        loss = np.logaddexp(0, -log_odds(evidence.target_logits, evidence.labels))
        reference_loss = np.logaddexp(0, -log_odds(evidence.reference_logits, evidence.labels))
        z_loss = np.logaddexp(0, -log_odds(evidence.population_target_logits, evidence.population_labels))
        by_population, by_reference = run("population", evidence), run("reference", evidence)
        for t in range(evidence.num_targets):
            rows = references_of(evidence, t)
            for n in range(len(evidence.labels)):
                assert by_population[t, n] == np.mean(z_loss[t] > loss[t, n])
                out = reference_loss[rows, n][~evidence.keep[rows, n]]
                expected = np.mean(out > loss[t, n]) if len(out) else np.nan
                assert by_reference[t, n] == pytest.approx(expected, nan_ok=True)


def test_population_needs_its_points(planted) -> None:
    evidence = planted(0)
    bare = LogitEvidence(example_id=evidence.example_id, labels=evidence.labels, target_logits=evidence.target_logits)
    with pytest.raises(InvalidInput, match="population points"):
        run("population", bare)


def test_per_class_thresholds_are_the_best_of_one_shadow_and_never_the_targets(planted) -> None:
    evidence = planted(4, models=6, examples=300)
    scores = run("modified_entropy_per_class", evidence, seed=7)
    order = np.random.default_rng(7).permutation(6)
    for t in range(6):
        shadow = order[0] if order[0] != t else order[1]
        me = modified_entropy(evidence.reference_logits[shadow], evidence.labels)
        own = modified_entropy(evidence.target_logits[t], evidence.labels)
        for c in range(4):
            of_class = evidence.labels == c
            values, member = me[of_class], evidence.keep[shadow][of_class]
            reached = [((values[member] <= tau).mean() + (values[~member] > tau).mean()) / 2 for tau in values]
            tau = (scores[t] + own)[of_class]
            assert np.ptp(tau) < 1e-9
            at_tau = ((values[member] <= tau[0] + 1e-9).mean() + (values[~member] > tau[0] + 1e-9).mean()) / 2
            assert at_tau == pytest.approx(max(reached))


@pytest.mark.parametrize("classifier", ["logistic", "mlp"])
def test_shadow_classifiers_beat_chance_and_do_not_learn_from_their_target(planted, classifier: str) -> None:
    evidence = planted(5, models=8, examples=400, gain=4.0)
    scores = run("shadow_model", evidence, classifier=classifier)
    assert np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1
    assert scores[evidence.keep].mean() - scores[~evidence.keep].mean() > 0.1
    keep = evidence.keep.copy()
    keep[2] = ~keep[2]
    flipped = LogitEvidence(**{**{f: getattr(evidence, f) for f in evidence.__dataclass_fields__}, "keep": keep})
    other = run("shadow_model", flipped, classifier=classifier)
    assert np.array_equal(scores[2], other[2])
    assert not np.array_equal(scores, other)


def test_shadow_model_leaves_a_class_without_both_kinds_undefined(planted) -> None:
    evidence = planted(6, models=8, examples=200)
    keep = evidence.keep.copy()
    keep[:, evidence.labels == 1] = True
    changed = LogitEvidence(**{**{f: getattr(evidence, f) for f in evidence.__dataclass_fields__}, "keep": keep})
    scores = run("shadow_model", changed)
    assert np.isnan(scores[:, evidence.labels == 1]).all()
    assert np.isfinite(scores[:, evidence.labels != 1]).all()


def test_reference_attack_is_useless_at_low_false_positive_rates_where_lira_is_not(planted) -> None:
    evidence = planted(7, models=16, examples=2000, gain=2.0)
    member = evidence.keep[0]
    assert tpr_at_fpr(run("lira_online", evidence)[0], member, 0.01) > 3 * tpr_at_fpr(
        run("reference", evidence)[0], member, 0.01
    )
