"""The lower level of the worst-case forget set: approximate unlearning of a *weighted* forget set by signSGD.

    theta <- theta - eta * sign(grad of  sum_{i in batch} (1 - w_i) l(theta; x_i, y_i)  [+ alpha_e |theta|_1])

    ft        from the audited weights, all trainable parameters (retain fine-tuning)
    ft_l1     the same with alpha_e = alpha (1 - e / E) in epoch e of E, which falls linearly
    retrain   from a fresh initialisation: Xavier-uniform weights, zero biases, norms as new
    eu        the output layer alone, re-initialised in the same way; everything below it is frozen

l: the task's loss, cross-entropy of classes; a number to predict is descended in units of its own spread, as it was
    trained.
w (N,) in [0, 1], 1 = forget; batches of B; what is trained is in train mode, what is frozen in eval mode (its batch
statistics and dropout too); no momentum, no weight decay, constant eta. The loss is a *sum*: only the sign step makes
it independent of the batch size and of the scale of 1 - w. And sign has derivative zero almost everywhere, so theta
does not depend on w to first order: the upper level needs no second-order term.

Source: Zhang et al., "Challenging Forgets" (ECCV 2024, arXiv 2403.07362) and the authors' code (w_FT, w_FT_l1, w_EU;
    sign_step).
There "eu" draws a linear layer from N(0, 1), anew in every epoch; here once, and at the scale of the layer. Not an
unlearning method to deploy: those are registered ones.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import Diverged, NotApplicable
from explain.embeddings import last_linear
from recipes.fitting import units_of
from recipes.inputs import Inputs
from recipes.recsys_models import is_ranker, settle, take_graph
from recipes.rng import local_rng
from recipes.schedule import epoch_order

LOWER_LEVELS = ("ft", "retrain", "ft_l1", "eu")


def unlearn_weighted(
    model: nn.Module,
    inputs: Inputs,
    w_N: Tensor,
    *,
    lower: str,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
    alpha: float = 0.0,
) -> nn.Module:
    """The model after unlearning the examples to the degree ``w``.

    Args:
        model: the audited model; not changed.
        inputs: the N training examples.
        w_N: (N,) in [0, 1]; 1 leaves an example out of the loss.
        lower: one of ``LOWER_LEVELS``.
        epochs: passes over all N examples.
        lr: eta, how far every parameter moves in every step.
        batch: examples a step; a last one alone joins the others (batch norm cannot use it alone).
        seed: of the batch order, the initialisation and the model's own noise.
        alpha: of ``ft_l1`` alone.

    Returns:
        A changed copy, eval mode.

    Raises:
        NotApplicable: no trainable parameter, a part that cannot be re-initialised, or no output layer (``eu``).
        Diverged: a parameter or buffer is not finite at the end.
    """
    student = copy.deepcopy(model)
    with local_rng(derive_seed("lower level", seed), device=inputs.device):
        part = _start(student, lower)
        if is_ranker(student):
            take_graph(student, np.asarray(inputs.data.x)[:, 0], inputs.data.y)
        units = units_of(student, inputs, inputs.data.y[(w_N < 1).numpy()])
        if units is not None:
            inputs = inputs.with_targets(units.of(inputs.targets))
            if lower in ("ft", "ft_l1"):  # the others start from an output layer of its own scale
                units.unfold(student)
        moving = [p for p in part.parameters() if p.requires_grad]
        if not moving:
            raise NotApplicable(f"the lower level {lower} has no trainable parameter to move")
        keep_N = (1.0 - w_N).to(inputs.device)
        student.eval()
        part.train()
        for epoch in range(epochs):
            l1 = alpha * (1.0 - epoch / epochs) if lower == "ft_l1" else 0.0
            order = epoch_order(len(inputs), seed=seed, epoch=epoch).to(inputs.device)
            for rows in _batches(order, batch):
                loss_B = inputs.data.task.losses(student, inputs.batch(rows))
                total = (keep_N[rows].to(loss_B.dtype) * loss_B).sum()
                gradients = torch.autograd.grad(total, moving, allow_unused=True)
                sign_step(moving, gradients, lr=lr, l1=l1)
    student.eval()
    settle(student)
    if units is not None:
        units.fold(student)
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Diverged(f"the lower level {lower} at lr {lr:g}: {name} is not finite; use a smaller lr_lower")
    return student


@torch.no_grad()
def sign_step(
    parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...], *, lr: float, l1: float = 0.0
) -> None:
    """p <- p - lr * sign(g + l1 * sign(p)), in place; a parameter without a gradient, 0 or None, stays.

    The L1 term is a part of the loss, hence inside the sign.
    """
    for p, g in zip(parameters, gradients, strict=True):
        if g is None and not l1:
            continue
        slope = torch.zeros_like(p) if g is None else g
        p.sub_((slope + l1 * p.sign() if l1 else slope).sign(), alpha=lr)


def _start(student: nn.Module, lower: str) -> nn.Module:
    """Bring the copy to its starting point; the part of it that is trained."""
    part = last_linear(student)[1] if lower == "eu" else student
    if lower in ("retrain", "eu"):
        _reinitialise(part)
    return part


def _reinitialise(root: nn.Module) -> None:
    """Forget all that was learnt: every module's own reset, then Xavier-uniform for linear and convolution weights."""
    for name, module in root.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is None:
            if own:
                raise NotApplicable(
                    f"{name or type(root).__name__} ({type(module).__name__}) has parameters but no "
                    "reset_parameters(), so it would keep what it learnt; hand in the unlearner 'retrain' in place of "
                    "the lower level"
                )
            continue
        reset()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    pieces = list(order.split(size))
    if len(pieces) > 1 and size > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces
