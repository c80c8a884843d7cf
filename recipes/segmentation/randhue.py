"""RandHue: a picture in one colour drawn at random, so that a network cannot rely on colour.

    x to [0, 1] (the picture's own least and greatest value, all channels alike), RGB to HSV
    hue := 360 u1,   saturation := clip(s + 0.5 u2),   value := clip(v + 0.5 u3),   u ~ U(0, 1), one of each a picture
    back to RGB, and to the values that the picture came in

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365). Shapes: pictures (B, 3, H, W), in any affine
of RGB that is the same for the three channels; where they are standardised one by one, their hue is no longer their
own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contracts.errors import InvalidInput


def rand_hue(images: Tensor, draws: Tensor, *, probability: float) -> Tensor:
    """Pictures of which some are in another colour, fresh memory.

    Args:
        images: (B, 3, H, W).
        draws: (B, 4) in [0, 1): whether (below ``probability``), u1, u2, u3.
        probability: of a change, in [0, 1].

    Raises:
        InvalidInput: shapes or probability out of range.
    """
    if images.dim() != 4 or images.shape[1] != 3 or draws.shape != (len(images), 4):
        raise InvalidInput(f"rand_hue takes images (B, 3, H, W) and draws (B, 4), not {images.shape} and {draws.shape}")
    if not 0 <= probability <= 1:
        raise InvalidInput(f"probability = {probability} is outside its allowed range: >= 0 and <= 1")
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    changed, hue, saturation, value = draws[:, :, None, None, None].unbind(1)
    s, v = saturation_and_value((images - low) / span)
    coloured = rgb(hue, (s + 0.5 * saturation).clamp(0, 1), (v + 0.5 * value).clamp(0, 1))
    return torch.where(changed < probability, low + span * coloured, images)


def saturation_and_value(images: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, H, W) both, of RGB in [0, 1]."""
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    return torch.where(value > 0, (value - least) / value.clamp_min(torch.finfo(images.dtype).tiny), 0.0), value


def rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB (B, 3, H, W) of a hue in turns and of saturation and value in [0, 1], all (B, 1, ...).

    >>> rgb(torch.tensor([[[[1 / 3]]]]), torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).flatten().round().tolist()
    [0.0, 1.0, 0.0]
    """
    # f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 hue) mod 6, n = 5, 3, 1
    place = (torch.tensor([5.0, 3.0, 1.0], device=value.device, dtype=value.dtype)[:, None, None] + 6 * hue) % 6
    return value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1)
