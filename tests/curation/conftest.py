"""A small set with owners and shuffled ids, training and test rows mixed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sources.assemble import assemble
from sources.example_set import ExampleSet


@pytest.fixture(scope="session")
def data() -> ExampleSet:
    """80 examples of 4 classes, 60 of them for training; owner "ann" has ids of both splits; ids are not positions."""
    rng = np.random.default_rng(11)
    examples = assemble(
        rng.normal(size=(80, 3)).astype(np.float32),
        (np.arange(80) % 4).astype(np.int64),
        name="small",
        task="classification",
        class_names=("ant", "bee", "cat", "dog"),
        seed=2,
        test_fraction=0.25,
        example_id=rng.permutation(500)[:80],
        owner=np.array(["ann", "bob", "", "cy", "ann"] * 16),
        provenance={},
    )
    return examples.validate()


@pytest.fixture(scope="session")
def regression(data) -> ExampleSet:
    return dataclasses.replace(data, task="regression", class_names=(), y=data.y * 0.5).validate()
