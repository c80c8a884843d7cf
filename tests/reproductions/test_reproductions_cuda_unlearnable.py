"""The invariants that the reproduction claims hold for the maker, and for none that is wrong in one of them."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from palimpsest.testing.worlds import class_examples
from reproductions import cuda_unlearnable as claims
from sources.example_set import ExampleSet
from sources.made import Made


@pytest.fixture(scope="module")
def pictures() -> ExampleSet:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (900, 1, 9, 9), dtype=np.uint8)
    return dataclasses.replace(
        class_examples(900),
        x=x,
        y=rng.integers(0, 10, 900),
        class_names=tuple("abcdefghij"),
        center=np.zeros((1, 1, 1), np.float32),
        scale=np.full((1, 1, 1), 1 / 255, np.float32),
        feature_names=(),
        content_hash=np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in x]),
    ).validate()


def failed(train: ExampleSet) -> set[str]:
    return {claim.name.partition(". ")[2].partition(":")[0] for claim in claims._maker(train, 3) if not claim.passed}


def test_the_maker_meets_them(pictures: ExampleSet) -> None:
    assert failed(pictures.part("train").by_id()) == set()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: np.roll(x, 2, axis=3), {"p_b = 0", "half protected"}),
        (lambda x: x // 2, {"images whose maximum is not 255", "p_b = 0", "half protected"}),
        (lambda x: np.maximum(x, 1), {"pixels of a black image that are not black", "p_b = 0", "half protected"}),
    ],
    ids=["wraps around", "is not rescaled", "lights up black"],
)
def test_a_maker_that_is_wrong_does_not(pictures: ExampleSet, wrong, says, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    right = claims._protected

    def made(train: ExampleSet, seed: int, **config: object) -> Made:
        found = right(train, seed, **config)  # type: ignore[arg-type]
        return dataclasses.replace(
            found, examples=dataclasses.replace(found.examples, x=wrong(np.asarray(found.examples.x)))
        )

    monkeypatch.setattr(claims, "_protected", made)
    assert failed(pictures.part("train").by_id()) == says


@pytest.mark.parametrize("seed", [0, 5])
def test_the_theory_holds(seed: int) -> None:
    assert all(claim.passed for claim in claims._theory(seed))
