"""A small network with shifted softplus, retrained without each of B sets of examples at once.

    d -> 2 d -> 2 d -> 1,  act(t) = (softplus(beta t) - log 2) / beta,  BCE on the logit;  SGD 1e-2, 100 epochs, batch
                           32
    weights (B, in, out), activations (B, batch, width): one batched product a layer for all models

All B models start from the same weights and see the batches in the same order; a deleted example drops out of its
batch. So they differ by the deletion alone, not by the seed. Smooth, which influence functions want; not for images and
not for large data.

Source: the non-linear model of Krishna et al., ICML 2023 (arXiv 2302.04288), published code.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import Diverged
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.rng import generator


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftplusMLPConfig(Config):
    """Architecture and training."""

    width: int = param(2, ge=1, le=64, unit="times d", doc="units of each hidden layer")
    beta: float = param(1.0, gt=0, le=100, doc="sharpness of softplus")
    lr: float = param(1e-2, gt=0, le=10, doc="of SGD")
    epochs: int = param(100, ge=1, le=100_000, doc="passes over the examples")
    batch: int = param(32, ge=1, le=1_000_000, doc="examples a step")


@dataclass(frozen=True, eq=False)
class SoftplusMLPs:
    """B networks of one architecture; ``layers`` holds (weights (B, in, out), bias (B, 1, out)) of each layer,
    float32."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    beta: float

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(Q, d) -> float64 (B, Q)."""
        with torch.no_grad():
            h = torch.from_numpy(np.asarray(x, np.float32)).expand(len(self.layers[0][0]), -1, -1)
            return _forward(self.layers, h, self.beta)[:, :, 0].double().numpy()


def fit_softplus_mlps(
    x: np.ndarray,
    y: np.ndarray,
    removed: np.ndarray,
    *,
    seed: int,
    config: SoftplusMLPConfig | None = None,
    progress: Progress = silent,
) -> SoftplusMLPs:
    """Train B networks from scratch, each without its deletion.

    Args:
        x: (n, d); y: (n,) 0 or 1; rows in an order that depends on nothing but the data.
        removed: (B, n) bool, True = not trained on.
        seed: of the common initialisation and order.
        config: the defaults when None.
        progress: called after every epoch.

    Raises:
        Diverged: the loss of a model is not finite.
    """
    config = SoftplusMLPConfig() if config is None else config
    rng, d, num = generator(derive_seed("softplus", seed)), x.shape[1], len(removed)
    sizes = (d, config.width * d, config.width * d, 1)
    layers = []
    for a, b in itertools.pairwise(sizes):
        bound = a**-0.5  # as nn.Linear
        drawn = [((torch.rand(s, b, generator=rng) * 2 - 1) * bound).repeat(num, 1, 1) for s in (a, 1)]
        layers.append((drawn[0].requires_grad_(), drawn[1].requires_grad_()))
    flat = [t for pair in layers for t in pair]
    data, label = torch.from_numpy(np.asarray(x, np.float32)), torch.from_numpy(np.asarray(y, np.float32))
    keep = torch.from_numpy(~removed).float()
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(data), generator=rng).split(config.batch):
            logits = _forward(layers, data[rows].expand(num, -1, -1), config.beta)[:, :, 0]
            losses = F.binary_cross_entropy_with_logits(logits, label[rows].expand(num, -1), reduction="none")
            weight = keep[:, rows]
            loss = ((losses * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)).sum()
            grads = torch.autograd.grad(loss, flat)
            with torch.no_grad():
                for tensor, grad in zip(flat, grads, strict=True):
                    tensor -= config.lr * grad
        if not torch.isfinite(loss):
            raise Diverged("the loss of a network is not finite")
        progress(epoch + 1, config.epochs, "epochs of the softplus networks")
    return SoftplusMLPs(tuple((w.detach(), b.detach()) for w, b in layers), config.beta)


def _forward(layers: object, h: Tensor, beta: float) -> Tensor:
    *hidden, (w_out, b_out) = layers  # type: ignore[misc]
    for w, b in hidden:
        h = F.softplus(torch.baddbmm(b, h, w), beta=beta) - float(np.log(2)) / beta
    return torch.baddbmm(b_out, h, w_out)
