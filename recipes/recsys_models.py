"""Models that rank items for a user by the dot product of two vectors: matrix factorisation and LightGCN.

    score(u, i) = p_u . q_i                                                     forward: users (B,) or (B, 1) -> (B, K)
    MF:        p = E_user, q = E_item                                           E ~ N(0, init^2)
    LightGCN:  E^(l+1) = D^-1/2 A D^-1/2 E^(l),  (p, q) = mean_{l=0..L} E^(l),  E^(0) = (E_user, E_item)

A is the symmetric 0/1 matrix of the training interactions, (U + K)^2 but stored sparse: one value an interaction. A
model that needs the graph gets it from its recipe (``set_graph``). The graph is no part of the weights: what inference
needs, the propagated vectors, is kept in buffers of fixed shape, so that a stored model ranks without the training
data. Without a graph every node is isolated: E^(l) = 0 for l >= 1.

Source: Koren, Bell, Volinsky, Computer 42 (2009); He et al., "LightGCN" (SIGIR 2020, arXiv 2002.02126), equations 3 to
    8.
Not for features: the input is an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import NotApplicable
from contracts.params import Config, param


class Ranker(Protocol):
    """What a recipe for implicit feedback needs of a model, besides ``forward``."""

    user: nn.Embedding
    item: nn.Embedding

    def vectors(self) -> tuple[Tensor, Tensor]:
        """p (U, d) and q (K, d); in train mode with their graph of gradients."""
        ...

    def set_graph(self, users: Tensor, items: Tensor) -> None:
        """The training interactions, int64 (N,) each, distinct pairs."""
        ...

    def settle(self) -> None:
        """Take over what training has learnt: ``forward`` in eval mode answers from it."""
        ...


def is_ranker(model: object) -> TypeGuard[Ranker]:
    """Whether a model has all that a :class:`Ranker` has.

    Asked of the object: ``isinstance`` with a protocol does not see the submodules of a ``nn.Module`` from Python 3.12
    on.
    """
    return all(hasattr(model, name) for name in ("user", "item", "vectors", "set_graph", "settle"))


def take_graph(model: object, users: np.ndarray, items: np.ndarray) -> None:
    """Give a model whose vectors come from a graph the interactions (N,) to train on; any other model stays as it
    is."""
    if is_ranker(model) and len(users):
        model.set_graph(*(torch.from_numpy(np.ascontiguousarray(index)) for index in (users, items)))


def settle(model: object) -> None:
    """Make a model that answers from settled vectors take over what training has changed; any other model stays as it
    is."""
    if is_ranker(model):
        model.settle()


@dataclass(frozen=True, kw_only=True, slots=True)
class MFConfig(Config):
    """Architecture of :class:`MatrixFactorization`."""

    dim: int = param(64, ge=1, le=65_536, doc="length of a user's and an item's vector")
    init: float = param(0.1, gt=0, le=10, doc="standard deviation of the initial vectors")


@dataclass(frozen=True, kw_only=True, slots=True)
class LightGCNConfig(MFConfig):
    """Architecture of :class:`LightGCN`."""

    layers: int = param(3, ge=1, le=16, doc="propagation steps L")


class MatrixFactorization(nn.Module):
    """Matrix factorisation: ranks items by the product of a vector a user and a vector an item."""

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: MFConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.user = nn.Embedding(input_shape[0], config.dim)
        self.item = nn.Embedding(num_outputs, config.dim)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=config.init)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.user.weight, self.item.weight

    def set_graph(self, users: Tensor, items: Tensor) -> None:
        """Nothing: the interactions reach this model through its loss alone."""

    def settle(self) -> None:
        """Nothing: the vectors are the weights."""

    def forward(self, users: Tensor) -> Tensor:
        """User indexes (B,) or (B, 1) -> scores of all items (B, K)."""
        if users.is_floating_point() or users.dim() not in (1, 2) or (users.dim() == 2 and users.shape[1] != 1):
            raise NotApplicable(
                f"{type(self).__name__} takes user indexes, whole numbers (B, 1), not {users.dtype} "
                f"{tuple(users.shape)}"
            )
        p, q = self.vectors()
        return F.embedding(users.flatten(), p) @ q.T


class LightGCN(MatrixFactorization):
    """LightGCN: vectors of users and items, averaged over their neighbours in the graph of interactions."""

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change
    settled_user: Tensor
    settled_item: Tensor

    def __init__(self, config: LightGCNConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__(config, input_shape=input_shape, num_outputs=num_outputs)
        self.layers = config.layers
        self.register_buffer("settled_user", torch.empty_like(self.user.weight, requires_grad=False))
        self.register_buffer("settled_item", torch.empty_like(self.item.weight, requires_grad=False))
        self._graph: Tensor | None = None  # (U, K) sparse, rows and columns scaled
        self._transposed: Tensor | None = None
        self.settle()

    def set_graph(self, users: Tensor, items: Tensor) -> None:
        """The training interactions, int64 (N,) each, distinct pairs; they replace those set before."""
        num_users, num_items = self.user.num_embeddings, self.item.num_embeddings
        like = self.user.weight
        by_user = torch.bincount(users, minlength=num_users).to(like.dtype)
        by_item = torch.bincount(items, minlength=num_items).to(like.dtype)
        values = (by_user[users] * by_item[items]).rsqrt().to(like.device)
        pairs = torch.stack([users, items]).to(like.device)
        self._graph = torch.sparse_coo_tensor(pairs, values, (num_users, num_items), check_invariants=True).coalesce()
        self._transposed = self._graph.t().coalesce()
        self.settle()

    def settle(self) -> None:
        with torch.no_grad():
            p, q = self._propagate()
            self.settled_user.copy_(p)
            self.settled_item.copy_(q)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self._propagate() if self.training else (self.settled_user, self.settled_item)

    def _propagate(self) -> tuple[Tensor, Tensor]:
        p, q = self.user.weight, self.item.weight
        total_p, total_q = p, q
        if self._graph is not None and self._transposed is not None:
            for _ in range(self.layers):
                p, q = (
                    _Product.apply(self._graph, self._transposed, q),
                    _Product.apply(self._transposed, self._graph, p),
                )
                total_p, total_q = total_p + p, total_q + q
        return total_p / (self.layers + 1), total_q / (self.layers + 1)

    def _apply(self, fn: Any, recurse: bool = True) -> LightGCN:
        """Device and precision moves take the graph along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._graph is not None and self._transposed is not None:
            self._graph, self._transposed = fn(self._graph), fn(self._transposed)
        return self


class _Product(torch.autograd.Function):
    """``A @ x`` with the gradient ``A^T @ g`` for x alone; autograd's own would transpose and sort A at every step."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return torch.sparse.mm(matrix, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, torch.sparse.mm(ctx.transposed, gradients[0])
