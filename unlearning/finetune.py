"""FT: fine-tune on what is kept, and hope that the rest is forgotten (baseline FT of Fan et al., ICLR 2024).

    theta <- argmin_theta  E_{(x,y) in D_r} l(theta; x, y),   started at the trained weights;   l: the task's loss

The forget set is not looked at. Published settings: 10 epochs, learning rate searched in [1e-3, 1e-1].

Beside the published code, from one model, class 3 of 4,000 images of Fashion-MNIST forgotten in 5 epochs at 0.02, five
orders of the examples, mean and standard deviation: UA 39 (8) here and 43 (4) there, RA 99.1 (0.5) and 99.4 (0.1), TA
84.3 (0.6) and 85.0 (0.6).

It is not unlearning by construction: with a small learning rate the model stays where it was, and class forgetting
fails.
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
class FinetuneConfig(DescentConfig):
    lr: float = param(0.01, gt=0, le=1, search=(1e-3, 1e-1), doc="learning rate; published search range 1e-3 to 1e-1")


def finetune_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: FinetuneConfig, seed: int
) -> Descent:
    """What :func:`finetune` does, and raises before any work."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True)
    kept = Pass.over(inputs_of(model, retain))
    return Descent(model=model, passes=lambda _: [kept], retain=retain, config=config, seed=seed, name="finetune")


@unlearner(
    UnlearnerSpec(
        name="finetune",
        wants=("losses", "reading"),
        doc="Trains on with the retained examples only.",
        source="Fan et al., SalUn, ICLR 2024, arXiv 2310.12508, baseline FT",
        config=FinetuneConfig,
        plan=finetune_plan,
    )
)
def finetune(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: FinetuneConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Fine-tune a copy of ``model`` on ``retain``.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; used only to check that the two sets are disjoint.
        config: see :class:`FinetuneConfig`.
        seed: batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        Diverged: the run left the finite numbers or collapsed.
    """
    return descend(finetune_plan(model, retain=retain, forget=forget, config=config, seed=seed), progress=progress)
