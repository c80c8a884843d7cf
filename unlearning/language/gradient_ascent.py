"""GA on a language model: climb the NLL of what is to be forgotten (baseline of Maini et al., TOFU, COLM 2024).

    L = -NLL_mean(forget)

The objective is unbounded below: after the answers are gone the whole model goes, and a truth-ratio test may then call
the ruin forgotten. It is the floor that every other method is measured against, never a method to use.
"""

from __future__ import annotations

from torch import Tensor, nn

from contracts.methods import UnlearnerSpec, unlearner
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.descent import AfterEpoch, Descent, LanguageDescentConfig, Step, nothing
from unlearning.language.losses import token_mean_nll


@unlearner(
    UnlearnerSpec(
        name="lm_gradient_ascent",
        doc="Ascends the mean NLL of the forgotten answers' tokens.",
        source="Maini et al., TOFU, COLM 2024, arXiv 2401.06121, baseline GA",
        config=LanguageDescentConfig,
        wants=("tokens",),
    )
)
def lm_gradient_ascent(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LanguageDescentConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Ascend the token mean NLL of ``forget`` on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; not looked at, but for their ids.
        forget: (N_f) examples to remove.
        config: see :class:`LanguageDescentConfig`.
        seed: batch order and the model's noise.
        after_epoch: called with the epochs done and the student after each epoch; it only reads.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        NotApplicable, DataError: see ``Descent``.
        Diverged: the run left the finite numbers.
    """
    descent = Descent(
        name="lm_gradient_ascent",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
    )

    def objective(student: nn.Module, step: Step) -> Tensor:
        return -token_mean_nll(answers(student, step.forget), step.forget.targets)

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
