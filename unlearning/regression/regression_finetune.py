"""Fine-tuning of a model that predicts a number, on what is kept: the baseline of the methods for numbers.

    theta <- Adam steps on  E_{(x,y) in D_r} |f(x; theta) - y|,   started at the trained weights

As ``finetune``, but by the error and the optimiser of the others that it is compared with. It still knows: what is
forgotten is not looked at, and five epochs leave most of it in place.

Source: Tarun et al., "Deep Regression Unlearning" (ICML 2023, arXiv 2210.08196), baseline: Adam 1e-3, 5 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import Descent, Pass, adam, descend, inputs_of
from unlearning.regression.errors import WANTS, RegressionConfig, check_numbers, own_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionFinetuneConfig(RegressionConfig):
    epochs: int = param(5, ge=0, le=1000, doc="passes over the retained examples; 0 returns the model as it was")


def regression_finetune_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: RegressionFinetuneConfig, seed: int
) -> Descent:
    """What :func:`regression_finetune` does, and raises before any work."""
    check_numbers(model, retain=retain, forget=forget)
    kept = Pass.over(inputs_of(model, retain), losses=own_errors(config.loss))
    return Descent(
        model=model,
        passes=lambda _: [kept],
        retain=retain,
        config=config,
        seed=seed,
        name="regression_finetune",
        optimizer=adam,
    )


@unlearner(
    UnlearnerSpec(
        name="regression_finetune",
        wants=WANTS,
        doc="Trains a model that predicts a number on with the retained examples only, by absolute error and Adam.",
        source="Tarun et al., Deep Regression Unlearning, ICML 2023, arXiv 2210.08196, baseline",
        config=RegressionFinetuneConfig,
        plan=regression_finetune_plan,
    )
)
def regression_finetune(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: RegressionFinetuneConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Fine-tune a copy of ``model`` on ``retain``.

    Args:
        model: trained, one number an example; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; used only to check that the two sets are disjoint.
        config: see :class:`RegressionFinetuneConfig`.
        seed: batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_numbers``.
        Diverged: the run left the finite numbers or collapsed.
    """
    plan = regression_finetune_plan(model, retain=retain, forget=forget, config=config, seed=seed)
    return descend(plan, progress=progress)
