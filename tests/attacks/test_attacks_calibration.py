"""Thresholds know what they were chosen on: what they call, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.dp_audit import audit_epsilon
from attacks.membership import Leakage, Threshold, Trials, at_best, at_fpr, tpr_at_fpr
from contracts.errors import DataError, InvalidInput

values = st.lists(st.integers(-4, 4), min_size=3, max_size=40)


@given(values, values, st.floats(0.05, 0.95))
def test_at_fpr_finds_what_the_report_counts(negative: list[int], positive: list[int], cap: float) -> None:
    """Largest TPR with empirical FPR <= cap: the threshold that the report means, ties included."""
    neg, pos = np.array(negative, dtype=float), np.array(positive, dtype=float)
    ids = np.arange(len(neg))
    if np.floor(cap * len(neg) * (1 + 1e-12)) < 1:
        with pytest.raises(InvalidInput, match="raise it"):
            at_fpr(neg, Trials(ids), cap)
        return
    threshold = at_fpr(neg, Trials(ids), cap)
    assert (neg >= threshold.value).mean() <= cap + 1e-12
    called = threshold.calls(pos, Trials(1000 + np.arange(len(pos))))
    whole = np.concatenate([pos, neg]), np.arange(len(pos) + len(neg)) < len(pos)
    assert called.mean() == pytest.approx(tpr_at_fpr(*whole, cap))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_at_best_maximises_balanced_accuracy(rows: list[tuple[int, bool]]) -> None:
    scores, member = np.array([float(s) for s, _ in rows]), np.array([m for _, m in rows])
    if member.all() or not member.any():
        return
    value = at_best(scores, member, Trials(np.arange(len(rows)))).value

    def reached(t: float) -> float:
        return ((scores[member] >= t).mean() + (scores[~member] < t).mean()) / 2

    assert reached(value) == pytest.approx(max(reached(t) for t in [*scores, np.inf]))


@pytest.mark.promise("F6")
def test_a_threshold_refuses_the_trials_it_was_chosen_on_naming_them() -> None:
    threshold = at_fpr(np.arange(40.0), Trials(np.arange(40)), 0.1)
    fresh = threshold.calls(np.array([100.0, 0.0, np.nan]), Trials(np.array([50, 51, 52])))
    assert fresh.tolist() == [True, False, False]
    with pytest.raises(Leakage, match="not judged on the trials it was chosen on") as error:
        threshold.calls(np.array([100.0, 0.0]), Trials(np.array([50, 39])))
    assert error.value.example_ids == (39,) and isinstance(error.value, DataError)
    best = at_best(np.arange(4.0), np.arange(4) > 1, Trials(np.arange(4)))
    with pytest.raises(Leakage):
        best.calls(np.arange(4.0), Trials(np.arange(4)))


def test_an_example_that_taught_the_attack_neither_sets_its_threshold_nor_judges_it() -> None:
    shadow = Trials(np.arange(20))
    with pytest.raises(Leakage, match="not chosen on the trials that the attack learned from") as error:
        at_fpr(np.arange(40.0), Trials(np.arange(15, 55)), 0.1, learned_from=[shadow])
    assert error.value.example_ids == (15, 16, 17, 18, 19)
    with pytest.raises(Leakage, match="learned from"):
        at_best(np.arange(4.0), np.arange(4) > 1, Trials(np.arange(4)), learned_from=[shadow])
    threshold = at_fpr(np.arange(40.0), Trials(np.arange(20, 60)), 0.1, learned_from=[shadow])
    with pytest.raises(Leakage, match="not judged on the trials it learned from"):
        threshold.calls(np.zeros(2), Trials(np.array([70, 3])))


@given(st.sets(st.integers(0, 30), min_size=4), st.sets(st.integers(0, 30), min_size=1), st.sets(st.integers(0, 30)))
def test_exactly_disjoint_trials_are_accepted(fitted: set[int], judged: set[int], seen: set[int]) -> None:
    def ids(chosen: set[int]) -> Trials:
        return Trials(np.array(sorted(chosen), dtype=np.int64))

    def whole() -> Threshold:
        threshold = at_fpr(np.arange(float(len(fitted))), ids(fitted), 0.5, learned_from=[ids(seen)])
        threshold.calls(np.zeros(len(judged)), ids(judged))
        return threshold

    if fitted & seen or judged & (fitted | seen):
        with pytest.raises(Leakage):
            whole()
    else:
        whole()


def test_one_example_under_two_models_is_two_trials_unless_the_model_is_left_open() -> None:
    ids = np.arange(10)
    threshold = at_fpr(np.arange(10.0), Trials(ids, model=3), 0.2)
    assert threshold.calls(np.arange(10.0), Trials(ids, model=4)).sum() == 2
    for model in (3, None):
        with pytest.raises(Leakage):
            threshold.calls(np.arange(10.0), Trials(ids, model=model))


@pytest.mark.promise("F6")
def test_epsilon_is_bounded_on_trials_of_its_own() -> None:
    """Jagielski et al.: the threshold searched on the audited trials voids the guarantee."""
    rng = np.random.default_rng(0)
    member = np.arange(400) % 2 == 0
    scores = rng.normal(size=400) + 2 * member
    first, second = Trials(np.arange(200)), Trials(np.arange(200, 400))
    threshold = at_best(scores[:200], member[:200], first)
    with pytest.raises(Leakage):
        audit_epsilon(scores[:200], member[:200], first, threshold)
    audit = audit_epsilon(scores[200:], member[200:], second, threshold)
    assert 0.5 < audit.eps < audit.largest and audit.n_pos == audit.n_neg == 100
    assert audit.true_positives == (scores[200:][member[200:]] >= threshold.value).sum()
    undefined = np.where(np.arange(200) == 7, np.nan, scores[200:])
    with pytest.raises(InvalidInput, match="one defined score"):
        audit_epsilon(undefined, member[200:], second, threshold)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Trials(np.array([1, 1])),
        lambda: Trials(np.zeros((2, 2), dtype=int)),
        lambda: at_fpr(np.arange(3.0), Trials(np.arange(4)), 0.5),
        lambda: at_fpr(np.arange(4.0), Trials(np.arange(4)), 1.0),
        lambda: at_fpr(np.full(4, np.nan), Trials(np.arange(4)), 0.5),
        lambda: at_best(np.arange(4.0), np.ones(4, dtype=bool), Trials(np.arange(4))),
        lambda: at_fpr(np.arange(4.0), Trials(np.arange(4)), 0.5).calls(np.zeros(2), Trials(np.array([9]))),
    ],
)
def test_what_does_not_fit_is_refused(call) -> None:
    with pytest.raises(InvalidInput):
        call()
