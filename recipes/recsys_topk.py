"""Recall@K and NDCG@K over the full ranking, items the user already has taken out.

    Recall@K = mean_u |top-K(u) & test(u)| / |test(u)|
    NDCG@K   = mean_u sum_{r <= K, hit} 1/log2(r + 1)  /  ideal(u)
    ideal    = sum_{r = 1..min(K, |test(u)|)} 1/log2(r + 1)       "truncated": a perfect ranking has NDCG 1 (Jarvelin &
             Kekalainen 2002) = sum_{r = 1..|test(u)|}         1/log2(r + 1)       "full": the authors' code of PLD;
                                                               lower, never 1 when |test| > K

Means are over the users with a test item. Known items never appear, also when fewer than K others are left. Figures of
the two ideals must not be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contracts.errors import ConfigError, DataError
from recipes.predict import eval_mode
from recipes.recsys_lists import Lists


def top_items(model: nn.Module, users: Tensor, known: Lists, *, num: int) -> Tensor:
    """The best ``num`` items of each user that are not known: int64 (B, num), best first, -1 where none is left.

    Raises:
        DataError: scores that are not finite.
    """
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad():
        scores = model(users.to(device)).cpu()
    if not bool(scores.isfinite().all()):
        raise DataError(f"the model's scores of {int((~scores.isfinite()).any(1).sum())} users are not finite")
    counts = known.count[users]
    row = torch.repeat_interleave(torch.arange(len(users)), counts)
    offset = torch.arange(len(row)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    scores[row, known.items[known.start[users][row] + offset]] = -torch.inf
    found = torch.full((len(users), num), -1)
    best, items = scores.topk(min(num, scores.shape[1]), dim=1)
    found[:, : items.shape[1]] = torch.where(best == -torch.inf, -1, items)
    return found


def evaluate_topk(
    model: nn.Module,
    *,
    known: Lists,
    test: Lists,
    ks: Sequence[int] = (20, 50),
    ideal: str = "truncated",
    batch: int = 512,
) -> dict[str, float]:
    """``{"recall20": .., "ndcg20": .., ...}``, each in [0, 1], higher = better.

    Args:
        model: ranks items for users.
        known: interactions whose items are taken out of the ranking.
        test: what should be found.
        ks: cut-offs.
        ideal: see the head of this file.
        batch: users at a time; bounds memory, changes nothing else.

    Raises:
        ConfigError: an unknown ideal or a cut-off below 1.
        DataError: no test interaction; scores that are not finite.
    """
    if ideal not in ("truncated", "full") or not ks or min(ks) < 1:
        raise ConfigError(f"evaluate_topk: ideal = {ideal!r} is 'truncated' or 'full', ks = {tuple(ks)} are >= 1")
    everyone = torch.nonzero(test.count > 0).flatten()
    if not len(everyone):
        raise DataError("there is no test interaction to find")
    most = max(ks)
    gain = 1.0 / torch.log2(torch.arange(2, max(most, int(test.count.max())) + 2, dtype=torch.float64))
    ideal_gain = torch.cat([torch.zeros(1, dtype=torch.float64), gain.cumsum(0)])
    totals = {f"{metric}{k}": 0.0 for k in ks for metric in ("recall", "ndcg")}
    for users in everyone.split(batch):
        items = top_items(model, users, known, num=most)
        hits = (test.contains(users[:, None], items.clamp(min=0)) & (items >= 0)).double()
        wanted = test.count[users]
        for k in ks:
            best = wanted.clamp(max=k) if ideal == "truncated" else wanted
            totals[f"recall{k}"] += float((hits[:, :k].sum(1) / wanted).sum())
            totals[f"ndcg{k}"] += float((hits[:, :k] @ gain[:k] / ideal_gain[best]).sum())
    return {name: total / len(everyone) for name, total in totals.items()}
