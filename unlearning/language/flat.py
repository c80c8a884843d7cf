"""FLAT: unlearning by loss adjustment with forget data alone (Wang et al., ICLR 2025, arXiv 2410.11143).

    P(x, y) = (1/|y|) sum_i softmax(z_{i-1})[y_i]                    MEAN TOKEN PROBABILITY of an answer, in (0, 1)
    p_e = P(x_f, y_e),  p_f = P(x_f, y_f)                            template ("I do not know that") and forgotten
                        answer
    L   = E[ -g*(p_e) + f*(g*(p_f)) ]                                minimised; the table is in ``divergences``

The loss is the negative of a variational lower bound of the f-divergence between template and forgotten answers: it
teaches the template and pushes the forgotten answer down, each with a bounded weight. y_e is drawn uniformly for each
example and epoch.

P is a mean of probabilities, not exp of a mean log-probability: the geometric mean has another gradient, which vanishes
on a sequence as soon as one of its tokens is forgotten, and is another method. The gradient of P carries p (1 - p) of
every token, so a fully memorised answer starts nearly saturated: too small a learning rate changes nothing at all.

The expectation stands outside g* and f*. The released code averages the probabilities over all B (T - 1) positions
instead, prompt and padding among them as zeros, and applies g* and f* once to that mean, so that padding shrinks p
towards 0: that is ``reduction = "official"``. It is not forget-only on its Harry Potter branch (the "good" side comes
from C4 there).

Shapes: B sequences, T tokens, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from contracts.errors import ConfigError
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from tasks.base import answers
from tasks.language import token_log_probs
from unlearning.language.descent import AfterEpoch, Descent, Step, TemplateConfig, nothing
from unlearning.language.divergences import DIVERGENCES, FDivergence
from unlearning.language.sequences import template_answers

REDUCTIONS = ("example", "official")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatConfig(TemplateConfig):
    divergence: str = param("total_variation", choices=DIVERGENCES, doc="f-divergence; the first four are the paper's")
    reduction: str = param(
        "example",
        choices=REDUCTIONS,
        doc="example: mean over an answer's tokens, expectation outside; official: over all positions of the batch",
    )


def mean_token_probability(outputs: Any, labels: Tensor, *, reduction: str = "example") -> Tensor:
    """P(x, y) of every sequence, with gradient.

    Args:
        outputs: what the model answers: logits (B, T, V), or an object that has them as ``logits``.
        labels: (B, T) int64, -100 on prompt and padding.
        reduction: "example", or "official": see the file.

    Returns:
        (B,) in [0, 1]; for "official" (1,), the mean over all B (T - 1) positions, uncounted ones as 0.

    Raises:
        DataError: a sequence without a counted token.
        ConfigError: another reduction.
    """
    logp, counted = token_log_probs(outputs, labels)
    probability = logp.exp() * counted
    if reduction == "example":
        return probability.sum(1) / counted.sum(1)
    if reduction == "official":
        return probability.mean().reshape(1)
    raise ConfigError(f"reduction = {reduction!r} is not one of {', '.join(map(repr, REDUCTIONS))}")


def flat_loss(template: Tensor, forget: Tensor, *, divergence: str = "total_variation") -> Tensor:
    """mean(-g*(p_e) + f*(g*(p_f))), a scalar: falls in p_e, rises in p_f.

    Args:
        template, forget: p_e and p_f, (B,) each, of ``mean_token_probability``.
        divergence: one of ``divergences.DIVERGENCES``.

    Raises:
        UnknownName: another divergence.
    """
    f = FDivergence(divergence)
    return (f.f_star_of_g_star(forget) - f.g_star(template)).mean()


@unlearner(
    UnlearnerSpec(
        name="flat",
        doc="Maximises an f-divergence between template answers and the answers to be forgotten; reads no retained "
        "data.",
        source="Wang et al., LLM Unlearning via Loss Adjustment with Only Forget Data, ICLR 2025, arXiv 2410.11143",
        config=FlatConfig,
        wants=("tokens",),
    )
)
def flat(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: FlatConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Teach template answers to the forgotten questions on a copy of ``model``, and push the answers down.

    Args:
        model: trained causal language model, sequences (B, T) -> logits (B, T, V); not changed.
        retain: (N_r) examples to keep; not looked at, but for their ids.
        forget: (N_f) examples to remove, each a prompt and an answer.
        config: see :class:`FlatConfig`.
        seed: batch order, template answers and the model's noise.
        after_epoch: called with the epochs done and the student after each epoch; it only reads.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        NotApplicable, DataError: see ``Descent``, ``template_answers``.
        Diverged: the run left the finite numbers.
    """
    templates = template_answers(forget, config.templates, who="flat")
    descent = Descent(
        name="flat", model=model, forget=forget, retain=retain, config=config, seed=seed, templates=templates
    )

    def objective(student: nn.Module, step: Step) -> Tensor:
        p_e, p_f = (
            mean_token_probability(answers(student, batch), batch.targets, reduction=config.reduction)
            for batch in (step.template, step.forget)
        )
        return flat_loss(p_e, p_f, divergence=config.divergence)

    return descent.run(objective, after_epoch=after_epoch, progress=progress)
