"""The losses that language models are unlearnt by, as functions of what a model answers; the methods are files of their
own.

    nll(x, y) = -sum_{i in y} log p(y_i | x, y_<i)        summed over a sequence's counted tokens, (B,)
    NLL_mean  = sum of nll / number of counted tokens      the token mean over the whole batch

    npo       -(2/beta) mean log sigmoid(beta (nll - nll_ref))                            Zhang et al., COLM 2024
    dpo       -(2/beta) mean log sigmoid(beta [(nll_ref - nll)(y_e) - (nll_ref - nll)(y_f)])
    simnpo    -(2/beta) mean log sigmoid(beta (nll / |y| - delta))                        Fan et al., arXiv 2410.07163
    kl        mean over counted tokens of KL(p_ref || p)                                   Maini et al., TOFU, COLM 2024

All of them see the counted tokens alone. TOFU's code averages its KL over prompts and padding as well, which shrinks
the term with the padding of a batch; that is not kept.

Shapes: B sequences, T tokens, V words; labels (B, T) int64 with -100 where not counted.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tasks.language import NOT_COUNTED, logits_of, token_log_probs


def sequence_nll(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed NLL (B,) of the counted tokens, nats, and their number (B,), both float.

    Raises:
        DataError: a sequence without a counted token.
    """
    logp, counted = token_log_probs(outputs, labels)
    return -logp.sum(1), counted.sum(1).to(logp.dtype)


def token_mean_nll(outputs: Any, labels: Tensor) -> Tensor:
    """NLL_mean, a scalar: every counted token of the batch weighs the same.

    Raises:
        DataError: a sequence without a counted token.
    """
    nll, length = sequence_nll(outputs, labels)
    return nll.sum() / length.sum()


def kl_to_reference(outputs: Any, reference: Any, labels: Tensor) -> Tensor:
    """Mean over the counted tokens of KL(p_ref || p), a scalar >= 0, nats.

    Args:
        outputs: of the model, with gradient.
        reference: of the reference on the same batch; no gradient flows into it.
        labels: which positions count; the words themselves do not matter.
    """
    counted = labels[:, 1:] != NOT_COUNTED
    own = F.log_softmax(logits_of(outputs)[:, :-1][counted].float(), dim=-1)
    aim = F.log_softmax(logits_of(reference).detach()[:, :-1][counted].float(), dim=-1)
    return F.kl_div(own, aim, reduction="batchmean", log_target=True)


def npo_loss(nll: Tensor, nll_ref: Tensor, *, beta: float) -> Tensor:
    """NPO, a scalar; its gradient tends to that of gradient ascent on the summed NLL as ``beta`` goes to 0.

    Args:
        nll: (B,) summed NLL of the forgotten answers, with gradient.
        nll_ref: (B,) the same under the model before unlearning.
        beta: > 0.
    """
    return -2 / beta * F.logsigmoid(beta * (nll - nll_ref)).mean()


def dpo_loss(
    nll: Tensor, nll_ref: Tensor, *, beta: float, template: Tensor | None = None, template_ref: Tensor | None = None
) -> Tensor:
    """DPO with the template as the chosen and the forgotten answer as the rejected one, a scalar; without a template,
    NPO.

    Args:
        nll, nll_ref: (B,) summed NLL of the forgotten answers under the model and under the reference.
        beta: > 0.
        template, template_ref: the same of the template answers; both or neither.
    """
    margin = nll - nll_ref
    if template is not None and template_ref is not None:
        margin = margin + template_ref - template
    return -2 / beta * F.logsigmoid(beta * margin).mean()


def simnpo_loss(nll: Tensor, length: Tensor, *, beta: float, delta: float) -> Tensor:
    """SimNPO, a scalar: NPO on the NLL a token, against a margin in place of a reference.

    Args:
        nll, length: (B,) of ``sequence_nll``.
        beta: > 0.
        delta: NLL a token, in nats, that an answer has to exceed.
    """
    return -2 / beta * F.logsigmoid(beta * (nll / length - delta)).mean()
