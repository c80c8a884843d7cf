"""Distillation of a frozen teacher, the model as it stood before this step of a stream.

    bce    L = mean_i [ sum_{c own} BCE(sigmoid(o_ic), 1[y_i = c]) + mu sum_{c old} BCE(sigmoid(o_ic), sigmoid(t_ic)) ]
           own: the classes that this step brings labels of; old: the first C_{n-1} columns. mu = 0 is no distillation:
           every seen class is then own. With mu = 1 and own = the new classes these are the targets of LwF.MC, which
           replaces those of the old classes by the teacher's sigmoids. A class that comes again (domains) has its own
           label and the teacher's.
    ce     L = -mean_i sum_{c old} q_ic log p_ic,   q = softmax(t / T), p = softmax(o_old / T), T = 2, no factor T^2
    feat   L = mean_i || phi(x_i) - phi_teacher(x_i) ||^2

The sum over classes is about C_n times the mean over classes: weights of penalties do not carry over between the two.
Shapes: o logits (B, C_n) of the classes seen so far, in the order in which they came, t logits (B, C_{n-1}) of the
teacher.

Source: Li and Hoiem, "Learning without Forgetting" (ECCV 2016, arXiv 1606.09282); Rebuffi et al., "iCaRL" (CVPR
2017), LwF.MC; Smith et al., "A Closer Look at Rehearsal-Free Continual Learning" (CVPRW 2023, arXiv 2203.17269),
section 3.
Not: softmax cross-entropy on new data alone, which pushes old logits down whatever protects the encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.errors import InvalidInput


def bce_with_distilled_targets(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher: Tensor | None = None,
    own: Tensor | None = None,
    weight: float = 1.0,
) -> Tensor:
    """Sigmoid cross-entropy, summed over the seen classes and averaged over the batch; a scalar in nats, >= 0.

    Args:
        logits: (B, C) of the seen classes, old ones first.
        labels: (B,) int64, columns of ``logits``.
        teacher: (B, C_old) logits of the frozen model of the step before, C_old <= C; None: no distillation.
        own: (O,) int64, columns with labels in this step; with a teacher, by default those after its own. Read with a
        teacher only.
        weight: mu of the distilled part, >= 0.

    Raises:
        InvalidInput: more columns in ``teacher`` than in ``logits``, or a label that is no column.

    >>> o = torch.zeros(1, 2)
    >>> round(float(bce_with_distilled_targets(o, torch.tensor([0]))), 4)  # 2 log 2
    1.3863
    """
    _check_labels(logits, labels)
    hard = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    if teacher is None:
        return F.binary_cross_entropy_with_logits(logits, hard, reduction="sum") / len(logits)
    old = _old_columns(logits, teacher)
    if own is None:
        own = torch.arange(old, logits.shape[1], device=logits.device)
    hard_part = F.binary_cross_entropy_with_logits(logits[:, own], hard[:, own], reduction="sum")
    soft_part = F.binary_cross_entropy_with_logits(logits[:, :old], teacher.detach().sigmoid(), reduction="sum")
    return (hard_part + weight * soft_part) / len(logits)


def softmax_distillation(logits: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Cross-entropy of the softened old classes from the teacher's to the model's; a scalar in nats.

    Args:
        logits: (B, C) of the seen classes, old ones first; only these take part.
        teacher: (B, C_old) logits of the frozen model.
        temperature: T > 0.

    Raises:
        InvalidInput: more columns in ``teacher`` than in ``logits``, or a temperature that is not positive.
    """
    if not temperature > 0:
        raise InvalidInput(f"temperature = {temperature} must be > 0")
    old = _old_columns(logits, teacher)
    target = torch.softmax(teacher.detach() / temperature, dim=1)
    return -(target * F.log_softmax(logits[:, :old] / temperature, dim=1)).sum(1).mean()


def feature_distillation(features: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of the squared distance of the features (B, ...) from the teacher's; a scalar, >= 0.

    Raises:
        InvalidInput: the shapes differ.
    """
    if features.shape != teacher.shape:
        raise InvalidInput(f"features {tuple(features.shape)} and the teacher's {tuple(teacher.shape)} must be alike")
    return (features - teacher.detach()).square().flatten(1).sum(1).mean()


def _old_columns(logits: Tensor, teacher: Tensor) -> int:
    if teacher.ndim != 2 or len(teacher) != len(logits) or not 1 <= teacher.shape[1] <= logits.shape[1]:
        raise InvalidInput(
            f"the teacher's logits {tuple(teacher.shape)} must be (B, C_old), 1 <= C_old <= C, for logits "
            f"{tuple(logits.shape)}"
        )
    return int(teacher.shape[1])


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InvalidInput(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must be (B, C) and (B,), B >= 1"
        )
