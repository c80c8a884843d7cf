"""What personalised denoising costs: an epoch of BPR with PLD against a plain one, in the same run.

    python -m benchmarks.personal_loss [--repeats 15] [--json]

For each size and model, one thread: CPU-time ratio of one denoised epoch to one plain epoch of the same training run,
the two interleaved with the order alternating, median of the paired ratios. The pool's losses are forwards without
gradient, so the bound is 2. The published size has small tables, where drawing weighs most; the large one is bound by
memory.

Exit 1 when the bound is missed. CPU time of the thread, not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks._common import Row, options, report
from recipes.models import build
from recipes.recsys import BprConfig, train_epoch
from recipes.recsys_lists import Lists
from sources.loading import load

BOUND = 2.0
SIZES: dict[str, dict[str, Any]] = {
    "600 x 500": {"num_users": 600, "num_items": 500},
    "10,000 x 4,000": {"num_users": 10_000, "num_items": 4_000},
}
RUNS: tuple[tuple[str, str, dict[str, Any], str, int], ...] = (
    ("600 x 500", "mf", {"dim": 32}, "bpr", 1024),
    ("600 x 500", "mf", {"dim": 64}, "bce", 2048),
    ("600 x 500", "lightgcn", {"dim": 64}, "bpr", 2048),
    ("10,000 x 4,000", "mf", {"dim": 64}, "bpr", 2048),
)


def measure(
    lists: Lists, name: str, fields: dict[str, Any], loss: str, batch: int, *, repeats: int, seed: int
) -> float:
    """Median over repeats of the CPU time of a PLD epoch / that of a plain one. Both train a model of their own."""
    runs = {}
    for denoise in ("none", "pld"):
        model = build(name, fields, input_shape=(lists.num_users,), num_outputs=lists.num_items, seed=seed)
        model.set_graph(lists.users, lists.items)
        config = BprConfig(loss=loss, denoise=denoise, warmup_epochs=0, batch=batch, lr=1e-2)
        runs[denoise] = model, torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True), config
    ratios = []
    for turn in range(repeats + 2):
        spent = {}
        for denoise in ("none", "pld") if turn % 2 else ("pld", "none"):
            model, optimizer, config = runs[denoise]
            start = time.thread_time()
            train_epoch(model, lists, optimizer, config=config, seed=seed, epoch=turn)
            spent[denoise] = time.thread_time() - start
        ratios.append(spent["pld"] / spent["none"])
    return statistics.median(ratios[2:])


def rows(o: argparse.Namespace) -> Iterator[Row]:
    lists = {
        size: Lists.of(load("synthetic_interactions", config, seed=o.seed).part("train"))
        for size, config in SIZES.items()
    }
    for size, name, fields, loss, batch in RUNS:
        repeats = o.repeats if size == "600 x 500" else max(3, o.repeats // 5)
        ratio = measure(lists[size], name, fields, loss, batch, repeats=repeats, seed=o.seed)
        yield Row(f"{size}, {name} {fields['dim']}, {loss}, batch {batch}", "PLD epoch / plain epoch", ratio, BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="pairs of epochs; a fifth of them at the large size")
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
