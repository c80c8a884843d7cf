"""RMIA against a naive transcription, the tuning of ``a``, and ties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from planted_logits import LogitEvidence
from scipy.stats import rankdata

from attacks.membership import Evidence, rmia
from attacks.membership.rmia import A_GRID, RmiaOfflineConfig, RmiaOnlineConfig, rmia_offline, rmia_online, tune_a
from contracts.errors import ConfigError, InvalidInput
from stats import auc
from tasks.signals import log_odds


def probability(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True))[:, np.arange(len(labels)), labels]


def naive_rmia(evidence: LogitEvidence, rows_of, gamma: float, a: float | None) -> np.ndarray:
    p_target, p_ref = (probability(z, evidence.labels) for z in (evidence.target_logits, evidence.reference_logits))
    z_target = probability(evidence.population_target_logits, evidence.population_labels)
    z_ref = probability(evidence.population_reference_logits, evidence.population_labels)
    scores = np.full(p_target.shape, np.nan)
    for t in range(len(p_target)):
        rows = rows_of(evidence, t)
        ratio_z = z_target[t] / z_ref[rows].mean(axis=0)
        for n in range(p_target.shape[1]):
            member = evidence.keep[rows, n]
            inside, outside = p_ref[rows, n][member], p_ref[rows, n][~member]
            if not len(outside) or (a is None and not len(inside)):
                continue
            p_x = (inside.mean() + outside.mean()) / 2 if a is None else ((1 + a) * outside.mean() + (1 - a)) / 2
            ratio = p_target[t, n] / p_x
            beaten = sum(ratio / r >= gamma for r in ratio_z)
            scores[t, n] = (beaten + ratio / (1 + ratio)) / (len(ratio_z) + 1)
    return scores


CASES = [
    {"seed": 0},
    {"seed": 1, "models": 9, "balanced": False},
    {"seed": 2, "self_targets": False, "balanced": False},
]


@pytest.mark.parametrize("gamma", [1.0, 1.7])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rmia_equals_its_naive_transcription(planted, references_of, monkeypatch, case: dict, gamma: float) -> None:
    monkeypatch.setattr(rmia, "_BLOCK", 7)
    evidence = planted(**case)
    found = rmia_online(evidence, config=RmiaOnlineConfig(gamma=gamma), seed=0)
    np.testing.assert_allclose(found, naive_rmia(evidence, references_of, gamma, None), rtol=1e-9)
    for a in (0.0, 0.3, 1.0):
        found = rmia_offline(evidence, config=RmiaOfflineConfig(gamma=gamma, a=a), seed=0)
        np.testing.assert_allclose(found, naive_rmia(evidence, references_of, gamma, a), rtol=1e-9)


def test_targets_inside_and_outside_the_references_may_be_mixed(planted, references_of) -> None:
    evidence = planted(10, models=9, balanced=False)
    index = np.where(np.arange(9) % 3 == 0, -1, np.arange(9))
    mixed = LogitEvidence(**{**{f: getattr(evidence, f) for f in evidence.__dataclass_fields__}, "target_index": index})
    found = rmia_online(mixed, config=RmiaOnlineConfig(), seed=0)
    np.testing.assert_allclose(found, naive_rmia(mixed, references_of, 1.0, None), rtol=1e-9)


def test_a_is_the_best_of_the_grid_on_a_reference_attacked_by_the_rest(planted) -> None:
    evidence = planted(3, self_targets=False, models=11, examples=200)
    ll, keep = evidence.reference_log_likelihood, evidence.keep
    phi = evidence.reference_signal[0]
    tuned = tune_a(ll, keep, evidence.left_out, seed=5)
    rng = np.random.default_rng(5)
    rng.permutation(phi.shape[1])
    attacked = int(rng.permutation(len(phi))[0])
    rest = np.delete(np.arange(len(phi)), attacked)
    p = 1 / (1 + np.exp(-phi))
    out = np.array([p[rest, n][~keep[rest, n]].mean() for n in range(phi.shape[1])])
    reached = []
    for a in A_GRID:
        ratio = p[attacked] / (((1 + a) * out + 1 - a) / 2)
        reached.append(auc(ratio[keep[attacked]], ratio[~keep[attacked]]))
    assert len(set(reached)) > 3
    assert tuned.tolist() == [A_GRID[int(np.argmax(reached))]] * evidence.num_targets


def test_tuning_never_sees_the_target(planted) -> None:
    evidence = planted(4, models=10, examples=60)
    ll, keep = evidence.reference_log_likelihood, evidence.keep
    for t in range(10):
        other, other_keep = ll.copy(), keep.copy()
        other[t], other_keep[t] = -np.random.default_rng(t).exponential(9, ll.shape[1]), ~keep[t]
        tuned = [tune_a(p, k, np.array([t]), seed=1)[0] for p, k in ((ll, keep), (other, other_keep))]
        assert tuned[0] == tuned[1]


def test_ties_in_the_share_are_broken_by_the_ratio(planted) -> None:
    evidence = planted(5, points=2, examples=80)
    scores = rmia_online(evidence, config=RmiaOnlineConfig(), seed=0)
    assert all(len(np.unique(row)) == 80 for row in scores)
    assert scores.min() >= 0 and scores.max() <= 1


def test_underflowing_probabilities_do_not_become_nan(planted) -> None:
    evidence = planted(6)
    logits = evidence.reference_logits.copy()
    logits[:, 0, evidence.labels[0]] = -3000
    far = LogitEvidence(
        **{
            **{f: getattr(evidence, f) for f in evidence.__dataclass_fields__},
            "reference_logits": logits,
            "target_logits": logits,
        }
    )
    assert (log_odds(logits, evidence.labels)[:, 0] < -2000).all()
    assert np.isfinite(rmia_online(far, config=RmiaOnlineConfig(), seed=0)).all()


@pytest.mark.parametrize("seed", range(3))
def test_means_without_a_model_that_holds_nearly_all_keep_their_digits(seed: int) -> None:
    """Sums less their largest term would keep five digits here."""
    rng = np.random.default_rng(seed)
    p = 10.0 ** rng.uniform(-13, -11, (9, 40))
    p[rng.integers(9, size=40), np.arange(40)] = rng.uniform(0.5, 1, 40)
    member = rng.random((9, 40)) < 0.5
    member[:, 0], member[:, 1] = True, False  # one side empty
    member[:, 2], member[:, 3] = np.arange(9) == 4, np.arange(9) != 4  # or empty without the target
    for left_out in (
        np.arange(9),
        np.where(np.arange(9) % 3 == 0, -1, np.arange(9)),
        np.array([-1, -1]),
        np.array([5, 2]),
    ):
        both, out = rmia._mean_of_both(p, member, left_out), rmia._mean_out(p, member, left_out)
        for t, own in enumerate(left_out):
            rows = np.arange(9) != own
            for n in range(40):
                inside, outside = p[rows & member[:, n], n], p[rows & ~member[:, n], n]
                mean_out = outside.mean() if len(outside) else np.nan
                mean_in = inside.mean() if len(inside) else np.nan
                assert out[t, n] == pytest.approx(mean_out, rel=1e-12, abs=0, nan_ok=True)
                assert both[t, n] == pytest.approx((mean_in + mean_out) / 2, rel=1e-12, abs=0, nan_ok=True)


def test_saturated_examples_keep_their_exact_ties(planted) -> None:
    """Where every probability is 1 every ratio is exactly 1, and no population point is more."""
    evidence = planted(8, models=8)
    fields = {f: getattr(evidence, f) for f in evidence.__dataclass_fields__}
    sure = np.full(evidence.target_logits.shape, -2000.0)
    sure[:, np.arange(sure.shape[1]), evidence.labels] = 2000
    points = np.full(evidence.population_target_logits.shape, -2000.0)
    points[:, np.arange(points.shape[1]), evidence.population_labels] = 2000
    scores = rmia_online(
        LogitEvidence(
            **fields
            | dict.fromkeys(("target_logits", "reference_logits"), sure)
            | dict.fromkeys(("population_target_logits", "population_reference_logits"), points)
        ),
        config=RmiaOnlineConfig(),
        seed=0,
    )
    np.testing.assert_array_equal(scores, (points.shape[1] + 0.5) / (points.shape[1] + 1))


def test_what_is_missing_is_named(planted) -> None:
    evidence = planted(7)
    bare = LogitEvidence(
        example_id=evidence.example_id,
        labels=evidence.labels,
        target_logits=evidence.target_logits,
        reference_logits=evidence.reference_logits,
        keep=evidence.keep,
    )
    with pytest.raises(InvalidInput, match="population points"):
        rmia_online(bare, config=RmiaOnlineConfig(), seed=0)
    with pytest.raises(ConfigError, match="at least 3"):
        rmia_offline(planted(7, models=3), config=RmiaOfflineConfig(), seed=0)


def test_likelihoods_are_the_published_probabilities_to_the_last_digits(planted) -> None:
    """exp(log p_y) beside 1 / (1 + exp(-phi)): every score within 1e-12, every rank the same."""
    for case in CASES:
        evidence = planted(**case)
        found = rmia_online(evidence, config=RmiaOnlineConfig(), seed=0)
        p = {}
        for name in ("target", "reference", "population_target", "population_reference"):
            phi = getattr(evidence, name)[:, :, 1]
            p[name] = 1 / (1 + np.exp(-phi))
            np.testing.assert_allclose(np.exp(getattr(evidence, name)[:, :, 2]), p[name], rtol=1e-12)
        for t, own in enumerate(evidence.left_out):
            rows = np.arange(evidence.num_references) != own
            member = evidence.keep[rows]
            of = p["reference"][rows]
            mean = [np.where(m, of, 0).sum(0) / np.maximum(m.sum(0), 1) for m in (member, ~member)]
            ratio = p["target"][t] / (0.5 * (mean[0] + mean[1]))
            ratio[~(member.any(0) & (~member).any(0))] = np.nan
            z = p["population_target"][t] / p["population_reference"][rows].mean(0)
            expected = ((z[:, None] <= ratio).sum(0) + ratio / (1 + ratio)) / (len(z) + 1)
            expected[np.isnan(ratio)] = np.nan
            np.testing.assert_allclose(found[t], expected, atol=1e-12)
            np.testing.assert_array_equal(rankdata(found[t]), rankdata(expected))


def shifted(evidence, by: np.ndarray | float, points: float) -> Evidence:
    """Log-likelihoods in another unit: a constant an example, and one of the points."""
    made, changed = evidence.made, {}
    for name, more in (
        ("target", by),
        ("reference", by),
        ("population_target", points),
        ("population_reference", points),
    ):
        values = getattr(made, name).copy()
        values[:, :, 2] += more
        changed[name] = values
    return dataclasses.replace(made, **changed, whole=None)


@pytest.mark.parametrize("by", [-5000.0, -700.0, 900.0, 1e5])
def test_log_likelihoods_of_any_scale_give_the_same_ratios(planted, by: float) -> None:
    evidence = planted(9, models=10, examples=60, self_targets=False)
    plain = rmia_online(evidence, config=RmiaOnlineConfig(), seed=0)
    each = by * np.random.default_rng(0).uniform(1, 1.2, 60)
    for constants in (by, each):
        found = rmia_online(shifted(evidence, constants, 2 * by), config=RmiaOnlineConfig(), seed=0)
        np.testing.assert_allclose(found, plain, atol=1e-9)
    offline = RmiaOfflineConfig(a=1.0)  # without the likelihood of the best answer, which has the unit of the others
    np.testing.assert_allclose(
        rmia_offline(shifted(evidence, each, by), config=offline, seed=0),
        rmia_offline(evidence, config=offline, seed=0),
        atol=1e-9,
    )


def test_the_best_answer_there_can_be_takes_the_place_of_probability_one(planted) -> None:
    evidence = planted(9, models=10, examples=60, self_targets=False)
    moved = dataclasses.replace(shifted(evidence, -0.9, -0.9), likeliest=-0.9)
    for config in (RmiaOfflineConfig(a=0.3), RmiaOfflineConfig()):
        np.testing.assert_allclose(
            rmia_offline(moved, config=config, seed=0), rmia_offline(evidence, config=config, seed=0), atol=1e-9
        )


def test_where_all_likelihoods_underflow_nothing_is_nan_for_any_weight(planted) -> None:
    evidence = shifted(planted(11, models=10, self_targets=False), -40_000.0, -40_000.0)
    for a in (0.0, 0.5, 1.0, None):
        found = rmia_offline(evidence, config=RmiaOfflineConfig(a=a), seed=0)
        assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
