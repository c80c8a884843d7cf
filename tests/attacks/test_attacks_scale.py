"""No increasing map of all outputs changes what an attack sees, and retrained models stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from planted_logits import LogitEvidence

from attacks.membership.population_umia import population_umia
from attacks.membership.scale import MonotoneMap, to_reference_scale
from contracts.errors import DataError, InvalidInput
from contracts.methods import attack
from stats import auc

MODELS, EXAMPLES, POINTS, CLASSES = 40, 300, 200, 5
MAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x 0.12": lambda z: 0.12 * z,
    "x 0.2": lambda z: 0.2 * z,
    "x 4": lambda z: 4.0 * z,
    "shifted": lambda z: 0.5 * z - 7.0,
    "tanh": lambda z: np.tanh(z / 12),
    "asinh": np.arcsinh,
}
AFFINE = ("x 0.12", "x 0.2", "x 4", "shifted")


def world(seed: int, *, trace: float) -> tuple[np.ndarray, ...]:
    """Logits of reference models and of one audited model that was trained on the first half; (M, N, K), (N, K), keep, labels."""
    rng = np.random.default_rng(seed)
    num = EXAMPLES + POINTS
    labels = rng.integers(0, CLASSES, num)
    keep = np.zeros((MODELS, num), dtype=bool)
    keep[:, :EXAMPLES] = rng.random((MODELS, EXAMPLES)).argsort(axis=0) < MODELS // 2
    own = rng.normal(4, 3, num)

    def logits(member: np.ndarray) -> np.ndarray:
        z = rng.normal(0, 1, (*member.shape, CLASSES))
        z[..., np.arange(num), labels] += own + trace * member + rng.normal(0, 1, member.shape)
        return z

    audited = np.zeros((1, num), dtype=bool)
    audited[:, : EXAMPLES // 2] = True
    return logits(keep), logits(audited), keep, labels


def evidence(
    audited: np.ndarray, references: np.ndarray, keep: np.ndarray, labels: np.ndarray, *, calibrated: bool
) -> LogitEvidence:
    n = EXAMPLES
    return LogitEvidence(
        example_id=np.arange(n),
        labels=labels[:n],
        target_logits=audited[:, :n],
        reference_logits=references[:, :n],
        keep=keep[:, :n],
        population_labels=labels[n:],
        population_target_logits=audited[:, n:],
        population_reference_logits=references[:, n:],
        calibrated=calibrated,
    )


def area(name: str, found: LogitEvidence) -> float:
    scores = attack.get(name)(found, config=attack.get(name).spec.config(), seed=0)[0]
    return auc(scores[: EXAMPLES // 2], scores[EXAMPLES // 2 :])


@pytest.mark.parametrize("name", ["lira_online", "lira_offline", "rmia_online", "rmia_offline", "entropy"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_affine_map_of_all_outputs_changes_nothing(name: str, seed: int) -> None:
    references, audited, keep, labels = world(seed, trace=3.0)
    before = area(name, evidence(audited, references, keep, labels, calibrated=True))
    for map_name in AFFINE:
        mapped = evidence(MAPS[map_name](audited), references, keep, labels, calibrated=True)
        assert area(name, mapped) == pytest.approx(before, abs=1e-9), map_name


@pytest.mark.parametrize("name", ["lira_online", "rmia_online"])
def test_other_increasing_maps_change_little_and_hide_everything_without_it(name: str) -> None:
    gone, hidden = [], []
    for seed in range(4):
        references, audited, keep, labels = world(seed, trace=3.0)
        before = area(name, evidence(audited, references, keep, labels, calibrated=True))
        assert before > 0.65
        for map_ in MAPS.values():
            gone.append(before - area(name, evidence(map_(audited), references, keep, labels, calibrated=True)))
        hidden.append(before - area(name, evidence(0.12 * audited, references, keep, labels, calibrated=False)))
    assert max(gone) < 0.06, "what is mapped is seen"
    assert name != "lira_online" or np.mean(hidden) > 0.1, "without it, shrinking hides the members"


@pytest.mark.parametrize("name", ["lira_online", "rmia_online", "loss"])
def test_what_was_never_seen_stays_unseen(name: str) -> None:
    areas = []
    for seed in range(12):
        references, audited, keep, labels = world(seed, trace=0.0)
        areas.append(area(name, evidence(audited, references, keep, labels, calibrated=True)))
    assert abs(np.mean(areas) - 0.5) < 0.03


def test_the_population_attack_goes_by_ranks() -> None:
    rng = np.random.default_rng(0)
    forget, unseen = rng.gamma(1, 0.4, 200), rng.gamma(1, 1, 200)
    found = population_umia(forget, unseen, seed=3)
    for map_ in (lambda v: 1e-3 * v, lambda v: v**3, np.log1p, np.sqrt):
        assert population_umia(map_(forget), map_(unseen), seed=3).accuracy == found.accuracy
    assert found.low > 0.55


def test_the_map_increases_and_has_no_scale_to_give_a_constant() -> None:
    rng = np.random.default_rng(1)
    own, reference = rng.exponential(1, 500), rng.normal(3, 2, (7, 500))
    to_scale = to_reference_scale(own, reference)
    x = np.linspace(-5, 30, 1000)
    assert (np.diff(to_scale(x)) > 0).all()
    assert np.quantile(to_scale(own), [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(reference, [0.1, 0.5, 0.9]), abs=0.25
    )
    tied = to_reference_scale(np.minimum(own, 1.0), reference)
    assert (np.diff(tied(x)) > 0).all()
    constant = to_reference_scale(np.ones(50), reference)
    assert isinstance(constant, MonotoneMap) and constant(x) == pytest.approx(x)


def test_what_has_no_scale_is_refused() -> None:
    with pytest.raises(InvalidInput, match="4 values"):
        to_reference_scale(np.zeros(3), np.zeros((2, 3)))
    with pytest.raises(InvalidInput, match="not finite"):
        to_reference_scale(np.array([0.0, np.nan, 1, 2]), np.zeros((2, 4)))
    references, audited, keep, labels = world(0, trace=0.0)
    with pytest.raises(DataError, match="population points"):
        LogitEvidence(
            example_id=np.arange(EXAMPLES),
            labels=labels[:EXAMPLES],
            target_logits=audited[:, :EXAMPLES],
            reference_logits=references[:, :EXAMPLES],
            keep=keep[:, :EXAMPLES],
            calibrated=True,
        )
