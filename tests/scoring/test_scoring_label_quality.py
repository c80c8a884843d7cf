"""Label quality: the comparator agrees with cleanlab called by hand, on predictions made by hand."""

from __future__ import annotations

import dataclasses

import cleanlab
import numpy as np
import polars as pl
import pytest
from scoring_data import make_examples
from sklearn.metrics import roc_auc_score

from contracts.errors import DataError, NotApplicable
from contracts.params import Config
from recipes.design import balanced_design
from recipes.ensemble import ReferenceEnsemble
from scoring.label_quality import label_quality


@pytest.fixture
def noisy():
    """300 examples of 3 classes, 30 labels changed, 8 models that know the true class; 20 population examples."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 320)
    label = true.copy()
    label[:30] = (true[:30] + rng.integers(1, 3, 30)) % 3
    data = make_examples(
        rng.normal(size=(320, 2)).astype(np.float32), label, num_classes=3, ids=rng.permutation(5000)[:320]
    )
    keep = np.zeros((8, 320), bool)
    keep[:, :300] = balanced_design(8, 300, seed=1)
    logits = rng.normal(size=(8, 320, 3)) + 3.0 * np.eye(3)[true]
    logits[keep] = 9.0 * np.eye(3)[np.broadcast_to(label, keep.shape)[keep]]  # a model repeats what it was trained on
    ensemble = ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.arange(320) < 300,
        labels=data.y,
        keep=keep,
        logits=logits.astype(np.float32),
        config_digest="0" * 64,
    )
    return data, ensemble


def run(data, ensemble) -> pl.DataFrame:
    return label_quality(data, config=Config(), seed=0, ensemble_outputs=ensemble)


def test_against_cleanlab_by_hand(noisy) -> None:
    data, ensemble = noisy
    found = run(data, ensemble)
    assert found["example_id"].to_list() == sorted(data.example_id[:300].tolist()), "population examples are not scored"
    rows = data.positions(found["example_id"].to_numpy())
    p = np.empty((300, 3))
    for to, i in enumerate(rows):
        z = ensemble.logits[~ensemble.keep[:, i], i].astype(np.float64)
        p[to] = (np.exp(z) / np.exp(z).sum(1, keepdims=True)).mean(0)
    y = data.y[rows]
    quality = cleanlab.rank.get_label_quality_scores(y, p)
    np.testing.assert_allclose(found["label_noise"], 1 - quality, atol=1e-12)
    np.testing.assert_allclose(found["label_noise"], 1 - p[np.arange(300), y], atol=1e-12)
    others = np.where(np.eye(3, dtype=bool)[y], -1, p).max(1)
    np.testing.assert_allclose(found["margin_noise"], (1 - p[np.arange(300), y] + others) / 2, atol=1e-12)
    assert (
        found["is_issue"].to_list()
        == cleanlab.filter.find_label_issues(y, p, n_jobs=1, filter_by="low_self_confidence").tolist()
    )
    assert found["suggested_label"].to_list() == p.argmax(1).tolist() and set(found["n_out"]) == {4}


def test_planted_noise_is_found_only_out_of_sample(noisy) -> None:
    data, ensemble = noisy
    found = run(data, ensemble)
    planted = found["example_id"].is_in(data.example_id[:30].tolist()).to_numpy()
    assert roc_auc_score(planted, found["label_noise"]) > 0.98
    issue = found["is_issue"].to_numpy()
    assert issue[planted].mean() > 0.8 and issue[~planted].mean() < 0.02


def test_the_order_of_the_rows_does_not_matter(noisy) -> None:
    data, ensemble = noisy
    assert run(data.subset(np.random.default_rng(3).permutation(data.example_id)), ensemble).equals(run(data, ensemble))


def test_a_class_without_examples_and_one_class_alone(noisy) -> None:
    data, ensemble = noisy
    for present in ([0, 2], [1]):
        some = data.subset(data.example_id[:300][np.isin(data.y[:300], present)])
        found = run(some, ensemble)
        assert len(found) == len(some) and found["label_noise"].is_between(0, 1).all()
        if present == [1]:
            assert not found["is_issue"].any()
    assert run(data.subset([]), ensemble).schema == run(data, ensemble).schema


def test_refusals(noisy) -> None:
    data, ensemble = noisy
    regression = dataclasses.replace(data, task="regression", y=data.y.astype(float), class_names=())
    with pytest.raises(NotApplicable, match="regression"):
        run(regression, ensemble)
    other = data.y.copy()
    other[7] = (other[7] + 1) % 3
    with pytest.raises(DataError, match="labels differ") as error:
        run(dataclasses.replace(data, y=other), ensemble)
    assert error.value.example_ids == (data.example_id[7],)
    logits = ensemble.logits.copy()
    logits[0, 5, 1] = np.inf
    with pytest.raises(DataError, match="NaN") as error:
        run(data, dataclasses.replace(ensemble, logits=logits))
    assert error.value.example_ids == (data.example_id[5],)
