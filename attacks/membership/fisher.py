"""Membership by a stored Fisher information: a squared gradient that is part of the mean resembles it.

    F        = 1/N sum_i g_i^2                        what elastic weight consolidation keeps of a step's examples
    score(x) = <g(x)^2, F> / (|g(x)^2| |F|)           in [0, 1], higher = more likely one of the N

g(x) is the gradient of -log p(y | x) at the model that stands beside F. The share of one example in F is g_i^2 / N, so
the score tells members where N is small or a few gradients are large. A member also has another gradient than a
stranger because the model was fitted to it; what F itself adds shows only against the Fisher information of a model
that was trained without the example (studies.fisher_leak).

Source: after Kirkpatrick et al. (PNAS 2017) for F, and Nasr et al., "Comprehensive privacy analysis of deep learning"
(IEEE S&P 2019) for gradients as evidence of membership.
Shapes: gradients in blocks of (b, *parameter), F as the parameters, scores (K, N) of K Fisher informations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InvalidInput


def fisher_similarity(
    gradients: Iterable[Mapping[str, Tensor]], fishers: Sequence[Mapping[str, Tensor]]
) -> NDArray[np.float64]:
    """The cosine of every example's squared gradient with each Fisher information.

    Args:
        gradients: name -> (b, *shape) per-example gradients, block by block (``recipes.continual.fisher``).
        fishers: K of them: name -> F >= 0, the same names and shapes.

    Returns:
        (K, N) float64 in [0, 1]; 0 where a gradient or F is 0.

    Raises:
        InvalidInput: no Fisher information, other names or shapes, no example.

    >>> g = {"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}
    >>> fisher_similarity([g], [{"w": torch.tensor([3.0, 0.0])}]).tolist()
    [[1.0, 0.0]]
    """
    if not fishers:
        raise InvalidInput("no Fisher information to compare with")
    size = [_root(sum(f.double().square().sum() for f in fisher.values())) for fisher in fishers]
    found: list[Tensor] = []
    for block in gradients:
        squares = {name: g.detach().double().square() for name, g in block.items()}
        for fisher in fishers:
            if {n: f.shape for n, f in fisher.items()} != {n: s.shape[1:] for n, s in squares.items()}:
                raise InvalidInput("a Fisher information must have the names and shapes of the gradients")
        own = _root(sum(_summed(s.square()) for s in squares.values()))
        products = [sum(_summed(s * fisher[n].double()) for n, s in squares.items()) for fisher in fishers]
        tiny = torch.finfo(torch.float64).tiny  # nothing resembles nothing: 0 / tiny
        cosines = [p / (own * z).clamp_min(tiny) for p, z in zip(products, size, strict=True)]
        found.append(torch.stack(cosines))
    if not found:
        raise InvalidInput("the similarity of no examples is not defined")
    return torch.cat(found, dim=1).clamp(0.0, 1.0).cpu().numpy()


def _summed(values: Tensor) -> Tensor:
    """(b,) of (b, *shape)."""
    return values.flatten(1).sum(1)


def _root(value: Tensor | int) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).sqrt()
