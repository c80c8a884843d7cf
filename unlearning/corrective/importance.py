"""How much a set of examples uses each parameter: the squared gradient of the mean loss of a batch, averaged over
batches.

    I_S[j] = (1 / M) sum_{m=1..M} ( d/d theta_j  (1/|b_m|) sum_{i in b_m} l(theta; x_i, y_i) )^2       b_1 .. b_M: S,
                                                                                          shuffled, cut at ``batch``

Eval mode. Source: Foster et al., AAAI 2024 (arXiv 2308.07707), after elastic weight consolidation (Kirkpatrick et al.,
2017). It is not the Fisher information of single examples: the mean is taken before the square, so that gradients which
disagree within a batch cancel, and those of a homogeneous set do not. The batch size is therefore part of the measure:
compare sets at one batch size only, and keep it with the figures (:class:`Importance` does).

A set of fewer examples than ``batch`` is one batch of all of them; a last, shorter batch counts as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, InvalidInput
from recipes.predict import eval_mode
from recipes.rng import generator
from sources.example_set import ExampleSet
from unlearning.descent import Pass, inputs_of, trainable


@dataclass(frozen=True, eq=False)
class Importance:
    """Of every parameter that trains.

    Attributes:
        values: name -> tensor of the parameter's shape, dtype and device, >= 0; higher = used more.
        batch: examples a batch, as asked; two importances are comparable when it is the same.
        num_batches: M.
    """

    values: Mapping[str, Tensor]
    batch: int
    num_batches: int


def parameter_importance(
    model: nn.Module, *sets: ExampleSet, batch: int, seed: int, beside: ExampleSet | None = None
) -> Importance:
    """I_S of the union of ``sets``, in one forward and backward pass over it.

    Args:
        model: its mode is restored, and no gradient is left in it; parameters that do not train have no importance.
        sets: N >= 1 examples in all, of one task; their order does not matter. Several are joined only where examples
            are rows of arrays.
        batch: examples a batch.
        seed: of the shuffle.
        beside: as of ``unlearning.descent.inputs_of``.

    Returns:
        See :class:`Importance`.

    Raises:
        DataError: no example.
        InvalidInput: batch below 1.
        Diverged: a gradient is not finite.
    """
    if batch < 1:
        raise InvalidInput(f"batch = {batch} is outside its allowed range: 1 and more examples")
    filled = [one for one in sets if len(one)]
    if not filled:
        raise DataError("the importance of parameters for no example at all is undefined")
    examples = Pass.over(inputs_of(model, filled[0], beside=beside))
    for one in filled[1:]:
        examples = examples.together_with(Pass.over(inputs_of(model, one, beside=beside)))
    trained = trainable(model)
    squares = [torch.zeros_like(p) for p in trained.values()]
    order = torch.randperm(len(examples), generator=generator(derive_seed("importance", seed)))
    pieces, task = order.split(batch), filled[0].task
    with eval_mode(model):
        for rows in pieces:
            loss = task.losses(model, examples.batch(rows.to(examples.weights.device))).mean()
            gradients = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
            torch._foreach_addcmul_(squares, gradients, gradients)
    torch._foreach_div_(squares, len(pieces))
    values = dict(zip(trained, squares, strict=True))
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise Diverged(f"importance: the gradient of {name} is not finite, or its square is not")
    return Importance(values, batch, len(pieces))
