"""Masks of weights: which may move while a model is unlearned; every other keeps the value that it has, to the bit.

    theta_j  <-  theta_j      where mask_j        theta0_j   elsewhere                 after every step

Restoring is what holds a weight: with its gradient set to zero, weight decay and a momentum from before would still
move it. What is restored needs no masked gradient and no masked momentum either, since both act weight by weight. A
saliency mask (Fan et al., ICLR 2024) holds the weights that say little of the forget set, a pruning mask (Jia et al.,
NeurIPS 2023) those that are zero; both are the same thing here: ``unlearning.masked`` runs an unlearner under either.

A mask is a mapping from names of parameters to bool tensors of their shapes. A parameter that it does not name may
move. Buffers (the running statistics of batch norm) are no weights and are not held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from contracts.errors import Diverged, InvalidInput

Mask = Mapping[str, Tensor]


def check_mask(model: nn.Module, mask: Mask | None) -> None:
    """Every entry is bool, of a parameter of ``model`` and of its shape; no mask is one, too.

    Raises:
        InvalidInput: naming the entry.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name, chosen in (mask or {}).items():
        if name not in shapes:
            raise InvalidInput(f"mask: {name!r} is no parameter of the model; it has: {', '.join(shapes)}")
        if chosen.dtype != torch.bool or chosen.shape != shapes[name]:
            raise InvalidInput(
                f"mask: {name!r} is {chosen.dtype} {tuple(chosen.shape)}, the weights are {tuple(shapes[name])}; bool "
                "of the same shape is needed"
            )


@dataclass(frozen=True, eq=False)
class Held:
    """Weights outside a mask, as they were.

    Attributes:
        mask: bool, by name.
        values: the whole parameters, by name.
    """

    mask: dict[str, Tensor]
    values: dict[str, Tensor]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], mask: Mask) -> Held:
        """As ``parameters`` are now; of those that the mask names."""
        own = {name: p.detach().clone() for name, p in parameters.items() if name in mask}
        return cls({name: mask[name].to(p.device) for name, p in own.items()}, own)

    @classmethod
    def together(cls, each: Sequence[Held]) -> Held:
        """What each of many models of one architecture holds, as one with a leading axis of models."""

        def stack(of: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.stack([own[name] for own in of]) for name in of[0]}

        return cls(stack([one.mask for one in each]), stack([one.values for one in each]))

    def __call__(self, parameters: Mapping[str, Tensor], done: int, total: int) -> None:
        """:meth:`restore`, as ``Descent.project`` takes it."""
        self.restore(parameters)

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Put the held weights back, in place, of those that are there; a leading axis of models is allowed."""
        for name, chosen in self.mask.items():
            if name in parameters:
                torch.where(chosen, parameters[name], self.values[name], out=parameters[name])


def both(first: Mask | None, second: Mask | None) -> Mask | None:
    """Weights that may move under each of two masks; None where there is neither."""
    if first is None or second is None:
        return second if first is None else first
    shared = {name: first[name] & second[name].to(first[name].device) for name in first if name in second}
    return {**first, **second, **shared}


def density(mask: Mask) -> float:
    """Share of the weights that a mask names which may move, in [0, 1].

    >>> density({"weight": torch.tensor([True, False, False, False])})
    0.25
    """
    return sum(int(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())


def part_of(share: float, total: int) -> int:
    """floor(share * total), of the decimal number that was written and not of the binary one next to it.

    >>> part_of(0.29, 100), int(0.29 * 100)
    (29, 28)
    """
    return int(Fraction(repr(float(share))) * total)


def top(scores: Mapping[str, Tensor], count: int, *, within: Mask | None = None) -> dict[str, Tensor]:
    """The ``count`` weights with the largest scores, all parameters ranked together.

    By rank and not by a threshold: behind dead units many scores are exactly zero, and a threshold would take all of
    them or none. Of equals the first in the order of ``scores`` are taken.

    Args:
        scores: by name of parameter, its shape, higher = chosen first.
        count: how many, from 0 to as many as there are.
        within: weights that may be chosen at all; None: every one.

    Returns:
        bool by name, with exactly ``count`` True.

    Raises:
        InvalidInput: ``count`` is negative or more than may be chosen.
        Diverged: a score is NaN.

    >>> top({"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([0.0, 0.0])}, 2)
    {'a': tensor([True, True]), 'b': tensor([False, False])}
    """
    flat = torch.cat([s.flatten() for s in scores.values()])
    everywhere = {name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()}
    free = torch.cat([(within or {}).get(name, all_).flatten().to(flat.device) for name, all_ in everywhere.items()])
    places = torch.nonzero(free).flatten()
    if not 0 <= count <= len(places):
        raise InvalidInput(f"count = {count} is outside its allowed range: >= 0 and <= {len(places)} weights")
    if bool(torch.isnan(flat).any()):
        raise Diverged("weights cannot be ranked: a score is not a number")
    chosen = torch.zeros_like(free)
    if count:
        # Those above the last score that is chosen, and of its equals the first: much quicker than a stable sort.
        ranked = flat[places]
        last = ranked.kthvalue(len(ranked) - count + 1).values
        above, equal = ranked > last, torch.nonzero(ranked == last).flatten()
        chosen[places[above]] = True
        chosen[places[equal[: count - int(above.sum())]]] = True
    pieces = chosen.split([s.numel() for s in scores.values()])
    return {name: piece.reshape(s.shape) for (name, s), piece in zip(scores.items(), pieces, strict=True)}
