"""Coding rates of a graph network: against explicit eigenvalues, on embeddings whose rates are known, and by labels
that are wrong on purpose."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch
from graph_data import make_nodes, network
from torch import Tensor, nn

from contracts.errors import DataError, NotApplicable
from recipes.graph.erase import EraseConfig, erase
from recipes.graph.networks import GraphNetwork
from recipes.predict import eval_mode
from scoring.erase_labels import erase_labels
from sources.example_set import ExampleSet
from studies.coding_rates import CodingRatesConfig, coding_rates

CONFIG = CodingRatesConfig(eps=0.1)


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_nodes(96)


@pytest.fixture(scope="module")
def model(data: ExampleSet) -> nn.Module:
    config = EraseConfig(epochs=30, lr=0.01, eps=CONFIG.eps)
    return erase(network(rows="l1", dropout=0.0), data.part("train"), config=config, seed=0)


def tables(data: ExampleSet, model: nn.Module, config: CodingRatesConfig = CONFIG) -> tuple[pl.DataFrame, pl.DataFrame]:
    found = coding_rates(data, config=config, seed=0, model=model)
    return found["coding_rate_summary"], found["coding_rates"]


def own_embedding(model: nn.Module, data: ExampleSet) -> np.ndarray:
    assert isinstance(model, GraphNetwork)
    graph = data.x
    with eval_mode(model), torch.no_grad():
        inputs = data.inputs(np.arange(len(data)))
        z = model.embed(torch.from_numpy(inputs["x"]).float(), torch.from_numpy(inputs["edge_index"]))
    assert len(z) == len(graph.features)
    return z.double().numpy()


def rate(z: np.ndarray, eps: float) -> float:
    """By eigenvalues of the (n, n) matrix, one row after another."""
    gram = np.array([[float(a @ b) for b in z] for a in z])
    values = np.linalg.eigvalsh(np.eye(len(z)) + z.shape[1] / (len(z) * eps) * gram)
    return 0.5 * sum(math.log(v) for v in values)


def test_rates_are_their_definition(data: ExampleSet, model: nn.Module) -> None:
    summary, classes = tables(data, model)
    train = data.part("train")
    z = own_embedding(model, data)[train.x.nodes]
    told = erase_labels(train, config=CONFIG, seed=0, model=model)
    labels = {"given": train.y, "corrected": told["denoised_label"].to_numpy()}
    for row in summary.iter_rows(named=True):
        own = labels[row["labels"]]
        parts = {c: rate(z[own == c], CONFIG.eps) for c in np.unique(own)}
        apart = sum((own == c).mean() * value for c, value in parts.items())
        assert row["rate"] == pytest.approx(rate(z, CONFIG.eps), rel=1e-6)
        assert row["class_rate"] == pytest.approx(apart, rel=1e-6)
        assert row["delta"] == pytest.approx(row["rate"] - row["class_rate"], abs=1e-12) and row["delta"] >= -1e-6
        assert row["changed"] == pytest.approx((own != train.y).mean())
        of = classes.filter(labels=row["labels"])
        assert of["num_nodes"].to_list() == [int((own == c).sum()) for c in range(3)]
        assert of["part"].sum() == pytest.approx(row["class_rate"], rel=1e-12)
        for c, value in parts.items():
            assert of.filter(label=c)["rate"].item() == pytest.approx(value, rel=1e-6)
    assert summary["rate"].n_unique() == 1


class Placed(nn.Module):
    """A network without an embedding of its own: what enters its last layer is a table, a row a node."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.last = nn.Linear(rows.shape[1], 3)

    def forward(self, x: Tensor, edge_index: Tensor, nodes: Tensor) -> Tensor:
        return self.last(self.rows[nodes])


def of_classes(data: ExampleSet, directions: Tensor) -> Placed:
    """Node of class k at the k-th direction; nodes outside the examples at zero."""
    rows = torch.zeros(len(data.x.features), directions.shape[1])
    rows[data.x.nodes] = directions[data.y]
    return Placed(rows)


def test_orthogonal_classes_and_a_collapse_have_the_rates_of_their_closed_forms(data: ExampleSet) -> None:
    """K orthogonal unit directions: R = 1/2 sum_k log(1 + 3 n_k / (N e)), R_c = 1/2 log(1 + 3 / e), rank 1 a class."""
    train, as_given = data.part("train"), dataclasses.replace(CONFIG, keep=1.0, trust=1.0, steps=0)
    sizes = np.bincount(train.y, minlength=3)
    summary, classes = tables(data, of_classes(data, torch.eye(3)), as_given)
    spread = 0.5 * sum(math.log1p(3 * n / (len(train) * CONFIG.eps)) for n in sizes)
    for row in summary.iter_rows(named=True):  # without propagation, corrected labels are the given ones
        assert row["changed"] == 0 and row["rate"] == pytest.approx(spread, rel=1e-6)
        assert row["class_rate"] == pytest.approx(0.5 * math.log1p(3 / CONFIG.eps), rel=1e-6)
    assert classes["effective_rank"].to_list() == pytest.approx([1.0] * 6)
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    assert summary["effective_rank"][0] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    collapsed, _ = tables(data, of_classes(data, torch.eye(3)[:1].repeat(3, 1)), as_given)
    assert collapsed["delta"].to_list() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert collapsed["effective_rank"].to_list() == pytest.approx([1.0, 1.0])


def test_an_embedding_of_the_true_classes_is_told_from_wrong_labels(data: ExampleSet) -> None:
    """A quarter of the labels turned: delta is larger by the corrected labels, which the embedding was made by."""
    rng = np.random.default_rng(0)
    wrong = rng.random(len(data)) < 0.25
    noisy = dataclasses.replace(data, y=np.where(wrong, (data.y + rng.integers(1, 3, len(data))) % 3, data.y))
    summary, _ = tables(noisy, of_classes(data, torch.eye(3)), dataclasses.replace(CONFIG, trust=0.3))
    delta = dict(summary.select("labels", "delta").iter_rows())
    assert delta["corrected"] > delta["given"] + 0.2, delta
    assert 0.15 < summary.filter(labels="corrected")["changed"].item() < 0.35


def test_the_order_of_the_rows_does_not_matter_and_the_model_is_left_as_it_was(
    data: ExampleSet, model: nn.Module
) -> None:
    model.train()
    before = [value.clone() for value in model.state_dict().values()]
    turned = data.take(np.random.default_rng(1).permutation(len(data)))
    for one, other in zip(tables(data, model), tables(turned, model), strict=True):
        assert one.equals(other)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    model.eval()


def test_what_has_no_rates_is_refused(data: ExampleSet) -> None:
    unseen = dataclasses.replace(data, split=np.full(len(data), "test", "<U5"))
    with pytest.raises(DataError, match="no training node"):
        tables(unseen, of_classes(data, torch.eye(3)))
    with pytest.raises(DataError, match="not finite"):
        tables(data, of_classes(data, torch.full((3, 3), math.nan)))
    with pytest.raises(NotApplicable, match="linear"):
        tables(data, nn.Identity())
