"""What the methods for numbers share: their settings and the error of an example.

    l1   |f(x) - t|        as published for ages and loads
    l2   (f(x) - t)^2      as published for text similarity

in the units of the descent (``unlearning.descent``): mean 0 and spread 1 over the retained targets, so that one
learning rate suits every target. Predictions (B, 1) against targets (B,) would broadcast to B x B in silence: shapes
are checked.

Source: Tarun, Chundawat, Mandal, Kankanhalli, "Deep Regression Unlearning" (ICML 2023, arXiv 2210.08196).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contracts.errors import NotApplicable
from contracts.params import param
from recipes.predict import eval_mode
from sources.example_set import ExampleSet
from tasks.base import Batch, answers
from unlearning.descent import EpochsConfig, check_sets, inputs_of

WANTS = ("numbers", "features")
LOSSES = ("l1", "l2")
Losses = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionConfig(EpochsConfig):
    """Settings of the published code: Adam, learning rate 1e-3, constant, batches of 256."""

    lr: float = param(0.001, gt=0, le=1, doc="learning rate of Adam, constant")
    epochs: int = param(1, ge=0, le=1000, doc="passes over the data; 0 returns the model as it was")
    loss: str = param("l1", choices=LOSSES, doc="error of an example: absolute or squared")


def errors_of(outputs: Tensor, targets: Tensor, *, loss: str) -> Tensor:
    """(B,) error of each prediction, (B, 1) or (B,), and target, (B, 1) or (B,), as ``loss`` says.

    Raises:
        NotApplicable: not one prediction and one target an example.

    >>> errors_of(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 2.0]), loss="l1").tolist()
    [1.0, 2.0]
    """
    size = (len(targets),)
    for what, values in (("predictions", outputs), ("targets", targets)):
        if values.shape not in (size, (*size, 1)):
            raise NotApplicable(f"{what} of shape {tuple(values.shape)}: one number an example is needed")
    apart = outputs.reshape(size) - targets.reshape(size)
    return apart.abs() if loss == "l1" else apart.square()


def own_errors(loss: str) -> Losses:
    """(model, batch) -> the error of every example against its target in the batch."""
    return lambda model, batch: errors_of(answers(model, batch), batch.targets, loss=loss)


def check_numbers(model: nn.Module, *, retain: ExampleSet, forget: ExampleSet) -> None:
    """Refuse what the methods for numbers cannot work on, before anything is computed.

    Raises:
        DataError, NotApplicable: see ``check_sets``; a model that does not answer with one number an example.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=WANTS)
    batch = inputs_of(model, retain.take(np.arange(1))).slice(0, 1)
    with eval_mode(model), torch.no_grad():
        outputs = answers(model, batch)
    errors_of(outputs, batch.targets, loss="l1")
