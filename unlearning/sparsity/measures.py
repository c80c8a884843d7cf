"""What is measured of a sparse unlearned model beside the usual metrics (Jia et al., NeurIPS 2023).

    sparsity          share of weights that are exactly zero
    near_zero         share with |theta| < 1e-3: an l1 penalty descended by its subgradient makes weights small, not 0
    weight_distance   e(m) = || m * (theta_unlearned - theta_retrained) ||_2,  m: weights that the mask keeps

The distance is the paper's unlearning error; it falls as the mask gets sparser, since fewer weights can differ. It is
no distance between functions: permuted units give another one for the same network, so compare models of one
initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from contracts.errors import InvalidInput
from unlearning.masks import Mask


def sparsity(model: nn.Module, names: Sequence[str] | None = None) -> float:
    """Share of exact zeros, in [0, 1], over the parameters ``names`` together; None: over all."""
    return near_zero(model, names, threshold=0.0)


def near_zero(model: nn.Module, names: Sequence[str] | None = None, *, threshold: float = 1e-3) -> float:
    """Share of weights with |theta| < threshold, or exactly zero, in [0, 1]; ``names`` as of :func:`sparsity`.

    Raises:
        InvalidInput: the model has no parameter of a name.
    """
    own = dict(model.named_parameters())
    chosen = list(own) if names is None else list(names)
    if unknown := [name for name in chosen if name not in own]:
        raise InvalidInput(f"the model has no parameter {', '.join(unknown)}; it has: {', '.join(own)}")
    small = sum(int(((own[n] == 0) | (own[n].abs() < threshold)).sum()) for n in chosen)
    return small / sum(own[n].numel() for n in chosen)


@torch.no_grad()
def weight_distance(model: nn.Module, reference: nn.Module, *, mask: Mask | None = None) -> float:
    """L2 distance between the weights of two models of one architecture, >= 0.

    Args:
        mask: weights that count, of the parameters that it names; the others count whole.

    Raises:
        InvalidInput: other parameters, or of other shapes.
    """
    own, other = dict(model.named_parameters()), dict(reference.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in other.items()}:
        raise InvalidInput("weight_distance: the two models have other parameters")
    total = 0.0
    for name, p in own.items():
        apart = p.double() - other[name].to(p.device).double()
        if mask is not None and name in mask:
            apart = apart[mask[name].to(p.device)]
        total += float(apart.square().sum())
    return total**0.5
