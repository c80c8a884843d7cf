"""A small variational autoencoder of a network's embeddings: how well does an embedding fit those of a set?

    encoder   d -> h1 -> h2, ReLU;  mu, log sigma^2 (B, z);   sigma = exp(log sigma^2 / 2)
    sample    u = mu + sigma * noise                           noise ~ N(0, 1), drawn also when the network is frozen
    decoder   z -> h2 -> h1 -> d, ReLU;  output "sigmoid" (as published) or "linear"
    loss      (1/B) sum |e^ - e|^2  +  kl_weight * (1/B) * -1/2 sum( log(sigma^2 + 1e-8) + 1 - mu^2 - sigma^2 )

Source: Shen et al., "Label-Agnostic Forgetting", ICLR 2024 (arXiv 2404.00506), and its published code: kl_weight 0.025,
Adam 1e-3, 10 passes, batches of 32, hidden layers of 128 and 32. A sigmoid cannot reconstruct what is negative or above
1: with "sigmoid" the embeddings are taken as they are, as published, and what it cannot reach stays in the error; with
"linear" they are standardised first, by one mean and spread a dimension for all autoencoders of a run.

It is not a density: only differences of its errors between sets are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged
from contracts.params import Config, param
from recipes.fitting import take_step
from recipes.rng import generator, local_rng


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingVAEConfig(Config):
    """Architecture and training of :class:`EmbeddingVAE`."""

    decoder: str = param(
        "sigmoid",
        choices=("sigmoid", "linear"),
        doc="sigmoid: as published; linear: of embeddings standardised by dimension",
    )
    hidden: tuple[int, int] = param((128, 32), ge=1, le=65_536, doc="units of the encoder's layers; mirrored")
    latent: int = param(8, ge=1, le=4096, doc="z; 8 for a small CNN, 16 for a ResNet-18")
    kl_weight: float = param(0.025, ge=0, le=1000, doc="of the divergence beside the squared error")
    epochs: int = param(10, ge=1, le=10_000, doc="passes over the embeddings")
    lr: float = param(1e-3, gt=0, le=1, doc="learning rate of Adam")
    batch: int = param(32, ge=1, le=65_536, unit="examples", doc="examples a step")


class EmbeddingVAE(nn.Module):
    """See the head of this file.

    Args:
        config: architecture.
        shift, scale: (d,) embeddings are reconstructed as (e - shift) / scale; 0 and 1 leave them as they are.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: EmbeddingVAEConfig, *, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        (outer, inner), dim = config.hidden, len(shift)
        self.encoder = nn.Sequential(nn.Linear(dim, outer), nn.ReLU(), nn.Linear(outer, inner), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(inner, config.latent), nn.Linear(inner, config.latent)
        out = [nn.Sigmoid()] if config.decoder == "sigmoid" else []
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, inner), nn.ReLU(), nn.Linear(inner, outer), nn.ReLU(), nn.Linear(outer, dim), *out
        )
        self.latent = config.latent
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, embeddings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (B, d) and noise (B, z) -> squared errors (B,), mu (B, z), sigma (B, z); with gradient through
        both the embeddings and their reconstruction."""
        inputs = (embeddings - self.shift) / self.scale
        hidden = self.encoder(inputs)
        mean, deviation = self.mean(hidden), torch.exp(0.5 * self.log_variance(hidden))
        errors = (self.decoder(mean + deviation * noise) - inputs).square().sum(dim=1)
        return errors, mean, deviation


def kl_to_standard_normal(mean: Tensor, deviation: Tensor) -> Tensor:
    """Divergence of N(mean, deviation^2) from N(0, 1), summed over dimensions and averaged over examples.

    Args:
        mean, deviation: (B, z).

    Returns:
        scalar, nats, >= 0; 0 only where mean = 0 and deviation = 1.

    >>> float(kl_to_standard_normal(torch.zeros(2, 3), torch.ones(2, 3)))
    0.0
    """
    variance = deviation.square()
    return ((mean.square() + variance - 1 - torch.log(variance + 1e-8)) / 2).sum(dim=1).mean()


def units_of_embeddings(embeddings: Tensor, config: EmbeddingVAEConfig) -> tuple[Tensor, Tensor]:
    """(shift, scale), (d,) each, in which autoencoders of this configuration take embeddings (n, d); scale 1 where a
    dimension is constant."""
    if config.decoder == "sigmoid":
        return torch.zeros_like(embeddings[0]), torch.ones_like(embeddings[0])
    spread = embeddings.std(dim=0, correction=0)
    return embeddings.mean(dim=0), torch.where(spread > 0, spread, torch.ones_like(spread))


def fit_embedding_vae(
    embeddings: Tensor, *, config: EmbeddingVAEConfig, units: tuple[Tensor, Tensor], seed: int
) -> EmbeddingVAE:
    """An autoencoder of these embeddings.

    Args:
        embeddings: (n, d), n >= 1, without gradient.
        config: architecture and training.
        units: shift and scale, see :func:`units_of_embeddings`.
        seed: initialisation, order and noise.

    Returns:
        Frozen, in eval mode, on the embeddings' device and of their dtype.

    Raises:
        DataError: no embedding.
        Diverged: the loss is not finite.
    """
    if not len(embeddings):
        raise DataError("an autoencoder needs at least one embedding to be fitted to")
    shift, scale = units
    with local_rng(derive_seed("embedding_vae", seed)):
        vae = EmbeddingVAE(config, shift=shift, scale=scale).to(embeddings.device, embeddings.dtype)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, fused=True)
    draw = generator(derive_seed("embedding_vae", "draws", seed))
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(embeddings), generator=draw).split(config.batch):
            noise = torch.randn(len(rows), config.latent, generator=draw).to(embeddings)
            errors, mean, deviation = vae(embeddings[rows.to(embeddings.device)], noise)
            loss = take_step(optimizer, errors.mean() + config.kl_weight * kl_to_standard_normal(mean, deviation))
        if not bool(torch.isfinite(loss)):
            raise Diverged(f"the autoencoder of embeddings: loss {float(loss)} in epoch {epoch + 1}; use a smaller lr")
    optimizer.zero_grad(set_to_none=True)
    return vae.requires_grad_(False).eval()
