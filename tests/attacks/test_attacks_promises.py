"""The audit's own honesty, promise by promise: F1 coverage, F2 no claim beyond n, F5 sound epsilon, F6 no leakage, F7
worst case.

Where a rate is simulated the bound is what a correct method exceeds with probability 0.999, or the promised figure
where the method is conservative. The promises about unlearning (F3, F4, F8) have a file of their own.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_logits import LogitEvidence
from scipy.stats import binom, norm

from attacks.dp_audit import (
    audit_epsilon,
    eps_of_mu,
    gdp_lower_bound,
    largest_provable_eps,
    one_run_eps,
    one_run_p_value,
)
from attacks.membership import Evidence, Leakage, Trials, at_best, at_fpr, attack_report, exposure_table
from attacks.membership.exposure import smallest_p_value
from attacks.membership.exposure_audit import ExposureConfig, exposure, judge_exposure
from attacks.membership.tokens import TokenReadings
from attacks.verdicts import judge_attack
from contracts.methods import attack
from contracts.subject import Thresholds
from contracts.verdicts import Verdict
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from stats import auc_interval, clopper_pearson, minimum_negatives, minimum_references

JUDGED = Thresholds(max_target_auc=0.6)


def at_least(rate: float, trials: int) -> float:
    """What a share that is ``rate`` in truth exceeds in all but one of 1,000 simulations of this size."""
    return float(binom.ppf(0.001, trials, rate) / trials)


# --- F1: intervals cover ------------------------------------------------------------------------------------------


@pytest.mark.stat
@pytest.mark.parametrize(("shift", "n_pos", "n_neg"), [(0.0, 130, 250), (1.0, 300, 400), (2.5, 60, 1000)])
@pytest.mark.promise("F1")
def test_f1_intervals_of_the_report_cover_at_the_threshold_that_it_chose(shift: float, n_pos: int, n_neg: int) -> None:
    """Scores of known ROC, 2,000 reports: TPR and FPR at the threshold that each report picked, and the AUC."""
    rng = np.random.default_rng(0)
    member = np.arange(n_pos + n_neg) < n_pos
    caps = (0.01, 0.05)
    covered: dict[str, list[bool]] = {"tpr": [], "fpr": []}
    area = []
    for _ in range(2000):
        scores = rng.normal(size=len(member)) + shift * member
        report = attack_report(scores, member, fpr_caps=caps)
        for row in report.iter_rows(named=True):
            limit = at_fpr(scores[~member], Trials(np.flatnonzero(~member)), row["fpr_cap"]).value
            for rate, truth in (("tpr", norm.sf(limit - shift)), ("fpr", norm.sf(limit))):
                covered[rate].append(row[f"{rate}_lo"] <= truth <= row[f"{rate}_hi"])
        area.append(report["auc_lo"][0] <= norm.cdf(shift / math.sqrt(2)) <= report["auc_hi"][0])
    assert np.mean(covered["tpr"]) >= 0.94 and np.mean(covered["fpr"]) >= 0.94
    if norm.cdf(shift / math.sqrt(2)) < 0.93:  # DeLong's interval promises nothing beyond, see ``statistics.ranking``
        assert np.mean(area) >= at_least(0.945, 2000)


@pytest.mark.stat
@pytest.mark.parametrize(("rate", "n"), [(0.001, 3000), (0.003, 500), (0.05, 250), (0.4, 130), (0.97, 64)])
@pytest.mark.promise("F1")
def test_f1_clopper_pearson_covers_at_a_threshold_fixed_beforehand(rate: float, n: int) -> None:
    low, high = clopper_pearson(np.random.default_rng(1).binomial(n, rate, 2000), n)
    assert np.mean((low <= rate) & (rate <= high)) >= 0.94


def normal_evidence(
    seed: int, *, models: int, examples: int, traced: int = 0, gain: float = 0.0, points: int = 60
) -> tuple[LogitEvidence, np.ndarray]:
    """Two-class models whose log-odds are normal about an example's own mean (returned), higher by ``gain`` when in
    training."""
    rng = np.random.default_rng(seed)
    keep = rng.random((models, examples)).argsort(axis=0) < models // 2
    mean = rng.normal(2, 2, examples)
    phi = mean + rng.normal(size=(models, examples))
    phi[:, :traced] += gain * keep[:, :traced]
    z = rng.normal(2, 2, points) + rng.normal(size=(models, points))
    logits, at_points = (np.stack([v, np.zeros_like(v)], axis=-1) for v in (phi, z))
    evidence = LogitEvidence(
        example_id=np.arange(examples),
        labels=np.zeros(examples, dtype=int),
        target_logits=logits,
        reference_logits=logits,
        keep=keep,
        population_labels=np.zeros(points, dtype=int),
        population_target_logits=at_points,
        population_reference_logits=at_points,
        target_index=np.arange(models),
    )
    return evidence, mean


@pytest.mark.stat
@pytest.mark.promise("F1")
def test_f1_bounds_of_an_examples_exposure_cover_for_fresh_audited_models() -> None:
    """How often the attacker who holds these references finds it in models that nobody has seen yet."""
    method, traced, fresh, cap = attack.get("lira_online"), 30, 300, 0.05
    covered = []
    for seed in range(12):
        for gain in (0.0, 1.0, 2.0, 3.0):
            evidence, mean = normal_evidence(seed, models=64, examples=600, traced=traced, gain=gain)
            assert evidence.keep is not None
            scores = method(evidence, config=method.spec.config(), seed=0)
            table = exposure_table(scores, evidence.keep, evidence.example_id, trace=np.zeros(600), fpr_cap=cap)
            table = table.sort("example_id").head(traced)
            rng = np.random.default_rng(1000 + seed)
            phi = mean + rng.normal(size=(fresh, 600))
            phi[:, :traced] += gain
            new = LogitEvidence(
                example_id=evidence.example_id,
                labels=evidence.labels,
                target_logits=np.stack([phi, np.zeros_like(phi)], -1),
                reference_logits=evidence.reference_logits,
                keep=evidence.keep,
            )
            found = method(new, config=method.spec.config(), seed=0)
            truth = (found[:, :traced] >= np.quantile(found[:, traced:], 1 - cap)).mean(axis=0)
            low, high = (table[c].to_numpy() for c in ("exposure_lo", "exposure_hi"))
            covered.append(((low <= truth + 1e-9) & (truth <= high + 1e-9)).mean())
    assert np.mean(covered) >= 0.94


def with_tokens(evidence: Evidence, seed: int) -> Evidence:
    """Eight to twelve tokens an example, and a base, drawn without regard to who was trained on what."""
    rng = np.random.default_rng([seed, 7])
    shape = (evidence.num_targets, len(evidence.example_id), 12)
    told = np.stack([-rng.exponential(2.0, shape), -np.full(shape, 2.0), np.full(shape, 1.5)], axis=-1)
    told[:, np.arange(12) >= rng.integers(8, 13, shape[1])[:, None]] = np.nan
    return dataclasses.replace(
        evidence,
        tokens=TokenReadings(target=told.astype(np.float32), zlib_bytes=rng.integers(40, 60, shape[1])),
        base=rng.normal(size=(shape[1], 4)),
    )


@pytest.mark.stat
@pytest.mark.parametrize("name", attack.names())
@pytest.mark.promise("F1")
def test_null_models_give_an_auc_of_one_half_at_the_promised_rate(name: str) -> None:
    """Models on which training leaves no trace: every attack, every model once as the target."""
    method, models, worlds = attack.get(name), 64, 2 if name == "shadow_model" else 15
    covered, areas = [], []
    for seed in range(worlds):
        evidence = with_tokens(normal_evidence(seed, models=models, examples=250)[0].made, seed)
        assert evidence.keep is not None
        for scores, member in zip(method(evidence, config=method.spec.config(), seed=seed), evidence.keep, strict=True):
            known = ~np.isnan(scores)
            area = auc_interval(scores[known & member], scores[known & ~member])
            areas.append(area.value)
            covered.append(area.low <= 0.5 <= area.high)
    assert np.mean(covered) >= at_least(0.945, len(covered))
    assert abs(np.mean(areas) - 0.5) < 0.01


# --- F2: no claim beyond n ----------------------------------------------------------------------------------------


def quiet_report(n_pos: int, n_neg: int, cap: float) -> pl.DataFrame:
    """Members that look like non-members: evenly interleaved, so that nothing accuses them."""
    scores = np.concatenate([np.linspace(0, 1, n_pos + 2)[1:-1], np.linspace(0, 1, n_neg)])
    return attack_report(scores, np.arange(n_pos + n_neg) < n_pos, fpr_caps=(cap,))


@pytest.mark.promise("F2")
def test_f2_a_thousandth_needs_three_thousand_clean_non_members() -> None:
    assert minimum_negatives(0.001) == 2995
    assert minimum_references(0.05) == 19
    for n_neg in (100, 2994, 9999):
        finding = judge_attack(quiet_report(400, n_neg, 0.001), what="a", thresholds=Thresholds(), claim_fpr=0.001)
        assert finding.verdict is Verdict.INCONCLUSIVE and str(n_neg) in finding.sentence
    enough = judge_attack(quiet_report(400, 10_000, 0.001), what="a", thresholds=Thresholds(), claim_fpr=0.001)
    assert enough.verdict is Verdict.PASS


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 600), st.integers(10, 1500), st.floats(0.005, 0.2), st.one_of(st.none(), st.integers(2, 300)))
@pytest.mark.promise("F2")
def test_f2_smaller_n_is_never_a_pass(n_pos: int, n_neg: int, claim: float, references: int | None) -> None:
    finding = judge_attack(
        quiet_report(n_pos, n_neg, claim), what="a", thresholds=Thresholds(), claim_fpr=claim, num_references=references
    )
    too_few = n_neg < minimum_negatives(claim) or claim * n_neg < 10
    too_few |= references is not None and 1 / (references + 1) > claim
    if too_few:
        assert finding.verdict is not Verdict.PASS


@pytest.mark.promise("F2")
def test_f2_one_examples_p_value_is_bounded_by_the_models() -> None:
    for models in (4, 8, 16, 64):
        assert smallest_p_value(models) == pytest.approx(1 / math.comb(models, models // 2))


# --- F5: epsilon bounds are sound ---------------------------------------------------------------------------------


@pytest.mark.stat
@pytest.mark.parametrize("eps", [0.5, 1.0, 3.0])
@pytest.mark.promise("F5")
def test_f5_bounds_on_randomised_response_are_sound(eps: float) -> None:
    """2,000 audits with 1,000 trials a side; the threshold chosen on 200 others."""
    rng = np.random.default_rng(0)
    truth = 1 / (1 + math.exp(-eps))
    member = np.arange(2000) < 1000
    trials = Trials(np.arange(2000))
    sound = []
    for _ in range(2000):
        answers = (rng.random(2200) < truth) == np.append(member, np.arange(200) % 2 == 0)
        scores = answers.astype(float)
        threshold = at_best(scores[2000:], np.arange(200) % 2 == 0, Trials(np.arange(2000, 2200)))
        sound.append(audit_epsilon(scores[:2000], member, trials, threshold).eps <= eps)
    assert np.mean(sound) >= 0.95
    right = rng.binomial(500, truth, 2000)
    one_run = [one_run_p_value(eps, num_canaries=500, num_guesses=500, num_right=int(v)) >= 0.05 for v in right]
    assert np.mean(one_run) >= at_least(0.95, 2000)  # an exact test: 0.95 in truth


@pytest.mark.stat
@pytest.mark.parametrize("mu", [0.5, 1.0, 2.5])
@pytest.mark.promise("F5")
def test_f5_bounds_on_the_gaussian_mechanism_are_sound(mu: float) -> None:
    """Sensitivity 1, noise 1/mu: its epsilon at delta = 1e-5 is known exactly. Many runs, Gaussian-DP and one run."""
    rng = np.random.default_rng(1)
    delta = 1e-5
    eps = eps_of_mu(mu, delta=delta)
    member = np.arange(2000) < 1000
    many, gaussian, one = [], [], []
    for _ in range(1000):
        scores = rng.normal(size=2000) + mu * member
        other = rng.normal(size=400) + mu * (np.arange(400) % 2)
        threshold = at_best(other, np.arange(400) % 2 == 1, Trials(np.arange(2000, 2400)))
        audit = audit_epsilon(scores, member, Trials(np.arange(2000)), threshold, delta=delta)
        many.append(audit.eps <= eps)
        hits = (audit.true_positives, 1000, audit.false_positives, 1000)
        gaussian.append(gdp_lower_bound(*hits, delta=delta).mu <= mu)
        # One run: 1,000 canaries, each included by a coin; the surest tenth at either end is guessed.
        included = rng.random(1000) < 0.5
        order = np.argsort(rng.normal(size=1000) + mu * included)
        right = int((~included[order[:100]]).sum() + included[order[-100:]].sum())
        p = one_run_p_value(eps, num_canaries=1000, num_guesses=200, num_right=right, delta=delta)
        one.append(p >= 0.05)
    assert min(np.mean(many), np.mean(gaussian), np.mean(one)) >= 0.95


@pytest.mark.promise("F5")
def test_f5_the_report_says_the_largest_bound_that_its_trials_can_prove() -> None:
    member = np.arange(2000) < 1000
    threshold = at_best(np.array([1.0, 0.0]), np.array([True, False]), Trials(np.array([5000, 5001])))
    perfect = audit_epsilon(member.astype(float), member, Trials(np.arange(2000)), threshold)
    assert perfect.eps == perfect.largest == pytest.approx(5.601, abs=5e-4)
    assert "can prove is 5.60" in perfect.sentence
    # ln(0.997 / 0.003): the same by one-sided bounds that each spend all of alpha.
    assert largest_provable_eps(1000, 1000, alpha=0.1) == pytest.approx(math.log(0.997 / 0.003), abs=0.02)
    weak = audit_epsilon(np.zeros(2000), member, Trials(np.arange(2000)), threshold)
    assert weak.eps == 0 and weak.largest == perfect.largest
    assert one_run_eps(1000, 1000, 1000) == pytest.approx(5.809, abs=6e-4)


# --- F6: no leakage between calibration and test ------------------------------------------------------------------


@pytest.mark.promise("F6")
def test_f6_split_bookkeeping_refuses_what_would_flatter() -> None:
    rng = np.random.default_rng(0)
    member, everybody = np.arange(100) % 2 == 0, Trials(np.arange(100))
    flattering = []
    for _ in range(50):
        coins = rng.normal(size=100)
        chosen_here = at_best(coins, member, everybody)
        called = coins >= chosen_here.value
        flattering.append((called[member].mean() + (~called[~member]).mean()) / 2)
    assert np.mean(flattering) > 0.54  # what the same trials would report of coins
    with pytest.raises(Leakage, match="not judged on the trials it was chosen on"):
        chosen_here.calls(coins, everybody)
    with pytest.raises(Leakage, match="not chosen on the trials that the attack learned from"):
        at_fpr(coins, everybody, 0.1, learned_from=[Trials(np.array([99, 400]))])


# --- F7: worst case, not average ----------------------------------------------------------------------------------


def planted(seed: int, *, exposed: int, models: int = 64, pool: int = 1000) -> tuple[ExampleSet, ReferenceEnsemble]:
    """Only the first ``exposed`` examples leave a trace in the models; each model agrees with the others up to
    noise."""
    rng = np.random.default_rng(seed)
    num = pool + 200
    keep = np.zeros((models, num), dtype=bool)
    keep[:, :pool] = rng.random((models, pool)).argsort(axis=0) < models // 2
    labels = rng.integers(2, size=num)
    traced = np.arange(num) < exposed
    logits = rng.normal(0, 0.5, size=(models, num, 2))
    logits[:, np.arange(num), labels] += np.where(traced, -2, rng.normal(2, 2, num)) + 5 * keep * traced
    data = ExampleSet(
        name="planted",
        task="classification",
        x=rng.normal(size=(num, 2)).astype(np.float32),
        y=labels,
        example_id=np.arange(num),
        split=np.where(np.arange(num) < pool, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=("a", "b"),
        center=np.zeros(2, np.float32),
        scale=np.ones(2, np.float32),
    )
    ensemble = ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.arange(num) < pool,
        labels=labels,
        keep=keep,
        logits=logits.astype(np.float32),
        config_digest="planted",
    )
    return data, ensemble


def exposure_of(world: tuple[ExampleSet, ReferenceEnsemble]) -> dict[str, pl.DataFrame]:
    return exposure(world[0], config=ExposureConfig(), seed=0, ensemble=world[1])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.promise("F7")
def test_f7_one_exposed_example_in_a_thousand_fails_the_audit(seed: int) -> None:
    tables = exposure_of(planted(seed, exposed=1))
    summary = tables["exposure_summary"].filter("shown").row(0, named=True)
    assert abs(summary["auc"] - 0.5) < 0.02
    assert summary["exposure_max"] > 0.85 and summary["exposure_p99"] < 0.6 and summary["exposure_mean"] < 0.06
    for _, finding in judge_exposure(tables, JUDGED):
        assert finding.verdict is Verdict.FAIL and "1 of 1,000" in finding.sentence and "(ids 0;" in finding.sentence
        assert re.search(r"AUC 0\.(49|50)\d ", finding.sentence)
    assert tables["exposure"].filter("exposed")["example_id"].unique().to_list() == [0]


@pytest.mark.stat
@pytest.mark.promise("F7")
def test_f7_nobody_is_accused_by_chance() -> None:
    """Without any trace: a verdict of fail in at most alpha of 250 audits."""
    alarms = [
        any(
            f.verdict is Verdict.FAIL
            for _, f in judge_exposure(exposure_of(planted(seed, exposed=0, models=32, pool=300)), JUDGED)
        )
        for seed in range(250)
    ]
    assert sum(alarms) <= binom.ppf(0.999, 250, JUDGED.alpha)
