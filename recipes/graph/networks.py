"""Graph networks of two layers, attention (GAT) or convolution (GCN): an embedding of every node and a linear head.

    dropout -> conv_1 -> LeakyReLU -> [L1 rows] -> conv_2 -> [L1 rows] -> ReLU = Z (V, d)
    gat   GATConv(D, h/8, heads 8, concatenated), GATConv(h, d, heads 1)      gcn   GCNConv(D, h), GCNConv(h, d)
    rows: none   logits = Z W^T + b
    rows: l1     [L1 rows] divides each row by the sum of its magnitudes;  logits = (Z / ||Z||_2) W^T + b

A node sees itself (both layers add a loop to every node) and what edges lead to it. With ``rows: l1`` this is the
encoder of ERASE, whose coding rates are made for entries of about 1/d; the head is then read off normalised rows, as
its logistic regression is fitted.

Source: Velickovic et al., "Graph Attention Networks" (ICLR 2018); Kipf and Welling (ICLR 2017); Chen et al., "ERASE"
(CIKM 2024, arXiv 2312.08852), section 4. Not for pictures or texts: an example is a node of one graph. torch-geometric
(extra ``graph``) is imported when a network is built, and not before.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError
from contracts.params import Config, param

_SLOPE = 0.01  # of LeakyReLU, PyTorch's default


@dataclass(frozen=True, kw_only=True, slots=True)
class GCNConfig(Config):
    """Architecture of :class:`GCN`."""

    hidden: int = param(256, ge=1, le=65_536, doc="width of the first layer")
    dim: int = param(512, ge=1, le=65_536, doc="size d of a node's embedding")
    dropout: float = param(0.5, ge=0, lt=1, doc="of the features, in training")
    rows: str = param("none", choices=("none", "l1"), doc="l1: rows of both layers sum to 1, as ERASE needs them")


@dataclass(frozen=True, kw_only=True, slots=True)
class GATConfig(GCNConfig):
    """Architecture of :class:`GAT`."""

    heads: int = param(8, ge=1, le=1024, doc="attention heads of the first layer; hidden is a multiple of them")

    def check(self) -> None:
        if self.hidden % self.heads:
            raise ConfigError(f"GATConfig.hidden = {self.hidden} must be a multiple of heads = {self.heads}")


class GraphNetwork(nn.Module):
    """Two layers ``first`` and ``second``, and ``head``; see the module."""

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: GCNConfig, first: nn.Module, second: nn.Module, *, num_outputs: int) -> None:
        super().__init__()
        self.dropout, self.l1 = config.dropout, config.rows == "l1"
        self.first, self.second = first, second
        self.head = nn.Linear(config.dim, num_outputs)

    def embed(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features (V, D) and edges (2, E) -> embeddings (V, d) >= 0 of all nodes."""
        h = F.leaky_relu(self.first(F.dropout(x, self.dropout, self.training), edge_index), _SLOPE)
        h = self.second(self._rows(h), edge_index)
        return F.relu(self._rows(h))

    def read_out(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, d) -> logits (B, K)."""
        logits: Tensor = self.head(F.normalize(embeddings, dim=1) if self.l1 else embeddings)
        return logits

    def forward(self, x: Tensor, edge_index: Tensor, nodes: Tensor) -> Tensor:
        """Logits (B, K) of the nodes (B,) that are asked for, read on the whole graph."""
        return self.read_out(self.embed(x, edge_index)[nodes])

    def _rows(self, h: Tensor) -> Tensor:
        return F.normalize(h, p=1, dim=1) if self.l1 else h


class GCN(GraphNetwork):
    """Two graph convolutions."""

    def __init__(self, config: GCNConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        layers = _layers().GCNConv
        first, second = layers(input_shape[0], config.hidden), layers(config.hidden, config.dim)
        super().__init__(config, first, second, num_outputs=num_outputs)


class GAT(GraphNetwork):
    """Two layers of graph attention."""

    def __init__(self, config: GATConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        layers = _layers().GATConv
        first = layers(input_shape[0], config.hidden // config.heads, heads=config.heads)
        second = layers(config.hidden, config.dim, heads=1)
        super().__init__(config, first, second, num_outputs=num_outputs)


def _layers() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own use of torch.jit, as it is imported
            import torch_geometric.nn as layers
    except ImportError as error:
        raise ConfigError(
            "graph networks are built with torch-geometric, which is not installed: pip install "
            "'palimpsest-audit[graph]'"
        ) from error
    return layers
