"""Graph networks against dense formulas; what a model is trained on and what not; the same bits, resumed or not."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_data import make_nodes, network, with_edges, with_features
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from contracts.subject import Ensemble, Subject
from recipes.design import halves
from recipes.ensemble import train_ensemble
from recipes.graph.networks import GATConfig
from recipes.graph.training import NodeTrainingConfig, node_classifier
from recipes.models import build
from recipes.plan import model_builder, recipe_config, tried_model
from recipes.predict import predict_logits, read
from recipes.training import Trainer
from sources.example_set import ExampleSet
from unlearning.retrain import retrain

DESIGN = Ensemble(num_models=4, population_fraction=0.5, block=2)
CONFIG = NodeTrainingConfig(lr=0.02, epochs=10, batch=16)


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_nodes()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# ---- the networks ---------------------------------------------------------------------------------------------------


def links(edge_index: Tensor, num: int) -> Tensor:
    """(V, V) 0/1, row = the node that is told; a loop at every node."""
    found = torch.eye(num)
    found[edge_index[1], edge_index[0]] = 1
    return found


def dense_gat(layer: Any, x: Tensor, told: Tensor) -> Tensor:
    """Velickovic et al., equations 1 to 5, with a matrix of all pairs."""
    heads, dim = layer.heads, layer.out_channels
    h = (x @ layer.lin.weight.T).view(len(x), heads, dim)
    own, other = (h * layer.att_dst).sum(-1), (h * layer.att_src).sum(-1)  # (V, heads)
    score = F.leaky_relu(own[:, None] + other[None], 0.2)
    weight = score.masked_fill(told[..., None] == 0, -torch.inf).softmax(1)
    return torch.einsum("vuh,uhd->vhd", weight, h).reshape(len(x), -1) + layer.bias


def dense_gcn(layer: Any, x: Tensor, told: Tensor) -> Tensor:
    """Kipf and Welling, equation 2."""
    scale = told.sum(1).rsqrt()
    return scale[:, None] * told * scale @ (x @ layer.lin.weight.T) + layer.bias


@pytest.mark.parametrize("rows", ["none", "l1"])
@pytest.mark.parametrize(("name", "dense"), [("gat", dense_gat), ("gcn", dense_gcn)])
def test_a_network_is_its_formula_on_a_matrix_of_all_pairs(data, name, dense, rows):
    model = network(name, rows=rows)(3).eval()
    given = {k: torch.from_numpy(v) for k, v in data.inputs(slice(0, 9)).items()}
    told = links(given["edge_index"], len(given["x"]))
    scaled = (lambda h: h / h.abs().sum(1, keepdim=True)) if rows == "l1" else (lambda h: h)
    h = F.leaky_relu(dense(model.first, given["x"], told), 0.01)
    z = F.relu(scaled(dense(model.second, scaled(h), told)))
    torch.testing.assert_close(model.embed(given["x"], given["edge_index"]), z, rtol=1e-4, atol=1e-6)
    seen = z / z.norm(dim=1, keepdim=True) if rows == "l1" else z
    torch.testing.assert_close(model(**given), model.head(seen[given["nodes"]]), rtol=1e-4, atol=1e-5)


def test_what_a_network_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"hidden = 9 must be a multiple of heads = 2"):
        GATConfig(hidden=9, heads=2)
    with pytest.raises(NotApplicable, match="needs nodes with vectors"):
        build("gat", {}, input_shape=(1, 8, 8), num_outputs=3, seed=0)


def test_without_torch_geometric_the_message_is_the_command(monkeypatch):
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'palimpsest-audit\[graph\]'"):
        network()(0)


# ---- the recipe -----------------------------------------------------------------------------------------------------


def test_training_is_a_plain_loop_on_the_subgraph_of_the_members(data):
    """AdamW on the mean cross-entropy of all members, on a graph cut out by hand."""
    train = data.part("train").by_id()
    config = NodeTrainingConfig(lr=0.01, epochs=3)
    found = node_classifier(network(dropout=0.0), train, config=config, seed=3)
    member = train.x.members.tolist()
    kept = [(member.index(a), member.index(b)) for a, b in train.x.edges.T.tolist() if a in member and b in member]
    edges = torch.tensor([*kept, *((b, a) for a, b in kept)]).T
    x, y = torch.from_numpy(train.x.features[member]), torch.from_numpy(train.y)
    model = network(dropout=0.0)(3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x=x, edge_index=edges, nodes=torch.arange(len(x))), y).backward()
        optimizer.step()
    torch.testing.assert_close(flat(found), flat(model), rtol=1e-4, atol=1e-5)


def test_nothing_of_other_nodes_reaches_a_model_but_everything_reaches_what_it_answers(data):
    """Features and edges of nodes that are no members change no bit of the weights, and change the logits of their
    neighbours."""
    train = data.part("train")
    outside = np.setdiff1d(np.arange(len(data.x.features)), train.x.members)
    features = data.x.features.copy()
    features[outside] += 5
    inside = np.isin(data.x.edges, train.x.members).all(axis=0)
    changed = with_edges(with_features(train, features), data.x.edges[:, inside])
    model = node_classifier(network(), train, config=CONFIG, seed=1)
    assert torch.equal(flat(model), flat(node_classifier(network(), changed, config=CONFIG, seed=1)))
    assert not np.allclose(predict_logits(model, train), predict_logits(model, with_features(train, features)))
    mine = features.copy()
    mine[train.x.members[0]] += 5  # of a member it does
    assert not torch.equal(
        flat(model), flat(node_classifier(network(), with_features(train, mine), config=CONFIG, seed=1))
    )


def test_reference_models_and_retraining_are_on_the_graph_that_is_left(data):
    """What a model of the ensemble says is what the recipe gives on that half alone; so is a retraining."""
    config = NodeTrainingConfig(lr=0.02, epochs=4)
    ensemble = train_ensemble(
        network(),
        data,
        recipe="node_classifier",
        config=config,
        ensemble=DESIGN,
        seed=5,
    )
    people = data.subset(ensemble.example_id)
    seeds = halves(data, ensemble=DESIGN, seed=5).seeds
    half = people.take(np.flatnonzero(ensemble.keep[1]))
    alone = half.only(np.arange(len(half)))
    own = node_classifier(network(), alone, config=config, seed=seeds[1])
    np.testing.assert_allclose(ensemble.reading[1], read(own, people).values, rtol=1e-6)

    trainer = Trainer(recipe="node_classifier", build=network(), config=config)
    train = data.part("train")
    gone = np.arange(len(train)) % 4 == 0
    kept, forget = train.take(np.flatnonzero(~gone)), train.take(np.flatnonzero(gone))
    model = trainer.one(train, 0)
    without = retrain(
        model, retain=kept, forget=forget, config=_no_fields(), seed=2, train=lambda d, s: trainer.one(d, s)
    )
    closed = kept.only(np.arange(len(kept)))
    assert closed.x.edges.shape[1] < train.x.edges.shape[1] and len(closed.x.features) == len(kept)
    assert torch.equal(flat(without), flat(trainer.one(closed, 2)))
    spoilt = train.x.features.copy()
    spoilt[forget.x.members] = 1e3
    assert torch.equal(flat(without), flat(trainer.one(with_features(kept, spoilt), 2)))


def _no_fields() -> Any:
    from contracts.params import Config

    return Config()


def test_same_seed_same_bits_in_any_order_and_the_global_generator_is_left_alone(
    data, rng_left_alone: Callable[[], AbstractContextManager[None]]
):
    train = data.part("train")
    with rng_left_alone():
        first = node_classifier(network(), train, config=CONFIG, seed=1)
    mixed = train.take(np.random.default_rng(0).permutation(len(train)))
    assert torch.equal(flat(first), flat(node_classifier(network(), mixed, config=CONFIG, seed=1)))
    assert not torch.equal(flat(first), flat(node_classifier(network(), train, config=CONFIG, seed=2)))
    assert not first.training


def test_a_run_that_was_stopped_and_taken_up_is_the_straight_run(data, store):
    train = data.part("train")
    straight = node_classifier(network(), train, config=CONFIG, seed=1)
    early = node_classifier(
        network(), train, config=CONFIG, seed=1, stop_after=4, checkpoints=store, checkpoint_every=2
    )
    assert not torch.equal(flat(early), flat(straight))
    told: list[int] = []
    resumed = node_classifier(
        network(), train, config=CONFIG, seed=1, checkpoints=store, progress=lambda done, total, what: told.append(done)
    )
    assert torch.equal(flat(resumed), flat(straight)) and told[0] == 5
    cut = with_edges(train, train.x.edges[:, 1:])  # another graph: not used
    other = node_classifier(network(), cut, config=CONFIG, seed=1, checkpoints=store)
    assert torch.equal(flat(other), flat(node_classifier(network(), cut, config=CONFIG, seed=1)))


def test_mini_batches_are_observed_by_their_rows_in_the_data(data):
    train = data.part("train")
    seen: list[tuple[Tensor, Tensor]] = []
    node_classifier(
        network(dropout=0.0),
        train,
        config=NodeTrainingConfig(epochs=1, batch=20),
        seed=0,
        observe=lambda rows, logits: seen.append((rows, logits)),
    )
    assert sorted(torch.cat([rows for rows, _ in seen]).tolist()) == list(range(len(train)))
    rows, logits = seen[0]
    alone = train.only(np.arange(len(train)))
    expected = predict_logits(network(dropout=0.0)(0), alone)[rows]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_trained_is_refused(data):
    train = data.part("train")
    with pytest.raises(DataError, match="no example to train on"):
        node_classifier(network(), train.take(np.empty(0, np.int64)), config=CONFIG, seed=0)
    with pytest.raises(DataError, match=r"labels outside 0\.\.2"):
        node_classifier(network(), dataclasses.replace(train, y=train.y + 1), config=CONFIG, seed=0)
    with pytest.raises(ConfigError, match=r"\(1, 3\) is needed"):
        node_classifier(
            lambda seed: build("gcn", {"dim": 4}, input_shape=(5,), num_outputs=2, seed=seed),
            train,
            config=CONFIG,
            seed=0,
        )
    with pytest.raises(Diverged, match="epoch 1 of 2"):
        node_classifier(
            network(dropout=0.0),
            with_features(train, np.full_like(train.x.features, 1e38)),
            config=NodeTrainingConfig(epochs=2),
            seed=0,
        )


# ---- a network of one's own -----------------------------------------------------------------------------------------


def test_a_network_of_ones_own_is_tried_trained_and_read(data: ExampleSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    plan = Subject.from_mapping(
        {
            "subject": "mine",
            "source": "node_table",
            "model": {"name": "recipes_user_models:mean_graph"},
            "recipe": {"name": "node_classifier", "config": {"epochs": 30, "lr": 0.05}},
        }
    )
    model = tried_model(plan, data)
    before = read(model, data).loss.mean()
    trained = node_classifier(model_builder(plan, data), data, config=recipe_config(plan), seed=0)
    assert read(trained, data).loss.mean() < 0.8 * before
    wrong = dataclasses.replace(plan.model, name="recipes_user_models:mean_graph", config={"num_outputs": 5})
    with pytest.raises(ConfigError, match="num_outputs"):
        tried_model(dataclasses.replace(plan, model=wrong), data)
