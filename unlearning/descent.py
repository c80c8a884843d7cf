"""The one loop behind the gradient-based unlearners, for methods of this project and of others.

A method says, for each epoch, which examples are visited with which targets and weights; the loop does the rest:

    theta <- SGD step on  (1/B) sum_{i in batch} w_i * l(theta; x_i, t_i)          l: the task's loss of an example

Optimiser as in the published code of Fan et al. (ICLR 2024): SGD, momentum 0.9, weight decay 5e-4, batch 256. Its step
decay at epochs 91 and 136 is never reached in the 5 to 10 epochs of an unlearning run, so the learning rate is constant
here. A number to predict is descended in units of its own mean and spread, as it was trained
(``recipes.fitting.units_of``), so that one learning rate suits every target. A recommender whose vectors come from a
graph gets that of the retained interactions.

Promises, for every method: the given model is not changed; the result is in eval mode on the model's own device; rows
are put in the order of their ids first, so neither the order of the input nor the global random state matters; same
seed, same bits; a run that leaves the finite numbers, or ends in one answer to everything, raises ``Diverged``.

It is not a trainer: it starts from a trained model and keeps no schedule and no checkpoints.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, NotApplicable
from contracts.params import Config, param
from contracts.progress import Progress
from recipes.fitting import Units, take_step, units_of
from recipes.inputs import Inputs, model_dtype
from recipes.predict import eval_mode, predict_logits, read
from recipes.recsys_models import is_ranker, settle, take_graph
from recipes.rng import generator, local_rng
from recipes.threads import threads_for
from sources.example_set import ExampleSet
from tasks.base import Batch, answers, require

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PROBES = 1024  # retained examples on which a collapse is looked for: enough to see it, cheap beside an epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochsConfig(Config):
    """Fields that every gradient-based unlearner has, whatever its optimiser; a method sets its own defaults."""

    lr: float = param(0.01, gt=0, le=1, doc="learning rate; choose it by avg_gap over a grid")
    epochs: int = param(10, ge=0, le=1_000_000, doc="passes over the data; 0 returns the model as it was")
    batch: int = param(256, ge=1, le=65_536, unit="examples", doc="examples a step; a last single one joins the others")
    batch_norm: str = param(
        "update",
        choices=("update", "freeze"),
        doc="update: running statistics follow the data seen (as published); freeze: batch norm stays in eval mode",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DescentConfig(EpochsConfig):
    """Fields of those that descend by SGD, which is most of them."""

    momentum: float = param(0.9, ge=0, lt=1, doc="momentum of SGD")
    weight_decay: float = param(5e-4, ge=0, le=1, doc="L2 penalty of SGD")


Parameters = Mapping[str, Tensor]


def sgd(parameters: list[nn.Parameter], config: DescentConfig) -> torch.optim.Optimizer:
    """SGD as ``config`` says."""
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def adam(parameters: list[nn.Parameter], config: EpochsConfig) -> torch.optim.Optimizer:
    """Adam at the learning rate of ``config``, else with PyTorch's defaults."""
    return torch.optim.Adam(parameters, lr=config.lr)


@dataclass(frozen=True, eq=False)
class Pass:
    """One shuffled pass over some examples.

    Attributes:
        parts: the example sets visited together.
        targets: of each part, (n, ...) what its examples are trained towards; None: their own.
        weights: (n,) float64, factor of each example's loss, of all parts in their order; -1 ascends.
        losses: ``(model, batch) -> (B,)`` loss of each example; None: the task's.
        of_outputs: ``(outputs (B, K), targets (B, ...)) -> (B,)`` instead, where the loss is one of the model's answer
            and the target alone: plans whose functions are equal (``==``) may then be carried out together. One that
            has a ``gradient``, ``(outputs, targets) -> (B, K)`` of each loss by its outputs, is then not recorded.
    """

    parts: tuple[Inputs, ...]
    targets: tuple[Tensor | None, ...]
    weights: Tensor
    losses: Callable[[nn.Module, Batch], Tensor] | None = None
    of_outputs: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def over(
        cls,
        part: Inputs,
        *,
        targets: np.ndarray | None = None,
        weight: float = 1.0,
        losses: Callable[[nn.Module, Batch], Tensor] | None = None,
        of_outputs: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Pass:
        """A pass over one set, by default with its own targets and its task's loss."""
        aims = None if targets is None else torch.from_numpy(targets).to(part.device)
        weights = torch.full((len(part),), weight, dtype=torch.float64, device=part.device)
        return cls((part,), (aims,), weights, losses, of_outputs)

    def together_with(self, other: Pass) -> Pass:
        """Both shuffled into one pass, by the loss of this one."""
        weights = torch.cat([self.weights, other.weights])
        return dataclasses.replace(
            self, parts=self.parts + other.parts, targets=self.targets + other.targets, weights=weights
        )

    def losses_of(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) loss of each example of a batch of this pass, with gradient, without its weight."""
        if self.of_outputs is not None:
            return self.of_outputs(answers(model, batch), batch.targets)
        return (self.losses or self.parts[0].data.task.losses)(model, batch)

    def __len__(self) -> int:
        return len(self.weights)

    def batch(self, rows: Tensor) -> Batch:
        """The examples ``rows``, (B,) int64 positions in the joined parts, in the order asked, with the targets of this
        pass.

        Raises:
            NotApplicable: examples of several parts that are no rows of arrays and cannot be put side by side.
        """
        found, places, start = [], [], 0
        for part, aims in zip(self.parts, self.targets, strict=True):
            at = torch.nonzero((rows >= start) & (rows < start + len(part))).flatten()
            if len(at):
                one = part.batch(rows[at] - start)
                found.append(one if aims is None else dataclasses.replace(one, targets=aims[rows[at] - start]))
                places.append(at)
            start += len(part)
        if len(found) == 1:
            return found[0]
        order = torch.cat(places).argsort()
        if any(not isinstance(part, Tensor) for one in found for part in (one.inputs, one.targets)):
            raise NotApplicable(
                "a pass over both sets at once is for examples that are arrays; visit them one after another"
            )
        return Batch(
            torch.cat([one.inputs for one in found])[order],
            torch.cat([one.targets for one in found])[order],
            torch.cat([one.example_id for one in found])[order.cpu()],
            found[0].constants,
        )


def inputs_of(model: nn.Module, data: ExampleSet, *, beside: ExampleSet | None = None) -> Inputs:
    """The model inputs of ``data`` in the order of its ids: nothing done with them depends on how they came in.

    Args:
        beside: examples of which something may show in the inputs of these. Nodes of a graph see one another: retained
            ones are visited on the graph that is left when the others are gone, without their messages; those to be
            forgotten on the graph of both, on which they were trained. Of other examples it changes nothing.
    """
    device = next(model.parameters()).device
    return Inputs(data.by_id().among(beside), dtype=model_dtype(model), device=device)


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


def check_sets(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    trains_on_retain: bool,
    wants: Sequence[str] = ("losses",),
) -> None:
    """Refuse what no gradient-based unlearner can work on, before anything is computed.

    Args:
        wants: views of their task that the method reads, words of ``contracts.methods.VIEWS``.

    Raises:
        NotApplicable: a task that does not give ``wants``, two different tasks, a model without trainable parameters or
            with fewer outputs than there are classes.
        DataError: an example in both sets or twice in one, a target that is none of the task's, no retained example to
            train on.
    """
    for name, data in (("the retain set", retain), ("the forget set", forget)):
        require(data, name, *wants)
        if data.task != retain.task:
            raise NotApplicable(f"the retain set is a {retain.task} task, the forget set a {data.task} task")
        data.check_targets()
    check_disjoint(retain, forget)
    if trains_on_retain and retain.num_examples == 0:
        raise DataError("the retain set is empty: nothing is left to train on")
    if not any(p.requires_grad for p in model.parameters()):
        raise NotApplicable("the model has no trainable parameter")
    for data in (retain, forget):
        if len(data) and data.task.gives("outputs", "classes"):
            _check_outputs(model, data)
            break


def _check_outputs(model: nn.Module, data: ExampleSet) -> None:
    """Raise :class:`NotApplicable` unless the model has an output for every class."""
    with eval_mode(model), torch.no_grad():
        logits = answers(model, inputs_of(model, data.take(np.arange(1))).slice(0, 1))
    if logits.ndim != 2 or logits.shape[1] < data.num_classes:
        raise NotApplicable(f"model output has shape {tuple(logits.shape)}; needed (batch, >= {data.num_classes})")


def finite_logits(model: nn.Module, data: ExampleSet, *, what: str) -> np.ndarray:
    """``predict_logits``, where outputs that are not finite are the model's fault and not the data's.

    Raises:
        Diverged: naming the examples.
    """
    try:
        return predict_logits(model, data)
    except DataError as error:
        raise Diverged(f"{what}: {error}") from error


def beats_constant(model: nn.Module, data: ExampleSet, *, what: str) -> bool:
    """Whether the mean quality is above that of the best answer which is the same for all of ``data``.

    Raises:
        Diverged: what the model says is not finite; names the examples.
    """
    if not len(data):
        return False
    try:
        quality = read(model, data).quality
    except DataError as error:
        raise Diverged(f"{what}: {error}") from error
    return float(quality.mean()) > data.task.constant_quality(data)


def refuse_collapse(model: nn.Module, probe: ExampleSet, *, run: str) -> None:
    """Refuse a model that has become useless.

    Args:
        probe: retained examples on which the model was better than any constant answer before, see
            :func:`beats_constant`.
        run: method and settings, for the message.

    Raises:
        Diverged: it no longer is, or what it says is not finite.
    """
    if not beats_constant(model, probe, what=run):
        raise Diverged(
            f"{run}: on retained examples the model does no better than the best constant answer (of a classifier: "
            "their commonest class); use a smaller lr"
        )


def check_finite(model: nn.Module, *, what: str) -> None:
    """Every parameter and floating-point buffer is finite.

    Raises:
        Diverged: otherwise.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Diverged(f"{what}: {name} is not finite")


@dataclass(frozen=True, eq=False, kw_only=True)
class Descent:
    """What a gradient-based method does to a model: said, and not yet done. :func:`descend` does it.

    Attributes:
        model: trained; never changed.
        passes: what an epoch visits, in order; called once for each epoch, with its number from 0, in their order. Its
            answer does not depend on how far the student is: where plans are carried out together, all epochs are
            asked for before the first step.
        retain: looked at before and after (at most 1,024 of it) to tell a collapse.
        config: optimiser settings.
        seed: root of the batch order and of the model's own noise (dropout).
        name: method, for messages and progress.
        penalty: ``(parameters by name, epoch) -> scalar`` that is added to the mean loss of each batch. Plans whose
            penalties are equal (``==``) may be asked for theirs together, under ``torch.func.vmap`` where it can.
        project: ``(parameters by name, steps done, all steps) -> None``, in place after each step: what keeps weights
            where they may be (a mask, a ball). The parameters are those that train.
        optimizer: makes the optimiser from the parameters that train.
        stop: ``(student, steps done) -> whether this was the last step``, asked after each; None: when all epochs are
            done. The student is in training mode, and left so.
        rate: ``(step from 0, all steps) -> factor of the learning rate`` in that step; None: constant.
        frozen: names of modules that stay as they are: in eval mode, and their own parameters do not train (but one
            that a module which trains shares).
        draws: the method whose random numbers this one draws, where it has to reduce to it; "": its own.
    """

    model: nn.Module
    passes: Callable[[int], Sequence[Pass]]
    retain: ExampleSet
    config: EpochsConfig
    seed: int
    name: str
    penalty: Callable[[Parameters, int], Tensor] | None = None
    project: Callable[[Parameters, int, int], None] | None = None
    optimizer: Callable[[list[nn.Parameter], Any], torch.optim.Optimizer] = sgd
    stop: Callable[[nn.Module, int], bool] | None = None
    rate: Callable[[int, int], float] | None = None
    frozen: Sequence[str] = ()
    draws: str = ""

    @property
    def run(self) -> str:
        """Method and learning rate, for messages."""
        return f"{self.name} at lr {self.config.lr:g}"

    def order(self) -> torch.Generator:
        """What shuffles the passes."""
        return generator(derive_seed(self.draws or self.name, "order", self.seed))

    @cached_property
    def watched(self) -> ExampleSet:
        """The retained examples by which a collapse is told."""
        return probe(self.retain, seed=self.seed)


def descend(plan: Descent, *, progress: Progress) -> nn.Module:
    """Run the epochs of ``plan`` on a copy of its model.

    Args:
        progress: called after each step.

    Returns:
        The changed copy, in eval mode.

    Raises:
        Diverged: a loss, a weight or a buffer is not finite, or the model, better before, now does no better on the
            retained examples than the best constant answer.
        NotApplicable: a batch of one example under batch norm in training mode.
    """
    config, name = plan.config, plan.name
    useful_before = was_useful(plan)
    student = copy.deepcopy(plan.model)
    units = start(student, plan.retain) if config.epochs else None
    frozen = [student.get_submodule(module) for module in plan.frozen]
    held = hold(student, frozen)
    trained = trainable(student)
    optimizer = plan.optimizer(list(trained.values()), config)
    device = next(student.parameters()).device
    order, done, stopped = plan.order(), 0, False
    with (
        local_rng(derive_seed(plan.draws or name, "noise", plan.seed), device=device),
        threads_for(student, examples=config.batch),
    ):
        train_mode(student, freeze_batch_norm=config.batch_norm == "freeze", frozen=frozen)
        for epoch in range(config.epochs):
            batches = [
                (one, rows)
                for one in plan.passes(epoch)
                for rows in batches_of(torch.randperm(len(one), generator=order), config.batch)
            ]
            total = done + (config.epochs - epoch) * len(batches)
            for one, rows in batches:
                penalty = None if plan.penalty is None else plan.penalty(trained, epoch)
                lr = None if plan.rate is None else config.lr * plan.rate(done, total)
                loss = step(student, optimizer, one, rows.to(device), units=units, penalty=penalty, lr=lr)
                if not np.isfinite(loss):
                    raise Diverged(f"{plan.run}: loss {loss} in epoch {epoch + 1}; use a smaller lr")
                done += 1
                if plan.project is not None:
                    with torch.no_grad():
                        plan.project(trained, done, total)
                progress(done, total, name)
                if stopped := plan.stop is not None and plan.stop(student, done):
                    break
            if stopped:
                break
    finish(student, units)
    for parameter in held:
        parameter.requires_grad_(True)
    return check_unlearned(plan, student, useful_before=useful_before)


def was_useful(plan: Descent) -> bool:
    """Whether the model, as it is given, does better on the retained examples than the best constant answer.

    Raises:
        Diverged: what it says is not finite.
    """
    return beats_constant(plan.model, plan.watched, what="the model before unlearning")


def check_unlearned(plan: Descent, student: nn.Module, *, useful_before: bool) -> nn.Module:
    """The student, in eval mode, of a plan that has been carried out.

    Raises:
        Diverged: it is not finite, or collapsed where the model was useful before.
    """
    check_finite(student, what=plan.run)
    if useful_before:
        refuse_collapse(student, plan.watched, run=plan.run)
    return student


def hold(student: nn.Module, frozen: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Keep the own parameters of ``frozen`` modules from training; those that did train before."""
    still = {id(module) for module in frozen}
    trained = {id(p) for m in student.modules() if id(m) not in still for p in m.parameters(recurse=False)}
    held = [p for p in student.parameters() if id(p) not in trained and p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    return held


def start(student: nn.Module, retain: ExampleSet) -> Units | None:
    """Make a copy of a trained model ready to be descended, in place: see the head of this file.

    Returns:
        The units that :func:`step` and :func:`finish` want; None where targets are taken as they are.
    """
    if is_ranker(student):
        take_graph(student, np.asarray(retain.x)[:, 0], retain.y)
    if not len(retain):
        return None
    units = retained_units(student, retain)
    if units is not None:
        units.unfold(student)
    return units


def retained_units(model: nn.Module, retain: ExampleSet) -> Units | None:
    """The units in which a model is descended, whatever the order of the retained examples (at least one); None where
    targets are taken as they are."""
    first = inputs_of(model, retain.take(np.arange(1)))
    return units_of(model, first, np.asarray(retain.y)[np.argsort(retain.example_id)])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def in_units(batch: Batch, units: Units | None) -> Batch:
    """The batch with its targets in the units in which a model is descended."""
    return batch if units is None else dataclasses.replace(batch, targets=units.of(batch.targets))


def finish(student: nn.Module, units: Units | None) -> None:
    """Put what :func:`start` has made ready back into the form that is used, in eval mode."""
    student.eval()
    settle(student)
    if units is not None:
        units.fold(student)


def step(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    one: Pass,
    rows: Tensor,
    *,
    units: Units | None = None,
    penalty: Tensor | None = None,
    lr: float | None = None,
) -> float:
    """One step of the optimiser on the examples ``rows`` of a pass; the loss it was taken on.

    Args:
        penalty: a scalar with gradient, added to the mean loss.
        lr: learning rate of this step; None: as the optimiser has it.

    Raises:
        NotApplicable: one example alone under batch norm in training mode.
    """
    if len(rows) == 1 and any(isinstance(m, _BATCH_NORMS) and m.training for m in student.modules()):
        raise NotApplicable("one example alone has no batch statistics; set batch_norm to 'freeze'")
    batch = in_units(one.batch(rows), units)
    losses = one.losses_of(student, batch)
    loss = (one.weights[rows].to(losses.dtype) * losses).mean()
    return float(take_step(optimizer, loss if penalty is None else loss + penalty, lr=lr))


def batches_of(order: Tensor, size: int) -> list[Tensor]:
    """``order`` in pieces of ``size``; a last one alone joins the piece before it (batch norm cannot use it alone)."""
    pieces = list(order.split(size)) if len(order) else []
    if len(pieces) > 1 and size > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


@cache
def sizes_of(examples: int, batch: int) -> tuple[int, ...]:
    """Examples of each piece into which :func:`batches_of` puts so many."""
    return tuple(len(rows) for rows in batches_of(torch.arange(examples), batch))


def train_mode(model: nn.Module, *, freeze_batch_norm: bool, frozen: Sequence[nn.Module] = ()) -> None:
    """Training mode in place, all but the ``frozen`` modules, and the batch norms where they are frozen."""
    model.train()
    for module in frozen:
        module.training = False
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, _BATCH_NORMS):
                module.eval()


def probe(retain: ExampleSet, *, seed: int) -> ExampleSet:
    """At most 1,024 of the examples, ordered by id."""
    if len(retain) <= _PROBES:
        return retain.by_id()
    ids = np.sort(retain.example_id)
    return retain.subset(np.sort(np.random.default_rng(derive_seed("probe", seed)).choice(ids, _PROBES, replace=False)))
