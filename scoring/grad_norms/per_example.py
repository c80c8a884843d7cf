"""Exact per-example gradient norms of a whole model: one forward, one backward, no per-example gradients stored.

||g_b||^2 = sum over parameters ||d loss_b / d parameter||^2,        g_b: gradient of example b's own loss (a SUM over the
batch is differentiated, never a mean: a mean would shrink every g_b by 1/B).

For each layer the closed form needs only the layer's input a and the gradient delta at its output. A forward hook notes a
and the output's *edge* in the autograd graph; ``torch.autograd.grad`` is asked for the gradients at those edges only, so
no weight gradient is ever computed. The edge is taken inside the hook, before an in-place ReLU can overwrite the output.

Gradients are linear in delta at the logits: delta / ||delta|| goes backward and the squared norms are multiplied by
||delta||^2 in float64. Errors of 1e-20, whose squares single precision cannot hold, lose no digits.

Which parameter is covered by which means is planned once, on the first three examples, from the graph itself:
    closed form   a trainable parameter of a known layer that is called once and is used nowhere else, batch first;
    broadcast     a bare parameter that is only added or expanded over the batch (class token, position embedding);
    vmap          the rest: tied or reused weights, unknown layers;
    unused        not in the graph of the logits: gradient 0.
The plan is then verified on these examples against plain autograd; what does not agree goes to vmap.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021); not a sampler of per-example gradients and not for training mode.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from contracts.errors import NotApplicable
from scoring.grad_norms.closed_forms import ClosedForm, form_of, squared_norm
from scoring.grad_norms.fallback import loop_squared_norms, vmap_squared_norms
from scoring.grad_norms.graph import Use, only_broadcast, shape_of, unbroadcast, uses_of

_PROBES = 3
_MICRO_BATCH, _CACHE_BYTES = 64, 16 << 20  # more than 64 examples while the layers' inputs and outputs fit the cache
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class GradNorms(NamedTuple):
    """Result for one batch: ``logits`` (B, K), detached; parameter name -> squared norm, float64 (B,); their sum (B,)."""

    logits: Tensor
    squared: dict[str, Tensor]
    total: Tensor


class _Call(NamedTuple):
    module: str
    inputs: Tensor
    edge: GradientEdge


class PerExampleGradNorm:
    """Context manager: hooks on while inside, the model untouched afterwards (weights, ``.grad``, mode, hooks).

    >>> model = nn.Linear(3, 2).double()
    >>> x, delta = torch.eye(3, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    >>> with PerExampleGradNorm(model) as norms:
    ...     squared = norms(x, delta, lambda logits, target: target).squared
    >>> squared["weight"].tolist(), norms.coverage["weight"]
    ([2.0, 2.0, 2.0], 'linear')

    Args:
        model: maps a batch (B, ...) to logits (B, K); BatchNorm and dropout in eval mode. Parameters that do not require
            a gradient are left out.
        micro_batch: examples differentiated at a time, which bounds memory. When not given 64, or more while what the
            layers take in and give out stays within the cache.

    Attributes:
        coverage: parameter name -> name of its closed form, "broadcast", "vmap" or "unused"; filled by the first call.
        output_layer: names of the parameters of the nn.Linear that made the logits; empty when another layer did.

    Raises:
        NotApplicable: no trainable parameter; a layer in training mode or with batch statistics, under which an example
            has no gradient of its own; a data-parallel wrapper, which calls hooks once a replica.
    """

    def __init__(self, model: nn.Module, *, micro_batch: int | None = None) -> None:
        _refuse(model)
        self.model = model
        self.micro_batch = micro_batch
        self._micro_batch = 1
        self.coverage: dict[str, str] = {}
        self.output_layer: tuple[str, ...] = ()
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = {id(p): name for name, p in self._parameters.items()}
        self._modules = {name: m for name, m in model.named_modules() if form_of(m) is not None and self._own(m)}
        self._wanted: dict[str, frozenset[str]] = {}
        self._calls: list[_Call] | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            # first in line, so that it sees the layer's own output whatever the user's hooks make of it
            self._handles.append(module.register_forward_hook(self._hook(name), prepend=True, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __call__(self, x: Tensor, y: Tensor, error: Callable[[Tensor, Tensor], Tensor]) -> GradNorms:
        """Squared gradient norms of every example of a batch.

        Args:
            x: (B, ...) inputs on the model's device.
            y: (B, ...) targets, given to ``error``.
            error: (logits (b, K) detached, targets (b, ...)) -> gradient of each example's loss at its logits (b, K).

        Raises:
            NotApplicable: the model does not give logits (B, K), or mixes the examples of a batch.
        """
        if not self.coverage:
            self._plan(x, y, error)
        single = torch.promote_types(next(iter(self._parameters.values())).dtype, torch.float32)
        found = self._batch(x, y, error, single)
        if not bool(found.total.isfinite().all()):  # squares overflow in single precision: take them again in double
            found = self._batch(x, y, error, torch.float64)
        return found

    def _batch(self, x: Tensor, y: Tensor, error: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> GradNorms:
        step = self.micro_batch or self._micro_batch
        all_logits, all_squared = [], []
        for rows, targets in zip(x.split(step), y.split(step), strict=True):
            logits, calls = self._forward(rows)
            delta, size = _unit(error(logits.detach(), targets), logits.dtype)
            squared = self._norms(rows, logits, calls, delta, dtype)
            all_logits.append(logits.detach())
            all_squared.append(torch.stack([squared[name] for name in self._parameters]) * size.square())
        squared_PB = torch.cat(all_squared, dim=1)
        by_name = dict(zip(self._parameters, squared_PB, strict=True))
        return GradNorms(torch.cat(all_logits), by_name, squared_PB.sum(0))

    def _hook(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if self._calls is not None and output.requires_grad:
                inputs = args[0] if args else kwargs["input"]
                self._calls.append(_Call(name, inputs.detach(), get_gradient_edge(output)))

        return note

    def _forward(self, x: Tensor) -> tuple[Tensor, list[_Call]]:
        calls: list[_Call] = []
        self._calls = calls
        try:
            with torch.enable_grad():
                logits = self.model(x)
        finally:
            self._calls = None  # a checkpointed layer runs again in the backward pass
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise NotApplicable(
                f"the model gives {shape} for {len(x)} examples; logits of shape ({len(x)}, K) are needed"
            )
        return logits, calls

    def _norms(
        self, x: Tensor, logits: Tensor, calls: list[_Call], delta: Tensor, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Squared norms under the current plan; closed forms are worked out in ``dtype``."""
        zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        squared = dict.fromkeys(self._parameters, zero)
        calls = [call for call in calls if self._wanted.get(call.module)]
        if len({call.module for call in calls}) < len(calls):
            raise NotApplicable("the model calls a layer more often for these examples than for its first ones")
        bare = {id(self._parameters[name]): name for name, how in self.coverage.items() if how == "broadcast"}
        uses = [(name, use) for name, found in uses_of(logits, bare).items() for use in found]
        edges = [call.edge for call in calls] + [GradientEdge(node, 0) for _, (node, _) in uses]
        if edges:
            deltas = torch.autograd.grad(logits, edges, delta, allow_unused=True)
            for call, d in zip(calls, deltas, strict=False):
                if d is not None:
                    squared |= self._closed_form(call, d, dtype)
            squared |= self._broadcast(uses, deltas[len(calls) :], dtype)
        slow = [name for name, how in self.coverage.items() if how == "vmap"]
        if slow:
            squared |= vmap_squared_norms(self.model, slow, x, delta)
        return squared

    def _closed_form(self, call: _Call, d: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        module = self._modules[call.module]
        a = call.inputs.to(dtype) if call.inputs.is_floating_point() else call.inputs
        found = _form(module)(module, a, d.to(dtype), self._wanted[call.module])
        own = self._own(module)
        return {own[local]: value for local, value in found.items()}

    def _broadcast(
        self, uses: list[tuple[str, Use]], deltas: Iterable[Tensor | None], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}
        for (name, (node, position)), d in zip(uses, deltas, strict=True):
            if d is not None:
                alpha = getattr(node, "_saved_alpha", 1) if position == 1 else 1  # torch.add(x, p, alpha=...)
                g = unbroadcast(d.to(dtype), self._parameters[name].shape) * alpha
                gradients[name] = gradients[name] + g if name in gradients else g
        return {name: squared_norm(g) for name, g in gradients.items()}

    def _own(self, module: nn.Module) -> dict[str, str]:
        """Name within the module -> full name, of its own trainable parameters."""
        own = module.named_parameters(recurse=False)
        return {local: self._names[id(p)] for local, p in own if id(p) in self._names}

    # ---- the plan ------------------------------------------------------------------------------------------------

    def _plan(self, x: Tensor, y: Tensor, error: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Decide how each parameter is covered and how many examples go at a time, then verify."""
        again = -(-_PROBES // len(x))
        x, y = (t.repeat(again, *[1] * (t.dim() - 1))[:_PROBES] for t in (x, y))
        logits, calls = self._forward(x)
        delta, _ = _unit(error(logits.detach(), y), logits.dtype)
        self._refuse_mixing(x, logits)
        uses = uses_of(logits, self._names)
        batch_first = self._batch_first(x[:-1]) & self._batch_first(x)
        for name, found in uses.items():
            bare = only_broadcast(self._parameters[name], found, len(x))
            self.coverage[name] = "broadcast" if bare else "vmap" if found else "unused"
        for call in calls:
            module = self._modules[call.module]
            own = self._own(module)
            single = {local for local, name in own.items() if len(uses[name]) == 1}
            if call.module in batch_first and single:
                self._wanted[call.module] = frozenset(single)
                self.coverage |= {own[local]: _form(module).__name__ for local in single}
                if isinstance(module, nn.Linear) and call.edge.node is logits.grad_fn and len(single) == len(own):
                    self.output_layer = tuple(own.values())
        size = sum(call.inputs.numel() + math.prod(shape_of(call.edge)) for call in calls) * logits.element_size()
        self._micro_batch = max(_MICRO_BATCH, _CACHE_BYTES * len(x) // max(size, 1))
        self._verify(x, logits, calls, delta)

    def _batch_first(self, x: Tensor) -> set[str]:
        """Modules called once whose input and output start with the batch. Asked at two sizes, so that another axis
        of the same length is not taken for it."""
        _, calls = self._forward(x)
        times = Counter(call.module for call in calls)
        return {c.module for c in calls if times[c.module] == 1 and len(c.inputs) == len(x) == shape_of(c.edge)[0]}

    def _verify(self, x: Tensor, logits: Tensor, calls: list[_Call], delta: Tensor) -> None:
        """What differs from plain autograd on the probes goes to vmap: a trap that the plan did not foresee."""
        planned = dict(self.coverage)
        fast = [name for name, how in planned.items() if how not in ("vmap", "unused")]
        if not fast:
            return
        exact = loop_squared_norms(self.model, fast, x, delta)
        self.coverage = {name: planned[name] for name in fast}
        found = self._norms(x, logits, calls, delta, torch.float64)
        self.coverage = planned
        tolerance = _tolerance(logits) * torch.stack(list(exact.values())).sum(0).sqrt()
        for name in fast:
            if bool(((found[name].sqrt() - exact[name].sqrt()).abs() > tolerance).any()):
                self.coverage[name] = "vmap"
        for name, wanted in list(self._wanted.items()):
            own = self._own(self._modules[name])
            self._wanted[name] = frozenset(local for local in wanted if self.coverage[own[local]] != "vmap")

    def _refuse_mixing(self, x: Tensor, logits: Tensor) -> None:
        with torch.no_grad():
            alone = torch.cat([self.model(x[b : b + 1]) for b in range(len(x))])
        scale = logits.detach().abs().amax().clamp_min(1.0)
        if bool(((alone - logits).abs() > _tolerance(logits) * scale).any()):
            raise NotApplicable(
                "the model gives an example other logits in a batch than alone: it mixes examples, and an example has "
                "no gradient of its own"
            )


def _unit(delta_BK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """delta / ||delta|| in the model's precision, and ||delta||, float64 (B,)."""
    delta_BK = delta_BK.double()
    size = torch.linalg.vector_norm(delta_BK, dim=1)
    return (delta_BK / size.masked_fill(size == 0, 1.0)[:, None]).to(dtype), size


def _form(module: nn.Module) -> ClosedForm:
    form = form_of(module)
    assert form is not None  # self._modules holds no others
    return form


def _tolerance(logits: Tensor) -> float:
    return float(3 * torch.finfo(logits.dtype).eps ** 0.5)


def _refuse(model: nn.Module) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise NotApplicable("the model has no parameter that requires a gradient")
    for name, module in model.named_modules():
        what = f"{type(module).__name__} {name!r}"
        if isinstance(module, _PARALLEL):
            raise NotApplicable(f"{what} replicates the model; pass its .module")
        if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
            raise NotApplicable(
                f"{what} normalises with the statistics of the batch: an example has no gradient of its own"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise NotApplicable(f"{what} is in training mode: the gradient would be random; call model.eval()")
