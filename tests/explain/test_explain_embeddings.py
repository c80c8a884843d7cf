"""Embeddings of inputs that have names: nodes of a graph, read on all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_data import make_nodes, network
from torch import nn

from contracts.errors import NotApplicable
from explain.embeddings import embedder, embeddings


def test_embeddings_of_nodes_are_what_the_output_layer_takes_in() -> None:
    data, model = make_nodes(40), network()(0)
    found = embeddings(model, data, batch=7)
    with torch.no_grad():
        whole = model.eval().embed(torch.from_numpy(data.x.features), torch.from_numpy(data.x.edge_index))
    np.testing.assert_allclose(found, whole.numpy()[data.x.members], rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """Calls its output layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        return self.head(x[nodes]) + self.head(x[nodes])


def test_a_model_without_one_output_layer_is_refused() -> None:
    inputs = {name: torch.from_numpy(array) for name, array in make_nodes(40).inputs(slice(0, 3)).items()}
    with embedder(Twice()) as embed, pytest.raises(NotApplicable, match="output layer once"):
        embed(inputs)
