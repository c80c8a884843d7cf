"""Exact per-example gradient norms of a whole model: one forward, one backward, no per-example gradients stored.

||g_b||^2 = sum over parameters ||d loss_b / d parameter||^2,      g_b: gradient of example b's own loss (a SUM over the
batch is differentiated, never a mean: a mean would shrink every g_b by 1/B).

For each layer the closed form needs only the layer's input a and the gradient delta at its output. A forward hook notes
a and the output's *edge* in the autograd graph; ``torch.autograd.grad`` is asked for the gradients at those edges only,
so no weight gradient is ever computed. The edge is taken inside the hook, before an in-place ReLU can overwrite the
output.

Gradients are linear in delta at the logits: delta / ||delta|| goes backward and the squared norms are multiplied by
||delta||^2 in float64. Errors of 1e-20, whose squares single precision cannot hold, lose no digits.

Which parameter is covered by which means is planned once, on the first three examples, from the graph itself:
    closed form   a trainable parameter of a known layer that is called once and is used nowhere else, batch first;
    broadcast     a bare parameter that is only added or expanded over the batch (class token, position embedding);
    factors       a weight of embeddings and linear maps that is tied, reused or used without its layer (``factors``);
    vmap          the rest: unknown layers;
    unused        not in the graph of the answer: gradient 0.
The plan is then verified on these examples against plain autograd; what does not agree goes to vmap.

A model answers one vector an example (B, K), or more, as one a token (B, T, V), to a tensor or to named ones.

Source: "Deep Learning on a Data Diet" (NeurIPS 2021); not a sampler of per-example gradients and not for training mode.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from contracts.errors import NotApplicable
from scoring.grad_norms.closed_forms import ClosedForm, form_of, squared_norm
from scoring.grad_norms.examples import alone, answer, num_of, rows_of, split
from scoring.grad_norms.factors import Factor, factors_of, squared_factors
from scoring.grad_norms.fallback import loop_squared_norms, vmap_squared_norms
from scoring.grad_norms.graph import Graph, Use, only_broadcast, scale_of, shape_of, unbroadcast

_PROBES = 3
_MICRO_BATCH, _CACHE_BYTES = 64, 16 << 20  # more than 64 examples while the layers' inputs and outputs fit the cache
_HELD_BYTES, _ANSWER_BYTES = 1 << 30, 64 << 20  # of what layers take in and give out, and of the answer, at a time
# Of maps of pixels, larger by far than the weights, fewer are held: fresh memory costs more than arithmetic. A U-Net
# with 16 pictures of 96 x 96 held takes 1.4 of a plain pass, with 8 held 1.0.
_MAPS_BYTES, _WEIGHTS = 64 << 20, 4
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class GradNorms(NamedTuple):
    """Result for one batch: ``logits``, the answer (B, ...), detached; parameter name -> squared norm, float64 (B,);
    their sum (B,)."""

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
        model: maps a batch (B, ...) to answers (B, ...); BatchNorm and dropout in eval mode. Parameters that do not
            require a gradient are left out.
        micro_batch: examples differentiated at a time, which bounds memory. When not given 64, or more while what the
            layers take in and give out stays within the cache.

    Attributes:
        coverage: parameter name -> name of its closed form, "broadcast", "factors", "vmap" or "unused"; filled by the
            first call.
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
        self._shared: dict[str, tuple[bool, ...]] = {}
        self._second: set[str] = set()
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

    def __call__(self, x: Any, y: Any, error: Callable[[Tensor, Any], Tensor]) -> GradNorms:
        """Squared gradient norms of every example of a batch.

        Args:
            x: inputs (B, ...) on the model's device, or a dict of them, which the model takes by name.
            y: (B, ...) targets, given to ``error``; or a dict of them.
            error: (answers (b, ...) detached, targets) -> gradient of each example's loss at its answer, same shape.

        Raises:
            NotApplicable: the model does not give one answer an example, mixes the examples of a batch, or says what
                does not depend on a parameter.
        """
        if not self.coverage:
            self._plan(x, y, error)
        single = torch.promote_types(next(iter(self._parameters.values())).dtype, torch.float32)
        found = self._batch(x, y, error, single)
        if not bool(found.total.isfinite().all()):  # squares overflow in single precision: take them again in double
            found = self._batch(x, y, error, torch.float64)
        return found

    def _batch(self, x: Any, y: Any, error: Callable[[Tensor, Any], Tensor], dtype: torch.dtype) -> GradNorms:
        all_logits, all_squared = [], []
        for rows, targets in split(x, y, self.micro_batch or self._micro_batch):
            logits, calls = self._forward(rows)
            delta, size = unit(error(logits.detach(), targets), logits.dtype)
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

    def _forward(self, x: Any) -> tuple[Tensor, list[_Call]]:
        calls: list[_Call] = []
        self._calls = calls
        try:
            with torch.enable_grad():
                logits = answer(self.model, x)
        finally:
            self._calls = None  # a checkpointed layer runs again in the backward pass
        return logits, calls

    def _norms(
        self, x: Any, logits: Tensor, calls: list[_Call], delta: Tensor, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Squared norms under the current plan; closed forms are worked out in ``dtype``."""
        num = len(logits)
        zero = torch.zeros(num, dtype=torch.float64, device=logits.device)
        squared = dict.fromkeys(self._parameters, zero)
        calls = [call for call in calls if self._wanted.get(call.module)]
        if len({call.module for call in calls}) < len(calls):
            raise NotApplicable("the model calls a layer more often for these examples than for its first ones")
        read = {id(self._parameters[n]): n for n, how in self.coverage.items() if how in ("broadcast", "factors")}
        graph = Graph(logits, read)
        uses = [(n, use) for n, found in graph.of_parameter.items() if self.coverage[n] == "broadcast" for use in found]
        factored = {n: self._factors(n, graph, num) for n in read.values() if self.coverage[n] == "factors"}
        edges = [call.edge for call in calls] + [GradientEdge(node, 0) for _, (node, _) in uses]
        first = len(edges)
        edges += [edge for found in factored.values() for factor in found for edge in factor.edges]
        if edges:
            deltas = torch.autograd.grad(logits, edges, delta, allow_unused=True)
            for call, d in zip(calls, deltas, strict=False):
                if d is not None:
                    squared |= self._closed_form(call, d, dtype)
            squared |= self._broadcast(uses, deltas[len(calls) : first], dtype)
            arrived = iter(d if d is None else d.to(dtype) for d in deltas[first:])
            for name, found in factored.items():
                each = [[next(arrived) for _ in factor.edges] for factor in found]
                squared[name] = squared_factors(
                    found, each, num, len(self._parameters[name]), second=name in self._second
                )
        slow = [name for name, how in self.coverage.items() if how == "vmap"]
        if slow:
            squared |= vmap_squared_norms(self.model, slow, x, delta)
        return squared

    def _factors(self, name: str, graph: Graph, num: int) -> Sequence[Factor]:
        shape = tuple(self._parameters[name].shape)
        found = factors_of(graph, graph.of_parameter[name], num, shape=shape, shared=self._shared[name])
        if found is None or len(found) != len(self._shared[name]):
            raise NotApplicable(f"the model uses {name} otherwise for these examples than for its first ones")
        return found

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
                g = unbroadcast(d.to(dtype), self._parameters[name].shape) * scale_of((node, position))
                gradients[name] = gradients[name] + g if name in gradients else g
        return {name: squared_norm(g) for name, g in gradients.items()}

    def _own(self, module: nn.Module) -> dict[str, str]:
        """Name within the module -> full name, of its own trainable parameters."""
        own = module.named_parameters(recurse=False)
        return {local: self._names[id(p)] for local, p in own if id(p) in self._names}

    # ---- the plan ------------------------------------------------------------------------------------------------

    def _plan(self, x: Any, y: Any, error: Callable[[Tensor, Any], Tensor]) -> None:
        """Decide how each parameter is covered and how many examples go at a time, then verify."""
        probes = torch.arange(_PROBES) % num_of(x)
        x, y = rows_of(x, probes), rows_of(y, probes)
        logits, calls = self._forward(x)
        if not logits.requires_grad:
            raise NotApplicable(
                "what the model answers depends on none of its parameters as they stand (its vectors were settled "
                "from a graph of all examples): an example has no gradient of its own"
            )
        delta, _ = unit(error(logits.detach(), y), logits.dtype)
        self._refuse_mixing(x, logits)
        graph = Graph(logits, self._names)
        # Asked at two sizes, so that another axis of the same length is not taken for the batch.
        fewer, calls_of_fewer = self._forward(rows_of(x, slice(0, -1)))
        batch_first = _batch_first(calls_of_fewer, len(fewer)) & _batch_first(calls, len(logits))
        both = ((graph, len(logits)), (Graph(fewer, self._names), len(fewer)))
        for name in graph.of_parameter:
            self.coverage[name] = self._covered(name, both)
        for call in calls:
            module = self._modules[call.module]
            own = self._own(module)
            single = {local for local, name in own.items() if len(graph.of_parameter[name]) == 1}
            if call.module in batch_first and single:
                self._wanted[call.module] = frozenset(single)
                self.coverage |= {own[local]: _form(module).__name__ for local in single}
                if isinstance(module, nn.Linear) and call.edge.node is logits.grad_fn and len(single) == len(own):
                    self.output_layer = tuple(own.values())
        size = sum(call.inputs.numel() + math.prod(shape_of(call.edge)) for call in calls) * logits.element_size()
        self._micro_batch = max(_MICRO_BATCH, _CACHE_BYTES * len(logits) // max(size, 1))
        weights = sum(p.numel() * p.element_size() for p in self._parameters.values())
        most_held = min(_HELD_BYTES, max(_MAPS_BYTES, _WEIGHTS * weights))
        for most, held in ((most_held, size), (_ANSWER_BYTES, logits.numel() * logits.element_size())):
            self._micro_batch = max(1, min(self._micro_batch, most * len(logits) // max(held, 1)))
        self._verify(x, logits, calls, delta)

    def _covered(self, name: str, both: tuple[tuple[Graph, int], ...]) -> str:
        """How a parameter is covered that no layer's closed form covers, from graphs of two numbers of examples."""
        shape = tuple(self._parameters[name].shape)
        if not both[0][0].of_parameter[name]:
            return "unused"
        if all(only_broadcast(shape, graph.of_parameter[name], num) for graph, num in both):
            return "broadcast"
        found = [factors_of(graph, graph.of_parameter[name], num, shape=shape) for graph, num in both]
        first, second = found
        if first is None or second is None or [f.kind for f in first] != [f.kind for f in second]:
            return "vmap"
        self._shared[name] = tuple(a.shared or b.shared for a, b in zip(first, second, strict=True))
        graph, num = both[0]
        again = factors_of(graph, graph.of_parameter[name], num, shape=shape, shared=self._shared[name])
        return "vmap" if again is None else "factors"

    def _verify(self, x: Any, logits: Tensor, calls: list[_Call], delta: Tensor) -> None:
        """What differs from plain autograd on the probes goes to vmap: a trap that the plan did not foresee. Of factors
        the other layout of positions is tried first."""
        planned = dict(self.coverage)
        fast = [name for name, how in planned.items() if how not in ("vmap", "unused")]
        if not fast:
            return
        exact = loop_squared_norms(self.model, fast, x, delta)
        tolerance = _tolerance(logits) * torch.stack(list(exact.values())).sum(0).sqrt()
        self.coverage = {name: planned[name] for name in fast}
        wrong = self._differing(exact, tolerance, self._norms(x, logits, calls, delta, torch.float64))
        if turned := {name for name in wrong if planned[name] == "factors"}:
            self._second |= turned
            logits, calls = self._forward(x)
            still = self._differing(exact, tolerance, self._norms(x, logits, calls, delta, torch.float64))
            self._second -= still
            wrong = (wrong - turned) | (turned & still)
        self.coverage = {name: "vmap" if name in wrong else how for name, how in planned.items()}
        for name, wanted in list(self._wanted.items()):
            own = self._own(self._modules[name])
            self._wanted[name] = frozenset(local for local in wanted if self.coverage[own[local]] != "vmap")

    @staticmethod
    def _differing(exact: dict[str, Tensor], tolerance: Tensor, found: dict[str, Tensor]) -> set[str]:
        return {n for n, v in exact.items() if bool(((found[n].sqrt() - v.sqrt()).abs() > tolerance).any())}

    def _refuse_mixing(self, x: Any, logits: Tensor) -> None:
        with torch.no_grad():
            apart = alone(self.model, x)
        scale = logits.detach().abs().amax().clamp_min(1.0)
        if apart.shape != logits.shape or bool(((apart - logits).abs() > _tolerance(logits) * scale).any()):
            raise NotApplicable(
                "the model gives an example other logits in a batch than alone: it mixes examples, and an example has "
                "no gradient of its own"
            )


def _batch_first(calls: list[_Call], num: int) -> set[str]:
    """Modules called once whose input and output start with the batch."""
    times = Counter(call.module for call in calls)
    return {c.module for c in calls if times[c.module] == 1 and len(c.inputs) == num == shape_of(c.edge)[0]}


def unit(delta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """delta / ||delta|| of each example in the model's precision, and ||delta||, float64 (B,)."""
    if delta.dim() == 2:
        delta = delta.double()
    size = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    whole = size.masked_fill(size == 0, 1.0).view(-1, *[1] * (delta.dim() - 1))
    return (delta / whole).to(dtype), size.double()


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
