"""What one model's outputs say: against a naive loop, and against the scores that read more models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from contracts.errors import DataError, NotApplicable
from contracts.params import Config
from recipes.ensemble import ReferenceEnsemble
from scoring.label_quality import label_quality, output_label_quality
from scoring.output_error import output_error
from sources.assemble import assemble

NUM, CLASSES = 120, 4


@pytest.fixture
def world():
    """Examples, and logits that are sure, wrong, saturated and undecided."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, NUM)
    logits = rng.normal(0, 2, (NUM, CLASSES)).astype(np.float32)
    logits[np.arange(NUM), y] += 2
    logits[0] = 0
    logits[1] = -40
    logits[1, y[1]] = 40
    data = assemble(
        rng.normal(size=(NUM, 3)).astype(np.float32),
        y,
        name="said",
        task="classification",
        class_names=[f"c{k}" for k in range(CLASSES)],
        seed=0,
        test_fraction=0.25,
        provenance={},
    )
    return data, logits


def lookup(data, logits):
    return lambda part: logits[data.positions(part.example_id)]


def test_the_error_is_the_norm_of_a_loop(world):
    data, logits = world
    part = data.take(np.random.default_rng(1).permutation(NUM)[:70])
    frame = output_error(part, config=Config(), seed=0, outputs=lookup(data, logits))
    for row, i in zip(frame.iter_rows(named=True), data.positions(part.example_id), strict=True):
        p, k = softmax(logits[i].astype(np.float64)), int(data.y[i])
        wrong = p - np.eye(CLASSES)[k]
        assert row["example_id"] == data.example_id[i] and row["predicted"] == logits[i].argmax()
        assert row["error"] == pytest.approx(np.sqrt(np.square(wrong).sum()), abs=1e-12)
        assert row["error_l1"] == pytest.approx(np.abs(wrong).sum(), abs=1e-12)
        assert row["loss"] == pytest.approx(-log_softmax(logits[i].astype(np.float64))[k], abs=1e-9)
        assert row["margin_max"] == pytest.approx(np.delete(p, k).max() - p[k], abs=1e-12)


def test_label_quality_is_that_of_the_model_that_did_not_train_on_the_example(world):
    """Two models, every example in one of them: the other's outputs, as one table, give cleanlab the same to judge."""
    data, logits = world
    keep = np.zeros((2, NUM), bool)
    keep[0, ::2] = keep[1, 1::2] = True
    other = np.random.default_rng(3).normal(0, 2, (NUM, CLASSES)).astype(np.float32)
    models = np.where(keep[:, :, None], other, logits)
    ensemble = ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.ones(NUM, bool),
        labels=data.y,
        keep=keep,
        logits=models.astype(np.float32),
        config_digest="",
    )
    by_ensemble = label_quality(data, config=Config(), seed=0, ensemble_outputs=ensemble)
    by_outputs = output_label_quality(data, config=Config(), seed=0, outputs=lookup(data, logits))
    assert by_ensemble.drop("n_out").equals(by_outputs) and by_outputs["is_issue"].any()


@pytest.mark.parametrize("score", [output_error, output_label_quality])
def test_what_is_no_output_of_these_examples_is_refused(world, score):
    data, logits = world
    broken = logits.copy()
    broken[7, 1] = np.nan
    with pytest.raises(DataError, match="not finite") as error:
        score(data, config=Config(), seed=0, outputs=lookup(data, broken))
    assert error.value.example_ids == (int(data.example_id[7]),)
    with pytest.raises(DataError, match="shape"):
        score(data, config=Config(), seed=0, outputs=lookup(data, logits[:, :2]))
    target = dataclasses.replace(data, task="regression", y=data.y.astype(np.float64), class_names=())
    with pytest.raises(NotApplicable):
        score(target, config=Config(), seed=0, outputs=lookup(data, logits))
