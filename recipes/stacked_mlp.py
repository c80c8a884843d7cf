"""M multi-layer perceptrons as one: a batched product a layer, the backward pass written out.

    forward    h_l = act(W_l h_{l-1} + b_l)       W_l (M, out, in), b_l (M, out, 1), h_l (M, out, B)    [baddbmm]
    loss       L = sum_m sum_b w[m, b] CE(z[m, :, b], y[m, b]),   w = 1/count on the batch of model m, 0 on padding
    backward   d_L = w (softmax(z) - q),  q = (1 - s) onehot(y) + s / K,  s = label smoothing
               dW_l = d_l h_{l-1}^T,  db_l = sum_b d_l,  d_{l-1} = (W_l^T d_l) act'(h_{l-1})             [bmm]

Activations carry the batch last: the products with the few rows of an output layer are then 2 to 5 times faster than
with the batch first (measured; MKL).
The sum over m separates, so each model gets its own gradient. Writing the backward pass out instead of recording it
saves a third of a step on small models, and the gradient of the inputs, which nobody needs, is never formed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipes.mlp import MLP

Losses = Callable[[Tensor, Tensor], Tensor]  # (outputs (n, K), targets (n, ...)) -> (n,) loss of each example
_aten = torch.ops.aten
# Both write into memory that is there already: forward(before, after), backward(gradient, before, after) in place.
# Fresh memory of a few MB a step would cost more in page faults than these operations cost.
_FORWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda before, after: torch.clamp_min(before, 0, out=after),
    "tanh": lambda before, after: torch.tanh(before, out=after),
    "gelu": lambda before, after: _aten.gelu.out(before, out=after),
    "silu": lambda before, after: _aten.silu.out(before, out=after),
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, before, after: _aten.threshold_backward.grad_input(grad, after, 0, grad_input=grad),
    "tanh": lambda grad, before, after: _aten.tanh_backward.grad_input(grad, after, grad_input=grad),
    "gelu": lambda grad, before, after: _aten.gelu_backward.grad_input(grad, before, grad_input=grad),
    "silu": lambda grad, before, after: _aten.silu_backward.grad_input(grad, before, grad_input=grad),
}


def is_plain(model: nn.Module) -> bool:
    """True for :class:`recipes.mlp.MLP` itself without dropout."""
    return type(model) is MLP and model.p == 0


def fits(model: nn.Module) -> bool:
    """True for a plain one, every parameter of which trains."""
    return is_plain(model) and all(p.requires_grad for p in model.parameters())


class StackedMLP:
    """Parameters of M models of one architecture, and the gradient of the first A of them.

    Attributes:
        params: [W_1, b_1, ..., W_out, b_out] with a leading model axis: the order of a model's ``parameters()``.
    """

    def __init__(self, models: list[nn.Module], *, label_smoothing: float) -> None:
        self.models, self.smoothing = models, label_smoothing
        self.activation = models[0].activation
        self.params: list[Tensor] = []
        for layers in zip(*map(_layers, models), strict=True):
            self.params.append(torch.stack([layer.weight.detach() for layer in layers]))
            self.params.append(torch.stack([layer.bias.detach()[:, None] for layer in layers]))
        self._grads = [torch.empty_like(p) for p in self.params]
        # (3, M, out, B) a hidden layer, for each width B met: before and after the activation, and its gradient
        self._work: dict[int, list[Tensor]] = {}

    def gradients(
        self, x: Tensor, targets: Tensor, weights: Tensor, *, losses: Losses | None = None
    ) -> list[Tensor | None]:
        """Gradient of the loss above with respect to every parameter of models 0 .. A-1.

        Args:
            x: (A, B, *shape) inputs.
            targets: int64 (A, B) labels; (A, B, ...) what ``losses`` takes.
            weights: (A, B), 0 on padding.
            losses: instead of the cross-entropy; where it has a ``gradient``, ``(outputs, targets) -> (n, K)`` in fresh
                memory, that is asked for.

        Returns:
            One tensor a parameter, (A, ...); they are overwritten by the next call.
        """
        live, width = x.shape[:2]
        forward, backward = _FORWARD[self.activation], _BACKWARD[self.activation]
        params, grads = [p[:live] for p in self.params], [g[:live] for g in self._grads]
        if width not in self._work:
            self._work[width] = [bias.new_empty(3, len(bias), bias.shape[1], width) for bias in self.params[1:-2:2]]
        work = [buffers[:, :live].unbind() for buffers in self._work[width]]
        after = [x.flatten(2).transpose(1, 2)]
        for layer, (before, out, _) in enumerate(work):
            torch.baddbmm(params[2 * layer + 1], params[2 * layer], after[-1], out=before)
            after.append(forward(before, out))
        logits = torch.baddbmm(params[-1], params[-2], after[-1])
        if losses is None:
            delta = torch.softmax(logits, dim=1)
            if self.smoothing:
                delta -= self.smoothing / delta.shape[1]
            hit = targets.unsqueeze(1)
            delta.scatter_add_(1, hit, delta.new_full((1, 1, 1), self.smoothing - 1).expand(hit.shape))
            delta *= weights.unsqueeze(1)
        else:
            answers, aims = logits.transpose(1, 2).flatten(0, 1), targets.flatten(0, 1)
            written_out = getattr(losses, "gradient", None)
            if written_out is None:
                with torch.enable_grad():
                    each = losses(answers.requires_grad_(), aims)
                (found,) = torch.autograd.grad(each, answers, weights.flatten())
            else:
                found = written_out(answers, aims).mul_(weights.reshape(-1, 1))
            delta = found.view(live, width, -1).transpose(1, 2).contiguous()
        for layer in reversed(range(len(after))):
            torch.bmm(delta, after[layer].transpose(1, 2), out=grads[2 * layer])
            torch.sum(delta, 2, keepdim=True, out=grads[2 * layer + 1])
            if layer:
                before, out, room = work[layer - 1]
                torch.bmm(params[2 * layer].transpose(1, 2), delta, out=room)
                delta = backward(room, before, out)
        return list(grads)

    def logits(self, x: Tensor) -> Tensor:
        """x (M, B, *shape) -> (M, K, B), examples last."""
        after = x.flatten(2).transpose(1, 2)
        for weight, bias in zip(self.params[:-2:2], self.params[1:-2:2], strict=True):
            before = torch.baddbmm(bias, weight, after)
            after = _FORWARD[self.activation](before, before)
        return torch.baddbmm(self.params[-1], self.params[-2], after)

    @torch.no_grad()
    def unstack(self) -> None:
        """Write the trained parameters back into the models."""
        for number, model in enumerate(self.models):
            for layer, weight, bias in zip(_layers(model), self.params[::2], self.params[1::2], strict=True):
                layer.weight.copy_(weight[number])
                layer.bias.copy_(bias[number, :, 0])


def _layers(model: nn.Module) -> list[nn.Linear]:
    return [*model.hidden, model.head]  # type: ignore[union-attr,misc,list-item]
