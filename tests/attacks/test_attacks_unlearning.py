"""Population U-MIA, U-LiRA, collateral and per-example epsilon on planted shadow runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from attacks.dp_audit import eps_of_mu
from attacks.membership.unlearning import (
    IN,
    OUT,
    UNLEARN,
    collateral,
    example_epsilon,
    population_umia,
    shadow_unlearning,
    three_state_design,
    u_lira,
)
from contracts.errors import InvalidInput
from stats import auc
from tasks.signals import log_odds


def planted_runs(seed: int, *, runs: int = 30, targets: int = 80, trace: float = 1.0, kept: float = 2.0):
    """Two-class logits with phi = difficulty + noise, + kept where IN, + trace where UNLEARN."""
    rng = np.random.default_rng(seed)
    state = three_state_design(runs, targets, seed=seed)
    phi = rng.normal(0, 3, targets) + rng.normal(size=(runs, targets))
    phi = phi + kept * (state == IN) + trace * (state == UNLEARN)
    labels = rng.integers(2, size=targets)
    logits = np.zeros((runs, targets, 2))
    np.put_along_axis(logits, np.broadcast_to(labels[None, :, None], (runs, targets, 1)), phi[..., None], axis=2)
    return logits, labels, state


def test_design_gives_every_state_a_third_of_the_runs() -> None:
    state = three_state_design(12, 500, seed=0)
    assert all(((state == s).sum(axis=0) == 4).all() for s in (IN, OUT, UNLEARN))
    assert np.corrcoef((state[0] == IN), (state[1] == IN))[0, 1] < 0.2
    assert not np.array_equal(state, three_state_design(12, 500, seed=1))
    for runs in (10, 6):
        with pytest.raises(InvalidInput, match="multiple of 3"):
            three_state_design(runs, 5, seed=0)


def test_u_lira_equals_its_naive_transcription() -> None:
    logits, labels, state = planted_runs(0, runs=12, targets=20)
    phi = log_odds(logits, labels)
    found = u_lira(log_odds(logits, labels), state)

    def pooled(k: int, s: int) -> float:
        squares, freedom = 0.0, 0
        for j in range(20):
            v = np.delete(phi[state[:, j] == s, j], k)
            squares, freedom = squares + ((v - v.mean()) ** 2).sum(), freedom + len(v) - 1
        return np.sqrt(squares / freedom)

    right = np.zeros((12, 20))
    for j in range(20):
        runs = {s: np.flatnonzero(state[:, j] == s) for s in (UNLEARN, OUT, IN)}
        assert np.isnan(found.scores[runs[IN], j]).all()
        for k in range(4):  # the k-th run of one state is judged without itself and the k-th of the other
            u, o = (np.delete(phi[runs[s], j], k) for s in (UNLEARN, OUT))
            for t in (runs[UNLEARN][k], runs[OUT][k]):
                expected = norm.logpdf(phi[t, j], np.median(u), pooled(k, UNLEARN)) - norm.logpdf(
                    phi[t, j], np.median(o), pooled(k, OUT)
                )
                assert found.scores[t, j] == pytest.approx(expected, rel=1e-9, abs=1e-9)
                right[t, j] = (expected > 0) == (state[t, j] == UNLEARN)
    judged = state != IN
    assert found.accuracy == pytest.approx(right.sum() / judged.sum())
    assert found.example_accuracy == pytest.approx(right.sum(axis=0) / judged.sum(axis=0))
    each = [auc(found.scores[t][state[t] == UNLEARN], found.scores[t][state[t] == OUT]) for t in range(12)]
    assert found.auc == pytest.approx(np.mean(each))
    assert np.isnan(found.tpr_at_1)  # four OUT examples a run carry no 1%


def test_u_lira_sees_a_trace_that_the_population_attack_does_not() -> None:
    logits, labels, state = planted_runs(1, runs=60, targets=400, trace=1.0)
    found = u_lira(log_odds(logits, labels), state)
    assert found.auc > 0.7 and found.auc_low > 0.65
    loss = np.logaddexp(0, -log_odds(logits, labels))
    population = np.mean([auc(-loss[t][state[t] == UNLEARN], -loss[t][state[t] == OUT]) for t in range(60)])
    assert found.auc > population + 0.1


def test_u_lira_of_perfect_unlearning_is_a_coin() -> None:
    logits, labels, state = planted_runs(2, runs=60, targets=400, trace=0.0)
    found = u_lira(log_odds(logits, labels), state)
    assert abs(found.auc - 0.5) < 0.02 and abs(found.accuracy - 0.5) < 0.02
    assert found.tpr_at_1 < 0.03


def test_collateral_reports_growing_leakage_of_retained_examples() -> None:
    before, labels, state = planted_runs(3, runs=30, targets=200, kept=0.5)
    after, same_labels, same_state = planted_runs(3, runs=30, targets=200, kept=1.5)
    assert np.array_equal(labels, same_labels) and np.array_equal(state, same_state)
    grown = collateral(log_odds(before, labels), log_odds(after, labels), state)
    assert grown.auc_after > grown.auc_before > 0.55 and grown.low > 0.05
    assert grown.change == pytest.approx(grown.auc_after - grown.auc_before)
    same = collateral(log_odds(before, labels), log_odds(before, labels), state)
    assert same.change == same.low == same.high == 0 and same.p_value == 1
    assert grown.p_value < 0.01


def test_example_epsilon_recovers_planted_separations() -> None:
    logits, labels, state = planted_runs(4, runs=300, targets=60, trace=1.0)
    frame = example_epsilon(log_odds(logits, labels), state, delta=1e-5)
    # |difference of two means of 100| with unit noise: mean 1, error sqrt(2 / 100).
    assert frame["mu"].mean() == pytest.approx(1.0, abs=0.06)
    assert frame["mu"].std() == pytest.approx(np.sqrt(2 / 100), rel=0.35)
    assert frame["eps"][0] == pytest.approx(eps_of_mu(frame["mu"][0], delta=1e-5))
    assert (frame["mu_low"] < frame["mu"]).all() and (frame["eps_low"] <= frame["eps"]).all()
    assert (frame["p_value"] < 1e-3).all()
    logits, labels, state = planted_runs(5, runs=60, targets=400, trace=0.0)
    null = example_epsilon(log_odds(logits, labels), state)["p_value"].to_numpy()
    assert abs((null < 0.05).mean() - 0.05) < 0.04


def test_shadow_runs_hand_each_method_its_own_sets() -> None:
    state = three_state_design(9, 6, seed=0)
    target_ids, base_ids = np.arange(10, 16), np.arange(3)

    def train(ids):
        assert all(set(i) == {0, 1, 2, *target_ids[row != OUT]} for i, row in zip(ids, state, strict=True))
        return [f"m{i}" for i in range(len(ids))]

    def unlearn(run, model, retain, forget):
        assert model == f"m{run}"
        assert set(forget) == set(target_ids[state[run] == UNLEARN])
        assert set(retain) == {0, 1, 2, *target_ids[state[run] == IN]}
        return model + "-"

    seen = []
    before, after = shadow_unlearning(
        state,
        target_ids,
        base_ids,
        train=train,
        unlearn=unlearn,
        read=lambda m: np.full(6, float(m.endswith("-"))),
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert before.shape == after.shape == (9, 6) and not before.any() and after.all()
    assert seen[-1] == (9, 9)


@pytest.mark.parametrize(
    "change",
    [
        lambda phi, state: (phi[:, :-1], state),
        lambda phi, state: (np.full_like(phi, np.nan), state),
        lambda phi, state: (phi, state + 1),
    ],
)
def test_runs_that_do_not_fit_are_refused(change) -> None:
    with pytest.raises(InvalidInput):
        logits, labels, state = planted_runs(0, runs=9, targets=5)
        u_lira(*change(log_odds(logits, labels), state))


def test_population_umia_sees_a_shift_either_way() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.gamma(1, 0.1, 300), rng.gamma(1, 1.0, 500)
    remembered, streisand = population_umia(low, high, seed=1), population_umia(high, low, seed=1)
    assert remembered.low > 0.6 and streisand.low > 0.6
    assert remembered.auc_low > 0.6 and streisand.auc_high < 0.4
    assert remembered.n_pos == remembered.n_neg == 300


def test_population_umia_is_not_blind_to_an_interpolating_model() -> None:
    """At losses near 1e-4 the published attack on raw losses never moves from 0.5."""
    rng = np.random.default_rng(1)
    found = population_umia(1e-4 * rng.gamma(1, 0.3, 200), 1e-4 * rng.gamma(1, 1.0, 200), seed=0)
    assert found.published_accuracy == 0.5
    assert found.accuracy > 0.6 and found.low > 0.55


def test_population_umia_keeps_to_the_classes_of_the_forget_set() -> None:
    rng = np.random.default_rng(2)
    test_labels = np.repeat([0, 1], 200)
    test = np.where(test_labels == 0, 0.1, 5.0) * rng.gamma(1, 1, 400)
    forget = 0.1 * rng.gamma(1, 1, 100)
    all_classes = population_umia(forget, test, seed=0)
    same_class = population_umia(forget, test, seed=0, forget_labels=np.zeros(100, dtype=int), test_labels=test_labels)
    assert all_classes.accuracy > 0.65 > same_class.accuracy
    assert same_class.low < 0.5 < same_class.high


@pytest.mark.parametrize(
    ("forget", "test"),
    [
        (np.ones(9), np.ones(50)),
        (np.ones(50), np.full(50, np.nan)),
        (np.full(50, np.inf), np.ones(50)),
        (-np.ones(50), np.ones(50)),
    ],
)
def test_population_umia_refuses_what_it_cannot_judge(forget: np.ndarray, test: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        population_umia(forget, test, seed=0)


def test_population_umia_repeats_and_leaves_the_global_generator_alone() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.gamma(1, 1, 60), rng.gamma(1, 1, 90)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert population_umia(a, b, seed=5) == population_umia(a, b, seed=5)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.stat
@pytest.mark.parametrize("shape", ["gamma", "log-normal", "tiny", "few-wrong"])
def test_population_umia_interval_covers_under_the_null(shape: str) -> None:
    rng = np.random.default_rng(4)
    draw = {
        "gamma": lambda n: rng.gamma(0.3, 1, n),
        "log-normal": lambda n: np.exp(rng.normal(-5, 3, n)),
        "tiny": lambda n: 1e-4 * rng.gamma(1, 1, n),
        "few-wrong": lambda n: np.where(rng.random(n) < 0.03, rng.gamma(1, 3, n), 1e-3 * rng.gamma(1, 1, n)),
    }[shape]
    covered = []
    for seed in range(100):
        found = population_umia(draw(130), draw(250), seed=seed)
        covered.append(found.low <= 0.5 <= found.high)
    assert np.mean(covered) >= 0.94


@pytest.mark.stat
@pytest.mark.parametrize("shift", [0.3, 0.8])
def test_population_umia_interval_covers_its_mean_under_faint_and_clear_differences(shift: float) -> None:
    rng = np.random.default_rng(5)
    found = [
        population_umia(np.exp(rng.normal(-shift, 1, 130)), np.exp(rng.normal(0, 1, 130)), seed=s) for s in range(150)
    ]
    mean = np.mean([f.accuracy for f in found])
    assert np.mean([f.low <= mean <= f.high for f in found]) >= 0.92
