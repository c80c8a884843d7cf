"""Deep Leakage from Gradients: input and soft label whose gradient equals the shared one, by L-BFGS, dropout off.

    argmin_{x, v}  sum_l || g_l(x, softmax(v)) - g*_l ||^2,      x, v ~ N(0, 1)

L-BFGS with lr 1 and no line search, 300 iterations. The distance is divided by ||g*||^2, which changes no minimiser and
makes the first step independent of how far the model has converged. Smooth activations are assumed: the second
derivative of a ReLU is 0 where it exists, so that x moves along fewer directions. No box, no prior; the label comes out
as argmax v.

Source: Zhu, Liu, Han (NeurIPS 2019, arXiv 1906.08935), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.gradient_inversion.engine import Inverted
from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.inverting_gradients import starts
from attacks.gradient_inversion.lbfgs import lbfgs
from attacks.gradient_inversion.objective import Objective, Update
from contracts.digests import derive_seed
from contracts.errors import InvalidInput
from contracts.progress import Progress, silent
from recipes.rng import generator


def deep_leakage(
    net: Instrumented,
    update: Update,
    *,
    seeds: Sequence[int],
    steps: int = 300,
    lr: float = 1.0,
    tolerance: float = 1e-10,
    progress: Progress = silent,
) -> Inverted:
    """Reconstruct the batches and label probabilities of R clients from what they shared.

    Args:
        seeds: R seeds of the starts.
        tolerance: squared distance, relative to ||g*||^2, at which a client's search ends.

    Returns:
        ``targets`` are probabilities (R, B, K); ``distance`` is the cosine distance at the best iterate, ``loss`` the
        squared.

    Raises:
        InvalidInput: an update of another model, counts that differ, steps < 1.
        DataError: an update that is not finite.
    """
    if len(seeds) != len(update) or steps < 1:
        raise InvalidInput(f"{len(seeds)} seeds for {len(update)} clients; steps = {steps} must be >= 1")
    squared = Objective(net, update, distance="squared")
    x = starts(net, seeds)
    draws = [generator(derive_seed("label", s)) for s in seeds]
    v = torch.stack([torch.randn((net.batch, net.num_outputs), generator=g, dtype=torch.float64) for g in draws]).to(x)
    split = x[0].numel()

    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, :split].reshape(x.shape), torch.softmax(z[:, split:].reshape(v.shape), dim=-1)

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        inputs, probabilities = parts(z)
        loss, _ = squared(inputs, None, probabilities)
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    start = torch.cat([x.flatten(1), v.flatten(1)], dim=1)
    best, loss, taken = lbfgs(evaluate, start, steps=steps, lr=lr, tolerance=tolerance, progress=progress)
    inputs, probabilities = parts(best)
    with torch.no_grad():
        _, distance = Objective(net, update)(inputs, None, probabilities)
    return Inverted(x=inputs, masks=(), targets=probabilities, loss=loss, distance=distance, iterations=taken)
