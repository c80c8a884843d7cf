"""KL minimisation: gradient ascent held by the KL divergence to the old model on retained answers (TOFU, COLM 2024).

    L = -NLL_mean(forget) + alpha KL(p_ref || p_theta) over the counted tokens of retained examples

The direction is KL(ref || theta), and only counted tokens enter: TOFU's code averages over prompts and padding too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.descent import AfterEpoch, Descent, LanguageDescentConfig, Step, nothing
from unlearning.language.losses import token_mean_nll
from unlearning.language.retaining import retain_term, weight_param


@dataclass(frozen=True, kw_only=True, slots=True)
class KLMinConfig(LanguageDescentConfig):
    retain_weight: float = weight_param("alpha, of the KL divergence on retained examples")


@unlearner(
    UnlearnerSpec(
        name="kl_min",
        doc="Ascends on the forgotten answers and stays near the old model on retained ones.",
        source="Maini et al., TOFU, COLM 2024, arXiv 2401.06121, baseline KL",
        config=KLMinConfig,
        wants=("tokens",),
    )
)
def kl_min(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: KLMinConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Ascend on ``forget`` with a KL term on ``retain``, on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; at least one, on which the old answers are kept.
        forget: (N_f) examples to remove.
        config: see :class:`KLMinConfig`.
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
        name="kl_min",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        uses_retain=True,
    )
    hold = retain_term(descent, "kl", weight=config.retain_weight)

    def objective(student: nn.Module, step: Step) -> Tensor:
        gone = token_mean_nll(answers(student, step.forget), step.forget.targets)
        return hold(student, step) - gone

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
