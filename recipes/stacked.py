"""Many models of one recipe trained at once, each on its own subset with its own seed (card 57, steps 6 and 7).

    theta (M, ...),  members[m] = positions that model m trains on,  idx (M, B) = its own permutation of its own subset
    L = sum_m mean_{b < count[m]} CE(f(theta_m, x[idx[m, b]]), y[idx[m, b]])         one backward, M separate gradients

Subsets of unequal size are padded and masked, never cut: a model whose epoch has fewer steps sits the last ones out,
untouched by momentum or weight decay. Every model follows its own learning-rate schedule and its own generator, so
the result is that of ``supervised`` on each subset (to 1e-9 in float64), whatever the chunks.

Three paths to that result, chosen by what was measured (benchmarks/ensemble.py), not by the clock of the day:
    mlp    recipes.mlp without dropout: batched products, backward pass written out; CPU and CUDA
    vmap   anything else that vmap can run, on CUDA
    loop   the rest, and everything but MLPs on the CPU: one model after another, the same bits as ``supervised``
Regression always takes the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.progress import Progress, silent
from recipes import stacked_mlp, stacked_vmap
from recipes.fitting import check_finite, check_trainable, deterministic, fit, standardise
from recipes.inputs import Inputs, model_dtype
from recipes.models import Build
from recipes.schedule import SupervisedConfig, epoch_order, epochs_to_train, learning_rates, num_steps
from recipes.stacked_mlp import StackedMLP
from recipes.stacked_optim import StackedOptimizer
from recipes.stacked_vmap import StackedVmap
from sources.example_set import ExampleSet

Path = Literal["auto", "mlp", "vmap", "loop"]
# What one chunk of models may take with gradients, momentum and batch: on the CPU the last-level cache decides.
_CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 4 * 2**30}


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
        """The trained models, in the order of ``seeds``, in eval mode.

        Args:
            data: the examples that members point into.
            members: M arrays of distinct positions in ``data``, in training order, sizes >= 1 and not necessarily equal.
            seeds: M seeds, each as in ``supervised``.
            stop_after: early checkpoint, as in ``supervised``.
            inputs: ``data``'s inputs when they are in memory already.
            progress: told (model-epochs done, in all, "training").

        Raises:
            ConfigError: numbers that do not fit together.
            DataError: an empty subset, or positions outside ``data`` or used twice.
            NotApplicable: BatchNorm, or a path asked for by name that these models cannot take.
            Diverged: a parameter is no longer finite; names model and epoch.
        """
        last = epochs_to_train(self.config, stop_after)
        rows = _check_members(data, members, seeds)
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"StackedTrainer.chunk = {self.chunk} must be >= 1 models")
        if not seeds:
            return []
        first = self.build(seeds[0]).to(self.device)
        inputs = inputs or Inputs(data, dtype=model_dtype(first), device=self.device)
        _refuse_batchnorm(first)
        check_trainable(first, inputs)
        path = self._choose([first, self.build(seeds[-1]).to(self.device)], inputs, rows[0])
        size = self.chunk or _chunk_size(first, self.config, data)
        trained: list[nn.Module] = []
        for start in range(0, len(seeds), size):
            models = [self.build(s).to(self.device) for s in seeds[start : start + size]]
            part = slice(start, start + len(models))
            self._chunk(path, models, inputs, rows[part], seeds[part], start, last, len(seeds) * last, progress)
            trained += [model.eval() for model in models]
        return trained

    def _choose(self, pair: list[nn.Module], inputs: Inputs, rows: np.ndarray) -> Path:
        """The path to take. Depends on the models and the kind of device alone."""
        if self.path == "loop" or inputs.data.task == "regression":
            if self.path in ("mlp", "vmap"):
                raise NotApplicable(f"path {self.path!r} is for classification; regression takes 'loop'")
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

    def _chunk(
        self,
        path: Path,
        models: list[nn.Module],
        inputs: Inputs,
        rows: list[np.ndarray],
        seeds: Sequence[int],
        offset: int,
        last: int,
        total: int,
        progress: Progress,
    ) -> None:
        """Train ``models`` in place; ``offset`` models are done before them."""
        if path == "loop":
            for number, (model, own, seed) in enumerate(zip(models, rows, seeds, strict=True), start=offset):

                def tell(done: int, number: int = number) -> None:
                    progress(number * last + done, total, "training")

                with standardise(model, inputs, own) as scaled:
                    fit(model, scaled, own, config=self.config, seed=seed, stop_after=last, after_epoch=tell)
            return
        # Models with most steps an epoch first: those still at work in a late step are then a prefix, a view.
        order = np.argsort([-num_steps(len(r), self.config) for r in rows], kind="stable")
        stack = (StackedMLP if path == "mlp" else StackedVmap)(
            [models[i].train() for i in order], label_smoothing=self.config.label_smoothing
        )
        batches = _Batches([rows[i] for i in order], [seeds[i] for i in order], self.config, inputs)
        optimizer = StackedOptimizer(stack.params, batches.steps, self.config)
        for epoch in range(last):
            with deterministic(inputs.device):
                for x, labels, weights, rates in batches.of(epoch):
                    optimizer.step(stack.gradients(x, labels, weights), rates)
            largest = torch.stack(
                [torch.linalg.vector_norm(p.reshape(len(p), -1), torch.inf, dim=1) for p in stack.params]
            )
            finite = torch.isfinite(largest).all(0)
            if not bool(finite.all()):
                model = offset + int(order[int((~finite).nonzero()[0])])
                check_finite([torch.tensor(torch.nan)], epoch=epoch, config=self.config, who=f"model {model}")
            progress((offset * last) + (epoch + 1) * len(models), total, "training")
        stack.unstack()


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
        for step, live in enumerate(self.live):
            x = self.inputs.gather(index[step, :live].reshape(-1), out=self._x[: live * self.width])
            x = x.view(live, self.width, *x.shape[1:])
            own = [group[step] for group in rates if step < len(group)]
            yield x, labels[step, :live], self.weights[step, :live], own


def _check_members(data: ExampleSet, members: Sequence[np.ndarray], seeds: Sequence[int]) -> list[np.ndarray]:
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


def _refuse_batchnorm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise NotApplicable(
                f"layer {name!r} is a {type(module).__name__}: it mixes the examples of a batch, so what one model of an "
                "ensemble says of an example depends on others. Use GroupNorm or LayerNorm (model 'resnet_gn')"
            )


def _chunk_size(model: nn.Module, config: SupervisedConfig, data: ExampleSet) -> int:
    """Models at a time: parameters, gradients and momentum (or Adam's two moments) and one batch within the bound."""
    device, dtype = next(model.parameters()).device, model_dtype(model)
    copies = 4 if config.optimizer == "adamw" else 3
    values = copies * sum(p.numel() for p in model.parameters())
    values += 2 * min(config.batch, len(data)) * int(np.prod(data.input_shape))
    return int(np.clip(_CHUNK_BYTES[device.type] // (values * dtype.itemsize), 1, 64))
