"""Verdicts: each of the four, from both sides, and the promises about small samples and the worst case."""

from __future__ import annotations

import math
import re

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from attacks.dp_audit import EpsilonAudit
from attacks.membership import attack_report
from attacks.membership.unlearning import UMIAResult, population_umia, three_state_design, u_lira
from attacks.verdicts import (
    at_level,
    judge_attack,
    judge_epsilon,
    judge_gap,
    judge_quality,
    judge_u_lira,
    judge_umia,
    past_tolerance,
    worst,
)
from contracts.subject import Thresholds
from contracts.verdicts import QUALITY, Verdict
from stats import detectable_auc, examples_for_auc

THRESHOLDS = Thresholds()


def report(shift: float, n_pos: int = 1000, n_neg: int = 1000, seed: int = 0, **more: object) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(shift, 1, n_pos), rng.normal(0, 1, n_neg)])
    return attack_report(scores, np.arange(n_pos + n_neg) < n_pos, **more)


def judge(frame: pl.DataFrame | None, **more: object):
    return judge_attack(frame, what="attack/lira_online", thresholds=THRESHOLDS, **more)


def test_alike_passes_with_its_interval_in_the_sentence() -> None:
    finding = judge(report(0.0))
    assert finding.verdict is Verdict.PASS
    assert 0.4 < finding.low < finding.value < finding.high < 0.6 == finding.threshold
    assert f"{finding.low:.3f} to {finding.high:.3f}" in finding.sentence and "0.05" in finding.sentence


def test_a_pass_says_whether_the_interval_holds_a_coin() -> None:
    middle = np.linspace(0, 1, 1000)  # nobody stands out at the top; AUC 0.55
    frame = attack_report(np.r_[np.minimum(middle + 0.05, 0.95), middle], np.arange(2000) < 1000)
    finding = judge(frame)
    assert finding.verdict is Verdict.PASS and finding.low > 0.5 and "hardly tells members" in finding.sentence
    assert "does not tell members" in judge(report(0.0)).sentence


def test_different_fails_on_both_sides() -> None:
    assert judge(report(1.0)).verdict is Verdict.FAIL
    streisand = judge(report(-1.0))
    assert streisand.verdict is Verdict.FAIL and "other way round" in streisand.sentence
    assert judge(report(-1.0), two_sided=False).verdict is Verdict.PASS  # the target itself: a low AUC accuses nobody


def test_an_interval_across_the_threshold_is_inconclusive() -> None:
    # AUC 0.6 in truth, 300 a side: the interval reaches past it, and nobody stands out at a low FPR.
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.uniform(0.2, 1, 300), rng.uniform(0, 1, 300)])
    scores[:300] = np.minimum(scores[:300], 0.9)
    finding = judge(attack_report(scores, np.arange(600) < 300))
    assert finding.low < 0.6 < finding.high and finding.verdict is Verdict.INCONCLUSIVE
    assert re.search(r"(times as many examples would (not )?decide it)", finding.sentence)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("value", [0.03, 0.09, 0.13, 0.24])
def test_as_many_examples_as_are_named_would_decide(value: float, side: int) -> None:
    """Intervals of half width 0.16, narrowed by the root of the number that is named: on one side of the tolerance, and
    with a tenth of it less not."""
    value, half, limit = side * value, 0.16, 0.1
    said = past_tolerance(value, value - half, value + half, above=limit, below=-limit)
    found = re.search(r"([\d.]+) times as many", said)
    assert found is not None
    times = float(found.group(1))

    def decided(times: float) -> bool:
        low, high = value - half / math.sqrt(times), value + half / math.sqrt(times)
        return (low >= -limit and high <= limit) or low > limit or high < -limit

    if "not decide" in said:
        assert not decided(times)
    else:
        assert decided(times + 1e-9) and not decided(times - 0.11)
    alone = past_tolerance(abs(value), abs(value) - half, abs(value) + half, above=limit)
    assert alone == past_tolerance(abs(value), abs(value) - half, abs(value) + half, above=limit, below=-9.0)


def test_worst_case_not_average() -> None:
    """30 of 1,000 exposed beyond every non-member: AUC 0.51, verdict fail."""
    rng = np.random.default_rng(2)
    scores = rng.normal(size=2000)
    scores[:30] += 10
    frame = attack_report(scores, np.arange(2000) < 1000)
    assert abs(frame["auc"][0] - 0.5) < 0.04
    finding = judge(frame)
    assert finding.verdict is Verdict.FAIL and "stand out" in finding.sentence


def test_too_few_examples_or_references_never_pass() -> None:
    few = judge(report(0.0, n_pos=5000, n_neg=199))
    assert few.verdict is Verdict.INCONCLUSIVE and "199, needed 200" in few.sentence
    members = judge(report(0.0, n_pos=40, n_neg=400))
    needed = examples_for_auc(0.6, alpha=0.05)
    assert members.verdict is Verdict.INCONCLUSIVE and f"{needed} of each are needed for 0.6" in members.sentence
    assert detectable_auc(needed, needed, alpha=0.05) <= 0.6 < detectable_auc(needed - 1, needed - 1, alpha=0.05)
    strict = judge(report(0.0, n_pos=3000, n_neg=3000), claim_fpr=0.001)
    assert strict.verdict is Verdict.INCONCLUSIVE and "needed 10000" in strict.sentence
    assert judge(report(0.0), num_references=18).verdict is Verdict.INCONCLUSIVE
    assert judge(report(0.0), num_references=19).verdict is Verdict.PASS
    assert judge(report(2.0, n_pos=40, n_neg=40)).verdict is Verdict.FAIL  # small samples can still convict


def test_a_strict_level_asks_for_more_than_ten_above_the_threshold() -> None:
    frame = report(0.0, n_pos=1000, n_neg=210)
    assert judge(frame).verdict is Verdict.PASS
    strict = judge_attack(frame, what="a", thresholds=Thresholds(alpha=1e-6))
    assert strict.verdict is Verdict.INCONCLUSIVE and "210, needed 270" in strict.sentence  # (1 - 0.05)^270 <= 1e-6


def epsilon(eps: float, largest: float) -> EpsilonAudit:
    return EpsilonAudit(
        eps=eps, largest=largest, true_positives=9, n_pos=10, false_positives=1, n_neg=10, alpha=0.05, delta=0.0
    )


@pytest.mark.parametrize(
    ("audit", "verdict"),
    [
        (epsilon(2.0, 5.6), Verdict.FAIL),
        (epsilon(0.5, 5.6), Verdict.PASS),
        (epsilon(0.5, 0.9), Verdict.INCONCLUSIVE),
        (epsilon(math.nan, 5.6), Verdict.BROKEN),
        (None, Verdict.BROKEN),
    ],
)
def test_a_privacy_claim_is_refuted_untested_or_not_refuted(audit: EpsilonAudit | None, verdict: Verdict) -> None:
    finding = judge_epsilon(audit, what="dp", claimed=1.0)
    assert finding.verdict is verdict
    assert audit is None or math.isnan(audit.eps) or f"can prove is {audit.largest:.2f}" in finding.sentence


def test_a_cap_that_the_report_lacks_is_inconclusive() -> None:
    assert judge(report(0.0, fpr_caps=(0.1,))).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("absent", [None, report(0.0).clear(), report(0.0).with_columns(auc=pl.lit(math.nan))])
def test_no_report_or_nan_is_broken(absent: pl.DataFrame | None) -> None:
    assert judge(absent).verdict is Verdict.BROKEN


def umia(accuracy: float, low: float, high: float, area: float = 0.5) -> UMIAResult:
    return UMIAResult(
        accuracy=accuracy,
        low=low,
        high=high,
        published_accuracy=accuracy,
        auc=area,
        auc_low=area,
        auc_high=area,
        n_pos=1,
        n_neg=1,
    )


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (umia(0.5, 0.45, 0.55), Verdict.PASS),
        (umia(0.7, 0.65, 0.75), Verdict.FAIL),
        (umia(0.3, 0.25, 0.35), Verdict.FAIL),
        (umia(0.58, 0.53, 0.63), Verdict.INCONCLUSIVE),
        (umia(0.42, 0.37, 0.47), Verdict.INCONCLUSIVE),
        (umia(math.nan, 0.4, 0.6), Verdict.BROKEN),
        (None, Verdict.BROKEN),
    ],
)
def test_population_attack_is_judged_on_both_sides(result: UMIAResult | None, verdict: Verdict) -> None:
    assert judge_umia(result, what="umia", thresholds=THRESHOLDS).verdict is verdict


def test_the_sentence_says_in_which_direction_the_losses_differ() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.gamma(1, 0.05, 300), rng.gamma(1, 1, 300)
    for forget, test, word in ((low, high, "too low"), (high, low, "too high")):
        finding = judge_umia(population_umia(forget, test, seed=0), what="umia", thresholds=THRESHOLDS)
        assert finding.verdict is Verdict.FAIL and word in finding.sentence


def test_u_lira_is_judged_by_its_auc() -> None:
    rng = np.random.default_rng(0)
    state = three_state_design(30, 300, seed=0)
    for trace, verdict in ((0.0, Verdict.PASS), (2.0, Verdict.FAIL)):
        logits = rng.normal(size=(30, 300, 2))
        logits[..., 0] += trace * (state == 2)
        found = u_lira(logits[..., 0] - logits[..., 1], state)
        assert judge_u_lira(found, what="u_lira", thresholds=THRESHOLDS).verdict is verdict
    assert judge_u_lira(None, what="u_lira", thresholds=THRESHOLDS).verdict is Verdict.BROKEN


@pytest.mark.parametrize(
    ("figures", "spread", "verdict"),
    [
        ((1.0, 0.5, 1.5), 0.8, Verdict.PASS),
        ((9.0, 8.0, 10.0), 0.8, Verdict.FAIL),
        ((9.0, 8.0, 10.0), None, Verdict.FAIL),
        ((9.0, 8.0, 10.0), 6.0, Verdict.INCONCLUSIVE),  # retraining itself differs by more than is tolerated
        ((4.0, 2.0, 6.0), 0.8, Verdict.INCONCLUSIVE),
        ((0.0, 0.0, 0.0), 0.0, Verdict.PASS),
        ((math.nan, 0.0, 0.0), 0.0, Verdict.BROKEN),
        ((None, None, None), None, Verdict.BROKEN),
    ],
)
def test_gap_to_retraining(figures: tuple[float | None, ...], spread: float | None, verdict: Verdict) -> None:
    finding = judge_gap(*figures, spread=spread, what="gap", thresholds=THRESHOLDS)
    assert finding.verdict is verdict
    if spread is not None and verdict is not Verdict.BROKEN:
        assert f"retrainings of other seeds differ by {spread:.2f}" in finding.sentence


@pytest.mark.parametrize(
    ("retained", "test", "verdict", "deciding"),
    [
        ((0.0, -0.5, 0.5), (0.5, -0.5, 1.5), Verdict.PASS, 0.5),
        ((-9.0, -10.0, -8.0), (0.0, -1.0, 1.0), Verdict.PASS, 0.0),  # better than retraining is no fault
        ((70.0, 65.0, 75.0), (0.0, -1.0, 1.0), Verdict.FAIL, 70.0),
        ((0.0, -0.5, 0.5), (30.0, 25.0, 35.0), Verdict.FAIL, 30.0),
        ((2.5, 1.0, 4.0), (0.0, -1.0, 1.0), Verdict.INCONCLUSIVE, 2.5),
        ((math.nan, 0.0, 0.0), (0.0, 0.0, 0.0), Verdict.BROKEN, None),
    ],
)
def test_quality_lost_against_retraining(
    retained: tuple[float, float, float], test: tuple[float, float, float], verdict: Verdict, deciding: float | None
) -> None:
    finding = judge_quality({"retained": retained, "test": test}, what="quality", thresholds=THRESHOLDS)
    assert finding.verdict is verdict and finding.value == deciding and finding.kind == QUALITY


# --- several tests, several models ----------------------------------------------------------------------------------


def test_a_failure_is_corrected_for_the_tests_of_its_audit() -> None:
    """An AUC just beyond the tolerance fails alone, and not as one of thirty; neither does a p-value of 0.02."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([np.linspace(0.275, 1, 600), np.linspace(0, 1, 600)])
    frame = attack_report(np.minimum(scores, 0.9), np.arange(1200) < 600)
    assert 0.6 < frame["auc_lo"][0] < 0.63
    assert judge(frame).verdict is Verdict.FAIL
    assert judge(frame, num_tests=30).verdict is Verdict.INCONCLUSIVE
    standing = np.concatenate([np.full(6, 9.0), rng.normal(size=994), rng.normal(size=1000)])
    standing = attack_report(standing, np.arange(2000) < 1000, fpr_caps=(0.001, 0.05))
    assert judge(standing).verdict is Verdict.FAIL
    assert judge(standing, num_tests=1000).verdict is not Verdict.FAIL
    assert judge_umia(umia(0.66, 0.61, 0.71), what="umia", thresholds=THRESHOLDS).verdict is Verdict.FAIL
    assert (
        judge_umia(umia(0.66, 0.61, 0.71), what="umia", thresholds=THRESHOLDS, num_tests=30).verdict
        is Verdict.INCONCLUSIVE
    )
    gap = dict(spread=None, what="gap", thresholds=THRESHOLDS)
    assert judge_gap(7.0, 5.2, 8.8, **gap).verdict is Verdict.FAIL  # type: ignore[arg-type]
    assert judge_gap(7.0, 5.2, 8.8, num_tests=30, **gap).verdict is Verdict.INCONCLUSIVE  # type: ignore[arg-type]
    lost = {"test": (5.0, 3.2, 6.8)}
    assert judge_quality(lost, what="q", thresholds=THRESHOLDS).verdict is Verdict.FAIL
    assert judge_quality(lost, what="q", thresholds=THRESHOLDS, num_tests=30).verdict is Verdict.INCONCLUSIVE


def test_a_pass_is_not_corrected() -> None:
    """Intersection-union: each test at its own level, so many tests make no pass of a straddling interval."""
    frame = report(0.0, n_pos=269, n_neg=449)
    assert judge(frame).verdict is judge(frame, num_tests=1000).verdict is Verdict.PASS


def test_a_pass_names_what_it_would_have_found() -> None:
    finding = judge(report(0.0, n_pos=269, n_neg=449))
    assert f"an AUC of {detectable_auc(269, 449, alpha=0.05):.3f} would have been found" in finding.sentence
    few = judge(report(0.0, n_pos=60, n_neg=1000, seed=1))
    assert few.verdict is Verdict.INCONCLUSIVE and f"{detectable_auc(60, 1000, alpha=0.05):.3f} or more" in few.sentence


def test_the_worst_model_counts() -> None:
    """Two of three models clean, one untouched: the mean over models would pass."""
    clean, untouched = report(0.0, seed=1), report(1.0, seed=2)
    found = worst({11: judge(clean), 12: judge(untouched), 13: judge(clean)})
    assert found.verdict is Verdict.FAIL and "Worst of 3 models (seed 12)" in found.sentence
    passing = worst({1: judge(clean), 2: judge(report(0.05, seed=3))})
    assert passing.verdict is Verdict.PASS
    assert abs(passing.value - 0.5) == max(abs(judge(clean).value - 0.5), abs(judge(report(0.05, seed=3)).value - 0.5))
    broken = worst({1: judge(None), 2: judge(untouched), 3: judge(clean)})
    assert broken.verdict is Verdict.FAIL, "a failure is worse than what could not be checked"


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
def test_an_interval_at_another_level_is_that_of_the_data(level: float) -> None:
    for shift, n in ((0.0, 300), (0.7, 150), (6.0, 50)):
        first, second = (report(shift, n_pos=n, n_neg=n, seed=4, alpha=a) for a in (0.05, level))
        low, high = at_level(first["auc"][0], first["auc_lo"][0], first["auc_hi"][0], alpha=0.05, level=level)
        assert (low, high) == pytest.approx((second["auc_lo"][0], second["auc_hi"][0]), abs=1e-9)


@pytest.mark.stat
def test_false_alarms_under_the_null_stay_below_alpha() -> None:
    """F3: "unlearned" drawn as never seen, at the sizes of the digits audit: fail in at most 5% of audits."""
    alarms = [judge(report(0.0, n_pos=130, n_neg=250, seed=seed)).verdict is Verdict.FAIL for seed in range(1000)]
    assert sum(alarms) <= binom.ppf(0.999, 1000, THRESHOLDS.alpha)
    of_three = [
        judge(report(0.0, n_pos=130, n_neg=250, seed=seed), num_tests=3).verdict is Verdict.FAIL for seed in range(400)
    ]
    assert sum(of_three) <= binom.ppf(0.999, 400, THRESHOLDS.alpha / 3)
