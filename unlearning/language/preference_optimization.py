"""PO: train template answers to the forgotten questions, and the retained answers (TOFU, COLM 2024).

    L = NLL_mean(template answers to forgotten questions) + alpha NLL_mean(retain)

The forgotten answers themselves do not enter: what is not taught over stays where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.descent import AfterEpoch, Descent, Step, TemplateConfig, nothing
from unlearning.language.losses import token_mean_nll
from unlearning.language.retaining import retain_term, weight_param
from unlearning.language.sequences import template_answers


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceOptimizationConfig(TemplateConfig):
    retain_weight: float = weight_param("alpha, of the retained examples' NLL")


@unlearner(
    UnlearnerSpec(
        name="preference_optimization",
        doc="Trains template answers to the forgotten questions beside the retained examples.",
        source="Maini et al., TOFU, COLM 2024, arXiv 2401.06121, baseline PO",
        config=PreferenceOptimizationConfig,
        wants=("tokens",),
    )
)
def preference_optimization(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: PreferenceOptimizationConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Teach templates on ``forget`` beside ``retain`` on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; at least one, trained on.
        forget: (N_f) examples to remove, each a prompt and an answer.
        config: see :class:`PreferenceOptimizationConfig`.
        seed: batch order, template answers, retained examples and the model's noise.
        after_epoch: called with the epochs done and the student after each epoch; it only reads.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        NotApplicable, DataError: see ``Descent``, ``template_answers``.
        Diverged: the run left the finite numbers.
    """
    descent = Descent(
        name="preference_optimization",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        templates=template_answers(forget, config.templates, who="preference_optimization"),
        uses_retain=True,
    )

    hold = retain_term(descent, "gd", weight=config.retain_weight)

    def objective(student: nn.Module, step: Step) -> Tensor:
        taught = token_mean_nll(answers(student, step.template), step.template.targets)
        return taught + hold(student, step)

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
