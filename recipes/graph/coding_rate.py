"""Maximal coding rate reduction: how many nats an embedding needs as a whole, and class by class.

    R(Z)     = 1/2 logdet(I_d + g1 d / (N e) Z^T Z)                                      expanded
    Rc(Z, L) = sum_c n_c / (2 N) logdet(I_d + d / (n_c e) Z_c^T Z_c),  n_c = #{L = c}    compressed
    loss     = -g2 R + g1 Rc;      delta_R = R - Rc >= 0 for g1 = 1, any partition

Z (N, d), L (N,). logdet(I + c Z^T Z) = logdet(I + c Z Z^T): the smaller side is taken, by the Cholesky factor of the
symmetric matrix, in double precision where single fails. Classes without a member have no term. e has to match the
scale of Z: 0.01 to 0.4 for rows that sum to 1 (entries of about 1/d), about 0.5 for rows of unit L2 norm.

Source: Yu et al., "Learning diverse and discriminative representations via the principle of maximal coding rate
reduction" (NeurIPS 2020, arXiv 2006.08558); with g1 and g2 as in Chen et al., "ERASE" (CIKM 2024, arXiv 2312.08852).
Not by dense membership matrices (K, N, N): class by class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracts.errors import InvalidInput

_EPS = 1e-8


def coding_rate(z: Tensor, *, eps: float, expand: float = 1.0) -> Tensor:
    """R(Z) in nats, a scalar with gradient; 0 for no rows.

    Args:
        z: (N, d).
        eps: e > 0, distortion.
        expand: g1, factor inside the determinant.

    >>> round(float(coding_rate(torch.eye(2), eps=1.0)), 6)  # 1/2 log 2^2
    0.693147
    """
    return 0.5 * _logdet(z, expand * z.shape[1] / (len(z) * eps + _EPS)) if len(z) else z.sum()


def class_coding_rate(z: Tensor, labels: Tensor, *, num_classes: int, eps: float) -> Tensor:
    """Rc(Z, L) in nats, a scalar with gradient.

    Args:
        z: (N, d).
        labels: int64 (N,) in [0, num_classes).
        eps: e > 0, distortion.

    Raises:
        InvalidInput: labels outside the classes.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise InvalidInput(f"labels {int(labels.min())}..{int(labels.max())} are outside 0..{num_classes - 1}")
    total = z.new_zeros(())
    for c in torch.unique(labels).tolist():
        own = z[labels == c]
        total = total + len(own) / (2 * len(z)) * _logdet(own, z.shape[1] / (len(own) * eps + _EPS))
    return total


def _logdet(z: Tensor, factor: float) -> Tensor:
    """logdet(I + factor Z^T Z)."""
    gram = z.T @ z if len(z) >= z.shape[1] else z @ z.T
    matrix = torch.eye(len(gram), dtype=z.dtype, device=z.device) + factor * gram
    root, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        root = torch.linalg.cholesky_ex(matrix.double())[0]
    return 2 * root.diagonal().log().sum().to(z.dtype)


class CodingRateReduction(nn.Module):
    """The loss -g2 R + g1 Rc.

    Args:
        eps: e > 0, distortion.
        expand: g2, weight of R.
        compress: g1, weight of Rc and factor inside R.
    """

    def __init__(self, *, eps: float, expand: float, compress: float) -> None:
        super().__init__()
        self.eps, self.expand, self.compress = eps, expand, compress

    def rates(self, z: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """(R, Rc) in nats, scalars with gradient."""
        whole = coding_rate(z, eps=self.eps, expand=self.compress)
        return whole, class_coding_rate(z, labels, num_classes=num_classes, eps=self.eps)

    def forward(self, z: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """Embeddings (N, d) and labels (N,) -> the loss, a scalar."""
        whole, apart = self.rates(z, labels, num_classes)
        return self.compress * apart - self.expand * whole


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of Z (N, d) as shares of their sum (Roy and Vetterli, EUSIPCO 2007): 1
    to min(N, d); about 1 is a collapse. 0 for a matrix of zeros.

    >>> round(effective_rank(torch.eye(3)), 6)
    3.0
    """
    values = torch.linalg.svdvals(z.detach().double())
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())
