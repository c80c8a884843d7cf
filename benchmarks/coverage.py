"""Choosing 10,000 of 60,000 examples by facility location, against its similarities. Run: python -m benchmarks.coverage

Ten classes of 6,000 examples each, 1,000 of every class, features of 64 numbers around 30 centres a class. The plain
side is the similarity product of the same classes alone: all pairs' distances, turned over. Pairs of CPU times of the
main thread, turn by turn in one process. Exit status 1 when choosing takes more than 3 times as long as the
similarities that it has to have, or when it is not what the plain greedy rule chooses on a part of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np

from benchmarks._common import Row, options, paired_ratio, report
from curation.coverage.facility_location import greedy, similarities

CLASSES, EACH, KEPT, DIM, CENTRES, LIMIT = 10, 6_000, 1_000, 64, 30, 3.0


def plain(features: np.ndarray, num: int) -> list[int]:
    """The greedy rule, every gain anew."""
    near, best, chosen = similarities(features), np.zeros(len(features), np.float32), []
    for _ in range(num):
        gain = np.maximum(near - best, 0).sum(1, dtype=np.float64)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, near[chosen[-1]])
    return chosen


def rows(o: argparse.Namespace) -> Iterator[Row]:
    rng = np.random.default_rng(o.seed)
    centres = rng.normal(size=(CENTRES, DIM))
    drawn = [centres[rng.integers(0, CENTRES, EACH)] + 0.5 * rng.normal(size=(EACH, DIM)) for _ in range(CLASSES)]
    classes = [features.astype(np.float32) for features in drawn]
    part = classes[0][:1000]
    yield Row(
        "1,000 examples", "choices unlike the plain greedy", sum(np.not_equal(greedy(part, 50), plain(part, 50))), 0
    )
    ratio = paired_ratio(
        lambda: [greedy(features, KEPT) for features in classes],
        lambda: [similarities(features) for features in classes],
        repeats=o.repeats,
    )
    yield Row(f"{CLASSES * KEPT:,} of {CLASSES * EACH:,}", "facility location / similarities", ratio, LIMIT)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
