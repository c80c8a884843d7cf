"""BS: boundary shrinking. What is to be forgotten is taught the nearest other class (Chen et al., Boundary Unlearning,
CVPR 2023; baseline BS of Fan et al., ICLR 2024).

    x'   = clip(x + 0.1 sign(grad_x l(theta0; x, y)), 0, 1), rounded to 1/255         one FGSM step on the pixels
    y'   = argmax_k f_k(x'; theta0)                                 the class on the other side of the boundary, if any
    theta <- argmin_theta  E_{x in D_f} CE(f(x; theta), y')               clean x; theta0 frozen in x' and y'

The step is taken in the range of the stored values, before any standardisation: 0..255 for bytes, rounded to whole
numbers; for numbers the range that they have in both sets, of images of all pixels and of vectors of each feature, not
rounded. ``step`` is a share of that range. y' may be y where one step does not cross a boundary: such an example is
left where it is. Since theta0 and x are fixed, so is y'.

The retained examples are not trained on. Published: 10 epochs, lr in [1e-6, 1e-4].
It is not adversarial training: x' only names a class.
Shapes: x (N, *shape), y' int64 (N,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contracts.errors import Diverged
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from recipes.inputs import Inputs
from recipes.predict import eval_mode
from sources.example_set import ExampleSet
from tasks.base import Batch, OutputTask, answers
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of

_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryShrinkConfig(DescentConfig):
    lr: float = param(1e-5, gt=0, le=1, search=(1e-6, 1e-4), doc="learning rate; published search range 1e-6 to 1e-4")
    step: float = param(0.1, ge=0, le=1, doc="of the FGSM, as a share of the range of the values; published 0.1")


@dataclass(frozen=True, eq=False)
class ValueRange:
    """What a stored value may be.

    Attributes:
        low, high: float32, broadcast over one example.
        whole: values are whole numbers.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    whole: bool


def value_range(*sets: ExampleSet) -> ValueRange:
    """That of bytes; else the smallest and the largest value that is there, of images in all, of vectors by feature."""
    if np.dtype(sets[0].x.dtype).kind == "u":
        limits = np.iinfo(sets[0].x.dtype)
        return ValueRange(np.float32(limits.min), np.float32(limits.max), True)  # type: ignore[arg-type]
    vectors = len(sets[0].input_shape) == 1
    low = np.full(sets[0].input_shape if vectors else (), np.inf, np.float32)
    high = -low
    for data in sets:
        for start in range(0, len(data), 4096):
            block = np.asarray(data.x[start : start + 4096], np.float32)
            low = np.minimum(low, block.min(axis=0) if vectors else block.min())
            high = np.maximum(high, block.max(axis=0) if vectors else block.max())
    return ValueRange(low, high, False)


def nearest_labels(model: nn.Module, data: ExampleSet, *, within: ValueRange, step: float) -> NDArray[np.int64]:
    """What the model says of each example, in the order of its ids, after one FGSM step: int64 (N,).

    Args:
        model: frozen, read in eval mode.
        within: range of the stored values, which the step is a share of and is clipped to.
        step: share of the range, >= 0.

    Raises:
        Diverged: outputs or gradients that are not finite.
    """
    inputs = inputs_of(model, data)
    found = [_nearest(model, inputs, slice(s, s + _BATCH), within, step) for s in range(0, len(inputs), _BATCH)]
    return np.concatenate([np.empty(0, np.int64), *found])


def _nearest(model: nn.Module, inputs: Inputs, rows: slice, within: ValueRange, step: float) -> NDArray[np.int64]:
    data = inputs.data
    batch = inputs.slice(rows.start, min(rows.stop, len(inputs)))
    task: Any = data.task
    assert isinstance(task, OutputTask)  # a task that gives outputs is one
    with eval_mode(model), torch.enable_grad():
        x = batch.inputs.detach().clone().requires_grad_()
        loss = task.losses_of(answers(model, Batch(x, batch.targets, batch.example_id, batch.constants)), batch.targets)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        if not bool(torch.isfinite(gradient).all()):
            raise Diverged("boundary_shrink: the model before unlearning has gradients that are not finite")
        as_tensor = lambda a: torch.as_tensor(np.asarray(a, np.float32), device=x.device, dtype=x.dtype)  # noqa: E731
        center, scale = as_tensor(data.center), as_tensor(data.scale)
        low, high = as_tensor(within.low), as_tensor(within.high)
        stored = as_tensor(np.asarray(data.x[rows], np.float32))
        # the stored value goes up where the input does, but for a negative scale
        moved = torch.clamp(stored + step * (high - low) * torch.sign(gradient * scale), low, high)
        moved = torch.round(moved) if within.whole else moved
        with torch.no_grad():
            said = answers(model, Batch((moved - center) * scale, batch.targets, batch.example_id, batch.constants))
    if not bool(torch.isfinite(said).all()):
        raise Diverged("boundary_shrink: the model before unlearning has outputs that are not finite")
    return said[:, : data.num_classes].argmax(dim=1).cpu().numpy()


def boundary_shrink_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: BoundaryShrinkConfig, seed: int
) -> Descent:
    """What :func:`boundary_shrink` does, and raises before any work but two passes over the examples to be
    forgotten."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=False, wants=("outputs", "classes", "features"))
    targets = nearest_labels(model, forget, within=value_range(retain, forget), step=config.step)
    gone = Pass.over(inputs_of(model, forget), targets=targets)
    return Descent(
        model=model, passes=lambda _: [gone], retain=retain, config=config, seed=seed, name="boundary_shrink"
    )


@unlearner(
    UnlearnerSpec(
        name="boundary_shrink",
        wants=("outputs", "classes", "features"),
        doc="Teaches the examples to be forgotten the class on the other side of their nearest boundary.",
        source="Chen et al., Boundary Unlearning, CVPR 2023; Fan et al., ICLR 2024, arXiv 2310.12508, baseline BS",
        config=BoundaryShrinkConfig,
        plan=boundary_shrink_plan,
    )
)
def boundary_shrink(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: BoundaryShrinkConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Train a copy of ``model`` to say of ``forget`` what the model says on the other side of the boundary.

    Args:
        model: trained classifier; not changed.
        retain: (N_r) examples to keep; used for the range of the values and to notice a collapse.
        forget: (N_f) examples to remove; with none of them the copy is returned as it is.
        config: see :class:`BoundaryShrinkConfig`.
        seed: batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        Diverged: the run left the finite numbers or collapsed.
    """
    plan = boundary_shrink_plan(model, retain=retain, forget=forget, config=config, seed=seed)
    return descend(plan, progress=progress)
