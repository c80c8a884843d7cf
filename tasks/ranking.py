"""Ranking: which item a user met; an example is one interaction.

    z_uk              score of item k for user u, model(u) -> (K,)
    C_ui              {i} and the items that u met in *no* split: the same for every model
    loss              -log softmax_{C_ui}(z_u)_i  (nats)
    signal            log-odds of i in that softmax
    log_likelihood    -loss
    quality           1 where i is among the TOP best of C_ui (ties to the lower index of an item)

The items that a model did not see of the user in training must not be told from those that nobody saw: if they were
left in, a model trained without i would have i's fellow members above it, and exclusion itself would leak membership.
``losses`` is the same cross-entropy, with gradient; the recipe's own (BPR or BCE against sampled items) trains.

Source: the candidates after Krichene and Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020 (no sampling).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from contracts.errors import NotApplicable
from contracts.methods import EVERY_TASK, TaskSpec, task
from tasks.base import Batch, Constants, Examples, Reading, Task, answers
from tasks.classification import check_labels, check_names
from tasks.signals import log_odds, loss_from_log_odds

if TYPE_CHECKING:
    from torch import Tensor, nn

TOP = 10


@task(
    TaskSpec(
        name="ranking",
        doc="Which item a user met.",
        source="Krichene & Rendle, KDD 2020 (no sampled candidates)",
        gives=(*EVERY_TASK, "interactions"),
        quality=f"share in the top {TOP}",
        loss="cross-entropy among the items not met (nats)",
    )
)
class Ranking(Task):
    """See the file."""

    repeatable: ClassVar[bool] = False

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy (B,) of the item among the user's candidates."""
        import torch
        from torch.nn import functional as F

        scores = answers(model, batch)
        met = torch.from_numpy(self._others(batch)).to(scores.device)
        return F.cross_entropy(scores.masked_fill(met, -torch.inf), batch.targets, reduction="none")

    def read(self, model: nn.Module, batch: Batch) -> Reading:
        """See the file; (B, 4)."""
        import torch

        with torch.no_grad():
            scores = answers(model, batch).double().cpu().numpy()
        items = batch.targets.cpu().numpy()
        np.putmask(scores, self._others(batch), -np.inf)
        own = scores[np.arange(len(items)), items]
        before = (scores == own[:, None]) & (np.arange(scores.shape[1]) < items[:, None])
        rank = (scores > own[:, None]).sum(1) + before.sum(1)
        with np.errstate(invalid="ignore"):
            phi = log_odds(scores, items)
        phi[np.isneginf(scores).sum(1) == scores.shape[1] - 1] = 0.0  # nothing to be told from: no model says anything
        loss = loss_from_log_odds(phi)
        return Reading.of(loss=loss, signal=phi, log_likelihood=-loss, quality=rank < TOP)

    def _others(self, batch: Batch) -> NDArray[np.bool_]:
        """(B, K) items that the user met, the example's own left out: they are no candidates."""
        start, items = batch.constants["start"], batch.constants["items"]
        users = batch.inputs.reshape(-1).cpu().numpy()
        counts = start[users + 1] - start[users]
        row = np.repeat(np.arange(len(users)), counts)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        out = np.zeros((len(users), int(batch.constants["num_items"])), bool)
        out[row, items[np.repeat(start[users], counts) + place]] = True
        out[np.arange(len(users)), batch.targets.cpu().numpy()] = False
        return out

    def of_signal(self, signal: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cross-entropy and log-softmax of log-odds."""
        loss = loss_from_log_odds(signal)
        return loss, -loss

    def wrong_targets(self, data: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
        """An item that the user of each row met in no split, drawn uniformly; none twice for one user."""
        users, num = np.asarray(data.x)[:, 0], len(data.class_names)
        taken = set((users * num + data.y).tolist())
        found = np.empty(len(rows), np.int64)
        for at, user in enumerate(users[rows].tolist()):
            free = [item for item in range(num) if user * num + item not in taken]
            if not free:
                raise NotApplicable(f"user {user} of {data.name} met every item: there is no wrong one")
            found[at] = free[int(rng.integers(len(free)))]
            taken.add(user * num + int(found[at]))
        return found

    def check_targets(self, data: Examples) -> None:
        check_labels(data)

    def check(self, data: Examples) -> None:
        """Users and items in range, no pair twice."""
        check_names(data, "item", self.name)
        check_labels(data)
        users, num = np.asarray(data.x)[:, 0], int(data.provenance.get("num_users", 0))
        bad = (users < 0) | (users >= num)
        if bad.any():
            raise data.refusal(f"user {users[bad][0]} is outside 0..{num - 1} (provenance['num_users'])", bad)
        pair = users * len(data.class_names) + data.y
        _, first = np.unique(pair, return_index=True)
        if len(first) != len(pair):
            again = np.delete(np.arange(len(pair)), first)
            raise data.refusal(f"{len(again)} interactions repeat a pair of user and item", again)

    def describe(self, data: Examples) -> str:
        return f"{int(data.provenance.get('num_users', 0))} users, {len(data.class_names)} items"

    def strata(self, x: Any, y: NDArray[Any], example_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """The users: every one keeps an interaction for training."""
        return np.asarray(x)[:, 0].astype(np.int64)

    def constants(self, data: Examples) -> Constants:
        """Items that each user met in any split: ``items[start[u]:start[u + 1]]``."""
        users, num = np.asarray(data.x)[:, 0], int(data.provenance.get("num_users", 0))
        order = np.argsort(users, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num))]).astype(np.int64)
        return {"start": start, "items": data.y[order], "num_items": np.int64(len(data.class_names))}  # type: ignore[dict-item]

    def constant_quality(self, data: Examples) -> float:
        """Of ranking the items for everybody by how often they are met in ``data``."""
        import torch

        users, items = (torch.from_numpy(np.ascontiguousarray(v)) for v in (np.asarray(data.x), data.y))
        often = torch.bincount(items, minlength=len(data.class_names)).double()
        batch = Batch(users, items, torch.from_numpy(data.example_id), data.constants)
        return float(self.read(lambda users: often.expand(len(users), -1), batch).quality.mean())  # type: ignore[arg-type]

    def shown(self, data: Examples) -> dict[str, NDArray[Any]]:
        return {"label": data.y, "label_name": np.asarray(data.class_names)[data.y]}
