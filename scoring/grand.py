"""GraNd: expected norm of the per-example loss gradient over all parameters, early in training.

    GraNd_i = mean_r || d loss(f_r, i) / d theta_r ||_2        higher = harder;  loss: the task's (tasks.base)
    classes:    cross-entropy,          gradient at the logits     softmax(z) - onehot(y)   (K,)
    numbers:    (f_r(x_i) - y_i)^2,     gradient at the prediction 2 (f_r(x_i) - y_i)       (1,)
    others:     of the model's answers: gradient at them by autograd, (B, T, V) of a language model included
                not of one answer alone (items to rank): the loss itself is differentiated
                of nodes of a graph: each on the part of the graph that it sees (scoring.grad_norms.nodes), or
                one at a time

f_r: R models stopped after a few epochs, eval mode. Exact over all trainable parameters (scoring.grad_norms), not the
last layer alone, whose norm || p - y || sqrt(||h||^2 + 1) falls out as a by-product. The loss is that of the model as
it stands, so the score is in its units (of a number to predict, squared); the paper has classification only.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021, arXiv 2107.07075), definition 1. At
initialisation it ranks no better than the input norm (Kirsch, arXiv 2303.14753): use models of a few epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.errors import NotApplicable
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from recipes.streaming import check, check_finite, check_outputs
from scoring.error_vector import error_vector
from scoring.grad_norms import GradNorms, PerExampleGradNorm
from scoring.grad_norms.nodes import NodeGradNorms, NotByParts
from sources.example_set import ExampleSet
from tasks.base import Batch, Constants, OutputTask, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class GrandConfig(Config):
    """How the passes are cut up; the scores do not depend on it."""

    batch: int = param(512, ge=1, le=1_000_000, doc="examples read at a time")
    micro_batch: int | None = param(
        None, ge=1, le=1_000_000, doc="examples differentiated at a time; bounds memory. By the cache when not given"
    )


@score(
    ScoreSpec(
        name="grand",
        version=2,
        wants=("losses",),
        doc="GraNd: mean over early models of the L2 norm of the example's loss gradient, all parameters.",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=GrandConfig,
        needs=("early_models",),
        columns=(
            Column(name="grand", dtype="float64", low=0, direction="higher = harder", doc="mean over models"),
            Column(
                name="grand_std",
                dtype="float64",
                low=0,
                nullable=True,
                doc="sample standard deviation over models; null for one model",
            ),
            Column(
                name="grand_stderr",
                dtype="float64",
                low=0,
                nullable=True,
                doc="standard error of grand, std / sqrt(n_seeds); null for one model",
            ),
            Column(
                name="grand_last_layer",
                dtype="float64",
                low=0,
                nullable=True,
                direction="higher = harder",
                doc="gradient norm of the output layer alone; null when the logits do not come from a linear layer",
            ),
            Column(
                name="grand_last_layer_std",
                dtype="float64",
                low=0,
                nullable=True,
                doc="sample standard deviation of grand_last_layer over models; null for one model",
            ),
            Column(name="n_seeds", dtype="int64", low=1, doc="models averaged"),
        ),
        value="grand",
        stderr="grand_stderr",
        higher_means="harder",
        calls=Call("hard"),
    )
)
def grand(data: ExampleSet, *, config: GrandConfig, seed: int, early_models: Sequence[nn.Module]) -> pl.DataFrame:
    """GraNd of every example.

    Args:
        data: N examples of any task.
        config: batch size.
        seed: not used; the score is a function of the models.
        early_models: R >= 1 models stopped at the early epoch, one seed each; put into eval mode and back, else
            untouched.

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: a model under which an example has no gradient of its own: it mixes the examples of a batch, or
            answers from vectors that were settled from a graph of all.
        DataError: labels outside the model's outputs, targets, outputs or gradients that are NaN or infinite; names the
            examples.
        InvalidInput: no models.
    """
    check("grand", data, early_models, wants=("losses",))
    num, num_models = len(data), len(early_models)
    # Rows: all parameters, the output layer. Filled block by block: no value of a single model is kept.
    mean, std = np.empty((2, num)), np.full((2, num), np.nan)
    with ExitStack() as stack:
        measures: list[_OfOutputs | _OfLosses | _OneByOne] = []
        for model in early_models:
            stack.enter_context(eval_mode(model))
            measures.append(_measure(model, data, config))
            stack.enter_context(measures[-1])
            check_outputs("grand", data, model)
        like = early_models[0]
        inputs = Inputs(data, dtype=model_dtype(like), device=model_device(like), preload_bytes=0)
        for start in range(0, num, config.batch):
            rows = slice(start, min(start + config.batch, num))
            batch = inputs.slice(rows.start, rows.stop)
            norms = np.stack([_norms(measure(batch, rows), measure.output_layer, data, rows) for measure in measures])
            del batch  # two alive at a time make the allocator hand pages back and fault them in again
            mean[:, rows] = norms.mean(0)
            if num_models > 1:
                std[:, rows] = norms.std(0, ddof=1)
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "grand": mean[0],
            "grand_std": pl.Series(std[0], nan_to_null=True),
            "grand_stderr": pl.Series(std[0] / math.sqrt(num_models), nan_to_null=True),
            "grand_last_layer": pl.Series(mean[1], nan_to_null=True),
            "grand_last_layer_std": pl.Series(std[1], nan_to_null=True),
            "n_seeds": np.full(num, num_models, np.int64),
        }
    )


def output_gradient(task: OutputTask) -> Callable[[Tensor, Any], Tensor]:
    """(answers (B, ...), targets) -> gradient of each example's loss at its answer, same shape; float64 of (B, K).

    >>> from tasks.base import named
    >>> output_gradient(named("regression"))(torch.tensor([[1.5]]), torch.tensor([[1.0]])).tolist()
    [[1.0]]
    """
    if task.gives("outputs", "classes"):
        return error_vector

    def gradient(answers: Tensor, targets: Any) -> Tensor:
        at = (answers.double() if answers.dim() == 2 else answers).detach().requires_grad_()
        with torch.enable_grad():
            total = task.losses_of(at, targets).sum()
        (found,) = torch.autograd.grad(total, at)
        return found

    return gradient


def _measure(model: nn.Module, data: ExampleSet, config: GrandConfig) -> _OfOutputs | _OfLosses | _OneByOne:
    """What gives the norms of a batch under one model."""
    if getattr(data.x, "shared", None):
        return _OneByOne(model, data.task)
    if isinstance(data.task, OutputTask):
        return _OfOutputs(model, data, config)
    return _OfLosses(model, data, config)


class _OfOutputs(PerExampleGradNorm):
    """Of a task whose loss is one of the model's answers."""

    def __init__(self, model: nn.Module, data: ExampleSet, config: GrandConfig) -> None:
        super().__init__(model, micro_batch=config.micro_batch)
        self._data, self._task = data, data.task

    def __call__(self, batch: Batch, rows: slice) -> GradNorms:  # type: ignore[override]
        targets = batch.targets
        if isinstance(targets, Tensor) and targets.is_floating_point():  # numbers to predict: as they are, not rounded
            exact = self._data.task.target_tensor(self._data.targets(rows), torch.float64)
            targets = exact.to(targets.device)
        assert isinstance(self._task, OutputTask)
        return super().__call__(batch.inputs, targets, output_gradient(self._task))


class _Losses(nn.Module):
    """The loss of every example as what a model answers: (B, 1)."""

    def __init__(self, model: nn.Module, task: Task, constants: Constants) -> None:
        super().__init__()
        self.model, self._task, self._constants = model, task, constants

    def forward(self, inputs: Any, targets: Any, example_id: Tensor) -> Tensor:
        return self._task.losses(self.model, Batch(inputs, targets, example_id, self._constants))[:, None]


class _OfLosses(PerExampleGradNorm):
    """Of any task: what is differentiated is the loss."""

    def __init__(self, model: nn.Module, data: ExampleSet, config: GrandConfig) -> None:
        super().__init__(_Losses(model, data.task, data.constants), micro_batch=config.micro_batch)

    def __call__(self, batch: Batch, rows: slice) -> GradNorms:  # type: ignore[override]
        x = {"inputs": batch.inputs, "targets": batch.targets, "example_id": batch.example_id}
        return super().__call__(x, batch.targets, lambda losses, _: torch.ones_like(losses))


class _OneByOne:
    """Where examples share their inputs: by parts where the model allows it, else one backward pass an example."""

    output_layer: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, task: Task) -> None:
        self._model, self._task = model, task
        self._parts: NodeGradNorms | None = None
        self._whole = not (task.gives("nodes") and isinstance(task, OutputTask))  # parts cannot be asked for
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise NotApplicable("the model has no parameter that requires a gradient")

    def __enter__(self) -> _OneByOne:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, batch: Batch, rows: slice) -> GradNorms:
        if not self._whole:
            try:
                return self._by_parts(batch)
            except NotByParts:
                self._whole = True
        with torch.enable_grad():
            losses = self._task.losses(self._model, batch)
        if not losses.requires_grad:
            raise NotApplicable("the loss depends on no parameter: an example has no gradient of its own")
        total = torch.zeros(len(losses), dtype=torch.float64)
        for b in range(len(losses)):
            found = torch.autograd.grad(losses[b], self._parameters, retain_graph=True, allow_unused=True)
            total[b] = sum(float(g.double().square().sum()) for g in found if g is not None)
        return GradNorms(losses.detach()[:, None], {}, total)

    def _by_parts(self, batch: Batch) -> GradNorms:
        inputs, task = batch.inputs, self._task
        assert isinstance(task, OutputTask)
        if self._parts is None:
            self._parts = NodeGradNorms(self._model, inputs["x"], inputs["edge_index"])
        found = self._parts(inputs["nodes"], batch.targets, output_gradient(task))
        self.output_layer = self._parts.output_layer
        return found


def _norms(found: GradNorms, output_layer: tuple[str, ...], data: ExampleSet, rows: slice) -> NDArray[np.float64]:
    """(2, b): norms over all parameters and over the output layer (NaN when that is not a linear layer)."""
    check_finite("grand", "logits", data, rows, found.logits)
    check_finite("grand", "gradients", data, rows, found.total[:, None])
    last = torch.full_like(found.total, torch.nan)
    if output_layer:
        last = torch.stack([found.squared[name] for name in output_layer]).sum(0)
    return torch.stack([found.total, last]).sqrt().double().cpu().numpy()  # type: ignore[no-any-return]
