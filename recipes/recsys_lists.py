"""Each user's items, and what is drawn from them: users, positives, pools of positives, negatives. All at once, no
loops over users.

The interactions are put in the order of (user, item), so that what is drawn depends on the seed and not on the order of
the rows. n_u items of user u lie at positions start_u .. start_u + n_u - 1; "position" below is an index into this
order.

- pool of k positions of u without replacement, each k-subset equally likely (Floyd's method: Bentley & Floyd, CACM 30
  (1987), k draws for the whole batch, no permutation of the list); with replacement when n_u < k;
- negative of u, uniform over the K - n_u items outside the list, without rejection: with the list a_0 < a_1 < ..., the
  r-th missing item is r + #{j : a_j - j <= r}, one binary search for the whole batch.

Draws are made on the CPU, so that they are the same for every device.
"""

from __future__ import annotations

from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from contracts.errors import DataError
from sources.example_set import ExampleSet
from tasks.base import require


class Lists:
    """Items by user.

    Args:
        users, items: int64 (N,), pairs may repeat nowhere.
        num_users, num_items: U and K.

    Attributes:
        order: int64 (N,), the given row at each position.
        users, items: int64 (N,) by position; items ascend within a user.
        start, count: int64 (U,).
        active: int64 (A,), users with an item and an item left that is not theirs.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, *, num_users: int, num_items: int) -> None:
        pair = users * num_items + items
        self.order = np.argsort(pair, kind="stable")
        self.num_users, self.num_items = num_users, num_items
        self.users, self.items = torch.from_numpy(users[self.order]), torch.from_numpy(items[self.order])
        self.count = torch.bincount(self.users, minlength=num_users)
        self.start = self.count.cumsum(0) - self.count
        place = torch.arange(len(users)) - self.start[self.users]
        self._gaps = self.users * num_items + self.items - place
        self._pairs = torch.from_numpy(pair[self.order])
        self.active = torch.nonzero((self.count > 0) & (self.count < num_items)).flatten()

    @classmethod
    def of(cls, data: ExampleSet) -> Self:
        """The lists of a ranking set.

        Raises:
            NotApplicable: another task.
            DataError: no interactions, users or items out of range, a pair twice. Names the examples.
        """
        require(data, "the lists of items", "interactions")
        if not len(data):
            raise DataError(f"{data.name}: there is no interaction to learn from")
        users = np.asarray(data.x)[:, 0]
        for what, index, num in (("user", users, data.num_users), ("item", data.y, data.num_classes)):
            bad = (index < 0) | (index >= num)
            if bad.any():
                raise DataError(f"{data.name}: {what} outside 0..{num - 1}", example_ids=data.example_id[bad])
        lists = cls(users, data.y, num_users=data.num_users, num_items=data.num_classes)
        again = np.flatnonzero(np.diff(lists._pairs.numpy()) == 0) + 1
        if len(again):
            raise DataError(
                f"{data.name}: {len(again)} interactions repeat a pair: a pool would favour it; deduplicate first",
                example_ids=data.example_id[lists.order[again]],
            )
        return lists

    def __len__(self) -> int:
        return len(self.items)

    def draw_users(self, num: int, *, generator: torch.Generator) -> Tensor:
        """Active users, uniform with replacement: int64 (num,)."""
        return self.active[torch.randint(len(self.active), (num,), generator=generator)]

    def draw_positives(self, users: Tensor, *, generator: torch.Generator) -> Tensor:
        """One position of each user, uniform: int64 (B,)."""
        return self.start[users] + _below(self.count[users], generator=generator)

    def draw_pools(self, users: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
        """``size`` positions of each user, each column a pool: int64 (size, B); see the head of this file."""
        count = self.count[users]
        enough = count >= size
        last = torch.where(enough, torch.arange(size)[:, None] + (count - size), count - 1)
        chosen = _below(last + 1, generator=generator)
        for step in range(1, size):
            met = (chosen[:step] == chosen[step]).any(0) & enough
            chosen[step] = torch.where(met, last[step], chosen[step])
        return chosen + self.start[users]

    def draw_negatives(self, users: Tensor, *, generator: torch.Generator) -> Tensor:
        """One item outside each user's list: int64 (B,). Users must be active."""
        rank = _below(self.num_items - self.count[users], generator=generator)
        before = torch.searchsorted(self._gaps, users * self.num_items + rank, right=True)
        return rank + before - self.start[users]

    def contains(self, users: Tensor, items: Tensor) -> Tensor:
        """bool, of any shape: is the pair in the lists. Looked up where a bit for every pair there can be is no larger
        than the lists, else one binary search a pair: the lists are in order."""
        pair = users * self.num_items + items
        if not len(self._pairs):
            return torch.zeros(pair.shape, dtype=torch.bool)
        if self._bits is not None:
            return (self._bits[pair >> 3] >> (pair & 7).to(torch.uint8)).bitwise_and_(1).bool()
        at = torch.searchsorted(self._pairs, pair).clamp_max(len(self._pairs) - 1)
        return self._pairs[at] == pair

    @cached_property
    def _bits(self) -> Tensor | None:
        """uint8, bit ``pair & 7`` of byte ``pair >> 3`` for every pair in the lists; None where the pairs themselves
        take less."""
        cells, pairs = self.num_users * self.num_items, self._pairs.numpy()
        if cells > 8 * pairs.nbytes:
            return None
        of = pairs >> 3
        first = np.flatnonzero(np.diff(of, prepend=-1))
        bits = np.zeros((cells + 7) // 8, np.uint8)
        bits[of[first]] = np.bitwise_or.reduceat((1 << (pairs & 7)).astype(np.uint8), first)
        return torch.from_numpy(bits)


def _below(bound: Tensor, *, generator: torch.Generator) -> Tensor:
    """Uniform whole numbers in [0, bound), elementwise. float64: unbiased to 2^-53 * bound."""
    drawn = torch.rand(bound.shape, dtype=torch.float64, generator=generator)
    return torch.minimum((drawn * bound).long(), bound - 1)
