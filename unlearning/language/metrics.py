"""What TOFU measures of an unlearnt language model (Maini et al., COLM 2024, arXiv 2401.06121).

    a(y | x)        = exp(-nll(x, y) / |y|)                                             of an answer y, in (0, 1)
    general sets      a(y) / (a(y) + sum_k a(y~_k))                                     y~_k: K wrong (perturbed)
                      answers
    truth ratio       R = mean_k a(y~_k) / a(y^)            arithmetic (utility)        y^: the paraphrased right answer
                      R = exp(mean_k log a(y~_k)) / a(y^)   geometric (forget quality)
    forget quality  = p-value of the two-sample Kolmogorov-Smirnov test between the geometric R of the unlearnt model
                    and of a
                      model never trained on the forget set, on the forget set
    model utility   = harmonic mean of 9: {probability, ROUGE-L recall, mean max(0, 1 - R)} x {retain, real authors,
                    world facts}

A high p is *not* a pass: it says that the test found no difference, and a model that was ruined, or is passing by, can
have one. So p stands beside its log10, the utility, and a flag for collapse (utility < 0.1). Three conventions of R are
about; the test does not mind R -> 1/R, but arithmetic and geometric means give other values. Everything is in log
space, so that nothing is added to a denominator and a collapsed model has a ratio and not 1e-10 / 1e-10.

Shapes: N questions, K perturbed answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import hmean, ks_2samp
from torch import nn

from contracts.errors import DataError, InvalidInput
from recipes.language.decoding import greedy
from sources.questions import Question
from unlearning.language.decoding import answer_nll

COLLAPSED = 0.1  # utility below which a model is of no use, whatever its forget quality
FORMS = ("arithmetic", "geometric")
GENERAL = ("real_authors", "world_facts")
SETS = ("forget", "retain", *GENERAL)
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model gives the answers of N questions, all in log space.

    Attributes:
        answer: (N,) log a(y | x).
        paraphrase: (N,) log a(y^ | x).
        perturbed: (N, K) log a(y~_k | x).
    """

    answer: np.ndarray
    paraphrase: np.ndarray
    perturbed: np.ndarray

    @classmethod
    def of(cls, model: nn.Module, questions: Sequence[Question], *, batch: int = 64) -> Answers:
        """Read a model. Raises: DataError: no questions, or unequal numbers of perturbed answers."""
        kinds = {len(q.perturbed) for q in questions}
        if len(kinds) != 1 or 0 in kinds:
            raise DataError(
                f"questions have {sorted(kinds) or 'no'} perturbed answers; one number >= 1 for all is needed"
            )
        given = [(q.prompt, a) for q in questions for a in (q.answer, q.paraphrase, *q.perturbed)]
        nll, length = answer_nll(model, [p for p, _ in given], [a for _, a in given], batch=batch)
        table = (-nll / length).reshape(len(questions), -1)
        return cls(table[:, 0], table[:, 1], table[:, 2:])

    @property
    def probability(self) -> np.ndarray:
        """(N,) a(y | x) in [0, 1]."""
        return np.exp(self.answer)

    @property
    def normalised(self) -> np.ndarray:
        """(N,) a(y) / (a(y) + sum_k a(y~_k)) in [0, 1]."""
        return np.exp(self.answer - logsumexp(np.column_stack([self.answer, self.perturbed]), axis=1))

    def log_truth_ratio(self, form: str) -> np.ndarray:
        """(N,) log R, "arithmetic" or "geometric"; below 0 = the right answer is preferred.

        Raises:
            InvalidInput: another form.
        """
        if form not in FORMS:
            raise InvalidInput(f"form = {form!r} is not one of {', '.join(map(repr, FORMS))}")
        if form == "geometric":
            return self.perturbed.mean(1) - self.paraphrase
        return logsumexp(self.perturbed, axis=1) - np.log(self.perturbed.shape[1]) - self.paraphrase


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """A Kolmogorov-Smirnov test of two samples of truth ratios.

    Attributes:
        p: in [0, 1]; high = no difference found, which is not a pass.
        log10_p: of p, and of the smallest number > 0 where p is 0.
        statistic: largest distance of the two distribution functions, in [0, 1].
    """

    p: float
    log10_p: float
    statistic: float


def forget_quality(unlearned: np.ndarray, retrained: np.ndarray) -> ForgetQuality:
    """Whether the truth ratios on the forget set are distributed as a model's that never saw it.

    Args:
        unlearned, retrained: (N,), (M,) log R, geometric; the test sees ranks alone, so R serves as well.

    Raises:
        DataError: an empty sample, or ratios that are not numbers.
    """
    for who, values in (("unlearned", unlearned), ("retrained", retrained)):
        if not len(values) or np.isnan(values).any():
            raise DataError(
                f"truth ratios of the {who} model: {len(values)}, of which {int(np.isnan(values).sum())} are NaN"
            )
    found = ks_2samp(unlearned, retrained)
    p = float(found.pvalue)
    return ForgetQuality(p, float(np.log10(max(p, 5e-324))), float(found.statistic))


def rouge_l_recall(references: Sequence[str], text: str) -> float:
    """Longest common subsequence of words over the words of the reference, in [0, 1]; the best of several references.

    Words are stemmed, as in TOFU's code. An answer of template words alone has a high floor: report what the answer
    names beside it.
    """
    return max(_rouge(reference, text, "recall") for reference in references)


def rouge_l_f1(reference: str, text: str) -> float:
    """Harmonic mean of ROUGE-L precision and recall, in [0, 1] (MUSE)."""
    return _rouge(reference, text, "fmeasure")


def _rouge(reference: str, text: str, which: str) -> float:
    return float(getattr(_scorer().score(reference, text)["rougeL"], which))


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def model_utility(numbers: Sequence[float]) -> float:
    """Harmonic mean of the nine numbers, 0 as soon as one of them is.

    Raises:
        InvalidInput: not nine numbers in [0, 1].
    """
    if len(numbers) != 9 or not all(0 <= n <= 1 for n in numbers):
        raise InvalidInput(f"model utility is of nine numbers in [0, 1], not of {list(numbers)}")
    return float(hmean(numbers)) if min(numbers) > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SetMetrics:
    """Means over one set of questions, all in [0, 1], higher = the set is known better.

    Attributes:
        probability: a(y | x), on the general sets normalised by the perturbed answers.
        raw_probability: a(y | x) on every set.
        rouge_l: ROUGE-L recall of the greedy answer.
        truth: max(0, 1 - R), arithmetic R; on the forget set min(R, 1 / R), where 1 is what nobody knows.
        value_accuracy: share of greedy answers that name the value asked for.
    """

    probability: float
    raw_probability: float
    rouge_l: float
    truth: float
    value_accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageMetrics:
    """One model on the four sets.

    Attributes:
        sets: by name, ``SETS``.
        utility: model utility, in [0, 1].
        quality: forget quality; None where no truth ratios of a retrained model were given.
        collapsed: utility below 0.1: the model is of no use, and its forget quality says nothing.
        log_truth_ratio: (N_f,) geometric log R on the forget set, in the order of its questions.
    """

    sets: Mapping[str, SetMetrics]
    utility: float
    quality: ForgetQuality | None
    collapsed: bool
    log_truth_ratio: np.ndarray


def language_metrics(
    model: nn.Module,
    sets: Mapping[str, Sequence[Question]],
    *,
    decode: Decode,
    end: int,
    retrained: np.ndarray | None = None,
    max_new_tokens: int = 200,
    batch: int = 64,
) -> LanguageMetrics:
    """Everything that TOFU measures of one model.

    Args:
        model: causal language model.
        sets: questions by the names in ``SETS``.
        decode: token ids of an answer -> its text.
        end: id of the end of sequence.
        retrained: (M,) ``log_truth_ratio`` of a model never trained on the forget set.
        max_new_tokens: of a greedy answer.
        batch: sequences run together.

    Raises:
        InvalidInput: a set is missing.
        DataError: an empty set.
    """
    if missing := sorted(set(SETS) - set(sets)):
        raise InvalidInput(f"sets of questions are missing: {', '.join(missing)}; needed are {', '.join(SETS)}")
    read = {name: Answers.of(model, sets[name], batch=batch) for name in SETS}
    measured = {}
    for name in SETS:
        texts = [
            decode(ids)
            for ids in greedy(
                model, [q.prompt for q in sets[name]], end=end, max_new_tokens=max_new_tokens, batch=batch
            )
        ]
        measured[name] = _set_metrics(name, read[name], sets[name], texts)
    kept = [measured[name] for name in SETS if name != "forget"]
    utility = model_utility([value for m in kept for value in (m.probability, m.rouge_l, m.truth)])
    ratio = read["forget"].log_truth_ratio("geometric")
    return LanguageMetrics(
        sets=measured,
        utility=utility,
        quality=None if retrained is None else forget_quality(ratio, retrained),
        collapsed=utility < COLLAPSED,
        log_truth_ratio=ratio,
    )


def _set_metrics(name: str, read: Answers, questions: Sequence[Question], texts: Sequence[str]) -> SetMetrics:
    log_r = read.log_truth_ratio("arithmetic")
    truth = np.exp(-np.abs(log_r)) if name == "forget" else np.maximum(0, -np.expm1(np.minimum(log_r, 0)))
    named = [q.value in text.split() for q, text in zip(questions, texts, strict=True)]
    return SetMetrics(
        probability=float((read.normalised if name in GENERAL else read.probability).mean()),
        raw_probability=float(read.probability.mean()),
        rouge_l=float(np.mean([rouge_l_recall(q.references, text) for q, text in zip(questions, texts, strict=True)])),
        truth=float(truth.mean()),
        value_accuracy=float(np.mean(named)),
    )
