"""NPO: negative preference optimisation (Zhang et al., COLM 2024, arXiv 2404.05868).

    L = -(2/beta) mean log sigmoid(beta (nll_theta - nll_ref)) [+ alpha NLL_mean(retain) | + alpha KL(p_ref ||
    p_theta)(retain)]

nll is summed over an answer's tokens, ref is the model before unlearning. A bounded relative of gradient ascent, which
it becomes as beta goes to 0: an answer whose NLL has risen by much more than 1 / beta weighs nothing any more.

The NLL under the reference is taken once for every forgotten example; only the KL term keeps a copy of the old model.
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
from unlearning.language.losses import npo_loss, sequence_nll
from unlearning.language.retaining import kind_param, retain_term, weight_param


@dataclass(frozen=True, kw_only=True, slots=True)
class NpoConfig(LanguageDescentConfig):
    beta: float = param(0.1, gt=0, le=100, doc="inverse temperature; small = gradient ascent")
    retain_term: str = kind_param("none")
    retain_weight: float = weight_param()


@unlearner(
    UnlearnerSpec(
        name="npo",
        doc="Pushes the forgotten answers below their old likelihood, with a weight that dies away.",
        source="Zhang et al., Negative Preference Optimization, COLM 2024, arXiv 2404.05868",
        config=NpoConfig,
        wants=("tokens",),
    )
)
def npo(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: NpoConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Minimise the NPO loss on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; at least one with a retain term; without one not looked at, but for their ids.
        forget: (N_f) examples to remove.
        config: see :class:`NpoConfig`.
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
        name="npo",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        uses_retain=config.retain_term != "none",
    )
    before = descent.before(lambda old, batch: sequence_nll(answers(old, batch), batch.targets)[0])
    hold = retain_term(descent, config.retain_term, weight=config.retain_weight)

    def objective(student: nn.Module, step: Step) -> Tensor:
        nll, _ = sequence_nll(answers(student, step.forget), step.forget.targets)
        return npo_loss(nll, before[step.rows], beta=config.beta) + hold(student, step)

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
