"""Relearning: forgotten examples that come back faster than never-seen ones were not gone.

    theta <- SGD with momentum on  1/2 mean_{forgotten} loss + 1/2 mean_{unseen} loss        the whole batch, S steps
    phi_i(s) = the task's signal of example i after s steps: of classes the log-odds of its label

    steps        first s at which a group's mean quality (accuracy for classes) is within ``margin`` of what the
                 forgotten examples had before unlearning (S + 1 when it is not reached): r_f for the forgotten, r_u for
                 the unseen
    anamnesis    r_f / r_u                       1: as slow as new examples; below 1: knowledge was still there
    area_i       1/S sum_{s=1..S} phi_i(s)       how soon and how well example i is relearned: the signal of a
                 per-example attack

Both groups are taught together, to one copy of the unlearned model, and weigh the same. Source: Chundawat et al.,
"Zero-Shot Machine Unlearning", IEEE TIFS 2023, eq. 10 (anamnesis index: relearn time of the unlearned model over that
of one trained from scratch; margin 5% to 10%); relearn time after Golatkar et al., CVPR 2020. Here never-seen examples
of the same model stand for the model trained from scratch, so one model tells both times; the retrained reference
stands beside.

A group that generalises is learned before the first step, and the steps then say nothing: read the area, example by
example, over shadow runs (``membership.shadow_audit``). Eval mode throughout: no dropout, no moving batch statistics.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from recipes.inputs import Inputs, model_dtype
from recipes.threads import threads_for
from sources.example_set import ExampleSet
from tasks.base import READING, Reading

Float = NDArray[np.float64]
_BLOCK = 1024  # examples a forward and backward pass; gradients add up, so memory is bounded by it


@dataclass(frozen=True, eq=False, kw_only=True)
class Relearning:
    """One model taught its forgotten and as many-weighted never-seen examples.

    Attributes:
        phi: (S + 1, n) signals before the first and after every step, in the order of the examples given.
        quality: (S + 1, n) in [0, 1]; of classes 1 where the label has the largest logit.
    """

    phi: Float
    quality: Float

    @property
    def area(self) -> Float:
        """(n,) mean signal over the steps, the start excluded."""
        return np.asarray(self.phi[1:].mean(axis=0))

    def steps_to(self, quality: float, group: NDArray[np.bool_]) -> int:
        """First step at which the group's mean quality reaches ``quality``; S + 1 when it does not.

        Raises:
            DataError: the group is empty.
        """
        if not group.any():
            raise DataError("relearning: the group whose steps are counted is empty")
        reached = self.quality[:, group].mean(axis=1) >= quality - 1e-12
        return int(np.argmax(reached)) if reached.any() else len(self.phi)


def relearn(
    model: nn.Module,
    data: ExampleSet,
    forgotten: NDArray[np.bool_],
    *,
    steps: int = 20,
    lr: float = 0.01,
    momentum: float = 0.9,
) -> Relearning:
    """Teach a copy of ``model`` the examples of ``data`` and record how they are learned. Draws no random number.

    Args:
        model: the unlearned model; not changed.
        data: n examples, forgotten and never seen, both at least one.
        forgotten: (n,) which were trained and then removed; the others were never in training.
        steps: S >= 1.
        lr: of SGD, constant, on losses in the unit of the task's readings.

    Raises:
        ConfigError, DataError: steps or lr out of range; a group is empty; a target out of range.
        NotApplicable: a model without trainable parameters.
        Diverged: a reading is not finite.
    """
    if steps < 1 or not lr > 0 or not 0 <= momentum < 1:
        raise ConfigError(f"relearn: steps = {steps} >= 1, lr = {lr} > 0, 0 <= momentum = {momentum} < 1 are needed")
    if forgotten.shape != (len(data),) or not forgotten.any() or forgotten.all():
        raise DataError(f"relearn: {len(data)} examples need forgotten and never-seen ones, told apart by a mask")
    data.check_targets()
    student = copy.deepcopy(model).eval()
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise NotApplicable("the model has no trainable parameter")
    dtype = model_dtype(student)
    inputs = Inputs(data, dtype=dtype, device=parameters[0].device)
    share = np.where(forgotten, 0.5 / forgotten.sum(), 0.5 / (~forgotten).sum())
    weights = torch.from_numpy(share / data.task.loss_unit(data.constants)).to(inputs.device, dtype)
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    readings = np.empty((steps + 1, len(data), len(READING)))
    with threads_for(student, examples=min(len(data), _BLOCK)):
        for step in range(steps + 1):
            optimizer.zero_grad(set_to_none=True)
            for start in range(0, len(data), _BLOCK):
                rows = slice(start, min(start + _BLOCK, len(data)))
                batch = inputs.slice(rows.start, rows.stop)
                with np.errstate(all="ignore"):  # what is not finite is refused below
                    if step == steps:
                        readings[step, rows] = data.task.read(student, batch).values
                        continue
                    losses, reading = data.task.losses_and_reading(student, batch)
                (weights[rows] * losses).sum().backward()  # type: ignore[no-untyped-call]
                readings[step, rows] = reading.values
            if not np.isfinite(readings[step]).all():
                raise Diverged(f"relearning at lr {lr:g}: outputs are not finite after {step} steps; use a smaller lr")
            if step < steps:
                optimizer.step()
    said = Reading(readings)
    return Relearning(phi=said.signal, quality=said.quality)
