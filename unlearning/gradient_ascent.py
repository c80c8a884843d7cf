"""GA: climb the loss of what is to be forgotten (baseline GA of Fan et al., ICLR 2024).

    theta <- theta + lr * grad_theta E_{(x,y) in D_f} l(theta; x, y)           l: the task's loss (cross-entropy of
                                                                               classes)

The retain set is not trained on. Published settings: 5 epochs, learning rate searched from 1e-6 to 1e-1; the objective
is unbounded, so this is the most sensitive method of all: a little too much and the whole model is gone. Such a run
raises ``Diverged`` and is recorded as diverged, never scored.

It is not a repair: nothing holds the retained accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientAscentConfig(DescentConfig):
    lr: float = param(1e-4, gt=0, le=1, search=(1e-6, 1e-1), doc="learning rate; published search range 1e-6 to 1e-1")
    epochs: int = param(5, ge=0, le=1000, doc="passes over the forget set")


def gradient_ascent_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: GradientAscentConfig, seed: int
) -> Descent:
    """What :func:`gradient_ascent` does, and raises before any work."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=False)
    gone = Pass.over(inputs_of(model, forget, beside=retain), weight=-1.0)
    return Descent(
        model=model, passes=lambda _: [gone], retain=retain, config=config, seed=seed, name="gradient_ascent"
    )


@unlearner(
    UnlearnerSpec(
        name="gradient_ascent",
        wants=("losses", "reading"),
        doc="Ascends the loss of the examples to be forgotten.",
        source="Fan et al., SalUn, ICLR 2024, arXiv 2310.12508, baseline GA",
        config=GradientAscentConfig,
        plan=gradient_ascent_plan,
    )
)
def gradient_ascent(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: GradientAscentConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Ascend the loss of ``forget`` on a copy of ``model``.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep; used only to notice a collapse.
        forget: (N_f) examples to remove; with none of them the copy is returned as it is.
        config: see :class:`GradientAscentConfig`.
        seed: batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        Diverged: the run left the finite numbers or collapsed.
    """
    return descend(
        gradient_ascent_plan(model, retain=retain, forget=forget, config=config, seed=seed), progress=progress
    )
