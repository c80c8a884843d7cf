"""The one loop behind the unlearners of language models: AdamW on what the method says of a batch.

    theta <- AdamW step on  objective(theta, step)        step: forget rows, and what the method declares beside them

    lr(t) = lr (t + 1) / W                   t < W          W = steps in warmup_epochs, T = all steps
    linear: lr (T - t) / (T - W),   constant: lr            t >= W

Settings of TOFU (Maini et al., COLM 2024) and of FLAT: AdamW, weight decay 0.01, a warm-up of one epoch, then linear to
0, 5 epochs over the forget set, batch 32, gradients clipped at norm 1. Only parameters that require a gradient move: of
a model with adapters, the adapters.

Promises, for every method: the given model is not changed; the result is in eval mode on the model's own device; rows
are put in the order of their ids first; the global random state is left alone; same seed, same bits; a batch is indexed
once; a run that leaves the finite numbers raises ``Diverged``. A model that talks nonsense is *not* found here: an
unlearnt model is judged by ``unlearning.language.metrics``, never without its utility.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, NotApplicable
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.fitting import take_step
from recipes.predict import eval_mode
from recipes.rng import generator, local_rng
from sources.example_set import ExampleSet
from tasks.base import Batch, require
from unlearning.descent import check_disjoint, check_finite
from unlearning.language.sequences import Sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageDescentConfig(Config):
    """Fields that every unlearner of a language model has."""

    lr: float = param(1e-5, gt=0, le=1, doc="peak learning rate; memorised answers hardly move when it is too small")
    epochs: int = param(5, ge=0, le=1000, doc="passes over the forget set; 0 returns the model as it was")
    batch: int = param(32, ge=1, le=65_536, unit="examples", doc="forgotten examples a step; results depend on it")
    weight_decay: float = param(0.01, ge=0, le=1, doc="decoupled, of AdamW")
    warmup_epochs: float = param(1.0, ge=0, le=1000, unit="epochs", doc="linear warm-up, cut at the length of the run")
    schedule: str = param("linear", choices=("linear", "constant"), doc="after the warm-up: falling to 0, or constant")
    grad_clip: float | None = param(1.0, gt=0, le=1e6, doc="largest L2 norm of the whole gradient")


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateConfig(LanguageDescentConfig):
    """Of the methods that teach a template answer in place of the forgotten one."""

    templates: tuple[tuple[int, ...], ...] = param(
        (), doc="template answers as token ids, end of sequence included; empty: those that the data set brings"
    )


@dataclass(frozen=True, eq=False)
class Step:
    """What one step sees. Every batch was indexed once.

    Attributes:
        rows: (B,) int64, positions among the forget set in the order of its ids.
        forget: these examples.
        template: the same prompts with template answers, one drawn an example and epoch; for methods that declare it.
        retain: B retained examples drawn uniformly, with replacement between steps; for methods that declare it.
    """

    rows: Tensor
    forget: Batch
    template: Any = None
    retain: Any = None


Objective = Callable[[nn.Module, Step], Tensor]
AfterEpoch = Callable[[int, nn.Module], None]


def nothing(epoch: int, student: nn.Module) -> None:
    """Do nothing after an epoch."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """The examples of one unlearning run, checked.

    Args:
        name: the method, for messages, progress and the seeds.
        model: the trained model; not changed.
        forget, retain: the two sets; of a method without ``uses_retain`` the second is only compared by its ids.
        config: optimiser settings.
        seed: of order, templates, retained rows and the model's own noise.
        templates: template answers as token ids; empty for methods without.
        uses_retain: whether steps carry retained examples.

    Raises:
        NotApplicable: no token sequences, or a model without trainable parameters.
        DataError: an example in both sets or twice in one; no retained example where the method trains on them.
    """

    name: str
    model: nn.Module
    forget: ExampleSet
    retain: ExampleSet
    config: LanguageDescentConfig
    seed: int
    templates: Sequence[Sequence[int]] = ()
    uses_retain: bool = False

    def __post_init__(self) -> None:
        check_disjoint(self.retain, self.forget)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise NotApplicable(f"{self.name}: the model has no trainable parameter")
        if self.uses_retain and not len(self.retain):
            raise DataError(f"{self.name} trains on retained examples, and the retain set is empty")
        for data in (self.retain, self.forget):
            require(data, self.name, "tokens")
            data.check_targets()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def sequences(self) -> Sequences:
        """The forget set, in the order of its ids: ``Step.rows`` are positions in it."""
        return Sequences(self.forget, device=self.device, who=self.name)

    @cached_property
    def frozen(self) -> nn.Module:
        """A copy of the model before unlearning, in eval mode, without gradients; one for all who ask."""
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    def before(self, measure: Callable[[nn.Module, Batch], Tensor]) -> Tensor:
        """(N_f, ...) what ``measure`` says of every forgotten example under the model before unlearning, no copy of it
        made.

        Args:
            measure: (model in eval mode, batch) -> (B, ...).
        """
        forget = self.sequences()
        with eval_mode(self.model), torch.no_grad():
            parts = [
                measure(self.model, forget.batch(torch.arange(s, min(s + self.config.batch, len(forget)))))
                for s in range(0, len(forget), self.config.batch)
            ]
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)

    def run(self, objective: Objective, *, after_epoch: AfterEpoch = nothing, progress: Progress = silent) -> nn.Module:
        """Minimise ``objective`` on a copy of the model.

        Args:
            objective: (student, step) -> a scalar, with gradient.
            after_epoch: called with the number of epochs done and the student, in eval mode, after each; it only reads.
            progress: called after each step.

        Returns:
            The changed copy, in eval mode.

        Raises:
            Diverged: the objective, a weight or a buffer is not finite.
        """
        config, name = self.config, self.name
        student = copy.deepcopy(self.model)
        parameters = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        forget = self.sequences()
        kept = Sequences(self.retain, device=self.device, who=name) if self.uses_retain else None
        steps = -(-len(forget) // config.batch)
        rates = learning_rates(config, steps=steps)
        order, draw = (generator(derive_seed(name, what, self.seed)) for what in ("order", "retain"))
        for epoch in range(config.epochs):
            student.train()
            chosen = self._templates_of(epoch, len(forget))
            shuffled = torch.randperm(len(forget), generator=order)
            batches = shuffled.split(config.batch) if len(forget) else ()
            with local_rng(derive_seed(name, "noise", self.seed, epoch), device=self.device):
                for at, rows in enumerate(batches, start=epoch * steps):
                    step = Step(
                        rows=rows.to(self.device),
                        forget=forget.batch(rows),
                        template=forget.answered(rows, [chosen[row] for row in rows.tolist()]) if chosen else None,
                        retain=kept.batch(torch.randint(len(kept), (len(rows),), generator=draw)) if kept else None,
                    )
                    loss = objective(student, step)
                    if not bool(torch.isfinite(loss)):
                        raise Diverged(
                            f"{name} at lr {config.lr:g}: loss {loss.item()} in epoch {epoch + 1}; use a smaller lr"
                        )
                    take_step(optimizer, loss, lr=rates[at], grad_clip=config.grad_clip)
                    progress(at + 1, config.epochs * steps, name)
            student.eval()
            check_finite(student, what=f"{name} at lr {config.lr:g}, epoch {epoch + 1}")
            after_epoch(epoch + 1, student)
        return student.eval()

    def _templates_of(self, epoch: int, num: int) -> list[Sequence[int]]:
        if not self.templates:
            return []
        rng = np.random.default_rng(derive_seed(self.name, "template", self.seed, epoch))
        return [self.templates[k] for k in rng.integers(0, len(self.templates), num)]


def learning_rates(config: LanguageDescentConfig, *, steps: int) -> list[float]:
    """The rate of every step of a run of ``config.epochs`` epochs of ``steps`` steps.

    >>> learning_rates(LanguageDescentConfig(lr=1.0, epochs=3, warmup_epochs=1), steps=2)
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    total = config.epochs * steps
    warm = min(round(config.warmup_epochs * steps), total)
    falls = config.schedule == "linear"
    return [
        config.lr * ((t + 1) / warm if t < warm else (total - t) / (total - warm) if falls else 1.0)
        for t in range(total)
    ]
