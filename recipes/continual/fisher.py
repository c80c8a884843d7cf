"""The diagonal of the empirical Fisher information: a mean of squared per-example gradients.

    F_j = 1/N sum_i ( d loss(x_i, y_i) / d theta_j )^2

loss(x, y) = -log p(y | x), one example at a time, the model in eval mode. By torch.func.vmap over blocks of examples
whose
gradients fit a stated memory; a model that vmap cannot take is read example by example, the same values.
The square of a mini-batch's mean gradient is something else (it is about B times smaller, and loses what cancels);
several
toolboxes compute that and call it the Fisher information.

F is data-derived state: a second moment over the examples of one step. The share of one example cannot be taken out of
it
without its gradient; without the example it is computed anew from the others, or given up.

Source: Kirkpatrick et al. (PNAS 2017, arXiv 1612.00796); Kunstner et al., "Limitations of the empirical Fisher
approximation"
(NeurIPS 2019, arXiv 1905.12558), for what "empirical" means.
Shapes: examples (N, *shape), labels (N,); F as the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from contracts.errors import InvalidInput
from recipes.predict import eval_mode

LossOf = Callable[[Tensor, Tensor], Tensor]  # outputs (1, K) and label (1,) of one example -> scalar
_BLOCK_VALUES = 2**22  # gradient values at a time


def empirical_fisher_diagonal(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss_of: LossOf,
    names: Sequence[str],
    vectorised: bool = True,
) -> dict[str, Tensor]:
    """F of the named parameters.

    Args:
        model: on the device of the batches; its train/eval state is as before after the call.
        batches: (examples (b, *shape), labels (b,)) of all N examples, in any cut; F depends on the cut by rounding
        only.
        loss_of: what is differentiated, of one example.
        names: as of ``model.named_parameters()``; they must require gradients.
        vectorised: False reads example by example.

    Returns:
        name -> F >= 0, the dtype and shape of the parameter, without gradient.

    Raises:
        InvalidInput: no examples, or a name that the model does not have or has frozen.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for gradients in per_example_gradients(model, batches, loss_of=loss_of, names=names, vectorised=vectorised):
        for name, g in gradients.items():
            total[name] = total.get(name, 0) + g.square().sum(0)
        count += len(gradients[names[0]])
    if not count:
        raise InvalidInput("the Fisher information of no examples is not defined")
    return {name: value / count for name, value in total.items()}


def per_example_gradients(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss_of: LossOf,
    names: Sequence[str],
    vectorised: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """name -> d loss(x_i, y_i) / d theta of the examples of a block, (b, *shape of the parameter), in their order.

    Arguments and errors as :func:`empirical_fisher_diagonal`; nothing for no examples. The model is in eval mode while
    this is read.
    """
    own = dict(model.named_parameters())
    wrong = [name for name in names if name not in own or not own[name].requires_grad]
    if wrong or not names:
        raise InvalidInput(f"parameters {', '.join(wrong) or '(none)'} are not trainable parameters of the model")
    block = max(1, _BLOCK_VALUES // sum(own[name].numel() for name in names))
    with eval_mode(model):
        for x, y in batches:
            for start in range(0, len(x), block):
                yield from _gradients(
                    model, x[start : start + block], y[start : start + block], loss_of, names, vectorised
                )


def _gradients(
    model: nn.Module, x: Tensor, y: Tensor, loss_of: LossOf, names: Sequence[str], vectorised: bool
) -> Iterator[dict[str, Tensor]]:
    """Of all examples at once, or one by one."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    fixed = {name: p for name, p in state.items() if name not in names}
    fixed |= {name: b.detach() for name, b in model.named_buffers()}

    def loss(params: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return loss_of(functional_call(model, {**fixed, **params}, (one[None],)), label[None])

    params = {name: state[name] for name in names}
    if vectorised:
        try:
            found = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
        except (RuntimeError, ValueError, NotImplementedError):
            pass  # an operation that vmap does not know: the loop below gives the same
        else:
            yield found
            return
    for one, label in zip(x, y, strict=True):
        yield {name: g[None] for name, g in grad(loss)(params, one, label).items()}
