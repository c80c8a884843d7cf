"""Signals against 50-digit arithmetic and hand values."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import signals


@pytest.mark.parametrize("own", [60.0, -60.0, 0.3, 700.0, -700.0])
def test_log_odds_equals_fifty_digit_arithmetic(own: float) -> None:
    logits = np.random.default_rng(0).normal(size=10)
    logits[3] = own
    with mpmath.workdps(700):
        weights = [mpmath.exp(z) for z in logits]
        p = weights[3] / sum(weights)
        exact = float(mpmath.log(p / (1 - p)))
    assert signals.log_odds(logits[None], np.array([3]))[0] == pytest.approx(exact, rel=1e-14)


def test_float32_softmax_would_tie_where_log_odds_do_not() -> None:
    logits = np.array([[25.0, 0.0, 0.0], [40.0, 0.0, 0.0]], dtype=np.float32)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert softmax[0, 0] == softmax[1, 0] == 1
    phi = signals.log_odds(logits, np.array([0, 0]))
    assert phi[1] - phi[0] == pytest.approx(15)
    assert np.unique(signals.loss_from_log_odds(phi)).size == 2


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.floats(0.1, 30))
def test_signals_agree_with_each_other_and_with_plain_formulas(seed: int, classes: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, spread, (3, 5, classes)), rng.integers(classes, size=5)
    with mpmath.workdps(60):
        for m in range(3):
            for n in range(5):
                weights = [mpmath.exp(v) for v in z[m, n]]
                p = [w / sum(weights) for w in weights]
                own = p[y[n]]
                floor = mpmath.mpf("1e-30")
                rest = [sum(p[:k] + p[k + 1 :]) for k in range(classes)]
                h = -sum(v * mpmath.log(v) for v in p)
                me = -rest[y[n]] * mpmath.log(max(own, floor)) - sum(
                    p[k] * mpmath.log(max(rest[k], floor)) for k in range(classes) if k != y[n]
                )
                assert signals.log_odds(z, y)[m, n] == pytest.approx(
                    float(mpmath.log(own / rest[y[n]])), rel=1e-12, abs=1e-12
                )
                phi = signals.log_odds(z, y)
                assert signals.loss_from_log_odds(phi)[m, n] == pytest.approx(
                    float(-mpmath.log(own)), rel=1e-10, abs=1e-300
                )
                assert signals.confidence_from_log_odds(phi)[m, n] == pytest.approx(float(own), rel=1e-10)
                assert signals.entropy(z)[m, n] == pytest.approx(float(h), rel=1e-9, abs=1e-14)
                assert signals.modified_entropy(z, y)[m, n] == pytest.approx(float(me), rel=1e-9, abs=1e-14)


def test_modified_entropy_hand_values() -> None:
    # p = (3/4, 1/4). Label 0: -(1/4) ln(3/4) - (1/4) ln(3/4); label 1: -(3/4) ln(1/4) - (3/4) ln(1/4).
    z = np.log([[0.75, 0.25], [0.75, 0.25]])
    found = signals.modified_entropy(z, np.array([0, 1]))
    assert found == pytest.approx([-0.5 * np.log(0.75), -1.5 * np.log(0.25)], rel=1e-12)


def test_extreme_logits_stay_finite() -> None:
    z = np.array([[1e5, -1e5, 0.0], [-1e5, 1e5, 0.0]], dtype=np.float32)
    y = np.array([0, 0])
    assert np.isfinite(signals.log_odds(z, y)).all()
    assert np.isfinite(signals.entropy(z)).all()
    assert signals.modified_entropy(z, y) == pytest.approx([0.0, -2 * np.log(1e-30)], abs=1e-9)
    assert signals.confidence_from_log_odds(np.array([-1e5, 1e5])).tolist() == [0.0, 1.0]


def test_blocks_do_not_change_the_log_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(2, 50, 5)).astype(np.float32), rng.integers(5, size=50)
    whole = signals.log_odds(z, y)
    monkeypatch.setattr(signals, "_BLOCK", 7)
    assert np.array_equal(whole, signals.log_odds(z, y))
    told = signals.token_statistics(z[0], y)
    for held in (3, 30):  # less than one row of classes, and a few rows
        monkeypatch.setattr(signals, "_TURNED", held)
        monkeypatch.setattr(signals, "_TOKEN_VALUES", held)
        np.testing.assert_allclose(signals.log_odds(z, y), whole, rtol=1e-14)
        assert np.array_equal(signals.token_statistics(z[0], y), told)
