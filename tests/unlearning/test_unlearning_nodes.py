"""Nodes that are removed take their messages along: what unlearners see of a graph, against graphs cut by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from graph_data import make_nodes, network, with_edges, with_features
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.methods import unlearner
from contracts.params import Config
from recipes.graph.training import NodeTrainingConfig
from recipes.training import Trainer
from sources.example_set import ExampleSet
from unlearning.corrective.importance import parameter_importance
from unlearning.descent import inputs_of
from unlearning.finetune import FinetuneConfig, finetune
from unlearning.gradient_ascent import GradientAscentConfig, gradient_ascent
from unlearning.retrain import retrain

CONFIG = NodeTrainingConfig(lr=0.02, epochs=30)
build = network(dropout=0.0)


@pytest.fixture(scope="module")
def one() -> SimpleNamespace:
    train = make_nodes().part("train")
    trainer = Trainer(recipe="node_classifier", build=build, config=CONFIG)
    gone = np.arange(len(train)) % 4 == 0
    retain, forget = train.take(np.flatnonzero(~gone)), train.take(np.flatnonzero(gone))
    model = trainer.one(train, 0)
    return SimpleNamespace(train=train, model=model, sets={"retain": retain, "forget": forget}, trainer=trainer)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def cut(data: ExampleSet, nodes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Features, edges both ways and old numbers of the subgraph of some nodes, ascending, edge by edge."""
    kept = sorted(nodes.tolist())
    pairs = [(kept.index(a), kept.index(b)) for a, b in data.x.edges.T.tolist() if a in kept and b in kept]
    both = torch.tensor([*pairs, *((b, a) for a, b in pairs)]).T
    return torch.from_numpy(data.x.features[kept]), both, kept


def test_fine_tuning_is_on_the_graph_that_is_left(one):
    """By hand: momentum SGD on the retained nodes of the subgraph that they induce."""
    retain = one.sets["retain"].by_id()
    x, edges, kept = cut(retain, retain.x.members)
    nodes = torch.tensor([kept.index(v) for v in retain.x.members.tolist()])
    student = build(0)
    student.load_state_dict(one.model.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(derive_seed("finetune", "order", 3))
    for _ in range(3):
        rows = torch.randperm(len(retain), generator=order)
        loss = F.cross_entropy(student(x=x, edge_index=edges, nodes=nodes[rows]), torch.from_numpy(retain.y)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = finetune(one.model, **one.sets, config=FinetuneConfig(lr=0.05, epochs=3), seed=3)
    torch.testing.assert_close(flat(found), flat(student), rtol=1e-4, atol=1e-5)


def test_ascent_is_on_the_graph_of_both_sets(one):
    """By hand: a step up the loss of the nodes to be forgotten, as they stood among the training nodes."""
    forget = one.sets["forget"].by_id()
    x, edges, kept = cut(forget, one.train.x.members)
    nodes = torch.tensor([kept.index(v) for v in forget.x.members.tolist()])
    student = build(0)
    student.load_state_dict(one.model.state_dict())
    loss = -F.cross_entropy(student(x=x, edge_index=edges, nodes=nodes), torch.from_numpy(forget.y))
    grads = torch.autograd.grad(loss, list(student.parameters()))
    with torch.no_grad():
        for p, g in zip(student.parameters(), grads, strict=True):
            p.sub_(0.01 * (g + 5e-4 * p))
    found = gradient_ascent(one.model, **one.sets, config=GradientAscentConfig(lr=0.01, epochs=1), seed=3)
    torch.testing.assert_close(flat(found), flat(student), rtol=1e-4, atol=1e-6)


APPLY = [
    m.spec.name
    for m in unlearner
    if not set(m.spec.wants) & {"features", "numbers", "tokens", "interactions", "images"}
    and not set(m.spec.needs) - {"train"}
    and m.spec.name not in ("bad_teacher", "prune_then_unlearn")
]


@pytest.mark.parametrize("name", APPLY)
def test_nodes_outside_the_training_split_change_no_bit_of_any_unlearner(one, name):
    """Features and edges of all other nodes are changed; those of nodes to be forgotten too, for a retraining."""
    method = unlearner.get(name)
    fields = {"damping": 10.0} if name == "influence_unlearning" else {}
    train = (lambda data, seed: one.trainer.one(data, seed)) if "train" in method.spec.needs else None

    def run(retain: ExampleSet, forget: ExampleSet) -> torch.Tensor:
        given = {} if train is None else {"train": train}
        config = method.spec.config.from_mapping(fields)
        return flat(method(one.model, retain=retain, forget=forget, config=config, seed=1, **given))

    spared = one.train if name not in ("retrain", "finetune") else one.sets["retain"]
    outside = np.setdiff1d(np.arange(len(one.train.x.features)), spared.x.members)
    features = one.train.x.features.copy()
    features[outside] += 3
    edges = one.train.x.edges[:, np.isin(one.train.x.edges, spared.x.members).all(axis=0)]
    # the collapse is told by what the model says on the full graph, which is meant: not by these
    changed = {k: with_edges(with_features(data, features), edges) for k, data in one.sets.items()}
    assert torch.equal(run(**one.sets), run(**changed))


def test_a_retraining_is_the_recipe_on_the_closed_graph(one):
    retain = one.sets["retain"].by_id()
    alone = retain.only(np.arange(len(retain)))
    found = retrain(
        one.model, **one.sets, config=Config(), seed=4, train=lambda data, seed: one.trainer.one(data, seed)
    )
    assert torch.equal(flat(found), flat(one.trainer.one(alone, 4)))
    assert not torch.equal(flat(found), flat(one.trainer.one(one.train, 4)))


def test_importance_is_of_nodes_among_both(one):
    """The squared mean gradient of one batch, by hand."""
    forget = one.sets["forget"].by_id()
    x, edges, kept = cut(forget, one.train.x.members)
    nodes = torch.tensor([kept.index(v) for v in forget.x.members.tolist()])
    loss = F.cross_entropy(one.model(x=x, edge_index=edges, nodes=nodes), torch.from_numpy(forget.y))
    names = [name for name, _ in one.model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(loss, list(one.model.parameters())), strict=True))
    found = parameter_importance(one.model, forget, batch=99, seed=0, beside=one.sets["retain"])
    for name, value in found.values.items():
        torch.testing.assert_close(value, expected[name].square(), rtol=1e-3, atol=1e-9)
    alone = parameter_importance(one.model, forget, batch=99, seed=0)
    assert not torch.allclose(alone.values["head.weight"], found.values["head.weight"], rtol=1e-2)


def test_arrays_are_as_they_are(one):
    """Nothing is copied where examples share nothing."""
    from palimpsest.testing.worlds import class_examples

    data = class_examples().by_id()
    assert data.among(data) is data and data.among() is data
    assert inputs_of(one.model, data).data is data
