"""Labels out of a shared gradient: the output layer of softmax cross-entropy gives them away, dropout or not.

    g_b[c] = mean_b (softmax_c(z_b) - 1[c = y_b])         g_W[c] = mean_b (softmax_c(z_b) - 1[c = y_b]) h_b

    bias      B = 1    y = argmin_c g_b[c], the only negative entry, whatever the activation
    row_sum   B = 1    iDLG: y = argmin_c sum_j g_W[c, j], the only negative row when the layer's inputs are positive
    analytic  B >= 1   distinct labels: every class with g_b[c] < 0
    counting  B >= 1   m = (sum of negative g_b) / B; every class with g_b[c] < 0 once, m subtracted from its entry;
              then B times
                       at most: the argmin class, m subtracted

Shapes: R independent clients at once, g_b (R, K), g_W (R, K, d) -> (R, B) int64, ascending; -1 where no label was
    found.
Larger batches hide classes whose predicted mass outweighs their count: ``counting`` is a heuristic, ``analytic`` misses
them.

Source: iDLG (Zhao, Mopuri, Bilen 2020, arXiv 2001.02610); Yin et al. (CVPR 2021); the label strategies of
    ``breaching``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.objective import Update
from contracts.errors import InvalidInput, NotApplicable
from explain.embeddings import last_linear

Strategy = Literal["bias", "row_sum", "analytic", "counting"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


def recover_labels(
    weight_grad: Tensor | None, bias_grad: Tensor | None, *, batch: int = 1, strategy: Strategy | None = None
) -> Tensor:
    """Labels of R clients from the gradients of their output layers.

    Args:
        weight_grad: (R, K, d), for ``row_sum``.
        bias_grad: (R, K), for the others.
        batch: examples B behind each gradient, known to the server.
        strategy: None takes ``counting`` for B > 1, else ``bias``, or ``row_sum`` when there is no bias.

    Returns:
        int64 (R, B), each row ascending with -1 (not recovered) first.

    Raises:
        InvalidInput: an unknown strategy, or batch < 1.
        NotApplicable: the strategy needs a gradient that the layer does not have, or B = 1.

    >>> recover_labels(None, torch.tensor([[0.2, -0.9, 0.7]])).tolist()
    [[1]]
    """
    if batch < 1:
        raise InvalidInput(f"batch = {batch} is outside its allowed range: >= 1")
    if strategy is None:
        strategy = "counting" if batch > 1 else "row_sum" if bias_grad is None else "bias"
    if strategy not in STRATEGIES:
        raise InvalidInput(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if strategy in ("bias", "row_sum") and batch != 1:
        raise NotApplicable(f"{strategy!r} reads one label off the gradient of one example; batch = {batch}")
    if strategy == "row_sum":
        if weight_grad is None:
            raise NotApplicable("'row_sum' needs the gradient of the output layer's weight")
        return weight_grad.sum(dim=2).argmin(dim=1, keepdim=True)
    if bias_grad is None:
        raise NotApplicable(f"{strategy!r} needs an output layer with a bias")
    if strategy == "bias":
        return bias_grad.argmin(dim=1, keepdim=True)
    counts = (bias_grad < 0).to(torch.int64)
    if strategy == "analytic":
        return _listed(counts, bias_grad, batch)
    step = bias_grad.clamp_max(0).sum(dim=1, keepdim=True) / batch
    left = bias_grad - counts * step
    for _ in range(batch):
        missing = counts.sum(dim=1) < batch
        best = torch.nn.functional.one_hot(left.argmin(dim=1), left.shape[1]) * missing[:, None]
        counts, left = counts + best, left - best * step
    return _listed(counts, bias_grad, batch)


def _listed(counts: Tensor, bias_grad: Tensor, batch: int) -> Tensor:
    """(R, K) counts as (R, B) labels; where there are more than B the most negative classes win, free slots are -1."""
    classes = counts.shape[1]
    rank = bias_grad.argsort(dim=1).argsort(dim=1)
    before = torch.where(rank[:, None, :] < rank[:, :, None], counts[:, None, :], 0).sum(dim=2)
    counts = torch.minimum(counts, (batch - before).clamp_min(0))
    out = []
    for row in counts:  # ragged: as many copies of each class as were counted
        found = torch.repeat_interleave(torch.arange(classes, device=row.device), row)
        out.append(torch.cat([found.new_full((batch - len(found),), -1), found]))
    return torch.stack(out)


def output_gradients(net: Instrumented, update: Update) -> tuple[Tensor | None, Tensor | None]:
    """Weight (R, K, d) and bias (R, K) of the output layer as gradients, None where it has none that is trained.

    Of a federated update it is minus the change: its sign is that of the local gradients' sum.

    Raises:
        NotApplicable: the model has no linear output layer.
    """
    name, _ = last_linear(net.model)
    sign = -1 if update.local.steps else 1
    weight, bias = (update.tensors.get(f"{name}.{part}" if name else part) for part in ("weight", "bias"))
    return None if weight is None else sign * weight, None if bias is None else sign * bias


def right_labels(recovered: Tensor, truth: Tensor) -> Tensor:
    """Which of the true labels (R, B) are among the recovered (R, B), each copy counted once: bool (R, B).

    >>> right_labels(torch.tensor([[1, 2]]), torch.tensor([[2, 2]])).tolist()
    [[True, False]]
    """
    earlier = torch.ones(truth.shape[1], truth.shape[1], device=truth.device).tril(-1).bool()
    nth = ((truth[:, :, None] == truth[:, None, :]) & earlier).sum(dim=2)
    available = (truth[:, :, None] == recovered[:, None, :]).sum(dim=2)
    return nth < available
