"""LogitEvidence refuses what does not fit, naming the examples, and the registered attacks share one contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted_logits import LogitEvidence

from contracts.errors import DataError, InvalidInput
from contracts.methods import attack

ATTACKS = (
    "entropy",
    "gap",
    "lira_offline",
    "lira_online",
    "loss",
    "modified_entropy",
    "modified_entropy_per_class",
    "population",
    "reference",
    "rmia_offline",
    "rmia_online",
    "shadow_model",
)


def fields(evidence: LogitEvidence, **changed: Any) -> dict[str, Any]:
    return {f: getattr(evidence, f) for f in evidence.__dataclass_fields__} | changed


def with_nan(values: np.ndarray, *at: int) -> np.ndarray:
    values = values.copy()
    values[at] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"example_id": np.zeros(30, dtype=int)}, "distinct"),
        (lambda e: {"labels": np.full(30, 9)}, r"labels outside \[0, 4\) \(example ids: 100, 101"),
        (lambda e: {"target_logits": with_nan(e.target_logits, 2, 5, 0)}, r"not finite \(example ids: 105\)"),
        (lambda e: {"reference_logits": with_nan(e.reference_logits, 0, 7, 1)}, r"not finite \(example ids: 107\)"),
        (lambda e: {"target_logits": e.target_logits[:, :-1]}, "target_logits has shape"),
        (lambda e: {"target_logits": e.target_logits[:, :, :1]}, "classes >= 2"),
        (lambda e: {"target_logits": e.target_logits.astype(int)}, "floating point"),
        (lambda e: {"keep": None}, "come together"),
        (lambda e: {"keep": e.keep.astype(int)}, "keep must be bool"),
        (lambda e: {"keep": e.keep[:, :-1]}, "keep must be bool"),
        (lambda e: {"population_labels": None}, "come together"),
        (lambda e: {"population_target_logits": e.population_target_logits[:-1]}, "has 11 models, not 12"),
        (lambda e: {"population_reference_logits": e.population_reference_logits[:-1]}, "has 11 models, not 12"),
        (lambda e: {"target_index": np.full(12, 12)}, "target_index"),
        (lambda e: {"target_index": np.zeros(3, dtype=int)}, "target_index"),
    ],
)
def test_what_does_not_fit_is_refused(planted, change, message: str) -> None:
    evidence = planted(0)
    with pytest.raises(DataError, match=message):
        LogitEvidence(**fields(evidence, **change(evidence)))


def test_the_built_in_attacks_are_registered() -> None:
    assert set(ATTACKS) <= set(attack.names())


@pytest.mark.parametrize("name", ATTACKS)
def test_scores_have_the_contract_shape_find_members_and_repeat(planted, name: str) -> None:
    method = attack.get(name)
    evidence = planted(3, models=16, examples=400, points=300, gain=4.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must be left alone
    scores, again = (method(evidence, config=method.spec.config(), seed=4) for _ in range(2))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert scores.shape == (16, 400) and scores.dtype == np.float64
    assert np.array_equal(scores, again, equal_nan=True)
    member = evidence.keep
    assert np.nanmean(scores[member]) > np.nanmean(scores[~member])


@pytest.mark.parametrize("name", ATTACKS)
def test_scores_follow_the_examples_when_these_are_reordered(planted, name: str) -> None:
    """An attack that looked at positions would fail here; seeds of attacks that draw rows are exempt by tolerance."""
    method = attack.get(name)
    config = method.spec.config(a=0.5) if name == "rmia_offline" else method.spec.config()
    evidence = planted(5, models=8, examples=40)
    order = np.random.default_rng(0).permutation(40)
    moved = LogitEvidence(
        **fields(
            evidence,
            example_id=evidence.example_id[order],
            labels=evidence.labels[order],
            target_logits=evidence.target_logits[:, order],
            reference_logits=evidence.reference_logits[:, order],
            keep=evidence.keep[:, order],
        )
    )
    here, there = method(evidence, config=config, seed=1), method(moved, config=config, seed=1)
    np.testing.assert_allclose(here[:, order], there, rtol=1e-3 if name == "shadow_model" else 1e-9)


@pytest.mark.parametrize(
    "name", [n for n in ATTACKS if n not in ("loss", "entropy", "modified_entropy", "gap", "population")]
)
def test_references_are_required_by_number(planted, name: str) -> None:
    method = attack.get(name)
    evidence = planted(0)
    alone = LogitEvidence(
        **fields(evidence, reference_logits=None, keep=None, target_index=None, population_reference_logits=None)
    )
    assert method.spec.references >= 1
    with pytest.raises(InvalidInput, match=f"at least {method.spec.references} reference models"):
        method(alone, config=method.spec.config(), seed=0)


@pytest.mark.parametrize(
    "name", [n for n in ATTACKS if n in ("loss", "entropy", "modified_entropy", "gap", "population")]
)
def test_attacks_without_references_declare_none(planted, name: str) -> None:
    method = attack.get(name)
    evidence = planted(0)
    alone = LogitEvidence(
        **fields(evidence, reference_logits=None, keep=None, target_index=None, population_reference_logits=None)
    )
    assert method.spec.references == 0
    assert np.isfinite(method(alone, config=method.spec.config(), seed=0)).all()
