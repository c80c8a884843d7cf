"""Quality pools: what each slice of a score is worth, how fast it wears out, and which slices to train on for a budget.

1. The best ``fraction`` of the scored training examples is cut, by the value of any stored score, into P pools of equal
   size (ties by id; what does not divide is left out at the worse end). pool_1 is the best end.
2. The subject's own recipe is trained on each pool alone, one run a budget and seed, and its test error recorded. A run
   a budget, because a learning rate that decays within a run bends the curve.
3. The law of scoring.scaling_laws is fitted, a and d shared, with bootstrap intervals.
4. It predicts the error of the union of the 1 .. P best pools for each budget of samples seen: the plan.
5. ``verify``: within the measured range the unions are trained once each, and prediction and measurement set side by
   side (``plan_check``). Their mean distance is in the plan: smaller differences between its rows mean nothing.

Source: Goyal et al., "Scaling Laws for Data Filtering" (CVPR 2024, arXiv 2404.07177), sections 3 to 5. A plan is a
prediction from single pools, and pools cut by difficulty rather than by noise complement each other in ways that no law
of single pools knows. A pool whose error rises at the end is reported as refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from recipes.frames import frame_of
from scoring.retraining import Seen, scored, splits_by_id, test_error
from scoring.scaling_fit import PoolCurve, PoolFit, PoolFits, fit_pool_laws
from scoring.scaling_laws import Compat, Objective, best_pool, mixture_error
from sources.example_set import ExampleSet

_DRAWN = 24  # points of a fitted curve
_Z90 = 1.6449


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityPoolsConfig(Config):
    score: str = param("el2n", doc="name of the stored score that orders the examples")
    best: str = param("lowest", choices=("lowest", "highest"), doc="end of the score that pool_1 takes")
    num_pools: int = param(4, ge=2, le=16, doc="pools of equal size")
    fraction: float = param(1.0, gt=0, le=1, doc="share of the scored examples, from the best end, cut into pools")
    efforts: tuple[float, ...] = param(
        (0.05, 0.1, 0.2, 0.4, 0.8), gt=0, le=1000, doc="points of a curve, in the recipe's own epochs; increasing"
    )
    seeds: int = param(2, ge=1, le=100, doc="trainings a pool and point")
    budgets: tuple[float, ...] = param(
        (5.0, 10.0, 20.0, 40.0, 80.0, 160.0), gt=0, le=100_000, unit="passes over one pool", doc="budgets planned for"
    )
    objective: str = param("effective_utility", choices=("effective_utility", "effective_data"), doc="form of the law")
    compat: str = param("paper", choices=("paper", "official"), doc="official: the form of the authors' code")
    verify: bool = param(
        True, doc="train the unions once each within the measured range, to see how far the plan is off"
    )
    bootstrap: int = param(200, ge=0, le=100_000, doc="simulated curves for the intervals; 0 for none")

    def check(self) -> None:
        if len(self.efforts) < 3 or any(a >= b for a, b in pairwise(self.efforts)):
            raise ConfigError(f"QualityPoolsConfig.efforts = {self.efforts} must be at least 3, increasing")
        if not self.budgets or any(a >= b for a, b in pairwise(self.budgets)):
            raise ConfigError(f"QualityPoolsConfig.budgets = {self.budgets} must be at least 1, increasing")


_POOL = Column(name="pool_id", dtype="str", doc="pool_1 is the best end of the score")
_SEEN = Column(name="samples_seen", dtype="int64", low=1, doc="examples passed forward and backward, repeats counted")
_PASSES = Column(name="epoch", dtype="float64", low=0, unit="passes", doc="samples_seen / examples of the pool")


def _law(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", doc=f"{doc}; null for a refused pool", nullable=True, **more)


_LAWS = TableSpec(
    schema="scores", name="pool_laws", doc="The scaling law of each quality pool, with bootstrap 90% intervals.",
    key=("pool_id",),
    columns=(
        _POOL,
        Column(name="status", dtype="str", doc="fitted, or refused", choices=("fitted", "refused")),
        Column(name="reason", dtype="str", doc="why it was refused; empty when fitted"),
        Column(name="num_examples", dtype="int64", low=1, doc="examples of the pool"),
        Column(name="score_low", dtype="float64", doc="least value of the score in the pool"),
        Column(name="score_high", dtype="float64", doc="greatest value of the score in the pool"),
        _law("a", "normaliser, shared by the pools", low=0), _law("d", "irreducible error, shared by the pools", low=0),
        _law("b", "utility", high=0, direction="more negative = better"),
        _law("b_lo", "5% bootstrap quantile of b", high=0), _law("b_hi", "95% bootstrap quantile of b", high=0),
        _law("tau", "half-life of the utility", low=0, unit="passes", direction="higher = wears out more slowly"),
        _law("tau_lo", "5% bootstrap quantile of tau", low=0, unit="passes"),
        _law("tau_hi", "95% bootstrap quantile of tau", low=0, unit="passes"),
        _law("sse", "sum of squared residuals", low=0),
        _law("rmse", "root mean squared residual; far above the spread of the seeds = the law does not describe the curve", low=0, high=1),
        Column(name="objective", dtype="str", doc="form of the law"),
    ),
)  # fmt: skip
_CURVES = TableSpec(
    schema="scores", name="pool_curves", doc="Test error of the subject's recipe trained on one pool alone, a run a row.",
    key=("pool_id", "seed", "samples_seen"),
    columns=(
        _POOL, Column(name="seed", dtype="int64", low=0, doc="number of the repeat"), _SEEN, _PASSES,
        Column(name="error", dtype="float64", low=0, high=1, doc="test error of this run"),
        Column(name="residual", dtype="float64", low=-1, nullable=True, doc="mean error over seeds minus the law; null when refused"),
    ),
)  # fmt: skip
_DRAWING = TableSpec(
    schema="scores", name="pool_fit", doc="Mean learning curves and the fitted laws, as they are drawn.",
    key=("series", "samples_seen"),
    columns=(
        Column(name="series", dtype="str", doc="pool, measured or law"), _SEEN,
        Column(name="error", dtype="float64", low=0, doc="mean test error over seeds, or the law's"),
        Column(name="low", dtype="float64", nullable=True, doc="mean - 1.645 standard errors; null for the law"),
        Column(name="high", dtype="float64", nullable=True, doc="mean + 1.645 standard errors; null for the law"),
    ),
)  # fmt: skip
_PLAN = TableSpec(
    schema="curation", name="curation_plan", doc="Predicted error of the union of the best pools, for each budget.",
    key=("budget", "n_pools"),
    columns=(
        Column(name="budget", dtype="int64", low=1, doc="samples seen"),
        Column(name="n_pools", dtype="int64", low=1, doc="pools in the union, best first"),
        Column(name="pools", dtype="str", doc="their ids, most negative b first"),
        Column(name="predicted_error", dtype="float64", low=0, doc="by the law", direction="lower = better"),
        Column(name="is_best", dtype="bool", doc="least predicted error of this budget"),
        Column(name="extrapolated", dtype="bool", doc="more passes over an example than any curve has measured"),
        Column(
            name="plan_miss", dtype="float64", low=0, nullable=True,
            doc="mean |predicted - measured| of plan_check: smaller differences mean nothing; null without it",
        ),
        Column(name="model_error", dtype="float64", low=0, high=1, doc="test error of the audited model, for comparison"),
    ),
)  # fmt: skip
_CHECK = TableSpec(
    schema="curation", name="plan_check", doc="Unions of pools trained once, beside the law's prediction from single pools.",
    key=("n_pools", "samples_seen"),
    columns=(
        Column(name="n_pools", dtype="int64", low=2, doc="pools in the union, best first"), _SEEN,
        Column(name="predicted_error", dtype="float64", low=0, doc="by the law"),
        Column(name="measured_error", dtype="float64", low=0, high=1, doc="test error of one training on the union"),
    ),
)  # fmt: skip


@analysis(
    AnalysisSpec(
        name="quality_pools",
        doc="Quality pools of a score: utility and half-life of each, and the best union for every compute budget.",
        source="Goyal et al., Scaling Laws for Data Filtering, CVPR 2024 (arXiv 2404.07177)",
        config=QualityPoolsConfig,
        needs=("scores", "train", "model"),
        tables=(_LAWS, _CURVES, _DRAWING, _PLAN, _CHECK),
        pictures=(
            Picture(
                table="pool_fit", title="Learning curves of the quality pools, and their laws", x="samples_seen",
                y="error", series="series", low="low", high="high", log_x=True,
            ),
            Picture(
                table="curation_plan", title="Predicted error against budget, by number of pools", x="budget",
                y="predicted_error", series="n_pools", log_x=True,
            ),
        ),
    )
)  # fmt: skip
def quality_pools(
    data: ExampleSet,
    *,
    config: QualityPoolsConfig,
    seed: int,
    progress: Progress,
    scores: Callable[[str], pl.DataFrame],
    train: Callable[..., nn.Module],
    model: nn.Module,
) -> dict[str, pl.DataFrame]:
    """Tables ``pool_laws``, ``pool_curves``, ``pool_fit``, ``curation_plan`` and ``plan_check``; see the head of this file.

    Args:
        data: both splits, classification. Training examples without a value of the score are in no pool.
        config: pools, points, budgets.
        seed: root of the trainings and of the bootstrap. All pools share their initialisations.
        progress: told (trainings done, in all, "trainings on pools").
        scores: gives (example_id, value) of a stored score by name.
        train: ``(data, seed, *, effort, observe) -> model``.
        model: the audited model; only its test error is used, as a line to compare the plan with.

    Raises:
        NotApplicable: not a classification task, no test split.
        DataError: a stale score, fewer scored examples than pools.
        ConfigError: the efforts come to fewer than three different lengths of training.
        InvalidInput: the recipe does not tell of its mini-batches.
    """
    whole, test = splits_by_id(data, name="quality_pools")
    examples, values = scored(whole, scores(config.score), score=config.score)
    model_error = test_error(model, test)
    pools = cut(values, num_pools=config.num_pools, fraction=config.fraction, best=config.best)
    sets = [examples.subset(np.sort(examples.example_id[rows])) for rows in pools]
    size = len(sets[0])
    checks = [(num, b) for b in config.budgets for num in range(2, len(pools) + 1)] if config.verify else []
    total, done = len(pools) * len(config.efforts) * config.seeds + len(checks), 0

    def run(members: ExampleSet, repeat: int, effort: float) -> tuple[int, float]:
        """Samples seen and test error of one training."""
        nonlocal done
        seen = Seen()
        fitted = train(members, derive_seed("quality pools", seed, repeat), effort=effort, observe=seen)
        seen.check("quality_pools")
        done += 1
        progress(done, total, "trainings on pools")
        return seen.samples, test_error(fitted, test)

    curves = []
    for p, members in enumerate(sets):
        errors: dict[int, list[float]] = {}
        for effort in config.efforts:
            for repeat in range(config.seeds):
                samples, error = run(members, repeat, effort)
                if repeat == 0 and samples in errors:
                    break  # an effort that rounds to the epochs of another is the same point
                errors.setdefault(samples, []).append(error)
        if len(errors) < 3:
            raise ConfigError(
                f"QualityPoolsConfig.efforts = {config.efforts} come to {len(errors)} lengths of training of this recipe "
                f"({sorted(errors)} samples); at least 3 are needed: spread them more widely"
            )
        seen_J = sorted(errors)
        curves.append(
            _curve(f"pool_{p + 1}", size, seen_J, np.array([errors[n] for n in seen_J]).T, num_test=len(test))
        )
    fits = fit_pool_laws(
        curves, objective=cast(Objective, config.objective), compat=cast(Compat, config.compat),
        bootstrap=config.bootstrap, seed=derive_seed("bootstrap", seed),
    )  # fmt: skip
    longest = curves[0].samples_seen[-1]
    whole_recipe = longest / size / config.efforts[-1]  # passes of effort 1
    order = _best_first(fits)
    seen_errors: dict[tuple[int, int], float] = {}
    for num, budget in checks:
        if num > len(order) or budget * size > longest:
            continue
        ids = np.concatenate([sets[int(f.pool_id.removeprefix("pool_")) - 1].example_id for f in order[:num]])
        samples, error = run(examples.subset(np.sort(ids)), 0, budget / num / whole_recipe)
        seen_errors[num, samples] = error
    check = [
        {
            "n_pools": num, "samples_seen": samples, "measured_error": error,
            "predicted_error": float(mixture_error([f.law for f in order[:num]], samples, pool_size=size)),
        }
        for (num, samples), error in sorted(seen_errors.items())
    ]  # fmt: skip
    miss = float(np.mean([abs(row["predicted_error"] - row["measured_error"]) for row in check])) if check else None
    return {
        "pool_laws": _laws(curves, fits, [values[rows] for rows in pools], config.objective),
        "pool_curves": _runs(curves, fits),
        "pool_fit": _drawing(curves, fits),
        "curation_plan": _plan(order, config, size=size, longest=longest, miss=miss, model_error=model_error),
        "plan_check": frame_of(_CHECK, check),
    }


def cut(values: NDArray[np.float64], *, num_pools: int, fraction: float, best: str) -> list[NDArray[np.int64]]:
    """Positions of each pool, best end first; pools of equal size, ties to the smaller position.

    Raises:
        DataError: fewer examples than pools.

    >>> [p.tolist() for p in cut(np.array([3.0, 1.0, 2.0, 0.0, 9.0]), num_pools=2, fraction=1.0, best="lowest")]
    [[3, 1], [2, 0]]
    """
    size = math.floor(fraction * len(values) / num_pools + 1e-9)
    if size < 1:
        raise DataError(f"{fraction:g} of {len(values)} scored examples cannot be cut into {num_pools} pools")
    order = np.argsort(values if best == "lowest" else -values, kind="stable")
    return [order[p * size : (p + 1) * size] for p in range(num_pools)]


def _curve(name: str, size: int, seen: list[int], errors_SJ: NDArray[np.float64], *, num_test: int) -> PoolCurve:
    """One seed says nothing of its own noise; then the test split's sampling error stands in."""
    mean = errors_SJ.mean(0)
    one = math.sqrt(float((mean * (1 - mean)).mean()) / num_test) if len(errors_SJ) == 1 else math.nan
    return PoolCurve(name, size, np.array(seen, np.float64), errors_SJ, stderr=one)


def _laws(curves: list[PoolCurve], fits: PoolFits, values: list[NDArray[np.float64]], objective: str) -> pl.DataFrame:
    fitted = {f.pool_id: f for f in fits.fits}
    rows = []
    for curve, inside in zip(curves, values, strict=True):
        fit = fitted.get(curve.pool_id)
        numbers: dict[str, float] = {}
        if fit is not None:
            numbers = {"a": fit.law.a, "d": fit.law.d, "b": fit.law.b, "tau": fit.law.tau} | {
                name: getattr(fit, name) for name in ("b_lo", "b_hi", "tau_lo", "tau_hi", "sse")
            }
            numbers["rmse"] = math.sqrt(fit.sse / len(fit.residuals))
        rows.append(
            {
                "pool_id": curve.pool_id, "status": "refused" if fit is None else "fitted",
                "reason": fits.refused.get(curve.pool_id, ""), "num_examples": int(curve.pool_size),
                "score_low": float(inside.min()), "score_high": float(inside.max()), "objective": objective,
                **{c.name: numbers.get(c.name) for c in _LAWS.columns if c.nullable},
            }
        )  # fmt: skip
    return frame_of(_LAWS, rows)


def _runs(curves: list[PoolCurve], fits: PoolFits) -> pl.DataFrame:
    residuals = {f.pool_id: f.residuals for f in fits.fits}
    rows = []
    for curve in curves:
        found = residuals.get(curve.pool_id)
        rows += [
            {
                "pool_id": curve.pool_id, "seed": repeat, "samples_seen": int(n), "epoch": n / curve.pool_size,
                "error": curve.errors[repeat, j], "residual": None if found is None else float(found[j]),
            }
            for repeat in range(len(curve.errors))
            for j, n in enumerate(curve.samples_seen)
        ]  # fmt: skip
    return frame_of(_CURVES, rows)


def _drawing(curves: list[PoolCurve], fits: PoolFits) -> pl.DataFrame:
    laws = {f.pool_id: f.law for f in fits.fits}
    rows = []
    for curve in curves:
        half = None if math.isnan(curve.stderr) else _Z90 * curve.stderr
        for n, error in zip(curve.samples_seen, curve.mean, strict=True):
            ends = (None, None) if half is None else (error - half, error + half)
            rows.append((f"{curve.pool_id} measured", int(n), error, *ends))
        if law := laws.get(curve.pool_id):
            points = np.unique(np.geomspace(curve.samples_seen[0], curve.samples_seen[-1], _DRAWN).round())
            fitted = law.error(points, pool_size=curve.pool_size)
            rows += [(f"{curve.pool_id} law", int(n), e, None, None) for n, e in zip(points, fitted, strict=True)]
    return frame_of(_DRAWING, [dict(zip((c.name for c in _DRAWING.columns), row, strict=True)) for row in rows])


def _best_first(fits: PoolFits) -> list[PoolFit]:
    return sorted(fits.fits, key=lambda f: f.law.b)


def _plan(
    order: list[PoolFit], config: QualityPoolsConfig, *, size: int, longest: float, miss: float | None, model_error: float
) -> pl.DataFrame:  # fmt: skip
    if not order:
        return frame_of(_PLAN, [])
    budgets = np.unique([max(1, round(b * size)) for b in config.budgets])
    plan = best_pool([f.law for f in order], budgets, pool_size=size)
    rows = [
        {
            "budget": int(budget), "n_pools": num, "pools": ", ".join(f.pool_id for f in order[:num]),
            "predicted_error": plan.errors[q, num - 1], "is_best": bool(num == plan.num_pools[q]),
            "extrapolated": bool(budget / num > longest), "plan_miss": miss, "model_error": model_error,
        }
        for q, budget in enumerate(budgets)
        for num in range(1, len(order) + 1)
    ]  # fmt: skip
    return frame_of(_PLAN, rows)
