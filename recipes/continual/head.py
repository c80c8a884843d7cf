"""A classifier that grows: one linear head of which only the classes seen so far are open.

    open row c     weight and bias as ``build`` made them, trained from then on
    closed row c   weight 0, bias CLOSED: sigmoid and softmax give the class no probability, argmax never answers it

The head has all K rows from the start, so that a model at any step has the shape of the plan's architecture and what
reads
a model (argmax, losses, attacks) needs no list of classes. Losses see the open columns alone, in the order in which
they
opened: closed rows have no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import InvalidInput, NotApplicable

CLOSED = -50.0  # p = 2e-22: below what training reaches, and finite in every dtype


class GrowingHead:
    """See the module. Closes every row of the head of ``model`` on construction.

    Args:
        model: freshly initialised; its head is ``model.head``, or the last ``nn.Linear`` with K outputs.
        num_classes: K.

    Attributes:
        name: of the layer in the model.
        layer: the ``nn.Linear``.
        seen: the open classes, in the order in which they opened.

    Raises:
        NotApplicable: the model has no such layer, or it has no bias.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        self.name, self.layer = head_of(model, num_classes)
        if self.layer.bias is None:
            raise NotApplicable(f"layer {self.name!r} has no bias: a class that is not seen yet cannot be closed")
        self._initial = self.layer.weight.detach().clone(), self.layer.bias.detach().clone()
        self.seen: list[int] = []
        self.close_unseen()

    @property
    def columns(self) -> Tensor:
        """(C,) int64, the open classes."""
        return torch.tensor(self.seen, dtype=torch.int64, device=self.layer.weight.device)

    def open(self, classes: Sequence[int]) -> None:
        """Open these classes, those that are open already left as they are; new rows start as they were built."""
        new = [c for c in dict.fromkeys(classes) if c not in self.seen]
        if any(not 0 <= c < self.layer.out_features for c in new):
            raise InvalidInput(f"classes {new} are not all rows of a head of {self.layer.out_features}")
        with torch.no_grad():
            self.layer.weight[new], self.layer.bias[new] = self._initial[0][new], self._initial[1][new]
        self.seen += new

    def close_unseen(self) -> None:
        """Closed rows as they must be; weight decay moves them."""
        closed = [c for c in range(self.layer.out_features) if c not in self.seen]
        with torch.no_grad():
            self.layer.weight[closed] = 0.0
            self.layer.bias[closed] = CLOSED

    def places(self, labels: Tensor) -> Tensor:
        """Column of each label (B,) among the open classes."""
        place = torch.full((self.layer.out_features,), -1, dtype=torch.int64, device=labels.device)
        place[self.columns.to(labels.device)] = torch.arange(len(self.seen), device=labels.device)
        return place[labels]


def head_of(model: nn.Module, num_classes: int) -> tuple[str, nn.Linear]:
    """(name, layer) of the layer that gives the logits: ``head`` if it is linear, else the last linear one with K
    outputs.

    Raises:
        NotApplicable: there is none.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_classes}
    if not linear:
        raise NotApplicable(
            f"training in steps needs a linear output layer with {num_classes} outputs; the model has none"
        )
    name = "head" if "head" in linear else list(linear)[-1]
    return name, linear[name]


def encoder_names(model: nn.Module, head: str) -> list[str]:
    """The trainable parameters outside the head."""
    return [n for n, p in model.named_parameters() if p.requires_grad and not n.startswith(f"{head}.")]


@contextmanager
def features_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every forward pass of the model leaves what ``layer`` takes in, the penultimate features, as the list's
    only item."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = [inputs[0]]

    handle = layer.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
