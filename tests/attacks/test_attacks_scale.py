"""No increasing map of all outputs changes what an attack sees, and retrained models stay what they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from planted_logits import LogitEvidence

from attacks.membership import Evidence
from attacks.membership.population_umia import population_umia
from attacks.membership.scale import MonotoneMap, to_reference_scale
from contracts.errors import DataError, InvalidInput, NotApplicable
from contracts.methods import attack
from recipes.ensemble import ReferenceEnsemble
from stats import auc
from tasks.base import Reading, Task, named

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
    """Logits of reference models and of one audited model that was trained on the first half; (M, N, K), (N, K), keep,
    labels."""
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


# --- tasks whose answers are no class logits ----------------------------------------------------------------------


class Bare(Task):
    """Four numbers of which none is a function of another."""

    spec = named("regression").spec


def errors(seed: int, *, trace: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signals -sqrt|r| of reference models and of an audited one that was trained on the first half of the
    candidates."""
    rng = np.random.default_rng(seed)
    num = EXAMPLES + POINTS
    keep = np.zeros((MODELS, num), dtype=bool)
    keep[:, :EXAMPLES] = rng.random((MODELS, EXAMPLES)).argsort(axis=0) < MODELS // 2
    own = rng.normal(0, 1, num)

    def signal(member: np.ndarray) -> np.ndarray:
        return -np.sqrt(np.abs(own + 0.4 * rng.normal(size=member.shape)) * np.exp(-trace * member))

    audited = np.zeros((1, num), dtype=bool)
    audited[:, : EXAMPLES // 2] = True
    return signal(keep), signal(audited), keep


def read_by(signal: np.ndarray) -> np.ndarray:
    loss, log_likelihood = named("regression").of_signal(signal)
    return Reading.of(loss=loss, signal=signal, log_likelihood=log_likelihood, quality=np.exp(-loss)).values


def of_numbers(audited: np.ndarray, references: np.ndarray, keep: np.ndarray, task: Task, **more: bool) -> Evidence:
    num = keep.shape[1]
    ensemble = ReferenceEnsemble(
        example_id=np.arange(num),
        pool=np.arange(num) < EXAMPLES,
        labels=np.zeros(num),
        keep=keep,
        reading=references,
        config_digest="planted",
    )
    return Evidence.of_ensemble(ensemble, audited, task=task, **more)


NUMBERS = ["loss", "population", "reference", "lira_online", "lira_offline", "rmia_online", "rmia_offline"]


@pytest.mark.parametrize("name", NUMBERS)
def test_of_numbers_an_increasing_map_of_all_signals_changes_nothing(name: str) -> None:
    """All errors of a model larger or smaller by one factor, which is an affine map of -sqrt|r|; loss and likelihood
    follow."""
    references, audited, keep = errors(0, trace=2.0)
    task = named("regression")
    before = area(name, of_numbers(read_by(audited), read_by(references), keep, task, calibrated=True))
    assert before > 0.7
    for factor in (0.01, 0.3, 7.0):
        mapped = of_numbers(read_by(np.sqrt(factor) * audited), read_by(references), keep, task, calibrated=True)
        assert area(name, mapped) == pytest.approx(before, abs=1e-9)
    if name in ("lira_online", "reference"):  # of ten times larger errors a member is no member
        plain = of_numbers(read_by(np.sqrt(10) * audited), read_by(references), keep, task)
        assert area(name, plain) < before - 0.02


@pytest.mark.parametrize("name", NUMBERS)
def test_where_the_numbers_are_no_function_of_the_signal_each_has_its_own_map(name: str) -> None:
    references, audited, keep = errors(1, trace=2.0)
    before = area(name, of_numbers(read_by(audited), read_by(references), keep, Bare(), calibrated=True))
    assert before > 0.7
    stretched = read_by(audited) * [3.0, 0.2, 5.0, 1.0] + [1.0, -2.0, -40.0, 0.0]
    mapped = of_numbers(stretched, read_by(references), keep, Bare(), calibrated=True)
    assert area(name, mapped) == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("name", ["rmia_online", "loss"])
def test_their_own_maps_are_that_of_the_signal_seen_through_the_task(name: str) -> None:
    """Q_h o F_h = h o Q o F o h^-1: the two ways differ by the interpolation between quantiles alone."""
    references, audited, keep = errors(2, trace=2.0)
    audited = np.sqrt(0.5) * audited
    ways = [
        of_numbers(read_by(audited), read_by(references), keep, task, calibrated=True)
        for task in (named("regression"), Bare())
    ]
    assert area(name, ways[0]) == pytest.approx(area(name, ways[1]), abs=0.02)
    for column in (0, 2):
        here, there = (np.exp(-np.abs(way.target[0, :, column])) for way in ways)
        assert np.abs(here - there).mean() < 0.02


def test_no_reading_of_the_reference_models_is_moved() -> None:
    references, audited, keep = errors(3, trace=1.0)
    found = of_numbers(read_by(audited), read_by(references), keep, named("regression"), calibrated=True)
    np.testing.assert_array_equal(found.reference, read_by(references)[:, :EXAMPLES])
    np.testing.assert_array_equal(found.population_reference, read_by(references)[:, EXAMPLES:])
    np.testing.assert_array_equal(found.target[..., 3], read_by(audited)[:, :EXAMPLES, 3])


def test_a_sample_of_the_outputs_and_readings_are_all_that_is_needed() -> None:
    """From an ensemble that kept no outputs the same evidence, bit for bit, as from all of them."""
    references, audited, keep, labels = (a.astype(np.float32) if a.dtype == float else a for a in world(4, trace=2.0))
    whole = evidence(audited, references, keep, labels, calibrated=True)
    ensemble = ReferenceEnsemble.of_logits(
        example_id=np.arange(len(labels)),
        pool=np.arange(len(labels)) < EXAMPLES,
        labels=labels,
        keep=keep,
        logits=references,
        config_digest="planted",
    )
    task = named("classification")
    reading = task.reading_of(audited, labels, {}).values
    light = Evidence.of_ensemble(
        dataclasses.replace(ensemble, logits=None), reading, audited, task=task, calibrated=True
    )
    for name in ("target", "reference", "population_target", "population_reference"):
        np.testing.assert_array_equal(getattr(light, name), getattr(whole, name))
    for name in NUMBERS:
        assert area(name, light) == area(name, whole)
    with pytest.raises(NotApplicable, match="were not kept"):
        area(
            "shadow_model",
            Evidence.of_ensemble(dataclasses.replace(ensemble, logits=None), reading, audited, task=task, outputs=True),
        )


def test_evidence_on_a_thousand_classes_is_fifty_times_smaller_than_the_logits_behind_it() -> None:
    rng = np.random.default_rng(0)
    models, num, classes = 16, 60, 1000
    keep = np.zeros((models, num), bool)
    keep[:, :40] = rng.random((models, 40)).argsort(axis=0) < models // 2
    labels = rng.integers(classes, size=num)
    logits = rng.normal(size=(models + 1, num, classes)).astype(np.float32)
    ensemble = ReferenceEnsemble.of_logits(
        example_id=np.arange(num),
        pool=np.arange(num) < 40,
        labels=labels,
        keep=keep,
        logits=logits[1:],
        config_digest="planted",
    )
    stored = dataclasses.replace(ensemble, logits=None)
    task = named("classification")
    own = task.reading_of(logits[:1], labels, {}).values
    audit = Evidence.of_ensemble(stored, own, logits[:1], task=task, calibrated=True)
    exposure = Evidence.of_ensemble(stored, stored.reading, task=task, target_index=np.arange(models))
    assert audit.nbytes * 50 < logits.nbytes and exposure.nbytes * 100 < logits[1:].nbytes
    kept = Evidence.of_ensemble(ensemble, own, logits[:1], task=task, calibrated=True, outputs=True)
    assert kept.nbytes > logits[:, :40].nbytes
