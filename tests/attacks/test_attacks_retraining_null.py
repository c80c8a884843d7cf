"""Sets that are not random are judged by retrainings without them: exact removal looks like one more, the untouched
model does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import binom, kstest

from attacks.membership.retraining_null import AgainstRetraining, Retrainings, _largest_t, against_retraining
from attacks.membership.scale import OUTPUT_KNOTS, to_reference_scale
from attacks.verdicts import judge_against_retraining
from contracts.errors import InvalidInput
from contracts.subject import Thresholds
from contracts.verdicts import Verdict
from tasks.base import named
from tasks.signals import log_odds

LEVEL = 0.05 / 18


def models(
    rng: np.random.Generator,
    count: int,
    mean: np.ndarray,
    spread: np.ndarray,
    *,
    common: float = 0.15,
    tail: float = 0.0,
) -> np.ndarray:
    """Log-odds of models of one kind: an example's own mean and spread, and something that all examples of a model
    share."""
    own = rng.standard_t(4, (count, len(mean))) / np.sqrt(2) if tail else rng.normal(size=(count, len(mean)))
    return mean + spread * (own + common * rng.normal(size=(count, 1)))


def drawn(
    seed: int, *, num: int = 60, shift: float = 0.0, trace: float = 6.0, retrainings: int = 20, **more: float
) -> AgainstRetraining:
    rng = np.random.default_rng(seed)
    mean, spread = rng.normal(0, 4, num), rng.uniform(0.5, 2, num)
    null = models(rng, retrainings, mean, spread, **more)
    phi = models(rng, 1, mean + shift * spread, spread, **more)[0]
    untouched = models(rng, 1, mean + trace * spread, spread, **more)[0]
    return against_retraining(phi, null, untouched=untouched, alpha=0.05, level=LEVEL)[0]


def judge(found: AgainstRetraining | None, **limits: float) -> Verdict:
    return judge_against_retraining(found, what="against retraining", thresholds=Thresholds(**limits)).verdict


def test_figures_equal_their_definitions() -> None:
    rng = np.random.default_rng(3)
    null, phi = rng.normal(size=(25, 7)), rng.normal(size=7)
    found, t = against_retraining(phi, null, untouched=phi + 3, alpha=0.05, level=0.01)
    mean, var = null.mean(0), null.var(0, ddof=1)
    scale = np.sqrt((var + var.mean()) / 2)
    assert found.shift == pytest.approx(((phi - mean) / scale).mean())
    assert found.spread == pytest.approx(((null - mean) / scale).mean(1).std(ddof=1))
    assert t == pytest.approx((phi - mean) / np.sqrt(var * (1 + 1 / 25)))
    assert found.trace == pytest.approx(((phi + 3 - mean) / scale).mean())
    largest = _largest_t(null)
    for r in range(25):
        others = np.delete(null, r, axis=0)
        by_hand = np.abs(null[r] - others.mean(0)) / (others.std(0, ddof=1) * np.sqrt(1 + 1 / 24))
        assert largest[r] == pytest.approx(by_hand.max())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.promise("F4")
def test_untouched_and_overshot_models_fail(seed: int) -> None:
    for shift in (6.0, 2.0, -3.0):
        assert judge(drawn(seed, shift=shift)) is Verdict.FAIL
    assert judge(drawn(seed, num=1, shift=12.0, trace=12.0)) is Verdict.FAIL, (
        "one row is enough where it stands out far enough"
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.promise("F2")
def test_too_few_or_nothing_to_see_is_inconclusive(seed: int) -> None:
    assert judge(drawn(seed, num=1)) is Verdict.INCONCLUSIVE
    assert judge(drawn(seed, trace=0.2)) is not Verdict.PASS
    assert judge(drawn(seed), max_trace=0.01) is not Verdict.PASS


@pytest.mark.promise("F7")
def test_one_remembered_example_fails_the_set() -> None:
    rng = np.random.default_rng(0)
    null = rng.normal(size=(20, 200))
    phi = rng.normal(size=200)
    phi[17] = 30.0
    found, t = against_retraining(phi, null, untouched=phi + 6, alpha=0.05, level=LEVEL)
    assert abs(found.shift) < 0.36 and found.standing_out == 1 and t.argmax() == 17
    assert judge(found) is Verdict.FAIL
    assert judge(dataclasses.replace(found, beyond=False)) is not Verdict.FAIL, "the normal tail alone is not believed"


def test_exact_removal_passes_more_often_than_not_and_hardly_ever_fails() -> None:
    verdicts = [judge(drawn(seed)) for seed in range(60)]
    assert verdicts.count(Verdict.FAIL) <= 1 and verdicts.count(Verdict.PASS) >= 40


@pytest.mark.stat
@pytest.mark.parametrize("tail", [0.0, 1.0], ids=["normal", "heavy tails"])
@pytest.mark.parametrize("num", [1, 5, 60, 300])
@pytest.mark.promise("F3")
def test_exact_removal_fails_in_at_most_alpha_of_audits(num: int, tail: float) -> None:
    """Three models an audit, each at its share of half of alpha: 400 audits."""
    failed = [
        any(judge(drawn(1000 * seed + k, num=num, tail=tail)) is Verdict.FAIL for k in range(3)) for seed in range(400)
    ]
    assert sum(failed) <= binom.ppf(0.999, 400, 0.05)


@pytest.mark.stat
@pytest.mark.promise("F3")
def test_p_values_of_exact_removal_are_uniform() -> None:
    assert kstest([drawn(seed).p_value for seed in range(600)], "uniform").pvalue > 0.01


def test_every_model_is_put_on_one_scale() -> None:
    """A model whose outputs were shrunk is, after mapping, the model it was."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 260)
    z = rng.normal(size=(21, 260, 4))
    z[:, np.arange(260), labels] += rng.normal(4, 3, 260)
    task = named("classification")
    null = Retrainings.of_outputs(z[1:], labels, num_set=60, task=task)
    plain, shrunk = (null.place(log_odds(own, labels), own, labels, task=task) for own in (z[0], 0.2 * z[0]))
    assert plain.shape == (60,) and null.null.shape == (20, 60)
    np.testing.assert_allclose(plain, shrunk, atol=1e-9)


def test_the_scale_is_that_of_all_retrainings_together_outputs_first() -> None:
    """Against both maps written out."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    z = rng.normal(size=(23, 200, 4)) * rng.uniform(0.5, 2, (23, 1, 1))
    z[:, np.arange(200), labels] += rng.normal(4, 3, 200)
    own, others = z[0], z[1:]
    mapped = [log_odds(to_reference_scale(m[60:], others[:, 60:], knots=OUTPUT_KNOTS)(m), labels) for m in z]
    whole = np.stack([phi[60:] for phi in mapped[1:]])
    expected = [to_reference_scale(phi[60:], whole)(phi[:60]) for phi in mapped]
    task = named("classification")
    found = Retrainings.of_outputs(others, labels, num_set=60, task=task)
    np.testing.assert_array_equal(found.null, np.stack(expected[1:]))
    np.testing.assert_array_equal(found.place(log_odds(own, labels), own, labels, task=task), expected[0])


def test_where_answers_are_no_logits_the_signal_alone_is_mapped() -> None:
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(21, 160))
    task = named("regression")
    null = Retrainings(signal=signal[1:], num_set=60)
    plain, stretched = (null.place(own, task=task) for own in (signal[0], 3 * signal[0] - 2))
    np.testing.assert_allclose(plain, stretched, atol=1e-9)
    np.testing.assert_array_equal(plain, to_reference_scale(signal[0, 60:], signal[1:, 60:])(signal[0, :60]))


def test_what_cannot_be_compared_is_refused() -> None:
    one = np.zeros(3)
    with pytest.raises(InvalidInput, match="at least 20"):
        against_retraining(one, np.zeros((19, 3)), untouched=one, alpha=0.05, level=0.01)
    with pytest.raises(InvalidInput, match="finite"):
        against_retraining(one, np.full((20, 3), np.nan), untouched=one, alpha=0.05, level=0.01)
    with pytest.raises(InvalidInput, match="F >= 1"):
        against_retraining(np.zeros(0), np.zeros((20, 0)), untouched=np.zeros(0), alpha=0.05, level=0.01)
    assert judge(None) is Verdict.BROKEN
