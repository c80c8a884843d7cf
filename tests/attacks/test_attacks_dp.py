"""Epsilon bounds: published values, soundness on mechanisms of known epsilon."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, norm

from attacks.dp_audit import (
    delta_of_eps,
    eps_lower_bound,
    eps_of_mu,
    gdp_lower_bound,
    one_run_eps,
    one_run_p_value,
)
from contracts.errors import InvalidInput
from stats import lower_bound, upper_bound


@pytest.mark.parametrize(("n", "eps"), [(500, 4.906), (1000, 5.601), (2000, 6.295)])
def test_perfect_attacks_prove_no_more_than_their_trials(n: int, eps: float) -> None:
    assert eps_lower_bound(n, n, 0, n) == pytest.approx(eps, abs=5e-4)


def test_randomised_response_value_and_group_privacy() -> None:
    assert eps_lower_bound(1462, 2000, 538, 2000) == pytest.approx(0.900, abs=5e-4)
    assert eps_lower_bound(1462, 2000, 538, 2000, repeats=3) == pytest.approx(0.300, abs=5e-4)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.2))
def test_the_bound_is_the_larger_of_both_inequalities(tp: int, fp: int, delta: float) -> None:
    tpr, fpr = float(lower_bound(tp, 50, alpha=0.025)), float(upper_bound(fp, 50, alpha=0.025))
    eps = eps_lower_bound(tp, 50, fp, 50, delta=delta)
    assert eps >= 0
    # (eps, delta)-DP is just compatible with the bounds: neither inequality is broken, one is tight unless eps = 0.
    slack = [np.exp(eps) * fpr + delta - tpr, np.exp(eps) * (1 - tpr) + delta - (1 - fpr)]
    assert min(slack) >= -1e-9
    assert eps == 0 or min(slack) == pytest.approx(0, abs=1e-9)


def test_a_useless_attack_proves_nothing() -> None:
    assert eps_lower_bound(10, 100, 90, 100) == 0
    assert eps_lower_bound(0, 100, 0, 100) == 0
    assert gdp_lower_bound(50, 100, 50, 100, delta=1e-5).mu == 0


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_gaussian_dp_curve_equals_the_hockey_stick_of_two_normals(mu: float) -> None:
    for eps in (0.0, 0.5, 2.0):
        stick, _ = quad(lambda x, e=eps: max(0.0, norm.pdf(x, mu) - np.exp(e) * norm.pdf(x)), -12, 12 + mu, limit=400)
        assert delta_of_eps(eps, mu=mu) == pytest.approx(stick, abs=1e-6)
    eps = eps_of_mu(mu, delta=1e-5)
    assert delta_of_eps(eps, mu=mu) == pytest.approx(1e-5, rel=1e-6)


def test_gaussian_bound_is_sound_and_close() -> None:
    mu, n, rng = 2.0, 5000, np.random.default_rng(0)
    tpr, fpr = norm.sf(1 - mu), norm.sf(1.0)  # threshold 1
    found = [
        gdp_lower_bound(int(k), n, int(m), n, delta=1e-5).mu
        for k, m in zip(rng.binomial(n, tpr, 200), rng.binomial(n, fpr, 200), strict=True)
    ]
    assert np.mean(np.array(found) <= mu) >= 0.93
    assert np.mean(found) > 1.85


@pytest.mark.parametrize(
    ("m", "r", "v", "eps"),
    [(1000, 1000, 731, 0.881), (1000, 1000, 1000, 5.809), (1000, 100, 100, 3.493), (1000, 1000, 500, 0.0)],
)
def test_one_run_published_values(m: int, r: int, v: int, eps: float) -> None:
    assert one_run_eps(m, r, v) == pytest.approx(eps, abs=6e-4)


def test_one_run_delta_term_equals_its_definition() -> None:
    m, r, v, eps, delta = 60, 40, 33, 1.2, 1e-4
    q = 1 / (1 + np.exp(-eps))
    pmf = binom.pmf(np.arange(r + 1), r, q)
    worst = max(pmf[v - i : v].sum() / i for i in range(1, v + 1))
    expected = pmf[v:].sum() + 2 * m * delta * worst
    found = one_run_p_value(eps, num_canaries=m, num_guesses=r, num_right=v, delta=delta)
    assert found == pytest.approx(expected)
    assert one_run_eps(m, r, v, delta=delta) < one_run_eps(m, r, v)


def test_the_bound_is_where_the_p_value_reaches_alpha() -> None:
    eps = one_run_eps(500, 300, 250, delta=1e-5)
    assert one_run_p_value(eps, num_canaries=500, num_guesses=300, num_right=250, delta=1e-5) == pytest.approx(
        0.05, abs=1e-6
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: eps_lower_bound(5, 4, 0, 4),
        lambda: eps_lower_bound(1, 4, 0, 4, delta=1.0),
        lambda: eps_lower_bound(1, 4, 0, 4, repeats=2, delta=1e-5),
        lambda: eps_lower_bound(1, 4, 0, 4, repeats=0),
        lambda: eps_lower_bound(1, 4, 0, 4, alpha=0.0),
        lambda: gdp_lower_bound(1, 4, 0, 4, delta=0.0),
        lambda: one_run_eps(10, 11, 5),
        lambda: one_run_eps(10, 5, 6),
    ],
)
def test_impossible_audits_are_refused(call) -> None:
    with pytest.raises(InvalidInput):
        call()
