"""Dropout whose masks somebody supplies, draws and keeps, or switches off, in any model and without touching its code.

    track   m ~ Bernoulli(1 - p), h * m / (1 - p); m, p and h are kept
    use     h * m / (1 - p) with the supplied m, any values in [0, 1]
    off     h

One mask for every CALL of a dropout, in the order of the calls, of the shape of its input with the batch: (B, D) after
a hidden layer, (B, heads, n, n) for attention weights, (B, C, 1, 1) for spatial dropout. What is caught is the call
(``torch.nn.functional.dropout`` and its relatives), so layers and functional calls are alike, in train and in eval
mode. Masks are drawn, never inferred from zeros in the output: a ReLU's zeros are not dropped units.

Source: Scheliga, Maeder, Seeland, "Dropout Is NOT All You Need to Prevent Gradient Leakage" (AAAI 2023, arXiv
    2208.06163).
Not caught: a model's own arithmetic with random numbers, and kernels that hold dropout inside (recurrent layers); see
``instrument``, which refuses those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attacks.gradient_inversion.attention import multi_head_attention, scaled_dot_product_attention
from contracts.errors import ConfigError, NotApplicable

Masks = Sequence[Tensor]
_SELU = -1.7580993408473766  # -alpha * scale: what alpha dropout puts in place of a dropped unit


@dataclass(frozen=True, slots=True)
class Site:
    """One dropout call of a forward pass: its rate p in (0, 1) and its mask's shape, batch included."""

    rate: float
    shape: tuple[int, ...]


class MaskableDropout(TorchFunctionMode):
    """Takes over every dropout inside its block, for ONE forward pass.

    Args:
        mode: "track", "use" or "off".
        masks: for "use", one a call; float, broadcast against the call's input.
        rates: p of each call, floats or tensors without dimension; the calls' own when None.
        zero_calls: calls whose own rate is 0 take part; otherwise they are no dropout and have no mask.
        draw: for "track", the generator of the masks.

    Attributes:
        sites: the calls seen so far.
        masks: the masks drawn or supplied.
        inputs: under "track", what each call was given, detached.
        ignored: calls passed over, their rate being 0.
        kinks: calls of activations that are piecewise linear: their second derivative is 0 where it exists.
    """

    def __init__(
        self,
        mode: Literal["track", "use", "off"],
        *,
        masks: Masks = (),
        rates: Sequence[float | Tensor] | Tensor | None = None,
        zero_calls: bool = False,
        draw: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if mode == "track" and draw is None:
            raise ConfigError("mode 'track' needs draw, the generator of the masks")
        self.mode, self.rates, self.zero_calls, self.draw = mode, rates, zero_calls, draw
        self.masks: list[Tensor] = list(masks)
        self.sites: list[Site] = []
        self.inputs: list[Tensor] = []
        self.ignored = self.kinks = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.kinks += func in _KINKED
        handler = _HANDLERS.get(func)
        return func(*args, **kwargs) if handler is None else handler(self, *args, **kwargs)

    def drop(self, h: Tensor, p: float, *, features: bool = False) -> Tensor:
        """``h`` with this call's mask and 1 / (1 - p)."""
        found = self._mask(h, p, features=features)
        if found is None:
            return h
        mask, rate = found
        return h * (mask / (1 - rate))

    def alpha_drop(self, h: Tensor, p: float, *, features: bool = False) -> Tensor:
        """Alpha dropout: a (h m + alpha (1 - m)) + b, mean and variance kept."""
        found = self._mask(h, p, features=features)
        if found is None:
            return h
        mask, rate = found
        keep = 1 - rate
        scale = (keep + _SELU**2 * keep * rate) ** -0.5
        return scale * (h * mask + _SELU * (1 - mask)) - scale * _SELU * rate

    def _mask(self, h: Tensor, p: float, *, features: bool) -> tuple[Tensor, float | Tensor] | None:
        if not 0 <= p < 1:
            raise NotApplicable(f"a dropout of rate p = {p} lets nothing through; 0 <= p < 1 is allowed")
        if p == 0 and not self.zero_calls:
            self.ignored += 1
            return None
        number = len(self.sites)
        shape = tuple(h.shape[:2]) + (1,) * (h.dim() - 2) if features else tuple(h.shape)
        rate: float | Tensor = p
        if self.rates is not None:
            if number >= len(self.rates):
                raise ConfigError(f"{len(self.rates)} rates for a forward pass with more dropout calls")
            rate = self.rates[number]
        self.sites.append(Site(p, shape))
        if self.mode == "off":
            return None
        if self.mode == "track":
            drawn = torch.rand(shape, generator=self.draw, dtype=torch.float64).to(h.device)
            self.masks.append((drawn >= rate).to(h.dtype))
            self.inputs.append(h.detach())
        elif number >= len(self.masks):
            raise ConfigError(f"{len(self.masks)} masks for a forward pass with more dropout calls")
        return self.masks[number], rate


def _dropout(mode: MaskableDropout, input: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
    return mode.drop(input, p)


def _feature_dropout(mode: MaskableDropout, input: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
    return mode.drop(input, p, features=True)


def _alpha_dropout(mode: MaskableDropout, input: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
    return mode.alpha_drop(input, p)


def _feature_alpha_dropout(mode: MaskableDropout, input: Tensor, p: float = 0.5, *_: Any, **__: Any) -> Tensor:
    return mode.alpha_drop(input, p, features=True)


def _attention(mode: MaskableDropout, *args: Any, **kwargs: Any) -> Tensor:
    return scaled_dot_product_attention(mode.drop, *args, **kwargs)


def _multi_head(mode: MaskableDropout, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    return multi_head_attention(mode.drop, *args, **kwargs)


_HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    torch.dropout_: _dropout,
    F.dropout1d: _feature_dropout,
    F.dropout2d: _feature_dropout,
    F.dropout3d: _feature_dropout,
    torch.feature_dropout: _feature_dropout,
    F.alpha_dropout: _alpha_dropout,
    torch.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    torch.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}


_KINKED = {
    F.relu,
    F.relu_,
    F.relu6,
    F.leaky_relu,
    F.prelu,
    F.hardtanh,
    F.threshold,
    torch.relu,
    torch.relu_,
    Tensor.relu,
    Tensor.relu_,
    torch.clamp,
    Tensor.clamp,
    F.hardsigmoid,
}
