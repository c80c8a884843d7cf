"""Memory and speed of the influence matrix of 60,000 x 10,000, made a block at a time.

    python -m benchmarks.influence [--train 60000] [--test 10000] [--models 200] [--seed 0] [--json]

Random runs, each on 70% of the training examples, with planted influence of one training example on each of the first
100 test examples. In child processes of their own, so that each peak is its own:
- the whole matrix, every entry of every block read: peak resident memory, which must stay below 2 GiB (the matrix alone
  is 2.4 GB in single precision, 4.8 GB in double);
- the pairs after the false-discovery cut, with all training examples in the family: peak resident memory, the planted
  pairs that were found, and how many others.

Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks._common import Row, in_child, options, report
from scoring.influence import high_influence_pairs, influence_matrix

PEAK_BOUND_GIB, FOUND_BOUND, FALSE_BOUND, PLANTED = 2.0, 0.95, 0.1, 100


def runs(train: int, test: int, models: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(keep (M, N), correct (M, P), planted (100,)): the test example j < 100 is right exactly where planted[j] was
    trained on, up to one model in twenty."""
    rng = np.random.default_rng(seed)
    keep = np.empty((models, train), bool)
    for row in keep:
        row[:] = rng.random(train, dtype=np.float32) < 0.7
    correct = rng.random((models, test)) < rng.uniform(0.3, 1.0, test)
    planted = rng.choice(train, PLANTED, replace=False)
    correct[:, :PLANTED] = keep[:, planted] ^ (rng.random((models, PLANTED)) < 0.05)
    return keep, correct, planted


def whole(train: int, test: int, models: int, seed: int) -> dict[str, float]:
    keep, correct, _ = runs(train, test, models, seed)
    start, total, read = time.perf_counter(), 0.0, 0
    for part in influence_matrix(keep, correct):
        infl = part.infl
        total += float(infl.sum())
        read += infl.size
    assert np.isfinite(total) and read == train * test
    return {"peak_gib": peak_gib(), "wall_s": time.perf_counter() - start}


def pairs(train: int, test: int, models: int, seed: int) -> dict[str, float]:
    keep, correct, planted = runs(train, test, models, seed)
    start = time.perf_counter()
    found = high_influence_pairs(keep, correct, np.ones(train))
    true = found.test < PLANTED
    true[true] = found.train[true] == planted[found.test[true]]
    return {
        "peak_gib": peak_gib(),
        "wall_s": time.perf_counter() - start,
        "over": found.num_over,
        "found": float(true.sum() / PLANTED),
        "false": float((~true).sum() / max(1, len(true))),
    }


def peak_gib() -> float:
    """Peak resident memory of this process, imports included (kibibytes on Linux, bytes on macOS)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def rows(o: argparse.Namespace) -> Iterator[Row]:
    matrix = in_child(whole, o.train, o.test, o.models, o.seed)
    size = f"{o.train:,} x {o.test:,}"
    yield Row(size, "whole matrix in blocks: peak memory, GiB", matrix["peak_gib"], PEAK_BOUND_GIB)
    cut = in_child(pairs, o.train, o.test, o.models, o.seed)
    yield Row(size, "pairs after the cut: peak memory, GiB", cut["peak_gib"], PEAK_BOUND_GIB)
    yield Row(size, "planted pairs found", cut["found"], FOUND_BOUND, ">=")
    yield Row(size, "false pairs among those kept", cut["false"], FALSE_BOUND)
    if not o.json:
        print(
            f"     matrix {matrix['wall_s']:.0f} s, pairs {cut['wall_s']:.0f} s; {cut['over']:.0f} pairs had infl >= "
            "0.15 by chance"
        )


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=200)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
