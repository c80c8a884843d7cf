"""Per-example gradients of a model's output, projected to few dimensions as they are made.

    f(z)     classes: margin log p_y - log(1 - p_y) = z_y - logsumexp_{c != y} z_c;  numbers: the prediction
    random   phi(z) = P' grad_theta f(z),  P (p, k) Gaussian / sqrt(k), drawn parameter by parameter from the seed;
             exactly grad_theta f(z) where p <= k                                       Park et al. 2023
    logra    of every linear map (nn.Linear; nn.Conv2d unfolded) with inputs a_t and output gradients delta_t:
             phi_l(z) = sum_t (P_out' delta_t) (P_in' [a_t, 1])'                         Choe et al. 2024
             no parameter gradient is ever made; r = sqrt(k / layers) directions a side, the identity where a side has
             no more; other parameters (norms, embeddings) are left out

Memory is that of the projected gradients (N, k) and of one chunk of examples. Gradients of ``random`` are torch.func's
vmap over grad, as the slow path of ``grad_norms``; models are read in eval mode.

Source: Park, Georgiev, Ilyas, Leclerc, Madry, "TRAK: Attributing Model Behavior at Scale" (ICML 2023, arXiv
2303.14186); Choe et al., "What is Your Data Worth to GPT?" (LoGra; arXiv 2405.13954).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from contracts.digests import derive_seed
from contracts.errors import InvalidInput, NotApplicable
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from recipes.rng import generator
from recipes.streaming import check_finite
from sources.example_set import ExampleSet

PROJECTIONS = ("random", "logra")
_NUMBERS = 1 << 24  # gradient numbers of a chunk of examples


@dataclass(frozen=True, eq=False, kw_only=True)
class Projected:
    """Attributes:
    phi: float32 (N, k), projected gradients of f.
    output: float64 (N,), f itself.
    """

    phi: NDArray[np.float32]
    output: NDArray[np.float64]


def output_of(data: ExampleSet) -> Callable[[Tensor, Tensor], Tensor]:
    """f: (answers (B, K), targets) -> (B,) with gradient.

    Raises:
        NotApplicable: neither classes nor numbers.

    >>> from palimpsest.testing.worlds import class_examples
    >>> round(float(output_of(class_examples(9))(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))), 4)
    1.3069
    """
    if data.task.gives("outputs", "classes"):
        return _margin
    if data.task.gives("numbers"):
        return lambda answers, targets: answers.reshape(-1)
    raise NotApplicable(f"attribution needs a margin or a prediction; {data.name} is a {data.task} task")


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None])
    itself = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]  # one_hot has no batching rule
    others = logits.masked_fill(itself, -torch.inf)
    return own[:, 0] - others.logsumexp(1)


def projected_gradients(
    model: nn.Module, data: ExampleSet, *, projection: str, dim: int, seed: int, batch: int = 256
) -> Projected:
    """Of every row of ``data``, in its order.

    Args:
        model: answers (B, K), or (B, 1); put into eval mode and back, else untouched.
        projection: "random" or "logra".
        dim: k, >= 1; the projection has no more dimensions.
        seed: of the projection, which depends on it and the model's shapes alone.
        batch: examples a forward pass; changes memory and speed only.

    Raises:
        InvalidInput: another projection, dim or batch below 1.
        NotApplicable: no output to attribute, no trainable parameter, or for logra no linear map, or a convolution in
            groups or with padding that is none of zeros.
        DataError: outputs or gradients that are not finite; names the examples.
    """
    if projection not in PROJECTIONS or dim < 1 or batch < 1:
        raise InvalidInput(f"projection = {projection!r} must be one of {', '.join(PROJECTIONS)}; dim, batch >= 1")
    of = output_of(data)
    if not any(p.requires_grad for p in model.parameters()):
        raise NotApplicable("the model has no parameter that requires a gradient")
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    phi: NDArray[np.float32] | None = None
    output = np.empty(len(data))
    with eval_mode(model), (_Random if projection == "random" else _LoGra)(model, of, dim, seed) as features:
        for start in range(0, len(data), batch):
            rows = slice(start, min(start + batch, len(data)))
            found = inputs.slice(rows.start, rows.stop)
            values, gradients = features(found.inputs, found.targets)
            check_finite("attribution", "outputs", data, rows, values[:, None])
            check_finite("attribution", "gradients", data, rows, gradients)
            if phi is None:
                phi = np.empty((len(data), gradients.shape[1]), np.float32)
            phi[rows] = gradients.to(torch.float32).cpu().numpy()
            output[rows] = values.double().cpu().numpy()
    return Projected(phi=np.empty((0, dim), np.float32) if phi is None else phi, output=output)


class _Random:
    """Context manager: (inputs, targets) -> f (B,), P' grad f (B, k)."""

    def __init__(self, model: nn.Module, of: Callable[[Tensor, Tensor], Tensor], dim: int, seed: int) -> None:
        self.model, self.of, self.seed = model, of, seed
        self.parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.size = sum(p.numel() for p in self.parameters.values())
        self.dim = None if self.size <= dim else dim

    def __enter__(self) -> _Random:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        def one(values: dict[str, Tensor], example: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            said = self.of(functional_call(self.model, values, (example[None],)), target[None])[0]
            return said, said

        step = max(1, _NUMBERS // self.size)
        parts = []
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            with torch.no_grad():
                found, said = vmap(grad(one, has_aux=True), in_dims=(None, 0, 0))(self.parameters, x[rows], y[rows])
            parts.append((said, self._projected(found)))
        return torch.cat([said for said, _ in parts]), torch.cat([g for _, g in parts])

    def _projected(self, gradients: dict[str, Tensor]) -> Tensor:
        flat = {name: g.flatten(1) for name, g in gradients.items()}
        if self.dim is None:
            return torch.cat(list(flat.values()), dim=1)
        parts: list[Tensor] = [g @ _gaussian(g, self.dim, self.seed, name) for name, g in flat.items()]
        return torch.stack(parts).sum(0)


def _gaussian(like: Tensor, dim: int, seed: int, name: str) -> Tensor:
    """(d, k) / sqrt(k), of one parameter."""
    drawn = torch.randn(like.shape[1], dim, generator=generator(derive_seed("projection", seed, name)))
    return drawn.div_(dim**0.5).to(like.device, like.dtype)


class _LoGra:
    """Context manager with hooks on the linear maps: (inputs, targets) -> f (B,), low-rank gradients (B, k)."""

    def __init__(self, model: nn.Module, of: Callable[[Tensor, Tensor], Tensor], dim: int, seed: int) -> None:
        self.model, self.of, self.seed = model, of, seed
        self.layers = {
            name: m
            for name, m in model.named_modules()
            if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.requires_grad
        }
        if not self.layers:
            raise NotApplicable("the model has no trainable linear map to project; projection: random takes any model")
        for name, m in self.layers.items():
            if isinstance(m, nn.Conv2d) and (m.groups > 1 or m.padding_mode != "zeros" or isinstance(m.padding, str)):
                raise NotApplicable(f"layer {name!r} is a convolution in groups or padded otherwise than by zeros")
        self.rank = max(1, int((dim / len(self.layers)) ** 0.5))
        self._calls: list[tuple[str, Tensor, Tensor]] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _LoGra:
        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda module, args, output: self._calls.append((name, args[0].detach(), output))

        self._handles = [m.register_forward_hook(note(name)) for name, m in self.layers.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._calls.clear()

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self._calls.clear()
        with torch.enable_grad():
            said = self.of(self.model(x), y)
            deltas = torch.autograd.grad(said.sum(), [out for _, _, out in self._calls], allow_unused=True)
        found: dict[str, Tensor] = {}
        for (name, a, _), delta in zip(self._calls, deltas, strict=True):
            if delta is not None:
                part = self._projected(name, a, delta.detach())
                found[name] = found[name] + part if name in found else part
        self._calls.clear()
        return said.detach(), torch.cat([found[name].flatten(1) for name in self.layers if name in found], dim=1)

    def _projected(self, name: str, a: Tensor, delta: Tensor) -> Tensor:
        """(B, r_out, r_in) of one call of a layer."""
        layer = self.layers[name]
        if isinstance(layer, nn.Conv2d):
            assert not isinstance(layer.padding, str)  # refused above
            a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
            delta = delta.flatten(2).mT
        a, delta = a.reshape(len(a), -1, a.shape[-1]), delta.reshape(len(delta), -1, delta.shape[-1])
        if layer.bias is not None and layer.bias.requires_grad:
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)
        sides = [self._side(name, side, values) for side, values in (("in", a), ("out", delta))]
        return sides[1].mT @ sides[0]

    def _side(self, name: str, side: str, values: Tensor) -> Tensor:
        if values.shape[-1] <= self.rank:
            return values
        drawn = torch.randn(
            values.shape[-1], self.rank, generator=generator(derive_seed("projection", self.seed, name, side))
        )
        found: Tensor = values @ (drawn / self.rank**0.5).to(values.device, values.dtype)
        return found
