"""DPO for unlearning: the template is preferred to the forgotten answer (Rafailov et al., NeurIPS 2023; TOFU and NPO).

    L = -(2/beta) mean log sigmoid(beta [(nll_ref - nll_theta)(x_f, y_e) - (nll_ref - nll_theta)(x_f, y_f)]) [+ retain
    term]

nll is summed over an answer's tokens. FLAT's released code zeroes the ratio to the reference; the equation keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.descent import AfterEpoch, Descent, Step, TemplateConfig, nothing
from unlearning.language.losses import dpo_loss, sequence_nll
from unlearning.language.retaining import kind_param, retain_term, weight_param
from unlearning.language.sequences import template_answers


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig(TemplateConfig):
    beta: float = param(0.1, gt=0, le=100, doc="inverse temperature")
    retain_term: str = kind_param("none")
    retain_weight: float = weight_param()


@unlearner(
    UnlearnerSpec(
        name="dpo",
        doc="Prefers template answers to the forgotten ones, measured against the old model.",
        source="Rafailov et al., NeurIPS 2023; Zhang et al., COLM 2024 (as an unlearning baseline)",
        config=DpoConfig,
        wants=("tokens",),
    )
)
def dpo(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: DpoConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Minimise the DPO loss on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; at least one with a retain term; without one not looked at, but for their ids.
        forget: (N_f) examples to remove, each a prompt and an answer.
        config: see :class:`DpoConfig`.
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
        name="dpo",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        templates=template_answers(forget, config.templates, who="dpo"),
        uses_retain=config.retain_term != "none",
    )
    before = descent.before(lambda old, batch: sequence_nll(answers(old, batch), batch.targets)[0])
    reference = descent.frozen
    hold = retain_term(descent, config.retain_term, weight=config.retain_weight)

    def objective(student: nn.Module, step: Step) -> Tensor:
        with torch.no_grad():
            template_ref, _ = sequence_nll(answers(reference, step.template), step.template.targets)
        nll, template = (sequence_nll(answers(student, b), b.targets)[0] for b in (step.forget, step.template))
        loss = dpo_loss(nll, before[step.rows], beta=config.beta, template=template, template_ref=template_ref)
        return loss + hold(student, step)

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
