"""The likelihood of given answers: what the measurements ask of a model besides what it decodes.

    nll(x, y) = -sum_t log p(y_t | x, y_<t)          a(y | x) = exp(-nll / |y|)

Shapes: N prompts, N answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from recipes.predict import eval_mode
from tasks.base import answers
from tasks.language import token_log_probs
from unlearning.language.sequences import padded


def answer_nll(
    model: nn.Module, prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]], *, batch: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Summed NLL of given answers, nats, and the numbers of their tokens: float64 (N,) and int64 (N,).

    Args:
        model: causal language model; its mode and weights are as before afterwards.
        prompts, given: N lists of token ids each, none empty; what is scored is the answer, its end of sequence
            included where it has one.
        batch: sequences run together; they are sorted by length, so little is spent on padding.

    Raises:
        DataError: an empty prompt or answer.
    """
    tokens = answer_log_probs(model, prompts, given, batch=batch)
    return np.array([-t.sum() for t in tokens], np.float64), np.array([len(t) for t in tokens], np.int64)


def answer_log_probs(
    model: nn.Module, prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]], *, batch: int = 64
) -> list[np.ndarray]:
    """Log-probability of every token of given answers: N arrays float64 (|y|,). Arguments as of :func:`answer_nll`."""
    device = next(model.parameters()).device
    order = np.argsort([len(p) + len(a) for p, a in zip(prompts, given, strict=True)], kind="stable")
    found: list[np.ndarray] = [np.empty(0)] * len(prompts)
    with eval_mode(model), torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            one = padded([prompts[r] for r in rows], [given[r] for r in rows], device=device)
            logp, counted = (t.cpu() for t in token_log_probs(answers(model, one), one.targets))
            for row, values, mask in zip(rows, logp, counted, strict=True):
                found[row] = values[mask].double().numpy()
    return found
