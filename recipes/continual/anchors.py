"""Penalties that hold parameters near where the last step of a stream left them.

    L2     sum_j (theta_j - a_j)^2
    EWC    sum_j F_j (theta_j - a_j)^2          F: diagonal empirical Fisher information (recipes.continual.fisher), no
    factor 1/2

a, the anchor, is a copy of the parameters, moved after every step. F of step n joins those before by

    sum       F <- F + F_n
    average   F <- alpha min(F, cap) + (1 - alpha) min(F_n, cap),   alpha = C_{n-1} / C_n, cap = 1e-4       as PyCIL
    does
    online    F <- decay F + F_n                                     (Schwarz et al. 2018)

Anchored is the encoder. Rows of a growing head that belong to new classes must never be: the anchor would hold them at
their random start. Old rows may be (``rows``). An L2 anchor stores weights and nothing else of the data; F is a second
moment of per-example gradients of old data.

Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (PNAS 2017, arXiv 1612.00796);
Schwarz et al.,
"Progress & Compress" (ICML 2018); Smith et al. (CVPRW 2023, arXiv 2203.17269), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from contracts.errors import InvalidInput

Accumulation = Literal["sum", "average", "online"]
CAP = 1e-4  # of the running average, PyCIL's fishermax


class L2Anchor:
    """The squared distance of some parameters from a copy of them.

    Args:
        params: name -> parameter; read, never changed. The anchor is where they are now.
        rows: name -> rows (int64) of that parameter that are held; those not named are held as a whole.
    """

    def __init__(self, params: Mapping[str, Tensor], *, rows: Mapping[str, Tensor] | None = None) -> None:
        self.params = dict(params)
        self.rows = dict(rows or {})
        unknown = sorted(set(self.rows) - set(self.params))
        if unknown:
            raise InvalidInput(f"rows of {', '.join(unknown)}, which is not among the anchored parameters")
        self.anchor: dict[str, Tensor] = {}
        self.move()

    def move(self) -> None:
        """The anchor is now where the parameters are."""
        self.anchor = {name: p.detach().clone() for name, p in self.params.items()}

    def penalty(self) -> Tensor:
        """The penalty, a scalar >= 0 with gradient; 0 with gradient 0 at the anchor."""
        total: Tensor | None = None
        for name, p in self.params.items():
            part = self._held(name, self._weighted(name, (p - self.anchor[name]).square())).sum()
            total = part if total is None else total + part
        if total is None:
            raise InvalidInput("an anchor without parameters has no penalty")
        return total

    def _held(self, name: str, values: Tensor) -> Tensor:
        return values if name not in self.rows else values.index_select(0, self.rows[name])

    def _weighted(self, name: str, squares: Tensor) -> Tensor:
        return squares


class EWCAnchor(L2Anchor):
    """As :class:`L2Anchor`, every parameter weighted by its Fisher information.

    Args:
        params, rows: as there.
        fisher: name -> F_j >= 0, the shape of the parameter.

    Raises:
        InvalidInput: a parameter without F, another shape, or a negative or non-finite value.
    """

    def __init__(
        self, params: Mapping[str, Tensor], fisher: Mapping[str, Tensor], *, rows: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(params, rows=rows)
        for name, p in self.params.items():
            if name not in fisher or fisher[name].shape != p.shape:
                raise InvalidInput(f"no Fisher information of the shape of {name}, {tuple(p.shape)}")
            if not bool(torch.isfinite(fisher[name]).all()) or bool((fisher[name] < 0).any()):
                raise InvalidInput(f"the Fisher information of {name} must be finite and >= 0")
        self.fisher = {name: fisher[name].detach() for name in self.params}

    def _weighted(self, name: str, squares: Tensor) -> Tensor:
        return self.fisher[name] * squares


def accumulate(
    fisher: Mapping[str, Tensor] | None,
    new: Mapping[str, Tensor],
    *,
    how: Accumulation,
    old_share: float = 0.5,
    cap: float = CAP,
    decay: float = 0.9,
) -> dict[str, Tensor]:
    """The Fisher information after one more step.

    Args:
        fisher: of the steps before; None after the first.
        new: of the step just ended, the same names and shapes.
        how: see the module.
        old_share: alpha = C_{n-1} / C_n in [0, 1]; average only.
        cap: largest value that takes part; average only.
        decay: in [0, 1]; online only.

    Raises:
        InvalidInput: an unknown way, other names, or a share or decay outside [0, 1].

    >>> one, two = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    >>> accumulate(one, two, how="sum")["w"].item(), accumulate(one, two, how="online", decay=0.5)["w"].item()
    (4.0, 3.5)
    """
    if how not in ("sum", "average", "online"):
        raise InvalidInput(f"how = {how!r} is not one of 'sum', 'average', 'online'")
    if not (0 <= old_share <= 1 and 0 <= decay <= 1 and cap > 0):
        raise InvalidInput(f"old_share = {old_share} and decay = {decay} must be in [0, 1], cap = {cap} > 0")
    if how == "average":
        new = {name: f.clamp(max=cap) for name, f in new.items()}
    if fisher is None:
        return dict(new)
    if set(fisher) != set(new):
        raise InvalidInput("the Fisher information of two steps must be of the same parameters")
    if how == "average":
        return {name: old_share * fisher[name].clamp(max=cap) + (1 - old_share) * f for name, f in new.items()}
    keep = 1.0 if how == "sum" else decay
    return {name: keep * fisher[name] + f for name, f in new.items()}
