"""The two losses of label-agnostic forgetting (Shen et al., ICLR 2024, arXiv 2404.00506, equations 5 and 7).

    L_UE = sum_{i in retain batch} exp( q_i / (q_i + 1) ) - sum_{j in forget batch} exp( q_j / (q_j + 1) )
           q: squared error of an embedding's reconstruction by the autoencoder of its set
    L_RA = sum_{i in retain batch} [ c_i - log sum_{j in forget batch} exp( c_j / tau ) ]
           c: 1 - cosine of an example's embedding, now and by the trained model

Minimising L_UE makes retained embeddings fit and forgotten ones stop fitting; each of its terms lies in [1, e), and for
large q its gradient vanishes as 1 / q^2. Minimising L_RA pulls retained embeddings back to where they were and pushes
forgotten ones away; the temperature stands in the denominator alone, as in the published code. At the trained model c
is 0 and L_RA = -B_r log B_f. They are stepped in turn by two optimisers, never added up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bounded_score(errors: Tensor) -> Tensor:
    """S of squared errors (B,), >= 0: a scalar in [B, e B), higher = fits worse.

    >>> float(bounded_score(torch.zeros(4)))
    4.0
    """
    return torch.exp(errors / (errors + 1)).sum()


def extractor_unlearning_loss(retain_errors: Tensor, forget_errors: Tensor) -> Tensor:
    """L_UE of squared errors (B_r,) and (B_f,): a scalar in (B_r - e B_f, e B_r - B_f)."""
    return bounded_score(retain_errors) - bounded_score(forget_errors)


def cosine_distance(now: Tensor, before: Tensor) -> Tensor:
    """c of embeddings (B, d) and those of the trained model: (B,) in [0, 2], 0 where they point the same way."""
    return 1 - F.cosine_similarity(now, before, dim=1)


def representation_alignment_loss(retain_distances: Tensor, forget_distances: Tensor, *, temperature: float) -> Tensor:
    """L_RA of cosine distances (B_r,) and (B_f,): a scalar.

    >>> round(float(representation_alignment_loss(torch.zeros(32), torch.zeros(32), temperature=20.0)), 1)
    -110.9
    """
    return retain_distances.sum() - len(retain_distances) * torch.logsumexp(forget_distances / temperature, dim=0)
