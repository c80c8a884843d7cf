"""The f-divergences of FLAT (Wang et al., ICLR 2025, arXiv 2410.11143), in variational form.

    D_f(P || Q) = sup_g  E_P[g] - E_Q[f*(g)],      f*(t) = sup_{u > 0} { u t - f(u) }        (convex conjugate)

For a score v (here a mean token probability, in (0, 1)) an output activation g*(v), strictly increasing, maps it into
the domain of f*; FLAT minimises -g*(p_template) + f*(g*(p_forget)).

    name                f(u)                                  g*(v)                     f*(g*(v))
    total_variation     |u - 1| / 2                           tanh(v) / 2               tanh(v) / 2
    kl                  u log u                               v                         e^(v-1)
    jensen_shannon      u log u - (u+1) log((u+1)/2)          log 2 - log(1 + e^-v)     v + log(1 + e^-v) - log 2
    pearson             (u - 1)^2                             v                         v^2/4 + v
    reverse_kl          -log u                                -e^-v                     v - 1
    squared_hellinger   (sqrt(u) - 1)^2                       1 - e^-v                  e^v - 1
    jeffrey             (u - 1) log u                         v                         w + 1/w + v - 2,  w e^w =
                        e^(1-v)
    neyman              (1 - u)^2 / u                         1 - e^-v                  2 - 2 e^(-v/2)

The first four are the paper's; the others are in its code, with flaws that are not kept here: reverse KL and squared
Hellinger have -v for v there, so that g* falls and the loss would teach the forgotten answer, and Neyman leaves g* out.
Activations and conjugates as in Nowozin et al., f-GAN, NeurIPS 2016, tables 2 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from contracts.errors import UnknownName

_Map = Callable[[Tensor], Tensor]
_NEWTON_STEPS = 12  # from w = 1 to the last bit of float64 for every v in [-20, 20]


def _lambert(v: Tensor) -> Tensor:
    """w > 0 with w + log w = 1 - v (the Lambert W of e^(1-v)), with the exact first derivative -w / (1 + w)."""
    with torch.no_grad():
        log_w = torch.zeros_like(v)
        for _ in range(_NEWTON_STEPS):  # in log w, where the function is convex and cannot leave the positive numbers
            log_w = log_w - (log_w.exp() + log_w - 1 + v) / (log_w.exp() + 1)
    w = log_w.exp()
    return w - (w + log_w - 1 + v) * w / (w + 1)  # one more step, which autograd sees


def _jeffrey(v: Tensor) -> Tensor:
    w = _lambert(v)
    return w + 1 / w + v - 2


_TABLE: dict[str, tuple[_Map, _Map]] = {
    "total_variation": (lambda v: torch.tanh(v) / 2, lambda v: torch.tanh(v) / 2),
    "kl": (lambda v: v, lambda v: torch.exp(v - 1)),
    "jensen_shannon": (lambda v: math.log(2) - F.softplus(-v), lambda v: v + F.softplus(-v) - math.log(2)),
    "pearson": (lambda v: v, lambda v: v.square() / 4 + v),
    "reverse_kl": (lambda v: -torch.exp(-v), lambda v: v - 1),
    "squared_hellinger": (lambda v: -torch.expm1(-v), lambda v: torch.expm1(v)),
    "jeffrey": (lambda v: v, _jeffrey),
    "neyman": (lambda v: -torch.expm1(-v), lambda v: -2 * torch.expm1(-v / 2)),
}
DIVERGENCES = tuple(_TABLE)


@dataclass(frozen=True, slots=True)
class FDivergence:
    """One row of the table.

    Attributes:
        name: one of ``DIVERGENCES``.

    Raises:
        UnknownName: of another name; lists them.

    >>> FDivergence("pearson").f_star_of_g_star(torch.tensor(1.0)).item()
    1.25
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in _TABLE:
            raise UnknownName("f-divergence", self.name, DIVERGENCES)

    def g_star(self, v: Tensor) -> Tensor:
        """g*(v), elementwise, strictly increasing; any shape, float."""
        return _TABLE[self.name][0](v)

    def f_star_of_g_star(self, v: Tensor) -> Tensor:
        """f*(g*(v)), elementwise, increasing; any shape, float."""
        return _TABLE[self.name][1](v)
