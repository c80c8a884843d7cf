"""M multi-layer perceptrons as one: a batched product a layer, the backward pass written out.

    forward    h_l = act(h_{l-1} W_l + b_l)       W_l (M, in, out), b_l (M, 1, out), h_l (M, B, out)   [baddbmm]
    loss       L = sum_m sum_b w[m, b] CE(z[m, b], y[m, b]),   w = 1/count on the batch of model m, 0 on padding
    backward   d_L = w (softmax(z) - q),  q = (1 - s) onehot(y) + s / K,  s = label smoothing
               dW_l = h_{l-1}^T d_l,  db_l = sum_b d_l,  d_{l-1} = (d_l W_l^T) act'(h_{l-1})            [bmm]

The sum over m separates, so each model gets its own gradient. Writing the backward pass out instead of recording it
saves a third of a step on small models, and the gradient of the inputs, which nobody needs, is never formed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipes.mlp import ACTIVATIONS, MLP

# act'(.) times an incoming gradient, from (gradient, input of the activation, output of the activation)
_BACKWARD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, before, after: torch.ops.aten.threshold_backward(grad, after, 0),
    "tanh": lambda grad, before, after: torch.ops.aten.tanh_backward(grad, after),
    "gelu": lambda grad, before, after: torch.ops.aten.gelu_backward(grad, before),
    "silu": lambda grad, before, after: torch.ops.aten.silu_backward(grad, before),
}


def fits(model: nn.Module) -> bool:
    """True for :class:`recipes.mlp.MLP` itself without dropout, every parameter trainable."""
    return type(model) is MLP and model.p == 0 and all(p.requires_grad for p in model.parameters())


class StackedMLP:
    """Parameters of M models of one architecture, and the gradient of the first A of them.

    Attributes:
        params: [W_1, b_1, ..., W_out, b_out] with a leading model axis.
    """

    def __init__(self, models: list[nn.Module], *, label_smoothing: float) -> None:
        self.models, self.smoothing = models, label_smoothing
        self.activation = models[0].activation
        self.params: list[Tensor] = []
        for layers in zip(*map(_layers, models), strict=True):
            self.params.append(torch.stack([layer.weight.detach().t() for layer in layers]))
            self.params.append(torch.stack([layer.bias.detach()[None] for layer in layers]))
        self._grads = [torch.empty_like(p) for p in self.params]

    def gradients(self, x: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor | None]:
        """Gradient of the loss above with respect to every parameter of models 0 .. A-1.

        Args:
            x: (A, B, *shape) inputs.
            labels: int64 (A, B).
            weights: (A, B), 0 on padding.

        Returns:
            One tensor a parameter, (A, ...); they are overwritten by the next call.
        """
        live = len(x)
        act, back = ACTIVATIONS[self.activation], _BACKWARD[self.activation]
        params, grads = [p[:live] for p in self.params], [g[:live] for g in self._grads]
        before, after = [x], [x.flatten(2)]
        for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
            before.append(torch.baddbmm(bias, after[-1], weight))
            after.append(act(before[-1]))
        delta = torch.softmax(torch.baddbmm(params[-1], after[-1], params[-2]), dim=-1)
        if self.smoothing:
            delta -= self.smoothing / delta.shape[-1]
        hit = labels.unsqueeze(-1)
        delta.scatter_add_(2, hit, delta.new_full((1, 1, 1), self.smoothing - 1).expand(hit.shape))
        delta *= weights.unsqueeze(-1)
        for layer in reversed(range(len(after))):
            torch.bmm(after[layer].transpose(1, 2), delta, out=grads[2 * layer])
            torch.sum(delta, 1, keepdim=True, out=grads[2 * layer + 1])
            if layer:
                delta = back(torch.bmm(delta, params[2 * layer].transpose(1, 2)), before[layer], after[layer])
        return list(grads)

    @torch.no_grad()
    def unstack(self) -> None:
        """Write the trained parameters back into the models."""
        for number, model in enumerate(self.models):
            for layer, weight, bias in zip(_layers(model), self.params[::2], self.params[1::2], strict=True):
                layer.weight.copy_(weight[number].t())
                layer.bias.copy_(bias[number, 0])


def _layers(model: nn.Module) -> list[nn.Linear]:
    return [*model.hidden, model.head]  # type: ignore[union-attr,misc,list-item]
