"""The distance of one run to retraining: paired by example, honest where nothing differs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from attacks.distance import Answers, gap_to_retraining, paired_difference, quality_lost
from contracts.errors import InvalidInput


def right(rng: np.random.Generator, n: int, rate: float) -> np.ndarray:
    return rng.random(n) < rate


def answers(rng: np.random.Generator, **rates: float) -> Answers:
    sizes = {"forget": 200, "retain": 500, "test": 800, "non_member": 200}
    return Answers(**{name: right(rng, n, rates.get(name, 0.95)) for name, n in sizes.items()})


def test_values_are_the_published_gaps() -> None:
    rng = np.random.default_rng(0)
    own, other = answers(rng, forget=0.5, non_member=0.1), answers(rng)
    parts = [
        100 * abs(getattr(own, f).mean() - getattr(other, f).mean()) for f in ("forget", "retain", "test", "non_member")
    ]
    found = gap_to_retraining(own, other, alpha=0.05)
    assert found.value == pytest.approx(np.mean(parts)) and found.low < found.value < found.high
    lost = quality_lost(own, other, alpha=0.05)
    assert lost["retained"].value == pytest.approx(100 * (other.retain.mean() - own.retain.mean()))
    assert lost["test"].value == pytest.approx(100 * (other.test.mean() - own.test.mean()))


def test_pairing_takes_out_what_makes_an_example_hard() -> None:
    """Two models that err on the same tenth of the examples: unpaired, the difference would have an error of 4
    points."""
    rng = np.random.default_rng(1)
    hard = rng.random(400) < 0.1
    own, other = ~hard, ~hard
    own = own ^ (np.arange(400) == 3)
    found = paired_difference(own, other, alpha=0.05)
    assert found.high - found.low < 2.0
    shuffled = paired_difference(own, rng.permutation(other), alpha=0.05)
    assert shuffled.high - shuffled.low > 6.0


@pytest.mark.parametrize(("rate", "flips"), [(0.95, 0.02), (0.5, 0.3), (0.99, 0.0)])
def test_the_interval_covers(rate: float, flips: float) -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        base = rng.random(270) < rate
        other = base ^ (rng.random(270) < flips)
        truth = 100 * flips * (2 * rate - 1)
        found = paired_difference(base, other, alpha=0.05)
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.93


def test_no_difference_seen_is_not_no_error_and_one_model_has_no_distance_to_itself() -> None:
    rng = np.random.default_rng(3)
    one = answers(rng)
    seen = gap_to_retraining(one, dataclasses.replace(one), alpha=0.05)
    assert seen.value == 0 and seen.low == 0 and 0 < seen.high < 2
    same = gap_to_retraining(one, one, alpha=0.05, same=True)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert all(v.high == 0 for v in quality_lost(one, one, alpha=0.05, same=True).values())


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(InvalidInput):
        paired_difference(np.zeros(3, bool), np.zeros(4, bool), alpha=0.05)
    with pytest.raises(InvalidInput):
        paired_difference(np.zeros(0, bool), np.zeros(0, bool), alpha=0.05)
