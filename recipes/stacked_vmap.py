"""M models of any architecture as one, through ``torch.func``: functional_call under vmap over stacked parameters.

    L = sum_m sum_b w[m, b] CE(f(theta_m, x[m, b]), y[m, b]),   one backward pass gives every model its own gradient

For CUDA, where M small kernels become one. On the CPU a loop over the models is as fast (benchmarks/ensemble.py).
A module that draws random numbers in train mode is not taken: its draws would depend on which models share the stack.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from recipes.rng import local_rng
from recipes.stacked_mlp import Losses


class StackedVmap:
    """Parameters and buffers of M models with a leading model axis; see recipes.stacked_mlp for the interface."""

    def __init__(self, models: list[nn.Module], *, label_smoothing: float) -> None:
        self.models, self.smoothing = models, label_smoothing
        self.base = copy.deepcopy(models[0]).train()
        everything = dict(models[0].named_parameters()) | dict(models[0].named_buffers())
        self.trainable = [n for n, p in models[0].named_parameters() if p.requires_grad]
        stack = {name: torch.stack([_get(m, name).detach() for m in models]) for name in everything}
        self.params = [stack.pop(name) for name in self.trainable]
        self.fixed = stack

    def logits(self, params: list[Tensor], x: Tensor) -> Tensor:
        """(A, B, *shape) -> (A, B, K) with the first A models."""
        live = len(x)
        fixed = {n: v[:live] for n, v in self.fixed.items()}

        def one(trained: tuple[Tensor, ...], rest: dict[str, Tensor], inputs: Tensor) -> Tensor:
            state = dict(zip(self.trainable, trained, strict=True)) | rest
            return functional_call(self.base, state, (inputs,))

        return vmap(one, randomness="error")(tuple(params), fixed, x)

    def gradients(
        self, x: Tensor, targets: Tensor, weights: Tensor, *, losses: Losses | None = None
    ) -> list[Tensor | None]:
        """As :meth:`recipes.stacked_mlp.StackedMLP.gradients`."""
        params = [p[: len(x)].detach().requires_grad_() for p in self.params]
        logits, aims = self.logits(params, x).flatten(0, 1), targets.flatten(0, 1)
        if losses is None:
            each = F.cross_entropy(logits, aims, reduction="none", label_smoothing=self.smoothing)
        else:
            each = losses(logits, aims)
        return list(torch.autograd.grad((each * weights.flatten()).sum(), params, allow_unused=True))

    @torch.no_grad()
    def unstack(self) -> None:
        """Write the trained parameters back into the models."""
        for name, values in zip(self.trainable, self.params, strict=True):
            for model, value in zip(self.models, values, strict=True):
                _get(model, name).copy_(value)


def fits(models: list[nn.Module], x: Tensor) -> str:
    """Why these models cannot be trained under vmap, or "" when they can.

    They (two are enough) are run on ``x`` (B, *shape) in train mode, together and one by one; the logits must agree.
    A forward pass that changes a buffer is not taken: padding would enter the buffer.
    """
    pair = [copy.deepcopy(m).train() for m in models]
    try:
        with torch.no_grad(), local_rng(0, device=x.device):
            stack = StackedVmap(pair, label_smoothing=0.0)
            together = stack.logits(stack.params, x.expand(len(pair), *x.shape))
            alone = torch.stack([model(x) for model in pair])
    except Exception as error:
        # vmap reports what it cannot do through many types of exception, all of which mean the same here.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    before = [buffer for model in models for buffer in model.buffers()]
    after = [buffer for model in pair for buffer in model.buffers()]
    if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        return "a forward pass in train mode changes its buffers"
    tolerance = 1e-3 * max(float(alone.abs().max()), 1e-3)
    if together.shape != alone.shape or float((together - alone).abs().max()) > tolerance:
        return "logits under vmap differ from those of the models alone"
    return ""


def _get(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)
