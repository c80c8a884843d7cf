"""Reports against brute force over thresholds, and the intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student_t

from attacks.membership.calibration import Trials, at_best
from attacks.membership.metrics import (
    attack_report,
    balanced_accuracy_interval,
    report_over_targets,
    roc,
    tpr_at_fpr,
)
from attacks.membership.over_runs import tpr_over_runs
from contracts.errors import InvalidInput
from contracts.schema import ATTACK_REPORTS

scored = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: 0 < sum(m for _, m in rows) < len(rows)
)


def split(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(s) for s, _ in rows]), np.array([m for _, m in rows])


@settings(max_examples=40)
@given(scored)
def test_roc_and_report_equal_brute_force_over_all_thresholds(rows: list[tuple[int, bool]]) -> None:
    scores, member = split(rows)
    thresholds = [np.inf, *sorted(set(scores), reverse=True)]
    points = [((scores[~member] >= t).mean(), (scores[member] >= t).mean()) for t in thresholds]
    fpr, tpr = roc(scores, member)
    assert np.allclose(np.column_stack([fpr, tpr]), points)
    pairs = scores[member][:, None] - scores[~member][None]
    report = attack_report(scores, member, fpr_caps=(0.1, 0.5))
    assert report["auc"][0] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert report["balanced_acc"][0] == pytest.approx(max(t + 1 - f for f, t in points) / 2)
    for row in report.iter_rows(named=True):
        n_neg, n_pos = row["n_neg"], row["n_pos"]
        if row["fpr_cap"] * n_neg < 1:
            assert row["tpr"] is None and row["fpr_lo"] is None
            continue
        best = max((t, f) for f, t in points if f <= row["fpr_cap"] + 1e-12)
        assert row["tpr"] == pytest.approx(best[0])
        exact = binomtest(round(best[0] * n_pos), n_pos).proportion_ci(0.95, method="exact")
        assert (row["tpr_lo"], row["tpr_hi"]) == pytest.approx((exact.low, exact.high), abs=1e-9)
        exact = binomtest(round(row["fpr"] * n_neg), n_neg).proportion_ci(0.95, method="exact")
        assert (row["fpr_lo"], row["fpr_hi"]) == pytest.approx((exact.low, exact.high), abs=1e-9)
        assert row["reliable"] == (row["fpr_cap"] * n_neg >= 10 - 1e-9)
    t = at_best(scores, member, Trials(np.arange(len(scores)))).value
    reached = ((scores[member] >= t).mean() + (scores[~member] < t).mean()) / 2
    assert reached == pytest.approx(report["balanced_acc"][0])


def test_report_has_the_columns_of_the_warehouse_table() -> None:
    rng = np.random.default_rng(0)
    report = attack_report(rng.normal(size=300), rng.random(300) < 0.5)
    expected = [c.name for c in ATTACK_REPORTS.columns if c.name not in ("audited", "attack", "seed")]
    assert report.columns == expected
    assert report["fpr_cap"].to_list() == [1e-3, 1e-2, 5e-2]
    assert report["tpr"][0] is None and not report["reliable"][1]
    for column in (c for c in ATTACK_REPORTS.columns if c.name in expected):
        values = report[column.name].drop_nulls()
        if column.high is not None:
            assert values.is_between(column.low, column.high).all()
        assert column.nullable or len(values) == 3


def test_undefined_scores_are_left_out_and_not_counted() -> None:
    scores = np.array([np.nan, 3, 2, 1, 0, np.nan])
    member = np.array([True, True, True, False, False, False])
    report = attack_report(scores, member)
    assert (report["n_pos"][0], report["n_neg"][0], report["auc"][0]) == (2, 2, 1.0)


@pytest.mark.parametrize(
    ("scores", "member"),
    [
        (np.array([1.0, 2.0]), np.array([True, True])),
        (np.array([np.nan, 2.0]), np.array([True, False])),
        (np.array([1.0, 2.0]), np.array([1, 0])),
        (np.array([1.0, 2.0, 3.0]), np.array([True, False])),
    ],
)
def test_reports_without_both_kinds_are_refused(scores: np.ndarray, member: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        attack_report(scores, member)


def test_caps_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(InvalidInput, match="fpr_caps"):
        attack_report(np.array([1.0, 0.0]), np.array([True, False]), fpr_caps=(0.0,))


def test_tpr_at_fpr_ties_are_kept_together() -> None:
    scores = np.array([1.0] * 10 + [0.0] * 10)
    member = np.array(([True] * 5 + [False] * 5) * 2)
    assert tpr_at_fpr(scores, member, 0.4) == 0.0  # the tie would bring an FPR of 0.5
    assert tpr_at_fpr(scores, member, 0.5) == 0.5


def test_heldout_balanced_accuracy_is_honest_under_the_null_and_the_best_one_is_not() -> None:
    rng = np.random.default_rng(0)
    best, heldout, covered = [], [], 0
    for trial in range(200):
        report = attack_report(rng.normal(size=120), np.arange(120) < 50, seed=trial)
        best.append(report["balanced_acc"][0])
        heldout.append(report["balanced_acc_heldout"][0])
        covered += report["balanced_acc_heldout_lo"][0] <= 0.5 <= report["balanced_acc_heldout_hi"][0]
    assert np.mean(best) > 0.55
    assert abs(np.mean(heldout) - 0.5) < 0.015
    assert covered / 200 >= 0.92


def test_balanced_accuracy_interval_covers() -> None:
    rng = np.random.default_rng(1)
    for tpr, tnr, n_pos, n_neg in ((0.9, 0.95, 40, 200), (0.1, 0.92, 130, 60), (0.5, 0.5, 100, 100)):
        covered = 0
        for k, m in zip(rng.binomial(n_pos, tpr, 400), rng.binomial(n_neg, tnr, 400), strict=True):
            _, low, high = balanced_accuracy_interval(int(k), n_pos, int(m), n_neg, alpha=0.05)
            covered += low <= (tpr + tnr) / 2 <= high
        assert covered / 400 >= 0.93


def test_over_targets_knows_that_models_differ() -> None:
    rng = np.random.default_rng(2)
    member = rng.random((12, 400)) < 0.5
    shift = rng.uniform(0, 2, size=(12, 1))  # models differ: the spread between them is what the interval must show
    scores = rng.normal(size=member.shape) + shift * member
    report = report_over_targets(scores, member, fpr_caps=(0.05, 0.001))
    each = [attack_report(s, m)["auc"][0] for s, m in zip(scores, member, strict=True)]
    row = report.row(0, named=True)
    assert row["value"] == pytest.approx(np.mean(each))
    error = np.std(each, ddof=1) / np.sqrt(12)
    assert row["high"] - row["low"] == pytest.approx(2 * student_t.isf(0.025, 11) * error, rel=0.1)
    assert report["figure"].to_list() == ["auc", "tpr@0.05", "tpr@0.001"] and (report["num_targets"] == 12).all()
    assert report.filter(figure="tpr@0.05").row(0)[1:4] == tpr_over_runs(scores, member, cap=0.05, alpha=0.05, seed=0)
    assert report.filter(figure="tpr@0.001").row(0)[1:4] == (None, None, None)
    single = report_over_targets(scores[:1], member[:1])
    assert single["low"].null_count() == single["high"].null_count() == len(single)
    assert single["value"][0] == pytest.approx(each[0])
    with pytest.raises(InvalidInput, match="targets, examples"):
        report_over_targets(scores[0], member[0])
