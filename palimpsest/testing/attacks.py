"""What a membership attack does with evidence: in any order, with as many reference models as it says, odd or
hostile."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from attacks.membership import Evidence
from contracts.errors import InvalidInput, PalimpsestError
from contracts.registry import Method
from palimpsest.testing.conform import check_output, claim, outcome
from palimpsest.testing.world import World


def of_candidates(evidence: Evidence, rows: np.ndarray) -> Evidence:
    """The evidence about these candidates (positions), in this order."""
    by_model = ("target", "reference", "keep", "target_signals", "reference_signals")
    some: dict[str, Any] = {n: None if (v := getattr(evidence, n)) is None else v[:, rows] for n in by_model}
    whole = evidence.whole
    if whole is not None:
        theirs = None if whole.reference is None else whole.reference[:, rows]
        whole = dataclasses.replace(whole, labels=whole.labels[rows], target=whole.target[:, rows], reference=theirs)
    some["base"] = None if evidence.base is None else evidence.base[rows]
    some["tokens"] = None if evidence.tokens is None else evidence.tokens.take(rows)
    return dataclasses.replace(evidence, example_id=evidence.example_id[rows], whole=whole, **some)


def with_references(evidence: Evidence, num: int) -> Evidence:
    """The evidence with the first ``num`` reference models alone."""
    names = ("reference", "keep", "population_reference", "reference_signals")
    first: dict[str, Any] = {n: None if not num or (v := getattr(evidence, n)) is None else v[:num] for n in names}
    whole = evidence.whole
    if whole is not None:
        theirs = None if not num or whole.reference is None else whole.reference[:num]
        whole = dataclasses.replace(whole, reference=theirs)
    return dataclasses.replace(evidence, target_index=None, whole=whole, **first)


def any_order(world: World, method: Method[Any]) -> None:
    """The order of the candidates permutes the scores."""
    rows = np.random.default_rng(6).permutation(len(world.evidence.example_id))
    first, second = (world.run(method, evidence=e) for e in (world.evidence, of_candidates(world.evidence, rows)))
    np.testing.assert_allclose(second, first[:, rows], rtol=1e-6, atol=1e-9)


def own_row(world: World, method: Method[Any]) -> None:
    """The first target is reference 0: what the references say of model 0 must not reach its scores."""
    keep = world.evidence.keep
    if keep is None:
        return
    turned = np.concatenate([~keep[:1], keep[1:]])
    other = dataclasses.replace(world.evidence, keep=turned)
    first, second = (world.run(method, evidence=e)[0] for e in (world.evidence, other))
    claim(np.allclose(first, second, rtol=1e-9, atol=1e-9, equal_nan=True), "a target is judged by its own row")


def references(world: World, method: Method[Any]) -> None:
    """It works with the fewest reference models that it declares, and refuses fewer."""
    fewest = method.spec.references
    check_output(method, world.run(method, evidence=with_references(world.evidence, fewest)), world.train)
    if not fewest:
        return
    try:
        world.run(method, evidence=with_references(world.evidence, fewest - 1))
    except InvalidInput as error:
        claim("reference" in str(error), f"the refusal of {fewest - 1} models does not speak of references: {error}")
    else:
        raise AssertionError(f"it declares {fewest} reference models at least, and worked with {fewest - 1}")


def odd_evidence(world: World, method: Method[Any]) -> None:
    """A typed error or a sound output: where all answers are equal, of one example, of huge answers, of one class."""
    evidence = world.evidence
    zeros = {
        n: np.zeros_like(v)
        for n in ("target", "reference", "population_target", "population_reference")
        if (v := getattr(evidence, n)) is not None
    }
    large = evidence.target * np.array([1e6, 1e6, 1e6, 1.0])
    cases = {
        "all answers equal": dataclasses.replace(evidence, **zeros, **_changed(evidence, 0.0)),
        "one example": of_candidates(evidence, np.array([0])),
        "huge answers": dataclasses.replace(evidence, target=large, **_changed(evidence, 1e6)),
    }
    if evidence.whole is not None:
        labels = dataclasses.replace(evidence.whole, labels=np.zeros_like(evidence.whole.labels))
        cases["one class"] = dataclasses.replace(evidence, whole=labels)
    for case in cases.values():
        out = outcome(lambda case=case: world.run(method, evidence=case))  # type: ignore[misc]
        if not isinstance(out, PalimpsestError):
            check_output(method, out, world.train)
            claim(out.shape == case.target.shape[:2], f"scores {out.shape}, not {case.target.shape[:2]}")


def _changed(evidence: Evidence, factor: float) -> dict[str, Any]:
    """Whole outputs and token readings of the audited models, times ``factor``, where there are any."""
    found = {}
    for name in ("whole", "tokens"):
        part: Any = getattr(evidence, name)
        found[name] = part and dataclasses.replace(part, target=part.target * np.float32(factor))
    return found
