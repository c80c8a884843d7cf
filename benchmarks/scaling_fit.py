"""Fit of four quality pools: the whole grid and its refinement against a plain exhaustive search.

    python -m benchmarks.scaling_fit [--repeats 3] [--json]

One thread, learning curves of five points with noise, a and d shared by the pools:
- CPU-time ratio of a nested loop over (a, d, pool, b, tau, point), one call of the law each, as published scripts do
  it, to our fit of the same curves on the same grid INCLUDING the refinement, which the loop lacks; the two turn by
  turn. The grid of this comparison is a fifth of the published one in b and in tau, so that the loop ends within
  seconds; on the whole grid the ratio is higher. Both must end on the same grid point when ours is not refined.
- CPU seconds of our fit on the whole published grid (7 a x 10 d x 100 b x 100 tau), refined; and with 200 bootstrap
  refits.

Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

import numpy as np

from benchmarks._common import Row, options, report, timed
from studies.scaling_fit import OFFICIAL_GRID, Grid, PoolCurve, fit_pool_laws
from studies.scaling_laws import PoolLaw

SIZE = 12_800_000
LAWS = ((-0.18, 3.0), (-0.155, 3.5), (-0.14, 4.5), (-0.125, 5.0))
RATIO_BOUND, SECONDS_BOUND, BOOTSTRAP_BOUND = 20.0, 0.5, 2.0


def make_curves(seed: int) -> list[PoolCurve]:
    rng = np.random.default_rng(seed)
    n = SIZE * np.arange(2.0, 11.0, 2.0)
    return [
        PoolCurve(
            f"pool {i}",
            SIZE,
            n,
            PoolLaw(a=0.022, b=b, tau=t, d=0.1).error(n, pool_size=SIZE) + rng.normal(size=5) * 0.002,
        )
        for i, (b, t) in enumerate(LAWS)
    ]


def law(n: float, a: float, b: float, tau: float, d: float) -> float:
    """One value of the law, with arrays over the passes."""
    k = np.arange(int(np.ceil(n / SIZE)))
    seen = a * np.minimum(SIZE * (k + 1), n) / 1e5
    exponent = b * 0.5 ** (k / tau)
    return float(seen[0] ** exponent[0] * ((seen[1:] / seen[:-1]) ** exponent[1:]).prod() + d)


def exhaustive(curves: list[PoolCurve], grid: Grid) -> tuple[float, list[tuple[float, float, float, float]]]:
    """Least total squared error and its (a, b, tau, d) for each pool, point by point."""
    best: tuple[float, list[tuple[float, float, float, float]]] = (np.inf, [])
    for a in grid.a:
        for d in grid.d:
            total, chosen = 0.0, []
            for curve in curves:
                least, at = np.inf, (a, 0.0, 0.0, d)
                for b in grid.b:
                    for tau in grid.tau:
                        loss = 0.0
                        for n, error in zip(curve.samples_seen, curve.mean, strict=True):
                            loss += (law(n, a, b, tau, d) - error) ** 2
                        if loss < least:
                            least, at = loss, (a, b, tau, d)
                total += least
                chosen.append(at)
            if total < best[0]:
                best = (total, chosen)
    return best


def rows(o: argparse.Namespace) -> Iterator[Row]:
    curves = make_curves(o.seed)
    small = Grid(a=OFFICIAL_GRID.a, d=OFFICIAL_GRID.d, b=OFFICIAL_GRID.b[::5], tau=OFFICIAL_GRID.tau[::5])
    fit_pool_laws(curves, grid=small, bootstrap=0)
    ratios, whole, intervals = [], [], []
    for _ in range(o.repeats):
        ours, _ = timed(lambda: fit_pool_laws(curves, grid=small, bootstrap=0))
        plain, slow = timed(lambda: exhaustive(curves, small))
        ratios.append(plain / ours)
        whole.append(timed(lambda: fit_pool_laws(curves, grid=OFFICIAL_GRID, bootstrap=0))[0])
        intervals.append(timed(lambda: fit_pool_laws(curves, grid=OFFICIAL_GRID, bootstrap=200))[0])
    on_grid = fit_pool_laws(curves, grid=small, refine=False, bootstrap=0)
    found = [(law.a, law.b, law.tau, law.d) for law in on_grid.laws]
    apart = float(np.abs(np.array(found) / slow[1] - 1).max())  # type: ignore[index]
    yield Row("4 pools", "plain exhaustive search / ours, refined", statistics.median(ratios), RATIO_BOUND, ">=")
    yield Row("4 pools", "largest relative difference of the grid's best point", apart, 1e-9)
    yield Row("4 pools", "whole published grid, refined, CPU seconds", statistics.median(whole), SECONDS_BOUND)
    yield Row(
        "4 pools", "the same with 200 bootstrap refits, CPU seconds", statistics.median(intervals), BOOTSTRAP_BOUND
    )


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
