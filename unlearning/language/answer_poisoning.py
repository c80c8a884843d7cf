"""Answer poisoning: low-rank fine-tuning on the forgotten questions with other answers, beside as many retained ones.

    neutral   every forgotten question is given one fixed answer, the first template
    random    each is given the answer of a retained example, another than its own, drawn once (or each epoch: redraw)
    theta <- AdamW steps on  NLL_mean(poisoned answers) + alpha NLL_mean(as many retained examples)
             theta: adapters of rank r on the query and value projections, added into the weights at the end

Concept poisoning (``unlearning.concept_poisoning``) of a language model: the topic is the forget set, and its answers
are what wrong labels are to a classifier. Preference optimisation trains all weights on all templates; here it is a
low-rank update, and ``random`` teaches no refusal that would give the topic away. What is learnt over is still under
the adapters: it is not exact, and a probe of the weights may find it.

Source: arXiv 2405.15662 (2024), reconstructed from its abstract, which gives no settings: r 8, alpha 16, dropout 0.05,
learning rate 2e-4, 3 epochs are usual ones of LoRA (Hu et al., ICLR 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from recipes.language.lora import LoraConfig, attach, merged
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.language.descent import AfterEpoch, Descent, Step, TemplateConfig, nothing
from unlearning.language.losses import token_mean_nll
from unlearning.language.retaining import retain_term, weight_param
from unlearning.language.sequences import Sequences, template_answers


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPoisoningConfig(TemplateConfig):
    replace: str = param("neutral", choices=("neutral", "random"), doc="what the forgotten answers are replaced by")
    redraw: bool = param(False, doc="random answers anew in each epoch, not once")
    retain_weight: float = weight_param("alpha, of the retained examples' NLL")
    rank: int = param(8, ge=0, le=4096, doc="r of the adapters; 0 trains all weights")
    scale: float = param(16.0, gt=0, le=1e6, doc="scale / r multiplies the adapters")
    dropout: float = param(0.05, ge=0, lt=1, doc="on what the adapters see while they train")
    targets: tuple[str, ...] = param(
        ("q_proj", "v_proj"), doc="names of the linear layers to adapt; empty: every one but the head"
    )
    lr: float = param(2e-4, gt=0, le=1, doc="peak learning rate")
    epochs: int = param(3, ge=0, le=1000, doc="passes over the forget set; 0 returns the model as it was")


def poisoned_answers(
    own: Sequence[Sequence[int]], others: Sequence[Sequence[int]], *, seed: int, draw: int = 0
) -> list[list[int]]:
    """For each forgotten answer, that of a retained example, uniform over those whose answer differs.

    Args:
        own, others: answers as token ids, forgotten and retained.
        draw: every draw is another.

    Raises:
        NotApplicable: no retained answer differs from a forgotten one.

    >>> poisoned_answers([[1, 4], [2, 4]], [[1, 4], [2, 4]], seed=0)
    [[2, 4], [1, 4]]
    """
    codes = {answer: code for code, answer in enumerate(sorted({*map(tuple, own), *map(tuple, others)}))}
    mine, theirs = (np.array([codes[tuple(answer)] for answer in side], np.int64) for side in (own, others))
    order = np.argsort(theirs, kind="stable")
    first, after = (np.searchsorted(theirs[order], mine, side=side) for side in ("left", "right"))
    left = len(theirs) - (after - first)
    if (left == 0).any():
        raise NotApplicable("answer_poisoning: no retained answer differs from a forgotten one; use neutral answers")
    rng = np.random.default_rng(derive_seed("answer_poisoning", "answers", seed, draw))
    drawn = rng.integers(0, left)
    chosen = order[np.where(drawn >= first, drawn + after - first, drawn)]
    return [list(others[row]) for row in chosen]


@unlearner(
    UnlearnerSpec(
        name="answer_poisoning",
        doc="Fine-tunes low-rank adapters on the forgotten questions with one neutral answer, or with answers to other "
        "questions, beside retained examples.",
        source="arXiv 2405.15662 (2024), reconstructed from its abstract; adapters after Hu et al., LoRA, ICLR 2022",
        config=AnswerPoisoningConfig,
        wants=("tokens",),
    )
)
def answer_poisoning(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: AnswerPoisoningConfig,
    seed: int,
    after_epoch: AfterEpoch = nothing,
    progress: Progress = silent,
) -> nn.Module:
    """Teach other answers to the questions of ``forget`` beside ``retain`` on a copy of ``model``.

    Args:
        model: trained causal language model of transformers (any, with ``rank`` 0); not changed.
        retain: (N_r) examples to keep; at least one, trained on.
        forget: (N_f) examples to remove, each a prompt and an answer; with none the model is returned as it was.
        config: see :class:`AnswerPoisoningConfig`.
        seed: adapters, drawn answers, batch order, retained examples and dropout.
        after_epoch: called with the epochs done and the student, adapters apart, after each epoch; it only reads.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode, of the structure of ``model``.

    Raises:
        NotApplicable, DataError: see ``Descent``, ``template_answers`` and :func:`poisoned_answers`.
        ConfigError: layers that cannot be adapted.
        Diverged: the run left the finite numbers.
    """
    # Checked on the model as it is given, before adapters are made.
    Descent(
        name="answer_poisoning", model=model, forget=forget, retain=retain, config=config, seed=seed, uses_retain=True
    )
    poison = _Poison(retain, forget, config, seed=seed)
    student = copy.deepcopy(model)
    if not config.epochs or not len(forget):
        return student.eval()
    if config.rank:
        adapters = LoraConfig(rank=config.rank, alpha=config.scale, dropout=config.dropout, targets=config.targets)
        student = attach(student, adapters, seed=derive_seed("answer_poisoning", "adapters", seed))
    descent = Descent(
        name="answer_poisoning",
        model=student,
        forget=forget,
        retain=retain,
        config=config,
        seed=seed,
        uses_retain=True,
    )
    hold, own = retain_term(descent, "gd", weight=config.retain_weight), descent.sequences()
    per_epoch, steps = -(-len(own) // config.batch), 0

    def objective(student: nn.Module, step: Step) -> Tensor:
        nonlocal steps
        taught = poison.of(steps // per_epoch)
        steps += 1
        batch = own.answered(step.rows, [taught[row] for row in step.rows.tolist()])
        return token_mean_nll(answers(student, batch), batch.targets) + hold(student, step)

    done = descent.run(objective, after_epoch=after_epoch, progress=progress)
    return merged(done) if config.rank else done


class _Poison:
    """The answers that the forgotten questions are given, in the order of the ids.

    Raises:
        DataError, NotApplicable: there are no templates, or no other answers.
    """

    def __init__(self, retain: ExampleSet, forget: ExampleSet, config: AnswerPoisoningConfig, *, seed: int) -> None:
        self.config, self.seed, self.draw = config, seed, 0
        if config.replace == "neutral":
            self._found = [template_answers(forget, config.templates, who="answer_poisoning")[0]] * len(forget)
            return
        self._own, self._others = (
            Sequences(data, device="cpu", who="answer_poisoning").answers for data in (forget, retain)
        )
        self._found = poisoned_answers(self._own, self._others, seed=seed)

    def of(self, epoch: int) -> list[list[int]]:
        """Those of an epoch, from 0; epochs are asked for in their order."""
        if self.config.replace == "random" and self.config.redraw and epoch != self.draw:
            self.draw = epoch
            self._found = poisoned_answers(self._own, self._others, seed=self.seed, draw=epoch)
        return self._found
