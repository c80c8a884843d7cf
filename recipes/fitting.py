"""The training loop of one model, an ordinary PyTorch loop: the reference that every faster path must equal.

    classification: mean cross-entropy of a batch (label smoothing as torch.nn.functional.cross_entropy)
    else:           the mean loss of the task (regression: squared error; see `standardise`)

The optimiser is torch.optim's. Everything else is in recipes.schedule. BatchNorm takes its statistics from the batch,
and one example alone has none: a last batch of one joins the batch before it, for networks with BatchNorm only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from recipes.inputs import Inputs
from recipes.predict import eval_mode
from recipes.rng import local_rng
from recipes.schedule import SupervisedConfig, batches_of, epoch_order, learning_rates, num_epochs
from recipes.threads import threads_for
from tasks.base import OutputTask, Task, require

Observe = Callable[[Tensor, Tensor], None]


def make_optimizer(parameters: Iterable[Any], config: SupervisedConfig) -> torch.optim.Optimizer:
    """torch.optim's SGD or AdamW over parameters or parameter groups, fused where that is sound."""
    parameters = list(parameters)
    every = [p for group in parameters for p in (group["params"] if isinstance(group, dict) else [group])]
    # The fused kernels walk memory as it lies: parameter, gradient and state must have the same strides.
    fused = all(p.is_contiguous() for p in every)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes."""
    return [p for p in model.parameters() if p.requires_grad]


def fit(
    model: nn.Module,
    inputs: Inputs,
    rows: np.ndarray,
    *,
    config: SupervisedConfig,
    seed: int,
    stop_after: int,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    after_epoch: Callable[[int], None] = lambda done: None,
    observe: Observe | None = None,
) -> None:
    """Train ``model`` in place on the positions ``rows`` of ``inputs``, epochs ``start`` to ``stop_after`` (excluded).

    Args:
        rows: int64 (n,), n >= 1; the epoch's order permutes it.
        optimizer: with its state, when a run is resumed; a fresh one otherwise.
        after_epoch: called with the number of epochs done, after each.
        observe: called with every mini-batch before its step: its positions in ``inputs`` (b,), int64, and the outputs
            (b, K) that its loss is taken of, detached, both on the device. Read only: it draws nothing from the global
            generator.

    Raises:
        ConfigError, DataError: a network with BatchNorm, and batches or a training set of one example.
        Diverged: the loss or a parameter is not finite; names the epoch.
    """
    _check_batches(len(rows), smallest_batch(model), config)
    loss_of = _loss(inputs.data.task, config)

    def cost(at: Tensor) -> Tensor:
        outputs = model(inputs.gather(at))
        loss = loss_of(outputs, inputs.targets[at])
        if observe is not None:
            observe(at, outputs.detach())
        return loss

    descend(
        model,
        torch.from_numpy(rows).to(inputs.device),
        cost,
        config=config,
        seed=seed,
        stop_after=stop_after,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
    )


def descend(
    model: nn.Module,
    members: Tensor,
    cost: Callable[[Tensor], Tensor],
    *,
    config: SupervisedConfig,
    seed: int,
    stop_after: int,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    after_epoch: Callable[[int], None] = lambda done: None,
) -> None:
    """The loop behind :func:`fit`, for any loss of a batch of positions: epochs ``start`` to ``stop_after`` (excluded).

    Args:
        members: int64 (n,), n >= 1, positions on the device; the epoch's order permutes them.
        cost: positions (b,) -> the batch's loss, a scalar with gradient.
        optimizer, after_epoch: as of :func:`fit`.

    Raises:
        Diverged: the loss or a parameter is not finite; names the epoch.
    """
    num, device, smallest = len(members), members.device, smallest_batch(model)
    optimizer = make_optimizer(trainable(model), config) if optimizer is None else optimizer
    batches = batches_of(num, config, smallest=smallest)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    for epoch in range(start, stop_after):
        order = members[epoch_order(num, seed=seed, epoch=epoch).to(device)]
        total = torch.zeros((), device=device)
        # Dropout and the like draw from the global generator: seeded anew every epoch, so that a resumed run draws the
        # same.
        with (
            local_rng(derive_seed("noise", seed, epoch), device=device),
            deterministic(device),
            threads_for(model, examples=min(config.batch, num)),
        ):
            # An epoch that config.steps cuts short has fewer rates than batches.
            rates = learning_rates(config, steps=len(batches), epoch=epoch).tolist()
            for lr, batch in zip(rates, batches, strict=False):
                total += take_step(optimizer, cost(order[batch]), lr=lr, grad_clip=config.grad_clip)
        check_finite(
            [total, *(p.detach() for p in parameters)],
            epoch=epoch,
            epochs=num_epochs(num, config, smallest=smallest),
            config=config,
        )
        after_epoch(epoch + 1)
    optimizer.zero_grad(set_to_none=True)
    model.eval()


def take_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, *, lr: float | None = None, grad_clip: float | None = None
) -> Tensor:
    """One step of an optimiser down the gradient of a loss, which is given back without gradient.

    Args:
        loss: a scalar with gradient.
        lr: rate of this step; None: as the optimiser has it.
        grad_clip: largest L2 norm of the gradient over all parameters of the optimiser; None: any.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if grad_clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    if lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
    optimizer.step()
    return loss.detach()


def batch_statistics(model: nn.Module) -> str:
    """The first BatchNorm layer of ``model`` by name and type, or "": in train mode it mixes the examples of a
    batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"layer {name!r}, a {type(module).__name__}"
    return ""


def smallest_batch(model: nn.Module) -> int:
    """Examples that a batch must have: 2 with BatchNorm (torch refuses one, or takes it for its own mean), else 1."""
    return 2 if batch_statistics(model) else 1


def _check_batches(num_examples: int, smallest: int, config: SupervisedConfig) -> None:
    if config.batch < smallest:
        raise ConfigError(
            f"SupervisedConfig.batch = {config.batch}: BatchNorm needs batches of {smallest} examples at least"
        )
    if num_examples < smallest:
        raise DataError(f"BatchNorm cannot be trained on {num_examples} example: it needs {smallest} at least")


def check_finite(
    values: list[Tensor], *, epoch: int, epochs: int, config: SupervisedConfig, who: str = "training"
) -> None:
    """Raise :class:`Diverged` unless all values are finite. ``epoch`` counts from 0, of ``epochs``."""
    # The largest magnitude of all is finite where every value is: one number to wait for, not one a tensor.
    largest = torch.nn.utils.get_total_norm([v for v in values if v.numel()], norm_type=math.inf)
    if not torch.isfinite(largest):
        raise Diverged(
            f"{who} diverged in epoch {epoch + 1} of {epochs}: the loss or a parameter is not finite. "
            f"Lower lr (= {config.lr:g}), add warmup_epochs, or set grad_clip"
        )


def check_trainable(model: nn.Module, inputs: Inputs) -> None:
    """Refuse, before work starts, data without examples and a model whose outputs do not fit the task.

    Raises:
        NotApplicable: examples that are no vectors or images (an interaction is none; recipe ``bpr`` is for these).
        DataError: no examples, or labels that are not classes of the data; names the ids.
        ConfigError: outputs are not (B, K), (B, 1) for regression, or (B, K, H, W) for a class a pixel.
    """
    require(inputs.data, "supervised training", "features")
    if not len(inputs):
        raise DataError(f"{inputs.data.name}: there is no example to train on")
    inputs.data.check_targets()
    wanted = (1, *inputs.data.task.output_shape(inputs.data))
    with eval_mode(model), torch.no_grad(), local_rng(0, device=inputs.device):
        got = tuple(model(inputs.block(0, 1)).shape)
    if got != wanted:
        raise ConfigError(f"the model maps one example of {inputs.data.name} to shape {got}; {wanted} is needed")


@dataclass(frozen=True)
class Units:
    """Units of a number to predict in which a step size that suits targets of unit variance suits every target.

    Attributes:
        shift, scale: mean and standard deviation of the training targets; scale 1 where they are all equal.
    """

    shift: float
    scale: float

    def of(self, targets: Tensor) -> Tensor:
        """Targets in these units."""
        return (targets - self.shift) / self.scale

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Make a model that speaks in these units speak in the target's, in place: an affine map of its output layer
        ``head``."""
        head: Any = model.head
        head.weight.mul_(self.scale)
        head.bias.mul_(self.scale).add_(self.shift)

    @torch.no_grad()
    def unfold(self, model: nn.Module) -> None:
        """The inverse of :meth:`fold`."""
        head: Any = model.head
        head.weight.div_(self.scale)
        head.bias.sub_(self.shift).div_(self.scale)


def units_of(model: nn.Module, inputs: Inputs, members: np.ndarray) -> Units | None:
    """The units in which a model is trained on numbers ``members`` (n,); None where targets are taken as they are: the
    task is not ``affine``, or the model has no ``nn.Linear`` called ``head`` whose affine map could be undone."""
    head = getattr(model, "head", None)
    affine = inputs.data.task.affine and inputs.targets is not None  # None: read with the batches
    if not affine or not isinstance(head, nn.Linear) or head.bias is None:
        return None
    return Units(float(members.mean()), float(members.std()) or 1.0)


def standardise(model: nn.Module, inputs: Inputs, rows: np.ndarray) -> tuple[Inputs, Callable[[nn.Module], None]]:
    """For regression: inputs whose targets are in units of their own mean and standard deviation, to train on, and what
    folds that affine map into the output layer ``head`` of a model so trained, which then speaks in the target's units.

    A model without an ``nn.Linear`` called ``head`` is trained on the targets as they are, and so is everything else
    when the task is classification.
    """
    units = units_of(model, inputs, inputs.data.y[rows])
    if units is None:
        return inputs, lambda model: None
    return inputs.with_targets(units.of(inputs.targets)), units.fold


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """cuDNN's deterministic kernels, in full precision, on CUDA; nothing to do on the CPU."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _loss(task: Task, config: SupervisedConfig) -> Callable[[Tensor, Tensor], Tensor]:
    if task.gives("classes"):
        return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if not isinstance(task, OutputTask):
        raise NotApplicable(
            f"supervised training takes the loss of a model's answers; {task} has none of answers alone"
        )
    return lambda outputs, targets: task.losses_of(outputs, targets).mean()
