"""Members and non-members that differ by themselves: found, said, never a failure of what removed, never a pass."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from attacks.membership import attack_report
from attacks.membership.unlearning import UMIAResult, population_umia
from attacks.peers import PEERS, Unseen, apart, never_seen
from attacks.verdicts import judge_attack, judge_umia, unseen_by_retraining
from contracts.errors import InvalidInput
from contracts.subject import Thresholds
from contracts.verdicts import OF_FINDINGS, Finding, Verdict

LIMITS = Thresholds()
TESTS = 30  # of one audit: three models, three attacks and what else is judged
LEVEL = LIMITS.alpha / TESTS


def report(learnt: float, apart_by: float, seed: int, *, num: tuple[int, int] = (269, 449)) -> pl.DataFrame:
    """An attack's scores: standard normal, members ``learnt`` higher by membership and ``apart_by`` by themselves."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=sum(num))
    member = np.arange(sum(num)) < num[0]
    scores[member] += learnt + apart_by
    return attack_report(scores, member, alpha=LIMITS.alpha)


def judged(frame: pl.DataFrame, *controls: Unseen, two_sided: bool = True) -> Finding:
    return judge_attack(
        frame, what="a", thresholds=LIMITS, num_references=32, num_tests=TESTS, two_sided=two_sided, unseen=controls
    )


def retrained(apart_by: float, seed: int) -> Unseen:
    return unseen_by_retraining(report(0.0, apart_by, seed))


def of(value: float, reach: float = 0.03, **more: object) -> Unseen:
    return Unseen(value=value, low=value - reach, high=value + reach, by="a retrained model", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("apart_by", [0.9, -0.9, 1.4, -1.4])
def test_exact_removal_beside_another_test_split_neither_fails_nor_passes(apart_by: float) -> None:
    for seed in range(20):
        alone = judged(report(0.0, apart_by, seed))
        assert alone.verdict is Verdict.FAIL, "the fault: an exactly removed set fails"
        beside = judged(report(0.0, apart_by, seed), retrained(apart_by, 1000 + seed))
        assert beside.verdict is Verdict.INCONCLUSIVE
        assert "differ by themselves" in beside.sentence and "a retrained model" in beside.sentence


def test_an_untouched_model_does_not_hide_behind_an_easier_test_split() -> None:
    """Members known better by as much as unseen examples are easier: the attack sees nothing, and says nothing."""
    passed_alone = 0
    for seed in range(40):
        frame = report(0.7, -0.7, seed)
        passed_alone += judged(frame).verdict is Verdict.PASS
        assert judged(frame, retrained(-0.7, 1000 + seed)).verdict is Verdict.INCONCLUSIVE
        assert judged(frame, retrained(-0.7, 1000 + seed), two_sided=False).verdict is Verdict.INCONCLUSIVE
    assert passed_alone > 20, "the fault: it passes"


def test_what_was_learnt_still_fails_beside_a_difference() -> None:
    for seed in range(20):
        assert judged(report(1.5, 0.3, seed), retrained(0.3, 1000 + seed)).verdict is Verdict.FAIL
        assert judged(report(-1.5, -0.3, seed), retrained(-0.3, 1000 + seed)).verdict is Verdict.FAIL


def test_between_peers_nothing_changes() -> None:
    """Verdicts beside three retrainings, 120 audits: as without, but where chance sets peers apart."""
    changed = 0
    for seed in range(120):
        for learnt in (0.0, 0.8):
            frame = report(learnt, 0.0, seed)
            controls = [retrained(0.0, 10_000 + 3 * seed + k) for k in range(3)]
            changed += judged(frame).verdict is not judged(frame, *controls).verdict
    assert changed <= binom.ppf(0.999, 240, 2 * 3 * LEVEL)


@pytest.mark.parametrize("two_sided", [True, False])
def test_a_difference_is_no_licence_to_pass_nor_to_fail(two_sided: bool) -> None:
    """With a control a verdict moves towards inconclusive, or stays."""
    rng = np.random.default_rng(0)
    seen = set()
    for seed in range(80):
        frame = report(rng.normal(0, 0.5), rng.normal(0, 0.5), seed)
        before = judged(frame, two_sided=two_sided).verdict
        for control in (of(rng.uniform(0.2, 0.8)), of(rng.uniform(0.2, 0.8), at_least=True), of(0.5, p_value=1e-9)):
            after = judged(frame, control, two_sided=two_sided).verdict
            assert after in (before, Verdict.INCONCLUSIVE)
            seen.add((before, after))
    assert {(v, w) for v in (Verdict.PASS, Verdict.FAIL) for w in (v, Verdict.INCONCLUSIVE)} <= seen
    assert all(v in OF_FINDINGS for v, _ in seen)


def test_a_low_control_is_no_excuse_for_a_high_figure() -> None:
    high = report(1.5, 0.0, 0)
    assert judged(high, of(0.3)).verdict is Verdict.FAIL, "an easier test split hides members, it does not make them"
    assert judged(report(-1.5, 0.0, 0), of(0.7)).verdict is Verdict.FAIL
    assert judged(high, of(0.53, at_least=True)).verdict is Verdict.FAIL, "0.50 to 0.56 is chance at this level"
    assert judged(high, of(0.63, at_least=True)).verdict is Verdict.INCONCLUSIVE, "nobody knows how much it is"


def test_who_stands_out_on_models_that_saw_nobody_is_no_evidence() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=2000)
    scores[:30] += 10
    frame = attack_report(scores, np.arange(2000) < 1000)
    assert judged(frame).verdict is Verdict.FAIL
    also = unseen_by_retraining(frame)
    assert also.p_value < LEVEL
    found = judged(frame, also)
    assert found.verdict is Verdict.INCONCLUSIVE and "differ by themselves" in found.sentence
    assert judged(frame, of(0.5)).verdict is Verdict.FAIL
    assert judged(frame, of(0.6)).verdict is Verdict.INCONCLUSIVE, "higher on the whole, more of them stand out"
    assert judged(frame, of(0.4)).verdict is Verdict.FAIL


def test_the_population_attack_is_judged_beside_its_own_accuracy() -> None:
    def umia(by: float, seed: int) -> UMIAResult:
        rng = np.random.default_rng(seed)
        return population_umia(np.exp(rng.normal(by, 1, 300)), np.exp(rng.normal(0, 1, 300)), seed=0)

    def control(result: UMIAResult) -> Unseen:
        row = {"balanced_acc_heldout": result.accuracy, "balanced_acc_heldout_lo": result.low}
        frame = pl.DataFrame([row | {"balanced_acc_heldout_hi": result.high, "tpr": None}])
        return unseen_by_retraining(frame, accuracy=True)

    def verdict(result: UMIAResult, *controls: Unseen) -> Verdict:
        return judge_umia(result, what="u", thresholds=LIMITS, num_tests=TESTS, unseen=controls).verdict

    shifted = umia(-1.5, 0)
    assert verdict(shifted) is Verdict.FAIL
    assert verdict(shifted, control(umia(-1.5, 1))) is Verdict.INCONCLUSIVE
    assert verdict(shifted, control(umia(0.0, 2))) is Verdict.FAIL
    assert verdict(umia(0.0, 3), control(umia(1.0, 4))) is Verdict.INCONCLUSIVE, "untouched, beside an easier split"
    assert verdict(umia(0.0, 3), control(umia(0.0, 5))) is Verdict.PASS


def world(
    apart_by: float, *, learnt: float = 2.0, seed: int = 0, models: int = 16, num: int = 600
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Scores of models on halves of a pool of which a quarter is the test split: example by example and model by model
    effects, what a model was trained on ``learnt`` higher."""
    rng = np.random.default_rng(seed)
    train = np.arange(num) < 3 * num // 4
    keep = rng.random((models, num)).argsort(axis=0) < models // 2
    scores = rng.normal(size=num) + 0.5 * rng.normal(size=(models, num)) + learnt * keep
    return scores + apart_by * train, keep, train


def test_reference_models_find_a_difference_and_no_membership() -> None:
    scores, keep, train = world(0.8)
    found = never_seen(scores, keep, train, alpha=0.05, by="reference models")
    expected = np.mean(
        [np.mean(row[~k & train][:, None] > row[~k & ~train]) for row, k in zip(scores, keep, strict=True)]
    )
    assert found is not None and found.value == pytest.approx(expected) and found.low > 0.55
    assert found.low < found.value < found.high < 0.85
    more = never_seen(scores + 50.0 * keep, keep, train, alpha=0.05, by="reference models")
    assert more == found, "what they were trained on is not asked"


def test_reference_models_take_peers_for_peers() -> None:
    """400 pools: the interval covers a half as it claims, and the p-value of those who stand out keeps its level."""
    covered = called = 0
    for seed in range(400):
        found = never_seen(*world(0.0, seed=seed, num=240), alpha=0.05, by="reference models")
        assert found is not None
        covered += found.low <= 0.5 <= found.high
        called += found.p_value <= 0.05
    assert covered >= binom.ppf(0.001, 400, 0.95)
    assert called <= binom.ppf(0.999, 400, 0.05)


def test_reference_models_say_who_stands_out() -> None:
    scores, keep, train = world(0.0, num=2000)
    scores[:, :200] += 30.0  # of the training split, whoever saw them
    found = never_seen(scores, keep, train, alpha=0.05, by="reference models")
    assert found is not None and found.p_value < LEVEL and apart([found], alpha=0.05, level=LEVEL).stand_out


def test_too_few_to_compare_is_nothing() -> None:
    scores, keep, train = world(0.5)
    assert never_seen(scores[:1], keep[:1], train, alpha=0.05, by="m") is None
    assert never_seen(scores, keep, np.arange(600) < 585, alpha=0.05, by="m") is None, "some saw all but a few"
    assert never_seen(scores, keep, np.ones(600, bool), alpha=0.05, by="m") is None
    undefined = np.where(train, scores, np.nan)
    assert never_seen(undefined, keep, train, alpha=0.05, by="m") is None
    with pytest.raises(InvalidInput, match="do not fit"):
        never_seen(scores, keep[:, 1:], train, alpha=0.05, by="m")


def test_the_largest_difference_counts_at_the_level_of_the_audit() -> None:
    assert apart([], alpha=0.05, level=0.05) is PEERS
    assert apart([of(0.52)], alpha=0.05, level=0.05) is PEERS
    assert apart([of(0.55)], alpha=0.05, level=0.05).up == pytest.approx(0.08)
    assert apart([of(0.55)], alpha=0.05, level=1e-6) is PEERS
    both = apart([of(0.6), of(0.66), of(0.4)], alpha=0.05, level=0.05)
    assert both.up == pytest.approx(0.19) and both.down == pytest.approx(0.13) and "0.660" in both.aside
    assert apart([of(0.6, at_least=True)], alpha=0.05, level=0.05).up == math.inf
    assert apart([of(0.4, at_least=True)], alpha=0.05, level=0.05).up == 0.0
