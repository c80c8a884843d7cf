"""C-CHVAE: counterfactuals that look like data, found in growing shells of a variational auto-encoder's latent space.

    VAE       q(z|x) = N(mu(x), diag s(x)^2), decoder m(z);  loss = ||x - m(z)||^2 / 2 + beta KL(q || N(0, I))
    search    z ~ uniform directions around mu(x), radius in [r, r + step), r = 0, step, 2 step, ...;  x' = m(z)
              the first shell with a valid x' ends it; of its valid points the nearest to x is kept

x' lies on the decoder's manifold and not next to x, so it costs more than a nearest counterfactual and survives more.
The search needs the model's decisions only. Immutable features keep the query's value, whole numbers are rounded, then
validity is checked.

Source: Pawelczyk, Broelemann & Kasneci, WWW 2020 (arXiv 1910.09398), shells of the implementation in the ROCERF code.
    One
decoder for all features, Gaussian: the original conditions on the immutable ones, which here are overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import Diverged
from contracts.params import Config, param
from explain.counterfactuals.nearest import Actions, Counterfactuals, check_norm, cost
from recipes.rng import generator, local_rng

Decide = Callable[[np.ndarray], np.ndarray]  # (R, d) float64 -> logits (R,), >= 0 accepted


@dataclass(frozen=True, kw_only=True, slots=True)
class CchvaeConfig(Config):
    """Of the auto-encoder and of the search."""

    latent: int = param(8, ge=1, le=1024, doc="dimensions of z")
    hidden: int = param(32, ge=1, le=65_536, doc="units of the one hidden layer on each side")
    beta: float = param(0.05, ge=0, le=100, doc="weight of the KL term")
    lr: float = param(3e-3, gt=0, le=1, doc="of Adam")
    epochs: int = param(100, ge=1, le=100_000, doc="passes over the training examples")
    batch: int = param(64, ge=1, le=1_000_000, doc="examples a step")
    step: float = param(0.05, gt=0, le=10, doc="thickness of a shell")
    samples: int = param(1000, ge=1, le=1_000_000, doc="points drawn in a shell")
    max_radius: float = param(10.0, gt=0, le=1000, doc="where the search gives up")


class _VAE(nn.Module):
    def __init__(self, num_features: int, config: CchvaeConfig) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(num_features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 2 * config.latent)
        )
        self.decode = nn.Sequential(
            nn.Linear(config.latent, config.hidden), nn.ReLU(), nn.Linear(config.hidden, num_features)
        )


def cchvae(
    decide: Decide,
    x: np.ndarray,
    *,
    train: np.ndarray,
    seed: int,
    norm: int = 2,
    margin: float = 1e-3,
    config: CchvaeConfig | None = None,
    actions: Actions | None = None,
) -> Counterfactuals:
    """Counterfactuals of Q queries for any model.

    Args:
        decide: the model's logits; >= 0 is accepted.
        x: (Q, d) queries.
        train: (n, d) training inputs of the auto-encoder, in an order that does not depend on anything but the data.
        seed: of the auto-encoder and of the draws, which are the same for every query.
        norm: 1 or 2, by which the nearest point of a shell is chosen.
        margin: smallest logit that counts as accepted.
        config: the defaults when None.
        actions: what may change.

    Returns:
        ``found`` is False where no valid point was met within ``max_radius``.

    Raises:
        Diverged: the auto-encoder's loss is not finite.
    """
    check_norm(norm)
    config = CchvaeConfig() if config is None else config
    actions = Actions.anything(x.shape[1]) if actions is None else actions
    vae = _fit(np.asarray(train, np.float32), config, seed)
    x = np.asarray(x, np.float64)
    with torch.no_grad():
        centre = vae.encode(torch.from_numpy(x.astype(np.float32)))[:, : config.latent]
    rng = generator(derive_seed("cchvae", seed))
    x_cf, found = x.copy(), np.zeros(len(x), bool)
    for shell in range(int(np.ceil(config.max_radius / config.step))):
        rows = np.flatnonzero(~found)
        if not len(rows):
            break
        direction = F.normalize(torch.randn(config.samples, config.latent, generator=rng), dim=1)
        radius = config.step * (shell + torch.rand(config.samples, 1, generator=rng))
        for q in rows:  # one query at a time: a shell of one is thousands of candidates
            with torch.no_grad():
                points = vae.decode(centre[q] + radius * direction).numpy().astype(np.float64)
            points = _allowed(points, x[q], actions)
            valid = points[decide(points) >= margin]
            if len(valid):
                x_cf[q] = valid[cost(x[q], valid, norm=norm).argmin()]
                found[q] = True
    return Counterfactuals(x_cf, found, np.ones(len(x), np.int64))


def _allowed(points: np.ndarray, x: np.ndarray, actions: Actions) -> np.ndarray:
    step = np.where(actions.step > 0, actions.step, 1.0)
    whole = actions.origin + step * np.round((points - actions.origin) / step)
    return np.where(actions.free, np.where(actions.step > 0, whole, points), x)


def _fit(train: np.ndarray, config: CchvaeConfig, seed: int) -> _VAE:
    with local_rng(derive_seed("cchvae-init", seed)):
        vae = _VAE(train.shape[1], config)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr)
    rng, data = generator(derive_seed("cchvae-fit", seed)), torch.from_numpy(train)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(data), generator=rng).split(config.batch):
            loss = _loss(vae, data[rows], config, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise Diverged("the auto-encoder's loss is not finite")
    return vae.eval().requires_grad_(False)


def _loss(vae: _VAE, x: Tensor, config: CchvaeConfig, rng: torch.Generator) -> Tensor:
    mean, log_var = vae.encode(x).chunk(2, dim=1)
    log_var = log_var.clamp(-10, 10)
    z = mean + (log_var / 2).exp() * torch.randn(mean.shape, generator=rng)
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(dim=1)
    return (0.5 * (x - vae.decode(z)).pow(2).sum(dim=1) + config.beta * kl).mean()
