"""What MUSE measures of an unlearnt language model (Shi et al., ICLR 2025, arXiv 2407.06460).

    VerbMem    mean ROUGE-L F1 of the greedy continuation of a forgotten text's prefix, 128 tokens, and the true one
    KnowMem    mean ROUGE-L F1 of the greedy answer to a question, 32 tokens, and the true one
    Min-K%     score(x) = -mean of the lowest k share of its token log-probabilities         Shi et al., ICLR 2024
    PrivLeak   100 (A_unlearned - A_retrained) / A_retrained,    A = 1 - AUC(score; holdout positive, forget negative)

PrivLeak near 0 is what is wanted; -100 % is full memorisation (every forgotten text scores below every held-out one),
large positive values are over-unlearning, which gives membership away as well. Up to thousands where the retrained
model's A is
small: the interval belongs beside it.

Shapes: N texts or questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import nn

from contracts.errors import DataError, InvalidInput
from recipes.language.decoding import greedy
from sources.questions import Question
from unlearning.language.decoding import answer_log_probs
from unlearning.language.metrics import Decode, rouge_l_f1


def verbmem(
    model: nn.Module,
    texts: Sequence[Sequence[int]],
    *,
    prefix: int,
    decode: Decode,
    end: int,
    max_new_tokens: int = 128,
    batch: int = 64,
) -> np.ndarray:
    """(N,) ROUGE-L F1 of each text's greedy continuation, in [0, 1]; higher = more of it is told word by word.

    Args:
        model: causal language model.
        texts: token ids, each longer than ``prefix``.
        prefix: tokens given, >= 1.
        decode: token ids -> text.
        end: id of the end of sequence.
        max_new_tokens: of the continuation; the true one is cut there too.
        batch: texts decoded together.

    Raises:
        DataError: a text no longer than the prefix.
    """
    short = [row for row, text in enumerate(texts) if len(text) <= prefix]
    if short or prefix < 1:
        raise DataError(f"texts must be longer than the prefix of {prefix} tokens; these rows are not: {short[:10]}")
    told = greedy(model, [t[:prefix] for t in texts], end=end, max_new_tokens=max_new_tokens, batch=batch)
    true = [decode(text[prefix : prefix + max_new_tokens]) for text in texts]
    return np.array([rouge_l_f1(reference, decode(ids)) for reference, ids in zip(true, told, strict=True)], np.float64)


def knowmem(
    model: nn.Module,
    questions: Sequence[Question],
    *,
    decode: Decode,
    end: int,
    max_new_tokens: int = 32,
    batch: int = 64,
) -> np.ndarray:
    """(N,) ROUGE-L F1 of each greedy answer with the first reference of its question, in [0, 1]; higher = known
    better."""
    told = greedy(model, [q.prompt for q in questions], end=end, max_new_tokens=max_new_tokens, batch=batch)
    scored = [rouge_l_f1(q.references[0], decode(ids)) for q, ids in zip(questions, told, strict=True)]
    return np.array(scored, np.float64)


def min_k(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    given: Sequence[Sequence[int]],
    *,
    share: float = 0.4,
    batch: int = 64,
) -> np.ndarray:
    """(N,) Min-K% scores: minus the mean of the ``share`` lowest token log-probabilities; LOWER = more likely a member.

    Args:
        model: causal language model.
        prompts, given: token ids of what comes before, and of what is scored.
        share: in (0, 1]; at least one token is averaged.
        batch: sequences run together.

    Raises:
        InvalidInput: ``share`` out of range.
        DataError: an empty prompt or text.
    """
    if not 0 < share <= 1:
        raise InvalidInput(f"share = {share} is outside its allowed range: > 0 and <= 1")
    found = answer_log_probs(model, prompts, given, batch=batch)
    return np.array([-np.sort(t)[: max(1, int(share * len(t)))].mean() for t in found], np.float64)


def holdout_auc(forget: np.ndarray, holdout: np.ndarray) -> float:
    """AUC with the held-out texts as positives: 1 = every forgotten text scores below every held-out one.

    Raises:
        DataError: an empty set.
    """
    if not len(forget) or not len(holdout):
        raise DataError(f"an AUC needs forgotten and held-out texts, not {len(forget)} and {len(holdout)}")
    positive = np.r_[np.zeros(len(forget), bool), np.ones(len(holdout), bool)]
    return float(roc_auc_score(positive, np.r_[forget, holdout]))


def privleak(auc_unlearned: float, auc_retrained: float) -> float | None:
    """PrivLeak in percent, >= -100; None where the retrained model's A is 0 and nothing can be said relative to it.

    Args:
        auc_unlearned, auc_retrained: of :func:`holdout_auc` on the two models' scores.

    >>> privleak(1.0, 0.5), privleak(0.0, 0.5)
    (-100.0, 100.0)
    """
    a, base = 1 - auc_unlearned, 1 - auc_retrained
    return None if base == 0 else 100 * (a - base) / base
