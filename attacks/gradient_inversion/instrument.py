"""A model as a client trains it, on a private copy: dropout laid open or inserted, BatchNorm that does not move.

    logits(params, x, masks)     a pure function of weights, inputs and masks: what gradients are taken of
    own dropout                  every call with p > 0 in training mode, at its own rate
    none of its own              the rate asked for, at its dropout calls of rate 0, or else on the input of every
                                 linear layer but the model's first layer: "after the hidden layers"
    BatchNorm                    by running or by batch statistics; the running ones are neither read then nor ever
                                 updated

Not a training mode: nothing is drawn here but by ``track``, from a seed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from attacks.gradient_inversion.maskable import MaskableDropout, Masks, Site
from contracts.errors import ConfigError, NotApplicable
from recipes.rng import generator, local_rng

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Instrumented:
    """A private copy of a model as a client trains it, with its dropout calls laid open.

    Attributes:
        params: trainable parameters by name, detached; the copy itself is never changed.
        sites: dropout calls of a forward pass on a batch of ``batch`` examples, with their rates.
        origin: "own" (the model's dropout), "inserted" (it has none: the rate asked for, after its hidden layers), or
            "none" (nor was any asked for, or there is no hidden layer).
        kinks: calls of piecewise linear activations in a forward pass.
        num_outputs: K logits.
        side_by_side: vmap takes the model through two derivatives; otherwise clients are differentiated one by one.
        has_batchnorm: some normalisation mixes the examples of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sites: Sequence[Site],
        origin: str,
        input_shape: tuple[int, ...],
        batch: int,
        num_outputs: int,
        kinks: int = 0,
    ) -> None:
        self.model, self.sites, self.origin, self.kinks = model, tuple(sites), origin, kinks
        self.input_shape, self.batch, self.num_outputs, self.side_by_side = input_shape, batch, num_outputs, True
        self.params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        self.has_batchnorm = any(isinstance(m, _NORMS) for m in model.modules())

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(site.rate for site in self.sites)

    def all_rates(self, num: int) -> Tensor:
        """The calls' rates for each of ``num`` clients: (num, S)."""
        return torch.tensor([self.rates] * num, dtype=self.dtype, device=self.device).reshape(num, len(self.sites))

    def logits(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        masks: Masks | None = None,
        rates: Sequence[float | Tensor] | Tensor | None = None,
    ) -> Tensor:
        """Logits (B, K) of a batch (B, *shape) with these parameters, masks used as given; None: dropout off.

        Raises:
            ConfigError: another number of masks than of dropout calls.
        """
        if masks is None:
            return self._forward(MaskableDropout("off"), params, x)
        if len(masks) != len(self.sites):
            raise ConfigError(f"{len(masks)} masks for {len(self.sites)} dropout calls")
        return self._forward(self._mode("use", masks=masks, rates=rates), params, x)

    def track(self, x: Tensor, *, seed: int, rates: Sequence[float] | None = None) -> MaskableDropout:
        """A forward pass with masks drawn from ``seed``; read ``masks`` and ``inputs`` of the result."""
        mode = self._mode("track", rates=rates, draw=generator(seed))
        with torch.no_grad():
            self._forward(mode, self.params, x)
        return mode

    def _mode(self, mode: Literal["track", "use"], *, rates: Any, **more: Any) -> MaskableDropout:
        rates = self.rates if rates is None else rates
        return MaskableDropout(mode, rates=rates, zero_calls=self.origin == "inserted", **more)

    def _forward(self, mode: MaskableDropout, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        with mode:
            out: Tensor = functional_call(self.model, dict(params), (x,))
        return out


def instrument_dropout(
    model: nn.Module,
    *,
    input_shape: tuple[int, ...],
    batch: int = 1,
    rate: float | None = None,
    batch_statistics: bool = False,
) -> Instrumented:
    """Copy ``model`` and lay its dropout open.

    Args:
        model: maps (B, *input_shape) to logits (B, K); left as it is.
        batch: examples of a client's batch.
        rate: p of dropout inserted where the model has none with p > 0: at its dropout calls of rate 0 if it has such,
            else on the input of every linear layer but the first layer of the model. None inserts nothing, and a model
            without a hidden layer stays without.
        batch_statistics: BatchNorm as in training, by the batch's own statistics; else by the running ones. Neither
            moves.

    Raises:
        ConfigError: rate outside (0, 1), batch < 1.
        NotApplicable: recurrent layers with dropout between them (inside one kernel), outputs that are not (B, K), a
            batch whose statistics are undefined, a forward pass that stays random with its dropout off, or one that
            cannot be differentiated twice.
    """
    if batch < 1 or (rate is not None and not 0 < rate < 1):
        raise ConfigError(f"batch = {batch} must be >= 1 and rate = {rate} in (0, 1) or None")
    recurrent = [name for name, m in model.named_modules() if isinstance(m, nn.RNNBase) and m.dropout > 0]
    if recurrent:
        raise NotApplicable(f"dropout inside recurrent layers cannot be reached: {', '.join(recurrent)}")
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, _NORMS):
            module.train(batch_statistics or module.running_mean is None)
            if batch_statistics:
                module.track_running_stats, module.num_batches_tracked = False, None
                module.running_mean = module.running_var = None
    like = next((p for p in twin.parameters() if p.is_floating_point() and p.requires_grad), None)
    if like is None:
        raise NotApplicable(f"{type(model).__name__} has no trainable parameter, so no gradient")
    noise = torch.rand(batch, *input_shape, generator=generator(0), dtype=torch.float64).to(like)
    (mode, num_outputs), origin = _probe(twin, noise, MaskableDropout("off")), "own"
    sites = mode.sites
    if not sites and rate is not None:
        if not mode.ignored:
            _insert(twin, noise)
        (mode, _), origin = _probe(twin, noise, MaskableDropout("off", zero_calls=True)), "inserted"
        sites = [Site(rate, site.shape) for site in mode.sites]
    net = Instrumented(
        twin,
        sites=sites,
        origin=origin if sites else "none",
        input_shape=tuple(input_shape),
        batch=batch,
        num_outputs=num_outputs,
        kinks=mode.kinks,
    )
    net.side_by_side = _side_by_side(net, noise)
    return net


def _probe(twin: nn.Module, noise: Tensor, mode: MaskableDropout) -> tuple[MaskableDropout, int]:
    """The calls of a forward pass, made twice to see whether anything else is random; and K."""
    outputs = []
    for seed in (0, 1):
        mode.sites, mode.ignored, mode.kinks = [], 0, 0
        try:
            with torch.no_grad(), local_rng(seed, device=noise.device), mode:
                outputs.append(twin(noise))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise NotApplicable(f"batch statistics of a batch of {len(noise)} are undefined: {error}") from error
    first, second = outputs
    if not isinstance(first, Tensor) or first.dim() != 2 or len(first) != len(noise):
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise NotApplicable(f"in training the model gives {shape} for {len(noise)} examples; logits (B, K) are needed")
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise NotApplicable(f"{type(twin).__name__} is random beyond its dropout; its masks cannot be supplied")
    return mode, first.shape[1]


def _side_by_side(net: Instrumented, noise: Tensor) -> bool:
    """Whether vmap takes the model through two derivatives. It has no rule for some kernels, and none for control flow
    that looks at values and for writing into shared memory: such models are differentiated client by client.

    Raises:
        NotApplicable: not even one client can be differentiated twice.
    """
    labels = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(net.logits(params, x), labels)

    def twice(slopes: Iterable[Tensor], x: Tensor) -> None:
        torch.autograd.grad(torch.stack([s.square().sum() for s in slopes]).sum(), x)

    x = torch.stack([noise, noise]).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "no batching rule": a loop inside, slower than ours
        try:
            twice(vmap(grad(loss), in_dims=(None, 0))(net.params, x).values(), x)
            return True
        except (RuntimeError, UserWarning):
            pass
    try:
        params = {name: p.clone().requires_grad_() for name, p in net.params.items()}
        twice(torch.autograd.grad(loss(params, x[0]), list(params.values()), create_graph=True), x)
    except RuntimeError as error:
        raise NotApplicable(f"{type(net.model).__name__} cannot be differentiated twice: {error}") from error
    return False


def _insert(twin: nn.Module, noise: Tensor) -> None:
    """A dropout call on the input of every linear layer that is not the first layer with parameters to be called."""
    called: list[nn.Module] = []
    leaves = [m for m in twin.modules() if not list(m.children()) and list(m.parameters(recurse=False))]
    handles = [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in leaves]
    with torch.no_grad(), MaskableDropout("off"):
        twin(noise)
    for handle in handles:
        handle.remove()
    for module in dict.fromkeys(called[1:]):
        if isinstance(module, nn.Linear) and module is not called[0]:
            module.register_forward_pre_hook(lambda _, args: (F.dropout(args[0], 0.0), *args[1:]))
