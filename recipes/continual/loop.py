"""One model through the steps of a stream: what every recipe of this folder shares.

    build -> pre-training, if any -> for each step: open its classes; epochs of Adam on the learner's loss; the
    learner's end of step

The learner says what a batch costs and what is kept from one step to the next. An epoch's batches depend on (seed,
step, epoch) alone, Adam is fresh in every step, and after every step the run is stored: one that is killed starts again
at the last step that ended, with the same bits. Epochs are counted over all steps, the pre-training not:
``stop_after = n * epochs`` leaves the model after n steps, 0 the pre-trained encoder with every class closed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.checkpoints import load_arrays, to_arrays
from recipes.continual.distillation import bce_with_distilled_targets
from recipes.continual.head import GrowingHead
from recipes.continual.pretraining import pretrain
from recipes.continual.qkv import trainable_qkv
from recipes.continual.stream import Stream, StreamConfig, stream_of
from recipes.fitting import check_trainable, deterministic, smallest_batch, take_step
from recipes.inputs import Inputs, model_dtype
from recipes.keeping import run_fingerprint
from recipes.models import Build
from recipes.retention import Retained, retain
from recipes.rng import generator, local_rng
from recipes.schedule import SupervisedConfig, batches_of, epochs_to_train
from sources.example_set import ExampleSet
from tasks.base import require


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What a learner may look at.

    Attributes:
        model: being trained.
        head: its growing head.
        inputs: of the training examples; rows are positions in them.
        labels: (N,) int64 class indexes on the device.
        stream: their steps.
        seed: of the run.
        pretrained: the encoder was trained before the first step.
    """

    model: nn.Module
    head: GrowingHead
    inputs: Inputs
    labels: Tensor
    stream: Stream
    seed: int
    pretrained: bool

    def targets(self, rows: Tensor) -> Tensor:
        """(B,) columns of the labels among the open classes."""
        return self.head.places(self.labels[rows])


class Learner(Protocol):
    """One method: its loss, and what it keeps between steps."""

    def begin(self, run: Run, step: int, old: Sequence[int]) -> None:
        """Before a step's first batch; its classes are open, ``old`` are those that were open before it."""

    def begin_epoch(self, run: Run, step: int, epoch: int) -> None:
        """Before an epoch's first batch."""

    def loss(self, run: Run, rows: Tensor) -> Tensor:
        """What a batch (positions, int64 on the device) costs: a scalar with gradient."""

    def end(self, run: Run, step: int, rows: np.ndarray) -> None:
        """After a step's last batch; ``rows`` are its examples."""

    def kept(self) -> dict[str, np.ndarray]:
        """What is kept from one step to the next besides the model, as arrays."""

    def restore(self, arrays: Mapping[str, np.ndarray], device: torch.device) -> None:
        """The inverse of :meth:`kept`."""

    def retained(self, run: Run) -> Retained:
        """What is still held of the data."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How far a run goes and where it is kept.

    Attributes:
        ends: epochs, counted over all steps, at which the model is wanted; None is the end.
        after_step: called after every step with its number and the model, in eval mode; read only.
    """

    ends: Sequence[int | None] = (None,)
    device: str = "cpu"
    checkpoints: CheckpointStore = field(default_factory=NoStore)
    checkpoint_name: str = "stream"
    progress: Progress = silent
    after_step: Callable[[int, nn.Module], None] = lambda step, model: None


def train_stream(
    build: Build, data: ExampleSet, *, config: StreamConfig, seed: int, learner: Learner, plan: Plan
) -> list[nn.Module]:
    """The model after each of ``plan.ends``, in eval mode, with what it retains of the data (``recipes.retention``).

    Raises:
        DataError: no examples, or some that belong to no step.
        ConfigError: steps that the data does not have; an end beyond the schedule.
        NotApplicable: no classification, a head that cannot grow, or another method's model.
        Diverged: the loss or a parameter is not finite; names step and epoch.
        IntegrityError: the stored checkpoint is damaged.
    """
    require(data, "training through steps of classes", "outputs", "classes")
    model = build(seed).to(plan.device)
    inputs = Inputs(data, dtype=model_dtype(model), device=plan.device)
    check_trainable(model, inputs)
    stream = stream_of(data, config)
    if not (stream.step >= 0).any():
        raise DataError(f"{data.name}: no example of any step to train on", example_ids=data.example_id)
    total = stream.num_steps * config.epochs
    ends = [epochs_to_train(total, end) for end in plan.ends]
    fingerprint = run_fingerprint(model, data, config=config, seed=seed)
    head = GrowingHead(model, data.num_classes)
    labels = torch.from_numpy(data.y).to(inputs.device)
    found: dict[int, nn.Module] = {}
    with ExitStack() as stack:
        if config.train == "qkv":
            stack.enter_context(trainable_qkv(model, head=head.name))
        stored = plan.checkpoints.load(plan.checkpoint_name)
        start = _resume(model, head, learner, stored, run=fingerprint, first=min(ends) // config.epochs)
        pretrained = bool((stream.step < 0).any())
        if not start:
            pretrain(model, head, inputs, stream, config=config, seed=seed)
        run = Run(model=model, head=head, inputs=inputs, labels=labels, stream=stream, seed=seed, pretrained=pretrained)

        def reached(epoch: int) -> None:
            if epoch in ends:
                model.eval()
                retain(model, learner.retained(run))
                found[epoch] = model if epoch == max(ends) else copy.deepcopy(model)

        reached(start * config.epochs)
        for step in range(start, stream.num_steps):
            if step * config.epochs >= max(ends):
                break
            if _train_step(run, learner, step, config=config, last=max(ends), reached=reached, progress=plan.progress):
                model.eval()
                plan.after_step(step, model)
                if not isinstance(plan.checkpoints, NoStore):
                    arrays = {f"model/{n}": a for n, a in to_arrays(model).items()}
                    arrays |= {f"kept/{n}": a for n, a in learner.kept().items()}
                    meta = {"run": fingerprint, "steps": step + 1, "seen": head.seen}
                    plan.checkpoints.save(plan.checkpoint_name, arrays, meta)
    for p in model.parameters():
        p.grad = None
    return [found[end].eval() for end in ends]


def _train_step(
    run: Run,
    learner: Learner,
    step: int,
    *,
    config: StreamConfig,
    last: int,
    reached: Callable[[int], None],
    progress: Progress,
) -> bool:
    """One step in place, up to epoch ``last``; whether it has come to its end."""
    model, head, device = run.model, run.head, run.inputs.device
    rows = run.stream.rows(step, run.inputs.data.example_id)
    own, old = torch.from_numpy(rows).to(device), list(head.seen)
    optimizer = None
    if len(rows):
        head.open(run.stream.classes[step])
        learner.begin(run, step, old)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    for epoch in range(config.epochs):
        done = step * config.epochs + epoch + 1
        if done > last:
            return False
        if optimizer is not None:
            for group in optimizer.param_groups:
                group["lr"] = config.rate(epoch)
            _train_epoch(run, learner, own, optimizer, step=step, epoch=epoch, config=config)
        if epoch + 1 == config.epochs and len(rows):
            model.eval()
            learner.end(run, step, rows)
        reached(done)
        progress(done, last, "training")
    return True


def _train_epoch(
    run: Run,
    learner: Learner,
    own: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    epoch: int,
    config: StreamConfig,
) -> None:
    model, device = run.model, run.inputs.device
    order = own[torch.randperm(len(own), generator=generator(derive_seed("order", run.seed, step, epoch))).to(device)]
    batches = batches_of(len(own), SupervisedConfig(batch=config.batch), smallest=smallest_batch(model))
    total = torch.zeros((), device=device)
    model.train()
    learner.begin_epoch(run, step, epoch)
    with local_rng(derive_seed("noise", run.seed, step, epoch), device=device), deterministic(device):
        for batch in batches:
            total += take_step(optimizer, learner.loss(run, order[batch]))
            if config.weight_decay:
                run.head.close_unseen()
    if not bool(torch.isfinite(total)) or not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise Diverged(
            f"training diverged in epoch {epoch + 1} of {config.epochs} of step {step + 1}: the loss or a parameter is "
            f"not finite. Lower lr (= {config.lr:g}) or the weights of the penalties"
        )


def classification_loss(logits: Tensor, targets: Tensor, *, loss: str) -> Tensor:
    """Of the open classes, without a teacher: ``loss`` "bce" summed over them or "ce"; the mean over the batch."""
    if loss == "bce":
        return bce_with_distilled_targets(logits, targets)
    return nn.functional.cross_entropy(logits, targets)


def stacked(learner_of: Callable[[Any], Learner]) -> Callable[..., list[list[nn.Module]]]:
    """``RecipeSpec.stacked`` of a recipe whose learner is ``learner_of(config)``: every snapshot of a model out of one
    run."""

    def snapshots(
        build: Build,
        data: ExampleSet,
        *,
        config: StreamConfig,
        device: str,
        members: Sequence[np.ndarray],
        seeds: Sequence[int],
        epochs: Sequence[int | None],
        inputs: Inputs | None = None,
        progress: Progress = silent,
    ) -> list[list[nn.Module]]:
        runs = []
        for number, (rows, seed) in enumerate(zip(members, seeds, strict=True)):

            def tell(done: int, of: int, what: str, number: int = number) -> None:
                progress(number * of + done, len(seeds) * of, what)

            plan = Plan(ends=epochs, device=device, progress=tell)
            part = data.take(rows)
            runs.append(train_stream(build, part, config=config, seed=seed, learner=learner_of(config), plan=plan))
        return [[models[k] for models in runs] for k in range(len(epochs))]

    return snapshots


def _resume(
    model: nn.Module,
    head: GrowingHead,
    learner: Learner,
    stored: tuple[dict[str, Any], dict[str, Any]] | None,
    *,
    run: str,
    first: int,
) -> int:
    """Load a checkpoint of this very run of at most ``first`` steps; return the steps it has done, else 0."""
    if stored is None or stored[1].get("run") != run or stored[1]["steps"] > first:
        return 0
    arrays, meta = stored
    head.open(meta["seen"])
    load_arrays(model, {n.removeprefix("model/"): a for n, a in arrays.items() if n.startswith("model/")})
    kept = {n.removeprefix("kept/"): np.array(a) for n, a in arrays.items() if n.startswith("kept/")}
    learner.restore(kept, head.layer.weight.device)
    return int(meta["steps"])
