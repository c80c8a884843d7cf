"""Asking whether pairs of user and item are in the lists, as the ranking metrics do, beside ``torch.isin``.

    python -m benchmarks.lists [--repeats 7] [--seed 0] [--json]

512 users in a row and 50 items of each, what ``evaluate_topk`` asks at a time. ``torch.isin`` sorts all interactions at
every call. Dense lists are looked up in one bit a pair, sparse ones are searched; both answers are compared with isin's
first. CPU time of one thread. Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks._common import Row, options, paired_ratio, report
from recipes.recsys_lists import Lists

ASKED, ITEMS, CALLS = 512, 50, 20
CASES = (  # users, items, interactions, times faster at least
    (20_000, 1_000, 1_000_000, 90.0),
    (100_000, 50_000, 2_000_000, 90.0),
)


def times_faster(num_users: int, num_items: int, num: int, o: argparse.Namespace) -> float:
    rng = np.random.default_rng(o.seed)
    pair = np.unique(rng.integers(0, num_users * num_items, num))
    lists = Lists(pair // num_items, pair % num_items, num_users=num_users, num_items=num_items)
    every = torch.from_numpy(pair)
    users = torch.arange(num_users // 2, num_users // 2 + ASKED)[:, None]
    items = torch.from_numpy(np.stack([rng.permutation(num_items)[:ITEMS] for _ in range(ASKED)]))

    def isin() -> torch.Tensor:
        return torch.isin(users * num_items + items, every)

    def ours() -> None:
        for _ in range(CALLS):
            lists.contains(users, items)

    found = lists.contains(users, items)
    if not torch.equal(found, isin()) or not found.any():
        raise ArithmeticError("the lists and torch.isin do not agree")
    return CALLS * paired_ratio(isin, ours, repeats=o.repeats)


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for num_users, num_items, num, bound in CASES:
        case = f"{num_users:,} x {num_items:,}"
        yield Row(case, f"{num:,} interactions: isin / ours", times_faster(num_users, num_items, num, o), bound, ">=")


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
