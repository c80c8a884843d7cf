"""BadT, bad teacher: learn from an ignorant network what is to be forgotten, and from the trained one the rest
(Chundawat et al., AAAI 2023).

    target(x) = softmax(g(x))    x in S_f          g: random network, drawn once, frozen, eval mode
                softmax(f0(x))   x in D \\ S_f      f0: the trained model, frozen, eval mode
    theta <- argmin  E_{x in D} KL( target(x) || softmax(f(x; theta)) ),   started at the trained weights; temperature 1

Labels are not used. Targets are computed once. The corrective unlearning bench (Goel et al., TMLR 2024) averages KL
over examples and classes with learning rate 0.025; here it is summed over classes and averaged over examples, so the
same step is a learning rate of 0.025 / K: 0.0025 for ten classes, the default. Its schedule is a 1% warm-up and linear
decay, 1,000 steps of 512.

It is not blind to the retained examples: where part of a manipulation is among them, f0 teaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from recipes.inputs import Inputs, model_device, model_dtype
from sources.example_set import ExampleSet
from unlearning.corrective.rates import bench_rate
from unlearning.corrective.teachers import answers_of
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of


@dataclass(frozen=True, kw_only=True, slots=True)
class BadTeacherConfig(DescentConfig):
    lr: float = param(0.0025, gt=0, le=1, doc="peak learning rate; 1% warm-up, then down in a line to a fifth of it")
    epochs: int = param(10, ge=0, le=1000, doc="passes over all examples")
    batch: int = param(512, ge=1, le=65_536, unit="examples", doc="examples a step; a last single one joins the others")


def distance_to_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """KL(target || softmax(logits)) of each example.

    Args:
        logits: (B, K), with gradient.
        targets: (B, K) probabilities; rows sum to 1.

    Returns:
        (B,) nats, >= 0, 0 where they are equal.
    """
    return F.kl_div(F.log_softmax(logits, dim=1), targets, reduction="none").sum(dim=1)


@dataclass(frozen=True)
class _Distance:
    """:func:`distance_to_targets`, and its gradient written out."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return distance_to_targets(outputs, targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """softmax(z) - target, (B, K) of outputs z."""
        return torch.softmax(outputs, dim=1).sub_(targets)


def bad_teacher_plan(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: BadTeacherConfig,
    seed: int,
    build: Callable[[int], nn.Module],
) -> Descent:
    """What :func:`bad_teacher` does, and raises before any work but one look of both teachers at their examples."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("outputs", "classes"))
    fresh = build(derive_seed("bad_teacher", "fresh", seed) % 2**31)
    ignorant = fresh.to(model_device(model), model_dtype(model)).eval()
    kept, gone = _distilled(model, inputs_of(model, retain)), _distilled(ignorant, inputs_of(model, forget))
    both = kept.together_with(gone)
    return Descent(
        model=model,
        passes=lambda _: [both],
        retain=retain,
        config=config,
        seed=seed,
        name="bad_teacher",
        rate=bench_rate,
    )


@unlearner(
    UnlearnerSpec(
        name="bad_teacher",
        wants=("outputs", "classes"),
        doc="Distils a random network on the forgotten examples and the trained model on the others.",
        source="Chundawat et al., AAAI 2023 (arXiv 2205.08096); settings of Goel et al., TMLR 2024 (arXiv 2402.14015)",
        needs=("build",),
        config=BadTeacherConfig,
        plan=bad_teacher_plan,
    )
)
def bad_teacher(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: BadTeacherConfig,
    seed: int,
    build: Callable[[int], nn.Module],
    progress: Progress = silent,
) -> nn.Module:
    """Distil two teachers into a copy of ``model``, all examples shuffled together.

    Args:
        model: trained classifier; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove.
        config: see :class:`BadTeacherConfig`.
        seed: the random network, batch order and dropout.
        build: seed -> a fresh model of the same architecture.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``; examples that are no rows of arrays.
        Diverged: the run left the finite numbers or collapsed.
    """
    plan = bad_teacher_plan(model, retain=retain, forget=forget, config=config, seed=seed, build=build)
    return descend(plan, progress=progress)


def _distilled(teacher: nn.Module, part: Inputs) -> Pass:
    """A pass that learns from ``teacher``."""
    return Pass.over(part, targets=softmax(answers_of(teacher, part), axis=1), of_outputs=_Distance())
