"""Protecting images by class filters, against one image after the other. Run: python -m benchmarks.class_filters

50,000 images of 3 x 32 x 32 in float32, 10 classes, k = 3. The peer is written the way such a script is: for every
image a convolution with the filter of its class, divided by its maximum, clipped; more threads are of no use to it.
Pairs of CPU times of the main thread, turn by turn in one process; the peer does a share of the images and its time is
scaled. Exit status 1 when the batched form is less than 20 times as fast (on two threads; 15 to 16 on one), or a value
differs by more than one grey level. The physical limit beside it is the bare sum of nine scaled copies of the same
numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._common import Row, options, paired_ratio, report
from explain.class_filters import ClassFilters

LIMIT, GREY, LOWEST = 1 / 20, 1 / 255, 8.0


def one_by_one(x: Tensor, y: Tensor, filters: ClassFilters) -> Tensor:
    """The peer."""
    out = []
    for image, label in zip(x, y, strict=True):
        conv = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        conv.weight = nn.Parameter(filters.weights[int(label)].expand(3, 1, 3, 3).contiguous())
        with torch.no_grad():
            z = conv(image[None])[0]
        array = z.numpy()
        out.append(torch.from_numpy(np.clip(array / array.max(), 0, 1)))
    return torch.stack(out)


def rows(o: argparse.Namespace) -> Iterator[Row]:
    rng = np.random.default_rng(o.seed)
    x = torch.from_numpy(rng.random((o.num, 3, 32, 32), np.float32))
    y = torch.from_numpy(rng.integers(0, 10, o.num))
    filters = ClassFilters.drawn(10, size=3, blur=0.3, rng=rng)
    share = max(o.num // 20, 1)
    apart = float((filters(x[:share], y[:share])[0] - one_by_one(x[:share], y[:share], filters)).abs().max())
    yield Row(f"{share} images", "largest difference / one grey level", apart / GREY, 1.0)
    ratio = paired_ratio(
        lambda: filters(x, y), lambda: one_by_one(x[:share], y[:share], filters), repeats=o.repeats
    ) * (share / o.num)
    yield Row(f"{o.num} images", "batched / one by one", ratio, LIMIT)
    copies, buffer = x[:share].clone(), torch.empty_like(x[:share])

    def bare() -> None:
        buffer.zero_()
        for k in range(9):
            buffer.add_(copies, alpha=0.1 * k)

    limit = paired_ratio(lambda: filters(x[:share], y[:share]), bare, repeats=o.repeats)
    yield Row(f"{share} images", "batched / nine scaled copies", limit, LOWEST)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
