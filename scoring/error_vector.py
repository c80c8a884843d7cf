"""The error vector of cross-entropy, e = softmax(z) - onehot(y): the gradient of the loss at the logits.

For a confident right answer, 1 - p_y rounds to 0 in single precision while the error is 1e-9. Here the entry of the
true class is -sum_{k != y} p_k, never p_y - 1, so that small errors keep all their digits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def error_vector(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """e (B, K), float64; its entries sum to 0.

    >>> error_vector(torch.zeros(1, 4), torch.tensor([2])).tolist()
    [[0.25, 0.25, -0.75, 0.25]]
    """
    y_B1 = y_B[:, None]
    e_BK = torch.softmax(logits_BK.double(), dim=1).scatter_(1, y_B1, 0.0)
    return e_BK.scatter_(1, y_B1, -e_BK.sum(1, keepdim=True))
