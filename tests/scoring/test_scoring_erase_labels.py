"""ERASE labels: against its steps by hand, and planted wrong labels of WordNet-like nodes are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_data import make_nodes, network
from sklearn.metrics import roc_auc_score

from recipes.graph.erase import PropagationConfig
from recipes.graph.label_propagation import Propagator, corrected_labels, denoise_labels, semantic_labels
from recipes.graph.training import NodeTrainingConfig, node_classifier
from scoring.erase_labels import erase_labels
from sources.planted_poison import label_noise


@pytest.fixture(scope="module")
def noisy():
    examples, changed = label_noise(make_nodes(240), rate=0.25, kind="symmetric", seed=3)
    train = examples.part("train")
    model = node_classifier(network(hidden=16, dim=16), train, config=NodeTrainingConfig(epochs=40), seed=0)
    return train, changed, model


def test_the_columns_are_the_steps_by_hand(noisy):
    train, _, model = noisy
    config = PropagationConfig(keep=0.5, trust=0.7, steps=3, normalization="sym")
    found = erase_labels(train, config=config, seed=0, model=model)
    x, edges = torch.from_numpy(train.x.features), train.x.edge_index
    with torch.no_grad():
        z = model.eval().embed(x, torch.from_numpy(edges)).double().numpy()
    among, num = train.x.members, len(x)
    given = {"steps": 3, "keep": 0.5, "normalization": "sym"}
    denoised = denoise_labels(train.y, among, Propagator.of(edges, num, **given, among=among), num_classes=3)
    q = corrected_labels(denoised, semantic_labels(z, denoised, among), Propagator.of(edges, num, **given), trust=0.7)
    for row in range(len(train)):
        own = q[among[row]] / q[among[row]].sum()
        best = np.sort(own)
        assert found["denoised_label"][row] == own.argmax() and found["flagged"][row] == (own.argmax() != train.y[row])
        assert found["confidence"][row] == pytest.approx(best[-1])
        assert found["margin"][row] == pytest.approx(best[-1] - best[-2])
        assert found["excess"][row] == pytest.approx(best[-1] - own[train.y[row]])


def test_planted_wrong_labels_are_found(noisy):
    """Far better than by chance, and corrected labels are right more often than those that were given."""
    train, changed, model = noisy
    wrong = np.isin(train.example_id, changed)
    truth = make_nodes(240).subset(train.example_id).y
    found = erase_labels(train, config=PropagationConfig(steps=2), seed=0, model=model)
    assert roc_auc_score(wrong, found["excess"]) > 0.85
    assert (found["denoised_label"].to_numpy() == truth).mean() > (~wrong).mean() + 0.05
    told = erase_labels(train, config=PropagationConfig(keep=1.0, trust=1.0), seed=0, model=model)
    assert not told["flagged"].any()  # nothing moves a label then


def test_a_model_means_nothing_where_the_given_labels_are_trusted_alone(noisy):
    train, _, model = noisy
    both = [
        erase_labels(train, config=PropagationConfig(trust=1.0), seed=0, model=one)
        for one in (model, network(hidden=16, dim=16)(5))
    ]
    assert both[0].equals(both[1])
    other = erase_labels(train, config=PropagationConfig(), seed=0, model=network(hidden=16, dim=16)(5))
    assert not other.equals(erase_labels(train, config=PropagationConfig(), seed=0, model=model))
