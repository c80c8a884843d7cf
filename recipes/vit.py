"""A small Vision Transformer, pre-norm (Dosovitskiy et al., ICLR 2021).

    tokens = conv_{p,p}(x) + position            (B, T, d),  T = (H/p)(W/p): 49 for 28 x 28 and p = 4
    t <- t + attention(LN(t));  t <- t + MLP(LN(t))          `depth` times
    z = head(mean_T LN(t))                       (B, K)

No class token (the mean over tokens takes its place) and no dropout by default. Positions go through an
``nn.Embedding`` of token numbers, one row an example, so that every parameter belongs to a layer with a
closed-form per-example gradient. Attention is written out: the fused kernel has no rule under ``torch.func.vmap``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError, NotApplicable
from contracts.params import Config, param


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig(Config):
    """Architecture of :class:`ViT`."""

    dim: int = param(64, ge=1, le=8192, doc="width d of a token")
    depth: int = param(4, ge=1, le=100, doc="layers")
    heads: int = param(4, ge=1, le=256, doc="attention heads; must divide dim")
    patch: int = param(4, ge=1, le=256, unit="pixels", doc="side of a patch; must divide height and width")
    mlp_ratio: int = param(2, ge=1, le=16, doc="hidden width of the MLP over dim")
    dropout: float = param(0.0, ge=0, lt=1, doc="on the output of attention and MLP")

    def check(self) -> None:
        if self.dim % self.heads:
            raise ConfigError(f"ViTConfig.heads = {self.heads} must divide dim = {self.dim}")


class _Layer(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, config.mlp_ratio * dim), nn.Linear(config.mlp_ratio * dim, dim)
        self.dropout = nn.Dropout(config.dropout)

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        query, key, value = (
            part.reshape(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        weights = torch.softmax(query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5, dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self._attend(self.norm1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class ViT(nn.Module):
    """A small vision transformer of images.

    Raises:
        NotApplicable: the patch does not divide the height and width of the images.
    """

    version: ClassVar[int] = 1  # raise it when the layers, their names or their initialisation change

    def __init__(self, config: ViTConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        depth, height, width = input_shape
        if height % config.patch or width % config.patch:
            raise NotApplicable(
                f"ViTConfig.patch = {config.patch} must divide the images' height and width, {height} x {width}"
            )
        self.tokens = (height // config.patch) * (width // config.patch)
        self.patches = nn.Conv2d(depth, config.dim, config.patch, stride=config.patch)
        self.position = nn.Embedding(self.tokens, config.dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.layers = nn.Sequential(*(_Layer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, H, W) -> logits (B, K)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        number = torch.arange(self.tokens, device=x.device).expand(x.shape[0], -1)
        return self.head(self.norm(self.layers(tokens + self.position(number))).mean(1))
