"""GradDiff: climb on what is to be forgotten, descend on what is kept (baseline of Maini et al., TOFU, COLM 2024).

    L = -gamma NLL_mean(forget) + alpha NLL_mean(retain)              gamma = alpha = 1

The retained batch is drawn for each step and indexed once (see ``sequences``). The first term stays unbounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.descent import AfterEpoch, Descent, LanguageDescentConfig, Step, nothing
from unlearning.language.losses import token_mean_nll
from unlearning.language.retaining import retain_term, weight_param


@dataclass(frozen=True, kw_only=True, slots=True)
class GradDiffConfig(LanguageDescentConfig):
    forget_weight: float = param(1.0, ge=0, le=1000, doc="gamma, of the ascent")
    retain_weight: float = weight_param("alpha, of the retained examples' NLL")


@unlearner(
    UnlearnerSpec(
        name="grad_diff",
        doc="Ascends on the forgotten answers and descends on retained ones.",
        source="Liu et al., CoLLAs 2022; Maini et al., TOFU, COLM 2024, arXiv 2401.06121, baseline GradDiff",
        config=GradDiffConfig,
        wants=("tokens",),
    )
)
def grad_diff(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: GradDiffConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Ascend on ``forget`` and descend on ``retain`` on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; at least one, trained on.
        forget: (N_f) examples to remove.
        config: see :class:`GradDiffConfig`.
        seed: batch order, retained examples and the model's noise.
        after_epoch: called with the epochs done and the student after each epoch; it only reads.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        NotApplicable, DataError: see ``Descent``.
        Diverged: the run left the finite numbers.
    """
    descent = Descent(
        name="grad_diff",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        uses_retain=True,
    )

    hold = retain_term(descent, "gd", weight=config.retain_weight)

    def objective(student: nn.Module, step: Step) -> Tensor:
        gone = token_mean_nll(answers(student, step.forget), step.forget.targets)
        return hold(student, step) - config.forget_weight * gone

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
