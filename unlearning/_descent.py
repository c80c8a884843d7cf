"""The one loop behind the gradient-based unlearners (baselines of Fan et al., ICLR 2024).

A method says, for each epoch, which examples are visited with which targets and weights; the loop does the rest:

    theta <- SGD step on  (1/B) sum_{i in batch} w_i * CE(f(x_i; theta), t_i)

Optimiser as in the published code: SGD, momentum 0.9, weight decay 5e-4, batch 256. Its step decay at epochs 91 and 136
is never reached in the 5 to 10 epochs of an unlearning run, so the learning rate is constant here.

Promises, for every method: the given model is not changed; the result is in eval mode on the model's own device; rows
are put in the order of their ids first, so neither the order of the input nor the global random state matters; same
seed, same bits; a run that leaves the finite numbers, or ends in one answer to everything, raises ``Diverged``.

It is not a trainer: it starts from a trained model and keeps no schedule and no checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, NotApplicable
from contracts.params import Config, param
from contracts.progress import Progress
from recipes.inputs import Inputs, model_dtype
from recipes.predict import predict_logits
from recipes.rng import generator, local_rng
from sources.example_set import ExampleSet
from tasks.base import require

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PROBES = 1024  # retained examples on which a collapse is looked for: enough to see it, cheap beside an epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class DescentConfig(Config):
    """Fields that every gradient-based unlearner has; a method sets its own defaults."""

    lr: float = param(0.01, gt=0, le=1, doc="learning rate; choose it by avg_gap over a grid")
    epochs: int = param(10, ge=0, le=1000, doc="passes over the data; 0 returns the model as it was")
    batch: int = param(256, ge=1, le=65_536, unit="examples", doc="examples a step; a last single one joins the others")
    momentum: float = param(0.9, ge=0, lt=1, doc="momentum of SGD")
    weight_decay: float = param(5e-4, ge=0, le=1, doc="L2 penalty of SGD")
    batch_norm: str = param(
        "update",
        choices=("update", "freeze"),
        doc="update: running statistics follow the data seen (as published); freeze: batch norm stays in eval mode",
    )


@dataclass(frozen=True, eq=False)
class Pass:
    """One shuffled pass over some examples.

    Attributes:
        parts: the example sets visited together.
        targets: (n,) int64 class indices for the examples of all parts, in the order of the parts.
        weights: (n,) factor of each example's cross-entropy; -1 ascends.
    """

    parts: tuple[Inputs, ...]
    targets: Tensor
    weights: Tensor

    @classmethod
    def over(cls, part: Inputs, *, targets: np.ndarray | None = None, weight: float = 1.0) -> Pass:
        """A pass over one set, by default with its own labels."""
        aims = part.targets if targets is None else torch.from_numpy(targets).to(part.device)
        return cls((part,), aims, torch.full((len(part),), weight, dtype=part.dtype, device=part.device))

    def together_with(self, other: Pass) -> Pass:
        """Both shuffled into one pass."""
        return Pass(
            self.parts + other.parts,
            torch.cat([self.targets, other.targets]),
            torch.cat([self.weights, other.weights]),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def gather(self, rows: Tensor) -> Tensor:
        """(B, *shape) model inputs of these rows of the joined parts, in the order asked."""
        if len(self.parts) == 1:
            return self.parts[0].gather(rows)
        out = torch.empty(len(rows), *self.parts[0].data.input_shape, dtype=self.weights.dtype, device=rows.device)
        start = 0
        for part in self.parts:
            mine = (rows >= start) & (rows < start + len(part))
            if mine.any():
                out[mine] = part.gather(rows[mine] - start)
            start += len(part)
        return out


def inputs_of(model: nn.Module, data: ExampleSet) -> Inputs:
    """The model inputs of ``data`` in the order of its ids: nothing done with them depends on how they came in."""
    device = next(model.parameters()).device
    return Inputs(data.by_id(), dtype=model_dtype(model), device=device)


def check_disjoint(retain: ExampleSet, forget: ExampleSet) -> None:
    """Every example is in one of the two sets, once.

    Raises:
        DataError: naming the ids.
    """
    ids, counts = np.unique(np.concatenate([retain.example_id, forget.example_id]), return_counts=True)
    if (counts > 1).any():
        raise DataError("examples are listed twice among retain and forget", example_ids=ids[counts > 1])


def check_labels(name: str, data: ExampleSet) -> None:
    """Class labels, in range.

    Raises:
        NotApplicable: not classification.
        DataError: a label out of range.
    """
    require(data, name, "classes")
    outside = (data.y < 0) | (data.y >= data.num_classes)
    if outside.any():
        raise DataError(
            f"{name} set: label {data.y[outside][0]} is outside 0..{data.num_classes - 1}",
            example_ids=data.example_id[outside],
        )


def check_sets(model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, trains_on_retain: bool) -> None:
    """Refuse what no gradient-based unlearner can work on, before anything is computed.

    Raises:
        NotApplicable: not classification, or a model without trainable parameters.
        DataError: an example in both sets or twice in one, a label out of range, no retained example to train on.
    """
    check_labels("retain", retain)
    check_labels("forget", forget)
    check_disjoint(retain, forget)
    if trains_on_retain and retain.num_examples == 0:
        raise DataError("the retain set is empty: nothing is left to train on")
    if not any(p.requires_grad for p in model.parameters()):
        raise NotApplicable("the model has no trainable parameter")


def finite_logits(model: nn.Module, data: ExampleSet, *, what: str) -> np.ndarray:
    """``predict_logits``, where outputs that are not finite are the model's fault and not the data's.

    Raises:
        Diverged: naming the examples.
    """
    try:
        return predict_logits(model, data)
    except DataError as error:
        raise Diverged(f"{what}: {error}") from error


def check_finite(model: nn.Module, *, what: str) -> None:
    """Every parameter and floating-point buffer is finite.

    Raises:
        Diverged: otherwise.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Diverged(f"{what}: {name} is not finite")


def descend(
    model: nn.Module,
    passes: Callable[[int], Sequence[Pass]],
    *,
    retain: ExampleSet,
    config: DescentConfig,
    seed: int,
    name: str,
    progress: Progress,
) -> nn.Module:
    """Run ``config.epochs`` epochs of ``passes(epoch)`` on a copy of ``model``.

    Args:
        model: classifier with at least as many outputs as there are classes; not changed.
        passes: what an epoch visits, in order; called once an epoch.
        retain: looked at before and after (at most 1,024 of it) to tell a collapse.
        config: optimiser settings.
        seed: root of the batch order and of the model's own noise (dropout).
        name: method, for messages and progress.
        progress: called after each step.

    Returns:
        The changed copy, in eval mode.

    Raises:
        Diverged: a loss, a weight or a buffer is not finite, or the model, better before, now does no better on the
            retained examples than always giving their commonest class.
        NotApplicable: too few outputs; a batch of one example under batch norm in training mode.
    """
    run = f"{name} at lr {config.lr:g}"
    probe = _probe(retain, seed=seed)
    useful_before = _beats_constant(finite_logits(model, probe, what="the model before unlearning"), probe.y)
    student = copy.deepcopy(model)
    optimizer = torch.optim.SGD(
        [p for p in student.parameters() if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    device = next(student.parameters()).device
    order = generator(derive_seed(name, "order", seed))
    with local_rng(derive_seed(name, "noise", seed), device=device):
        _train_mode(student, freeze_batch_norm=config.batch_norm == "freeze")
        for epoch in range(config.epochs):
            batches = [
                (one, rows)
                for one in passes(epoch)
                for rows in _batches(torch.randperm(len(one), generator=order), config.batch)
            ]
            for step, (one, rows) in enumerate(batches):
                loss = _step(student, optimizer, one, rows.to(device))
                if not np.isfinite(loss):
                    raise Diverged(f"{run}: loss {loss} in epoch {epoch + 1}; use a smaller lr")
                progress(epoch * len(batches) + step + 1, config.epochs * len(batches), name)
    student.eval()
    check_finite(student, what=run)
    if useful_before and not _beats_constant(finite_logits(student, probe, what=run), probe.y):
        raise Diverged(
            f"{run}: on retained examples the model does no better than always giving their commonest class; "
            "use a smaller lr"
        )
    return student


def _step(student: nn.Module, optimizer: torch.optim.Optimizer, one: Pass, rows: Tensor) -> float:
    if len(rows) == 1 and any(isinstance(m, _BATCH_NORMS) and m.training for m in student.modules()):
        raise NotApplicable("one example alone has no batch statistics; set batch_norm to 'freeze'")
    logits = student(one.gather(rows))
    classes = one.parts[0].data.num_classes
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise NotApplicable(f"model output has shape {tuple(logits.shape)}; needed (batch, >= {classes})")
    loss = (one.weights[rows] * F.cross_entropy(logits, one.targets[rows], reduction="none")).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """``order`` in pieces of ``size``; a last one alone joins the piece before it (batch norm cannot use it alone)."""
    pieces = list(order.split(size)) if len(order) else []
    if len(pieces) > 1 and size > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def _train_mode(model: nn.Module, *, freeze_batch_norm: bool) -> None:
    model.train()
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, _BATCH_NORMS):
                module.eval()


def _probe(retain: ExampleSet, *, seed: int) -> ExampleSet:
    ids = np.sort(retain.example_id)
    if len(ids) > _PROBES:
        ids = np.sort(np.random.default_rng(derive_seed("probe", seed)).choice(ids, _PROBES, replace=False))
    return retain.subset(ids)


def _beats_constant(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether more labels are right than always answering the commonest of them would get."""
    return len(labels) > 0 and int((logits.argmax(1) == labels).sum()) > int(np.bincount(labels).max())
