"""How near a student that is trained on synthetic images comes to an expert, and the gradient of that in the images.

    w_0 = theta_t (perturbed or not),  b_0 = 0
    g_s = d/dw c mean_i CE(softmax(y_i), f(A_s(x_i); w_{s-1}))       i in batch s, A_s its augmentation
    b_s = m b_{s-1} + g_s,   w_s = w_{s-1} - a b_s                    s = 1 .. N
    L   = sum_k beta_k |w_{s_k} - theta_k|^2 / D_k,   the last s_k = N,  D_k = |w_0 - theta_k|^2

Three ways to dL/d(x, y, a):
    unroll    automatic differentiation through all steps; holds the graphs of N steps
    adjoint   the same numbers, holding the graph of one step and N + 1 vectors of parameters: with l = dL/dw_N,
              for s = N .. 1:   v = m v + l,   p = <g_s, v>;   x -= a dp/dx,   y -= a dp/dy,   a: -= p,
                                l <- l - a dp/dw            and at every s_k on the way   l += dL_k/dw_{s_k}
              (v collects what the heavy ball carries on: d w_r / d b_s = -a m^(r-s) for all r >= s; m = 0 leaves v = l)
    tesla     the adjoint without its last line (TESLA): cheaper, and not the gradient of L for N > 1

Shapes: theta (D,), x (n, *shape), y (n, K), a scalar. TESLA: Cui et al. (ICML 2023, arXiv 2211.10586). Matching:
Cazenavette et al. (CVPR 2022, arXiv 2203.11932).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from contracts.errors import DataError
from curation.distilled.augment import NONE, Augment
from curation.distilled.flat import FlatNetwork, soft_loss
from recipes.rng import generator

GradMode = Literal["unroll", "adjoint", "tesla"]
MODES: tuple[GradMode, ...] = ("unroll", "adjoint", "tesla")
_FLOOR = 1e-8  # of |theta|^2: the least normaliser of a comparison on the way


class Target(NamedTuple):
    """A checkpoint that the student is compared with.

    Attributes:
        step: steps the student has done by then.
        theta: (D,). scale: beta / D_k.
        floored: the expert had hardly moved there, so that ``scale`` stands on a floor.
    """

    step: int
    theta: Tensor
    scale: float
    floored: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Inner:
    """One student's run but for what it is trained on.

    Attributes:
        network: f. start: w_0 (D,).
        targets: in ascending order of their steps, the last at N.
        batches: N tensors of int64 positions in the synthetic set.
        seeds: N seeds, of the augmentation of each step.
        momentum: m. loss_scale: c.
        soft: labels are logits, used through softmax, with a gradient; else probabilities that are given.
    """

    network: FlatNetwork
    start: Tensor
    targets: Sequence[Target]
    batches: Sequence[Tensor]
    seeds: Sequence[int]
    augment: Augment = NONE
    momentum: float = 0.0
    loss_scale: float = 1.0
    soft: bool = True

    def loss(self, theta: Tensor, x: Tensor, y: Tensor, step: int) -> Tensor:
        """The loss of step ``step`` (from 0) of the images ``x`` and labels ``y`` of its batch; the one softmax."""
        logits = self.network(theta, self.augment(x, self.seeds[step]))
        return self.loss_scale * soft_loss(logits, y.softmax(1) if self.soft else y)


class Matched(NamedTuple):
    """L and its gradients; ``labels`` is zero where labels are given."""

    loss: float
    images: Tensor
    labels: Tensor
    rate: float


def match(inner: Inner, x: Tensor, y: Tensor, rate: float, *, mode: GradMode = "adjoint") -> Matched:
    """L, dL/dx, dL/dy, dL/da of one run of a student.

    Args:
        x: (n, *shape) images; y: (n, K) logits, or probabilities where labels are given; rate: a, > 0.
        mode: see the head of this file.
    """
    return _MODES[mode](inner, x.detach(), y.detach(), rate)


def targets(
    start: Tensor,
    checkpoints: Tensor,
    *,
    epoch: int,
    steps: int,
    on_the_way: Sequence[tuple[int, int, float]],
) -> list[Target]:
    """What a student that starts at ``start``, at or near the first of an expert's ``checkpoints``, is compared with.

    Args:
        checkpoints: (M + 1, D), of ``epoch`` and the M after it.
        steps: N.
        on_the_way: ``schedules.intermediate_targets``.

    Raises:
        DataError: the expert did not move from ``epoch`` on in M epochs: there is nothing to match. Checkpoints that
            share the memory of live weights look like this.
    """
    theta, end, epochs = checkpoints[0], checkpoints[-1], len(checkpoints) - 1
    moved = float((theta - end).double().square().sum())
    apart = float((start - end).double().square().sum())
    if not (moved > 0 and apart > 0):
        raise DataError(
            f"the expert's parameters after epoch {epoch} and after epoch {epoch + epochs} are the same (squared "
            f"distance {moved:g}, from the student's start {apart:g}): there is nothing to match, and the loss would "
            "be infinite"
        )
    found = []
    for step, ahead, weight in on_the_way:
        passed = checkpoints[ahead]
        distance = float((start - passed).double().square().sum())
        least = _FLOOR * float(passed.double().square().sum())
        found.append(Target(step, passed, weight / max(distance, least), distance < least))
    return [*found, Target(steps, end, 1 / apart)]


def batches(num: int, size: int, steps: int, seed: int) -> list[Tensor]:
    """Positions of each step's batch: permutations of all ``num``, cut into batches, a new one when one is used up.

    >>> [b.tolist() for b in batches(3, 5, 2, 0)] == [torch.randperm(3, generator=generator(0)).tolist()] * 2
    False
    >>> sorted(torch.cat(batches(6, 2, 3, 0)).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    g = generator(seed)
    found: list[Tensor] = []
    left: list[Tensor] = []
    for _ in range(steps):
        left = left or list(torch.randperm(num, generator=g).split(min(size, num)))
        found.append(left.pop(0))
    return found


def _unroll(inner: Inner, x: Tensor, y: Tensor, rate: float) -> Matched:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    a = torch.tensor(rate, dtype=inner.start.dtype, device=inner.start.device, requires_grad=True)
    theta, ball, total = inner.start.clone().requires_grad_(), torch.zeros_like(inner.start), 0.0
    loss = torch.zeros((), dtype=theta.dtype, device=theta.device)
    due = list(inner.targets)
    for step, batch in enumerate(inner.batches):
        value = inner.loss(theta, x[batch], y[batch], step)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        ball = inner.momentum * ball + gradient
        theta = theta - a * ball
        while due and due[0].step == step + 1:
            target = due.pop(0)
            loss = loss + target.scale * (theta - target.theta).square().sum()
    total = float(loss.detach())
    found = torch.autograd.grad(loss, (x, y, a), allow_unused=True, materialize_grads=True)
    return Matched(total, found[0], found[1] if inner.soft else torch.zeros_like(y), float(found[2]))


def _reverse(inner: Inner, x: Tensor, y: Tensor, rate: float, *, exact: bool) -> Matched:
    theta, ball, path = inner.start, torch.zeros_like(inner.start), [inner.start]
    for step, batch in enumerate(inner.batches):
        at = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(inner.loss(at, x[batch], y[batch], step), at)
        ball = gradient if not inner.momentum else inner.momentum * ball + gradient
        theta = theta - rate * ball
        path.append(theta)
    total, due = 0.0, list(inner.targets)
    of_x, of_y, of_rate = torch.zeros_like(x), torch.zeros_like(y), 0.0
    adjoint, carried = torch.zeros_like(inner.start), torch.zeros_like(inner.start)
    for step in reversed(range(len(inner.batches))):
        end = path.pop()
        while due and due[-1].step == step + 1:
            target = due.pop()
            apart = end - target.theta
            total += target.scale * float(apart.square().sum())
            adjoint = adjoint + 2 * target.scale * apart
        carried = inner.momentum * carried + adjoint
        batch = inner.batches[step]
        along, found = _second(inner, path[-1], x[batch], y[batch], step, carried, to_theta=exact and step > 0)
        of_x.index_add_(0, batch, found[0], alpha=-rate)
        if inner.soft:
            of_y.index_add_(0, batch, found[1], alpha=-rate)
        of_rate -= along
        if exact and step:
            adjoint = adjoint - rate * found[-1]
    return Matched(total, of_x, of_y, of_rate)


def _second(
    inner: Inner, theta: Tensor, x: Tensor, y: Tensor, step: int, v: Tensor, *, to_theta: bool
) -> tuple[float, tuple[Tensor, ...]]:
    """p = <g, v> of one step, and its gradients in the images, the labels where they are learned, and theta where it is
    asked for. The graph is gone when it returns."""
    theta = theta.detach().requires_grad_()
    x, y = x.requires_grad_(), y.requires_grad_(inner.soft)
    (gradient,) = torch.autograd.grad(inner.loss(theta, x, y, step), theta, create_graph=True)
    along = gradient @ v
    wanted = [x, *([y] if inner.soft else []), *([theta] if to_theta else [])]
    return float(along.detach()), torch.autograd.grad(along, wanted)


_MODES: dict[str, Callable[[Inner, Tensor, Tensor, float], Matched]] = {
    "unroll": _unroll,
    "adjoint": lambda *given: _reverse(*given, exact=True),
    "tesla": lambda *given: _reverse(*given, exact=False),
}
