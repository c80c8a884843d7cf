"""Planted harm is where the truth says, as much as was asked for, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.errors import ConfigError, NotApplicable
from contracts.methods import maker
from contracts.progress import silent
from curation.planted import TRUTH, PlantedConfig
from palimpsest.testing.worlds import class_examples, images
from sources.example_set import ExampleSet
from sources.made import Made

KINDS = ("symmetric", "asymmetric", "swap", "confusion", "trigger")


def plant(data: ExampleSet, seed: int = 0, **config: object) -> Made:
    return maker.get("planted")(data, config=PlantedConfig.from_mapping(config), seed=seed, progress=silent)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_names_every_change_and_no_other(kind: str) -> None:
    train = images().train.by_id()
    made = plant(train, manipulation=kind, share=0.3)
    truth = made.tables[TRUTH.name]
    touched = truth["manipulated"].to_numpy()
    same_image = made.examples.content_hash == train.content_hash
    assert touched.sum() == 16 and (made.examples.y[~touched] == train.y[~touched]).all() and same_image[~touched].all()
    assert truth["true_label"].to_list() == train.y.tolist() and truth["label"].to_list() == made.examples.y.tolist()
    changed = made.examples.y != train.y
    if kind in ("symmetric", "asymmetric", "confusion"):
        assert (changed == touched).all(), "every one of them has a wrong label"
    if kind == "asymmetric":
        assert (made.examples.y[touched] == (train.y[touched] + 1) % 3).all()
    if kind == "trigger":
        assert (made.examples.y[touched] == 0).all() and not same_image[touched].any()
        assert (made.examples.x[touched][:, :, -3:, -3:] == train.x.max()).all()
    else:
        assert same_image.all()


def test_symmetric_flips_go_to_every_other_class_alike() -> None:
    train = class_examples(1500).part("train")
    made = plant(train, share=1.0)
    step = (made.examples.y - train.by_id().y) % 3
    assert set(step) == {1, 2} and abs((step == 1).mean() - 0.5) < 0.06


def test_it_is_drawn_by_ids_and_seed() -> None:
    train = class_examples().part("train")
    first = plant(train)
    assert first.examples.digest == plant(train.subset(train.example_id[::-1])).examples.digest
    assert first.examples.digest != plant(train, seed=1).examples.digest
    few, many = (plant(train, share=s).tables[TRUTH.name]["manipulated"] for s in (0.1, 0.4))
    assert (few & many).sum() == few.sum(), "nested: more harm holds the less"
    assert np.array_equal(first.examples.inputs(slice(None)), train.by_id().inputs(slice(None)))


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(NotApplicable, match="a trigger is a patch"):
        plant(class_examples().part("train"), manipulation="trigger")
    with pytest.raises(ConfigError, match="two different classes"):
        plant(class_examples().part("train"), classes=[1, 1])
    with pytest.raises(ConfigError, match=r"outside 1\.\."):
        plant(class_examples().part("train"), share=0.001)
