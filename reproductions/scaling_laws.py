"""Scaling laws for data filtering (Goyal et al., CVPR 2024): recovery, the paper's table, real pools and what decay is
worth.

1. Planted curves: laws on the grid come back exactly; with noise of 0.002 and the shared a and d known, |error of b| <=
   0.01, and the interval of tau is wider where b is small; a law that decays extrapolates better than one fitted
   without.
2. Best number of pools and predicted error at five budgets, and the example in which the authors' code shrinks d.
3. Fashion-MNIST, 4 pools of 10,000 images with 0, 10, 25 and 45% of the labels changed, MLP, plain SGD at a constant
   rate. The laws are fitted on single pools only, to errors on 10,000 images of no pool; predicted are the test errors
   of the unions of the 1 .. 4 best pools at three budgets.
4. Fashion-MNIST, 4 pools of 2,500 images by EL2N: curves of 1 to 32 passes, test error predicted at 48 and 64.

That utility decays by repetition is tested against a law without decay fitted to the same points, not against the same
law with tau = infinity, which is bad by construction. Mean |predicted - measured| over fresh seeds, errors in [0, 1],
one to three trainings a point:

    stream                                    seeds  decay   fitted without  difference (90% interval)   decay better in
    planted curves, at 16 to 40 passes           20  0.002   0.024           +0.022 (0.021 to 0.022)      20
    EL2N pools, 1-32 passes, at 48 and 64        10  0.011   0.025           +0.014 (0.011 to 0.017)      10
    EL2N pools, 1-16 passes, at 24 to 64         10  0.016   0.027           +0.011 (0.007 to 0.014)      10
    EL2N pools, 1-8 passes, at 12 to 64          10  0.032   0.029           -0.003 (-0.007 to 0.001)      3
    changed labels, pools of 1,000, 1-32, same    6  0.050   0.064           +0.014 (0.012 to 0.015)       6
    changed labels, pools of 1,000, 1-8, same     6  0.043   0.039           -0.004 (-0.010 to 0.003)      2
    changed labels, pools of 10,000, unions       7  0.0107  0.0076          -0.003 (-0.006 to 0.000)      2
    digits, pools of 300, 1-32 passes, same       6  0.030   0.031           +0.001 (-0.001 to 0.003)      4

So decay is claimed where pools were seen often enough for it to show (4: the share gained is 0.44 over ten fresh seeds,
standard deviation 0.15, asked for 0.1), and for one pool at a time. It is NOT claimed for unions, which is what the law
is for: on these pools (3) a law without decay predicted them as well or better. Nor from few passes, nor on digits,
where tau is mostly fitted at the end of its range. Over the same ten seeds the laws' own error on unions (3) is 0.022
(0.005), asked for 0.035, and the rank correlation of b and flip rate 0.96 (0.08), asked for 0.79. Ten more seeds, run
after these thresholds were set, all pass: 0.55 (0.18), 0.018 (0.003) and 0.96 (0.08).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from contracts.digests import derive_seed
from contracts.progress import Progress
from recipes.early import early_models
from recipes.fitting import fit
from recipes.inputs import Inputs
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig
from reproductions.framework import Claim, at_least, at_most, reproduction
from scoring.el2n import EL2NConfig, el2n
from sources.example_set import ExampleSet
from sources.loading import load
from sources.pools import cut
from studies.scaling_fit import Grid, PoolCurve, PoolFits, fit_pool_laws, scale_free_grid
from studies.scaling_laws import Compat, Objective, PoolLaw, best_pool, mixture_error

FASHION_MNIST = {"root": "fashion-mnist"}  # where Debian's dataset-fashion-mnist puts it
SIZE_PAPER = 12_800_000
PLANTED = ((-0.18, 3.0), (-0.13, 5.0), (-0.10, 7.0))
TABLE = ((-0.18, 3.0), (-0.155, 3.5), (-0.14, 4.5), (-0.125, 5.0))
FAR = (16.0, 20.0, 40.0)  # passes; the curves end at 10
DRAWS = 40
FLIPPED = (0.0, 0.10, 0.25, 0.45)
SIZE, SEEDS, EPOCHS = 10_000, 3, (1, 2, 4, 8, 16, 32)
ENDLESS = 1e4  # passes: the half-life of a law without decay
PASSES = (12, 24, 48)  # budgets over one pool: whole epochs of every union
LATER, SCORED = (48, 64), 2_500  # passes to predict, examples of a pool by score
SHORT = SupervisedConfig(lr=0.03, momentum=0.0, batch=50, epochs=64, schedule="constant")
SCORING = SupervisedConfig(lr=0.02, momentum=0.9, batch=64, epochs=30, schedule="constant")
RECIPE = SupervisedConfig(lr=0.03, momentum=0.0, batch=100, epochs=48, schedule="constant")
FORMS: tuple[tuple[Objective, Compat], ...] = (
    ("effective_utility", "paper"),
    ("effective_utility", "official"),
    ("effective_data", "paper"),
)


@reproduction(card=29, name="scaling_laws", paper="Goyal et al. 2024")
def scaling_laws(seed: int, progress: Progress) -> list[Claim]:
    fashion = load("idx", FASHION_MNIST, seed=seed)
    real = [*_unions(fashion, seed, progress), *_further(fashion, seed, progress)]
    return [*_recovery(seed), *_decay(seed), *_table(), *real]


# ---- 1: planted curves -------------------------------------------------------------------------------------------


def _curves(laws: Sequence[PoolLaw], noise: float, rng: np.random.Generator) -> list[PoolCurve]:
    n = SIZE_PAPER * np.arange(2.0, 11.0, 2.0)
    return [
        PoolCurve(f"pool {i}", SIZE_PAPER, n, law.error(n, pool_size=SIZE_PAPER) + noise * rng.normal(size=len(n)))
        for i, law in enumerate(laws)
    ]


def _recovery(seed: int) -> list[Claim]:
    rng = np.random.default_rng(derive_seed("planted", seed))
    grid = Grid(a=(0.018, 0.02, 0.022, 0.025), d=(0.06, 0.08, 0.1, 0.12))
    worst = 0.0
    for objective, compat in FORMS:
        laws = [
            PoolLaw(a=0.022, b=grid.b[i], tau=grid.tau[j], d=0.1, objective=objective, compat=compat)
            for i, j in rng.integers((15, 5), (95, 95), (3, 2))  # b of -0.08 and below keeps the errors below 1
        ]
        fits = fit_pool_laws(
            _curves(laws, 0.0, rng), objective=objective, compat=compat, grid=grid, refine=False, bootstrap=0
        )
        for found, law in zip(fits.laws, laws, strict=True):
            worst = max(
                worst, abs(found.b - law.b), abs(found.tau - law.tau), abs(found.a - law.a), abs(found.d - law.d)
            )
    laws = [PoolLaw(a=0.022, b=b, tau=t, d=0.1) for b, t in PLANTED]
    known = Grid(a=(0.022,), d=(0.1,))
    off, width = [], []
    for draw in range(DRAWS):
        fits = fit_pool_laws(_curves(laws, 0.002, rng), grid=known, bootstrap=100, seed=draw).fits
        off.append([abs(f.law.b - law.b) for f, law in zip(fits, laws, strict=True)])
        width.append([math.log(f.tau_hi / f.tau_lo) for f in fits])
    median = np.median(width, axis=0)
    return [
        at_most("1. noise-free laws on the grid: largest difference of a, b, tau, d", worst, 1e-9),
        at_most(
            "1. noise 0.002: |error of b|, 95% of the draws, worst pool",
            float(np.quantile(off, 0.95, axis=0).max()),
            0.01,
        ),
        at_least("1. width of the interval of log tau, b = -0.10 against b = -0.18", float(median[2] / median[0]), 1.2),
    ]


def _without_decay(curves: Sequence[PoolCurve]) -> PoolFits:
    """The law with tau = infinity fitted anew to the same points: the fair rival of the law that decays."""
    return fit_pool_laws(curves, grid=dataclasses.replace(scale_free_grid(curves), tau=(ENDLESS,)), bootstrap=0)


def _decay(seed: int) -> list[Claim]:
    """Planted curves that decay, seen for 2 to 10 passes and predicted at 16 to 40."""
    rng = np.random.default_rng(derive_seed("far", seed))
    laws = [PoolLaw(a=0.022, b=b, tau=t, d=0.1) for b, t in TABLE]

    def far(laws: Sequence[PoolLaw]) -> np.ndarray:
        return np.stack([law.error(SIZE_PAPER * np.array(FAR), pool_size=SIZE_PAPER) for law in laws])

    miss = []
    for _ in range(DRAWS):
        curves = _curves(laws, 0.002, rng)
        both = fit_pool_laws(curves, bootstrap=0), _without_decay(curves)
        miss.append([np.abs(far(fits.laws) - far(laws)).mean() for fits in both])
    decaying, endless = np.mean(miss, axis=0)
    return [
        at_least(
            "1. planted decay: share by which the law's error at 16 to 40 passes is below that of a law fitted without "
            "decay",
            1 - decaying / endless,
            0.8,
        )
    ]


# ---- 2: the table of mixtures ------------------------------------------------------------------------------------


def _table() -> list[Claim]:
    laws = [PoolLaw(a=0.022, b=b, tau=t, d=0.1) for b, t in TABLE]
    plan = best_pool(laws, [32e6, 64e6, 128e6, 640e6, 6.4e9], pool_size=SIZE_PAPER)
    errors = plan.errors.min(1) - np.array([0.8239, 0.7545, 0.7001, 0.6065, 0.5697])
    both = [
        float(PoolLaw(a=0.022, b=-0.131, tau=3.0, d=0.1, compat=c).error(10 * SIZE_PAPER, pool_size=SIZE_PAPER)) - known
        for c, known in (("paper", 0.8469), ("official", 0.8325))
    ]
    return [
        at_least("2. budgets with the right number of pools, of 5", int((plan.num_pools == [2, 2, 3, 4, 4]).sum()), 5),
        at_most("2. largest difference from the table's errors", float(np.abs(errors).max()), 1e-4),
        at_most("2. paper's form and the authors' code, largest difference", float(np.abs(both).max()), 1e-4),
    ]


# ---- 3: Fashion-MNIST --------------------------------------------------------------------------------------------


def _unions(fashion: ExampleSet, seed: int, progress: Progress) -> list[Claim]:
    data, pools = _pools(fashion, seed)
    train, test = data.part("train"), data.part("test")
    rest = train.example_id[~np.isin(train.example_id, np.concatenate(pools))]
    validation = train.subset(np.sort(rest)[:SIZE])  # in no pool; laws and the order of the pools come from it
    build = builder("mlp", {"hidden": (64,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    total, done = 2 * len(pools) * SEEDS, 0

    def measure(ids: Sequence[np.ndarray], epochs: Sequence[int], on: ExampleSet) -> np.ndarray:
        """Error on ``on``, (seeds, epochs); a constant rate makes one run serve all its points."""
        nonlocal done
        members, rows = train.subset(np.sort(np.concatenate(ids))), []
        for r in range(SEEDS):
            rows.append(_one_run(build, members, on, epochs, derive_seed("run", seed, r)))
            done += 1
            progress(done, total, "trainings on pools and unions")
        return np.array(rows)

    seen = SIZE * np.array(EPOCHS, np.float64)
    curves = [
        PoolCurve(f"{100 * f:g}%", SIZE, seen, measure([ids], EPOCHS, validation))
        for f, ids in zip(FLIPPED, pools, strict=True)
    ]
    fits = fit_pool_laws(curves, bootstrap=0)
    if fits.refused:  # a pool that overfits has no law, and its unions no prediction
        return [at_most("3. pools whose curve the law cannot describe", len(fits.refused), 0)]
    order = np.argsort([law.b for law in fits.laws], kind="stable")
    budgets = [float(SIZE * p) for p in PASSES]
    measured = np.stack(
        [
            measure([pools[i] for i in order[:num]], [p // num for p in PASSES], test).mean(0)
            for num in range(1, len(pools) + 1)
        ],
        axis=1,
    )  # (budgets, P)
    predicted = np.stack(
        [
            mixture_error([fits.laws[i] for i in order[:num]], budgets, pool_size=SIZE)
            for num in range(1, len(pools) + 1)
        ],
        axis=1,
    )
    return [
        # Seeds 0, 1, 2 and 101: 1; seeds 3 and 8181: 0.8, which arithmetic in binary makes 0.7999.
        at_least(
            "3. Spearman of b and flip rate, 4 pools (the published order is exact; pools whose b are 0.002 apart may "
            "change places)",
            spearmanr([law.b for law in fits.laws], FLIPPED).statistic,
            0.79,
        ),
        at_least(
            "3. Spearman of predicted and trained error, 12 unions x budgets",
            spearmanr(predicted.ravel(), measured.ravel()).statistic,
            0.7,
        ),
        at_most(
            "3. mean |predicted - trained error|, 12 unions x budgets",
            float(np.abs(predicted - measured).mean()),
            0.035,
        ),
    ]


def _pools(fashion: ExampleSet, seed: int) -> tuple[ExampleSet, list[np.ndarray]]:
    """The data with labels changed, and the ids of each pool."""
    rng = np.random.default_rng(derive_seed("pools", seed))
    pools = list(rng.permutation(fashion.part("train").example_id)[: len(FLIPPED) * SIZE].reshape(len(FLIPPED), SIZE))
    y = fashion.y.copy()
    for ids, share in zip(pools, FLIPPED, strict=True):
        rows = fashion.positions(rng.permutation(ids)[: round(share * SIZE)])
        y[rows] = (y[rows] + rng.integers(1, fashion.num_classes, len(rows))) % fashion.num_classes
    return dataclasses.replace(fashion, y=y), pools


def _one_run(
    build: Callable[[int], nn.Module],
    members: ExampleSet,
    on: ExampleSet,
    epochs: Sequence[int],
    seed: int,
    config: SupervisedConfig = RECIPE,
) -> list[float]:
    errors: list[float] = []
    model = build(seed)

    def after(done: int) -> None:
        if done in epochs:
            errors.append(float((predict_logits(model, on).argmax(1) != on.y).mean()))

    inputs = Inputs(members, dtype=torch.float32, device="cpu")
    fit(model, inputs, np.arange(len(members)), config=config, seed=seed, stop_after=max(epochs), after_epoch=after)
    return errors


# ---- 4: the same law further out, on pools of a real score ---------------------------------------------------------


def _further(fashion: ExampleSet, seed: int, progress: Progress) -> list[Claim]:
    """Pools by EL2N, no label changed: seen for 1 to 32 passes, predicted at 48 and 64."""
    rng = np.random.default_rng(derive_seed("scored pools", seed))
    train = fashion.part("train")
    train = train.subset(np.sort(rng.permutation(train.example_id)[: len(FLIPPED) * SCORED]))
    build = builder("mlp", {"hidden": (64,)}, input_shape=train.input_shape, num_outputs=train.num_classes)
    scorers = [derive_seed("scorer", seed, r) for r in range(3)]
    models = early_models(build, train, recipe="supervised", config=SCORING, seeds=scorers, epoch=3)
    values = el2n(train, config=EL2NConfig(), seed=0, early_models=models).sort("example_id")["el2n"].to_numpy()
    pool = cut(values, train.example_id, train.y, num_pools=len(FLIPPED), fraction=1.0, best="lowest", what="el2n").pool
    test, size, epochs = fashion.part("test"), int((pool == 0).sum()), (*EPOCHS, *LATER)
    curves, later = [], []
    for p in range(len(FLIPPED)):
        members = train.subset(train.example_id[pool == p])
        errors = np.array(
            [_one_run(build, members, test, epochs, derive_seed("run", seed, r), SHORT) for r in range(2)]
        )
        curves.append(PoolCurve(f"pool {p}", size, size * np.array(EPOCHS, np.float64), errors[:, : len(EPOCHS)]))
        later.append(errors[:, len(EPOCHS) :].mean(0))
        progress(p + 1, len(FLIPPED), "pools of a score")
    fits = fit_pool_laws(curves, bootstrap=0), _without_decay(curves)
    if fits[0].refused:
        return [at_most("4. pools whose curve the law cannot describe", len(fits[0].refused), 0)]
    decaying, endless = (
        np.mean(
            [
                np.abs(law.error(size * np.array(LATER, np.float64), pool_size=size) - errors)
                for law, errors in zip(found.laws, later, strict=True)
            ]
        )
        for found in fits
    )
    return [
        at_least(
            "4. share by which the error at 48 and 64 passes is below that of a law fitted without decay, pools by "
            "EL2N",
            1 - decaying / endless,
            0.1,
        )
    ]
