"""SimNPO: NPO without a reference, on the NLL a token (Fan et al., arXiv 2410.07163).

    L = -gamma (2/beta) mean log sigmoid(beta (nll_theta / |y| - delta)) [+ alpha NLL_mean(retain)]

The mean over an answer's tokens keeps long answers from being forgotten first. As in open-unlearning gamma = 0.125.
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
from unlearning.language.losses import sequence_nll, simnpo_loss
from unlearning.language.retaining import kind_param, retain_term, weight_param


@dataclass(frozen=True, kw_only=True, slots=True)
class SimNpoConfig(LanguageDescentConfig):
    beta: float = param(4.5, gt=0, le=100, doc="inverse temperature, a token")
    delta: float = param(0.0, ge=0, le=100, unit="nats", doc="NLL a token that a forgotten answer has to exceed")
    forget_weight: float = param(0.125, ge=0, le=1000, doc="gamma, of the forget term")
    retain_term: str = kind_param("gd")
    retain_weight: float = weight_param()


@unlearner(
    UnlearnerSpec(
        name="simnpo",
        doc="Pushes the mean NLL of the forgotten answers' tokens above a margin.",
        source="Fan et al., Simplicity Prevails: Rethinking Negative Preference Optimization, arXiv 2410.07163",
        config=SimNpoConfig,
        wants=("tokens",),
    )
)
def simnpo(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: SimNpoConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Minimise the SimNPO loss on a copy of ``model``.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; at least one with a retain term; without one not looked at, but for their ids.
        forget: (N_f) examples to remove.
        config: see :class:`SimNpoConfig`.
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
        name="simnpo",
        model=model,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        uses_retain=config.retain_term != "none",
    )
    hold = retain_term(descent, config.retain_term, weight=config.retain_weight)

    def objective(student: nn.Module, step: Step) -> Tensor:
        nll, length = sequence_nll(answers(student, step.forget), step.forget.targets)
        gone = simnpo_loss(nll, length, beta=config.beta, delta=config.delta)
        return config.forget_weight * gone + hold(student, step)

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
