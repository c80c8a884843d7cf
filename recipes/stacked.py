"""Many models of one recipe trained at once, each on its own subset with its own seed.

    theta (M, ...),  members[m] = positions that model m trains on,  idx (M, B) = its own permutation of its own subset
    L = sum_m mean_{b < count[m]} CE(f(theta_m, x[idx[m, b]]), y[idx[m, b]])         one backward, M separate gradients

Subsets of unequal size are padded and masked, never cut: a model whose epoch has fewer steps sits the last ones out,
untouched by momentum or weight decay. Runs of ``config.steps`` steps stack with those that have as many steps an epoch:
all epochs of a chunk then end together. Every model follows its own learning-rate schedule and its own generator, so
the result is that of ``supervised`` on each subset (to 1e-9 in float64), whatever the chunks.

Three paths to that result, chosen by what was measured (benchmarks/ensemble.py), not by the clock of the day:
    mlp    recipes.mlp without dropout: batched products, backward pass written out; CPU and CUDA
    vmap   anything else that vmap can run, on CUDA
    loop   the rest, and everything but MLPs on the CPU: one model after another, the same bits as ``supervised``
Regression always takes the loop, and so does BatchNorm, which mixes the examples of a batch: padding would enter it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.progress import Progress, silent
from recipes import stacked_mlp, stacked_vmap
from recipes.fitting import (
    batch_statistics,
    check_finite,
    check_trainable,
    deterministic,
    fit,
    smallest_batch,
    standardise,
)
from recipes.inputs import Inputs, model_dtype
from recipes.models import Build
from recipes.schedule import SupervisedConfig, epoch_order, epochs_to_train, learning_rates, num_epochs, num_steps
from recipes.stacked_mlp import StackedMLP
from recipes.stacked_optim import StackedOptimizer
from recipes.stacked_vmap import StackedVmap
from recipes.threads import threads_for
from sources.example_set import ExampleSet

Path = Literal["auto", "mlp", "vmap", "loop"]
# What one chunk of models may take with gradients, momentum, batch and activations: on the CPU the last-level cache
# decides, of which others take their share (of 32 MiB, measured on MLPs of 10^4 to 2 * 10^5 weights).
CHUNK_BYTES = {"cpu": 12 * 2**20, "cuda": 4 * 2**30}


@dataclass(frozen=True, kw_only=True)
class StackedTrainer:
    """Trains M models at once.

    Attributes:
        build: seed -> fresh model; all of one architecture.
        config: the recipe, the same for all.
        device: "cpu" or "cuda".
        path: "auto" (see the head of this file), or one of the paths by name.
        chunk: models at a time; None takes what fits the cache (CPU) or a memory bound (CUDA). Changes speed only.
    """

    build: Build
    config: SupervisedConfig
    device: str = "cpu"
    path: Path = "auto"
    chunk: int | None = None

    def train(
        self,
        data: ExampleSet,
        *,
        members: Sequence[np.ndarray],
        seeds: Sequence[int],
        stop_after: int | None = None,
        inputs: Inputs | None = None,
        progress: Progress = silent,
    ) -> list[nn.Module]:
        """The trained models, in the order of ``seeds``, in eval mode: the one snapshot at their end.

        Args:
            stop_after: early checkpoint, as in ``supervised``.
            others: as :meth:`snapshots`, which says what is raised.
        """
        return self.snapshots(
            data, members=members, seeds=seeds, epochs=[stop_after], inputs=inputs, progress=progress
        )[0]

    def snapshots(
        self,
        data: ExampleSet,
        *,
        members: Sequence[np.ndarray],
        seeds: Sequence[int],
        epochs: Sequence[int | None],
        inputs: Inputs | None = None,
        progress: Progress = silent,
    ) -> list[list[nn.Module]]:
        """The models as they stand after each of ``epochs``, in eval mode: one list an epoch, in the order of
        ``seeds``.

        One run up to the last of them: the bits of one run for each.

        Args:
            data: the examples that members point into.
            members: M arrays of distinct positions in ``data``, in training order, sizes >= 1 and not necessarily
                equal.
            seeds: M seeds, each as in ``supervised``.
            epochs: at least one, in any order; each as ``stop_after`` of ``supervised``.
            inputs: ``data``'s inputs when they are in memory already.
            progress: called with (model-epochs done, in all, "training").

        Raises:
            ConfigError: numbers that do not fit together; an epoch beyond the schedule.
            DataError: an empty subset, or positions outside ``data`` or used twice.
            NotApplicable: a path asked for by name that these models cannot take.
            Diverged: a parameter is no longer finite; names model and epoch.
        """
        rows = check_members(data, members, seeds)
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"StackedTrainer.chunk = {self.chunk} must be >= 1 models")
        if not seeds:
            return [[] for _ in epochs]
        first = self.build(seeds[0]).to(self.device)
        inputs = inputs or Inputs(data, dtype=model_dtype(first), device=self.device)
        check_trainable(first, inputs)
        smallest = smallest_batch(first)
        ends = [
            [epochs_to_train(num_epochs(len(own), self.config, smallest=smallest), e) for e in epochs] for own in rows
        ]
        path = self._choose([first, self.build(seeds[-1]).to(self.device)], inputs, rows[0])
        size = self.chunk or _chunk_size(first, self.config, data)
        found: dict[int, list[nn.Module]] = {}
        done, total = 0, sum(map(max, ends))
        for numbers in self._chunks(rows, size, smallest):
            models = [self.build(seeds[i]).to(self.device) for i in numbers]
            chunk = _Chunk(
                numbers=numbers,
                models=models,
                rows=[rows[i] for i in numbers],
                seeds=[seeds[i] for i in numbers],
                ends=ends[numbers[0]],
                progress=lambda more, done=done: progress(done + more, total, "training"),
            )
            found |= dict(zip(numbers, self._train_chunk(path, chunk, inputs), strict=True))
            done += len(numbers) * max(chunk.ends)
        return [[found[i][k].eval() for i in range(len(seeds))] for k in range(len(epochs))]

    def _chunks(self, rows: list[np.ndarray], size: int, smallest: int) -> Iterator[list[int]]:
        """Numbers of the models that are trained together; in one chunk, all epochs of the run are equally many."""
        steps = np.array(
            [num_steps(len(own), self.config, smallest=smallest) if self.config.steps else 0 for own in rows]
        )
        for alike in np.unique(steps):
            numbers = np.flatnonzero(steps == alike)
            yield from (own.tolist() for own in np.array_split(numbers, -(-len(numbers) // size)))  # alike in size

    def _choose(self, pair: list[nn.Module], inputs: Inputs, rows: np.ndarray) -> Path:
        """The path to take. Depends on the models and the kind of device alone."""
        if self.path == "loop" or not inputs.data.task.gives("classes"):
            if self.path in ("mlp", "vmap"):
                raise NotApplicable(f"path {self.path!r} is for classes; {inputs.data.task} takes 'loop'")
            return "loop"
        if layer := batch_statistics(pair[0]):
            if self.path != "auto":
                raise NotApplicable(
                    f"path {self.path!r} cannot take BatchNorm ({layer}): padding would enter it; use 'auto'"
                )
            return "loop"
        if stacked_mlp.fits(pair[0]) and self.path != "vmap":
            return "mlp"
        if self.path == "mlp":
            raise NotApplicable("path 'mlp' takes recipes.mlp.MLP without dropout, all of it trainable; use 'auto'")
        if self.path == "auto" and inputs.device.type == "cpu":
            return "loop"
        sample = inputs.gather(torch.from_numpy(rows[:2]).to(inputs.device))
        reason = stacked_vmap.fits(pair, sample)
        if reason and self.path == "vmap":
            raise NotApplicable(f"path 'vmap' cannot take these models ({reason}); use 'auto' or 'loop'")
        return "loop" if reason else "vmap"

    def _train_chunk(self, path: Path, chunk: _Chunk, inputs: Inputs) -> list[list[nn.Module]]:
        """The snapshots of each of the chunk's models, in the order of its ``ends``."""
        if path == "loop":
            return [self._alone(chunk, i, inputs) for i in range(len(chunk.models))]
        # Models with most steps an epoch first: those still at work in a late step are then a prefix, a view.
        order = np.argsort([-num_steps(len(r), self.config) for r in chunk.rows], kind="stable")
        stack = (StackedMLP if path == "mlp" else StackedVmap)(
            [chunk.models[i].train() for i in order], label_smoothing=self.config.label_smoothing
        )
        batches = _Batches([chunk.rows[i] for i in order], [chunk.seeds[i] for i in order], self.config, inputs)
        optimizer = StackedOptimizer(stack.params, batches.steps, self.config)
        last, kept = max(chunk.ends), {}
        for epoch in range(last + 1):
            if epoch in chunk.ends:
                stack.unstack()
                kept[epoch] = chunk.models if epoch == last else copy.deepcopy(chunk.models)
            if epoch == last:
                break
            together = threads_for(chunk.models[0], examples=self.config.batch, models=len(chunk.models))
            with deterministic(inputs.device), together:
                for x, labels, weights, rates in batches.of(epoch):
                    optimizer.step(stack.gradients(x, labels, weights), rates)
            # A sum is finite where all of its terms are, short of weights near the largest number there is.
            sums = torch.stack([p.reshape(len(p), -1).sum(dim=1) for p in stack.params])
            finite = torch.isfinite(sums).all(0)
            if not bool(finite.all()):
                broken = int(order[int((~finite).nonzero()[0])])
                check_finite(
                    [torch.tensor(torch.nan)],
                    epoch=epoch,
                    epochs=num_epochs(len(chunk.rows[broken]), self.config),
                    config=self.config,
                    who=f"model {chunk.numbers[broken]}",
                )
            chunk.progress((epoch + 1) * len(chunk.models))
        return [[kept[epoch][i] for epoch in chunk.ends] for i in range(len(chunk.models))]

    def _alone(self, chunk: _Chunk, number: int, inputs: Inputs) -> list[nn.Module]:
        """The snapshots of one model, trained as ``supervised`` does."""
        model, own, last = chunk.models[number], chunk.rows[number], max(chunk.ends)
        scaled, fold = standardise(model, inputs, own)
        kept = {0: copy.deepcopy(model), last: model} if 0 in chunk.ends else {last: model}

        def after_epoch(done: int) -> None:
            if done in chunk.ends and done != last:
                kept[done] = copy.deepcopy(model)
            chunk.progress(number * last + done)

        fit(
            model,
            scaled,
            own,
            config=self.config,
            seed=chunk.seeds[number],
            stop_after=last,
            after_epoch=after_epoch,
        )
        for snapshot in kept.values():
            fold(snapshot)
        return [kept[epoch] for epoch in chunk.ends]


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Models trained at the same time.

    Attributes:
        numbers: their places among all models.
        ends: epochs at which they are wanted; the largest is the last one trained.
        progress: called with the model-epochs done of this chunk.
    """

    numbers: list[int]
    models: list[nn.Module]
    rows: list[np.ndarray]
    seeds: list[int]
    ends: list[int]
    progress: Callable[[int], None]


class _Batches:
    """The steps of an epoch for M subsets sorted by falling number of steps S_m.

    Step s concerns the A models with S_m > s and yields x (A, B, *shape), labels (A, B), weights (A, B) and the
    learning rate of each group of models with equal S_m > s. Weights are 1/count on the count[m] examples of model m's
    batch and 0 on padding, which points at its first example. ``x`` is overwritten by the next step.
    """

    def __init__(self, rows: list[np.ndarray], seeds: Sequence[int], config: SupervisedConfig, inputs: Inputs) -> None:
        self.rows = [torch.from_numpy(r) for r in rows]
        self.seeds, self.config, self.inputs = seeds, config, inputs
        sizes = np.array([len(r) for r in rows])
        self.steps = np.array([num_steps(n, config) for n in sizes])
        self.width = min(config.batch, int(sizes.max()))
        step = np.arange(self.steps.max())
        self.live = (self.steps > step[:, None]).sum(1).tolist()
        count = np.clip(sizes - step[:, None] * config.batch, 0, config.batch)  # (S, M)
        weights = (np.arange(self.width) < count[..., None]) / np.maximum(count, 1)[..., None]
        shape = (len(rows) * self.width, *inputs.data.input_shape)
        self._x = torch.empty(shape, device=inputs.device, dtype=inputs.dtype)
        self.weights = torch.from_numpy(weights).to(inputs.device, inputs.dtype)

    def of(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, list[float]]]:
        """(x, labels, weights, rates) of every step of ``epoch``."""
        num_models, longest = len(self.rows), int(self.steps.max())
        index = torch.stack([r[0] for r in self.rows])[:, None].repeat(1, longest * self.config.batch)
        for slot, own, seed in zip(index, self.rows, self.seeds, strict=True):
            slot[: len(own)] = own[epoch_order(len(own), seed=seed, epoch=epoch)]
        index = index.view(num_models, longest, -1)[..., : self.width].transpose(0, 1).contiguous()  # (S, M, B)
        index = index.to(self.inputs.device)
        labels = self.inputs.targets[index]
        rates = [
            learning_rates(self.config, steps=steps, epoch=epoch).tolist()
            for steps in np.unique(self.steps)[::-1].tolist()
        ]
        for step, live in enumerate(self.live[: len(rates[0])]):
            x = self.inputs.gather(index[step, :live].reshape(-1), out=self._x[: live * self.width])
            x = x.view(live, self.width, *x.shape[1:])
            own = [group[step] for group in rates if step < len(group)]
            yield x, labels[step, :live], self.weights[step, :live], own


def check_members(data: ExampleSet, members: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
    """The training sets of many models as int64 positions in ``data``, one a seed.

    Raises:
        ConfigError: not one a seed.
        DataError: an empty subset, or positions outside ``data`` or used twice.
    """
    if len(members) != len(seeds):
        raise ConfigError(f"{len(members)} subsets for {len(seeds)} seeds: one each is needed")
    rows = []
    for number, given in enumerate(members):
        own = np.ascontiguousarray(given, dtype=np.int64)
        if own.ndim != 1 or not len(own):
            raise DataError(f"the subset of model {number} holds no examples")
        if own.min() < 0 or own.max() >= len(data) or len(np.unique(own)) != len(own):
            raise DataError(f"the subset of model {number} must hold distinct positions in 0..{len(data) - 1}")
        rows.append(own)
    return rows


def _chunk_size(model: nn.Module, config: SupervisedConfig, data: ExampleSet) -> int:
    """Models at a time: parameters, gradients and momentum (or Adam's two moments), one batch and what an MLP makes of
    it within the bound."""
    device, dtype = next(model.parameters()).device, model_dtype(model)
    copies = 4 if config.optimizer == "adamw" else 3
    values = copies * sum(p.numel() for p in model.parameters())
    made = 3 * sum(layer.out_features for layer in model.hidden) if stacked_mlp.fits(model) else 0
    values += min(config.batch, len(data)) * (2 * int(np.prod(data.input_shape)) + made)
    return int(np.clip(CHUNK_BYTES[device.type] // (values * dtype.itemsize), 1, 64))
