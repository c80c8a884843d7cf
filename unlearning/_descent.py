"""The one loop behind the gradient-based unlearners (card 06, steps 4, 5 and 7).

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, NotApplicable
from contracts.params import Config, param
from contracts.progress import Progress
from recipes.predict import predict_logits
from sources.example_set import ExampleSet

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PROBES = 1024  # retained examples on which a finished model is looked at: enough to see a collapse, cheap beside an epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class DescentConfig(Config):
    """Fields that every gradient-based unlearner has; a method narrows the defaults."""

    lr: float = param(0.01, gt=0, le=1, doc="learning rate; choose it by avg_gap over a grid")
    epochs: int = param(10, ge=0, le=1000, doc="passes over the data; 0 returns the model as it was")
    batch: int = param(256, ge=1, le=65536, unit="examples", doc="examples a step")
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
        weights: (n,) float32 factor of each example's cross-entropy; -1 ascends.
    """

    parts: Sequence[ExampleSet]
    targets: np.ndarray
    weights: np.ndarray

    @classmethod
    def over(cls, data: ExampleSet, *, targets: np.ndarray | None = None, weight: float = 1.0) -> Pass:
        """A pass over one set, by default with its own labels."""
        n = data.num_examples
        return cls((data,), data.y if targets is None else targets, np.full(n, weight, dtype=np.float32))

    def together_with(self, other: Pass) -> Pass:
        """Both shuffled into one pass."""
        return Pass(
            (*self.parts, *other.parts),
            np.concatenate([self.targets, other.targets]),
            np.concatenate([self.weights, other.weights]),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """(B, *shape) float32 model inputs of these rows of the joined parts, in the order asked."""
        if len(self.parts) == 1:
            return self.parts[0].inputs(rows)
        ends = np.cumsum([p.num_examples for p in self.parts])
        out = np.empty((len(rows), *self.parts[0].input_shape), dtype=np.float32)
        for part, end in zip(self.parts, ends, strict=True):
            here = (rows < end) & (rows >= end - part.num_examples)
            if here.any():
                out[here] = part.inputs(rows[here] - (end - part.num_examples))
        return out


def by_id(data: ExampleSet) -> ExampleSet:
    """The same examples in the order of their ids: what is done next cannot depend on the order they came in."""
    return data.subset(np.sort(data.example_id))


def check_sets(model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, needs_retain: bool) -> None:
    """Refuse what no classifier unlearner can work on, before anything is computed.

    Raises:
        NotApplicable: not classification.
        DataError: an example in both sets or twice in one, a label out of range, no retained example to train on.
    """
    for name, data in (("retain", retain), ("forget", forget)):
        if data.task != "classification":
            raise NotApplicable(f"{name} set {data.name!r} is a {data.task} task; this unlearner needs classification")
        outside = (data.y < 0) | (data.y >= data.num_classes)
        if outside.any():
            raise DataError(
                f"{name} set: label {data.y[outside][0]} is outside [0, {data.num_classes})",
                example_ids=data.example_id[outside],
            )
    check_disjoint(retain, forget)
    if needs_retain and retain.num_examples == 0:
        raise DataError("the retain set is empty: nothing is left to train on")
    if not any(p.requires_grad for p in model.parameters()):
        raise NotApplicable("the model has no trainable parameter")


def check_disjoint(retain: ExampleSet, forget: ExampleSet) -> None:
    """Every example is in one of the two sets, once.

    Raises:
        DataError: naming the ids.
    """
    ids, counts = np.unique(np.concatenate([retain.example_id, forget.example_id]), return_counts=True)
    if (counts > 1).any():
        raise DataError("examples are listed twice among retain and forget", example_ids=ids[counts > 1])


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
        passes: what an epoch visits, in order.
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
    device = _device(model)
    probe = _probe(retain, seed=seed)
    useful_before = _beats_constant(model, probe)
    student = copy.deepcopy(model)
    weights = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        weights, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    order = np.random.default_rng(derive_seed(name, "order", seed))
    with _own_noise(device, derive_seed(name, "noise", seed)):
        _train_mode(student, freeze_batch_norm=config.batch_norm == "freeze")
        for epoch in range(config.epochs):
            todo = passes(epoch)
            total = sum(len(_batches(len(p), config.batch)) for p in todo) * config.epochs
            done = total // config.epochs * epoch
            for one in todo:
                shuffled = order.permutation(len(one))
                for cut in _batches(len(one), config.batch):
                    loss = _step(student, optimizer, one, shuffled[cut], name=name)
                    if not np.isfinite(loss):
                        raise Diverged(f"{name}: loss {loss} in epoch {epoch + 1} at lr {config.lr:g}; use a smaller lr")
                    done += 1
                    progress(done, total, name)
    student.eval()
    _check_alive(student, probe, useful_before=useful_before, name=name, lr=config.lr)
    return student


def _step(
    student: nn.Module, optimizer: torch.optim.Optimizer, one: Pass, rows: np.ndarray, *, name: str
) -> float:
    anchor = next(student.parameters())
    x = torch.from_numpy(one.inputs(rows)).to(device=anchor.device, dtype=anchor.dtype)
    target = torch.from_numpy(one.targets[rows]).to(anchor.device)
    weight = torch.from_numpy(one.weights[rows]).to(device=anchor.device, dtype=anchor.dtype)
    if len(rows) == 1 and any(isinstance(m, _BATCH_NORMS) and m.training for m in student.modules()):
        raise NotApplicable(f"{name}: a batch of one example has no batch statistics; set batch_norm to 'freeze'")
    logits = student(x)
    classes = one.parts[0].num_classes
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise NotApplicable(f"{name}: model output has shape {tuple(logits.shape)}; needed (batch, >= {classes})")
    loss = (weight * F.cross_entropy(logits, target, reduction="none")).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _batches(n: int, size: int) -> list[slice]:
    """Cuts of at most ``size``; a last batch of one joins the batch before it (batch norm cannot use it alone)."""
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1 and size > 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def _train_mode(model: nn.Module, *, freeze_batch_norm: bool) -> None:
    model.train()
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, _BATCH_NORMS):
                module.eval()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _own_noise(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout draws from the global generators: lend them a seed, and give the old state back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _probe(retain: ExampleSet, *, seed: int) -> ExampleSet:
    if retain.num_examples <= _PROBES:
        return retain
    rng = np.random.default_rng(derive_seed("probe", seed))
    rows = np.sort(rng.choice(retain.num_examples, _PROBES, replace=False))
    return retain.subset(retain.example_id[rows])


def _beats_constant(model: nn.Module, probe: ExampleSet) -> bool:
    """Whether the model is right on more of ``probe`` than always answering its commonest class would be."""
    if probe.num_examples == 0:
        return False
    logits = predict_logits(model, probe)
    commonest = np.bincount(probe.y).max()
    return bool(np.isfinite(logits).all() and (logits.argmax(1) == probe.y).sum() > commonest)


def _check_alive(student: nn.Module, probe: ExampleSet, *, useful_before: bool, name: str, lr: float) -> None:
    tensors = [*student.parameters(), *(b for b in student.buffers() if b.is_floating_point())]
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise Diverged(f"{name}: weights are not finite at lr {lr:g}; use a smaller lr")
    if useful_before and not _beats_constant(student, probe):
        raise Diverged(
            f"{name}: at lr {lr:g} the model does no better on retained examples than always giving their commonest "
            "class; use a smaller lr"
        )
