"""Scaling laws of the quality pools, the union to train on for every budget, and how far measurements bear that out.

1. The law of studies.scaling_laws is fitted to the validation errors in the curves of the analysis ``quality_pools``, a
   and d shared, with bootstrap intervals: in the paper's form and, beside it, in that of the authors' code (``compat``
   = "official"). A fit whose root mean squared residual is over 3 standard errors of a point, or that leaves a
   parameter at the end of its range, is "poor fit".
2. Each form predicts the error of the union of the 1 .. P best pools for each budget of samples seen.
3. ``plan_check`` sets the trained unions beside the prediction. A budget has a choice only where

       second least - least predicted error  >  mean |predicted - measured| of the trained unions,
       second least - least predicted error  >  2 standard errors of the difference of two measured errors,  and
       at the nearest measured point the number of pools that the law expects to be best was not worse than another by
       over 2 standard errors of the difference;

   everywhere else the plan says so, and how many validation examples could tell. Measured errors are those on the
   validation part, in no pool; their standard error has a share of the seeds and one of that part's size (as if two
   errors on it were independent, which overstates it). Without trained unions the choice is the law's alone, and the
   plan says that. Test errors stand beside for the report: no fit and no choice reads them.

The plan for use is the paper's form. Source: Goyal et al., "Scaling Laws for Data Filtering" (CVPR 2024, arXiv
2404.07177), sections 3 to 5. A prediction from single pools cannot know that pools cut by difficulty complement each
other: on handwritten digits cut by EL2N it was wrong by 0.05 and more, and its choices were contradicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import polars as pl
from scipy.stats import spearmanr
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from sources.example_set import ExampleSet
from sources.frames import frame_of
from studies.quality_pools import POOL, curves_of
from studies.retraining import error_rate, splits_by_id
from studies.scaling_fit import PoolCurve, PoolFits, fit_pool_laws
from studies.scaling_laws import Array, Compat, Objective, Plan, best_pool, mixture_error

_DRAWN = 24  # points of a fitted curve
_Z90 = 1.6449
_POOR = 3.0  # standard errors
_WORSE = 2.0  # standard errors of a difference
_FORMS: tuple[Compat, ...] = get_args(Compat)
UNRELIABLE = "measured: no reliable choice"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLawsConfig(Config):
    budgets: tuple[float, ...] = param(
        (5.0, 10.0, 20.0, 40.0, 80.0, 160.0), gt=0, le=100_000, unit="passes over one pool", doc="budgets planned for"
    )
    objective: str = param("effective_utility", choices=get_args(Objective), doc="what of the law decays")
    bootstrap: int = param(200, ge=0, le=100_000, doc="simulated curves for the intervals; 0 for none")

    def check(self) -> None:
        if not self.budgets or any(a >= b for a, b in pairwise(self.budgets)):
            raise ConfigError(f"PoolLawsConfig.budgets = {self.budgets} must be at least 1, increasing")


_COMPAT = Column(name="compat", dtype="str", choices=_FORMS, doc="form of the law: the paper's, or the authors' code's")
_BUDGET = Column(name="budget", dtype="int64", low=1, doc="samples seen")
_NUM = Column(name="n_pools", dtype="int64", low=1, doc="pools in the union, best first")
_IDS = Column(name="pools", dtype="str", doc="their ids, most negative b first")
_PREDICTED = Column(name="predicted_error", dtype="float64", low=0, doc="by the law", direction="lower = better")


def _law(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", doc=f"{doc}; null for a refused pool", nullable=True, **more)


_CHOICE = TableSpec(
    schema="curation",
    name="curation_choice",
    doc="Which pools to train on for each budget, or that this cannot be said.",
    key=("compat", "budget"),
    columns=(
        _COMPAT,
        _BUDGET,
        Column(name="choice", dtype="str", doc=f"the pools to train on, or '{UNRELIABLE}'"),
        Column(name="why", dtype="str", doc="what stands behind it, or against it"),
        Column(
            name="plan_miss",
            dtype="float64",
            low=0,
            nullable=True,
            doc="mean |predicted - measured| of plan_check: smaller differences mean nothing; null without it",
        ),
        Column(
            name="plan_spearman",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            doc="rank correlation of predicted and measured error over plan_check; null without it",
        ),
        Column(
            name="num_needed",
            dtype="int64",
            low=1,
            nullable=True,
            doc="validation examples that could tell the two least predictions apart; null where a choice stands, more "
            "examples would not help, or nothing was measured",
        ),
        Column(
            name="model_error", dtype="float64", low=0, high=1, doc="test error of the audited model, for comparison"
        ),
    ),
)
_LAWS = TableSpec(
    schema="scores",
    name="pool_laws",
    doc="The scaling law of each quality pool, with bootstrap 90% intervals.",
    key=("compat", "pool_id"),
    columns=(
        _COMPAT,
        POOL,
        Column(
            name="status",
            dtype="str",
            doc="whether the law describes the curve",
            choices=("fitted", "poor fit", "refused"),
        ),
        Column(name="reason", dtype="str", doc="why not; empty when fitted"),
        _law("a", "normaliser, shared by the pools", low=0),
        _law("d", "irreducible error, shared by the pools", low=0),
        _law("b", "utility", high=0, direction="more negative = better"),
        _law("b_lo", "5% bootstrap quantile of b", high=0),
        _law("b_hi", "95% bootstrap quantile of b", high=0),
        _law("tau", "half-life of the utility", low=0, unit="passes", direction="higher = wears out more slowly"),
        _law("tau_lo", "5% bootstrap quantile of tau", low=0, unit="passes"),
        _law("tau_hi", "95% bootstrap quantile of tau", low=0, unit="passes"),
        _law("sse", "sum of squared residuals", low=0),
        _law("rmse", "root mean squared residual", low=0, high=1),
        Column(name="stderr", dtype="float64", low=0, doc="standard error of a point of the curve"),
        Column(name="objective", dtype="str", doc="what of the law decays"),
    ),
)
_DRAWING = TableSpec(
    schema="scores",
    name="pool_fit",
    doc="Mean learning curves and the fitted laws, as they are drawn.",
    key=("compat", "series", "samples_seen"),
    columns=(
        _COMPAT,
        Column(name="series", dtype="str", doc="pool, measured or law"),
        Column(name="samples_seen", dtype="int64", low=1, doc="examples passed forward and backward"),
        Column(name="error", dtype="float64", low=0, doc="mean validation error over seeds, or the law's"),
        Column(name="low", dtype="float64", nullable=True, doc="mean - 1.645 standard errors; null for the law"),
        Column(name="high", dtype="float64", nullable=True, doc="mean + 1.645 standard errors; null for the law"),
    ),
)
_PLAN = TableSpec(
    schema="curation",
    name="curation_plan",
    doc="Predicted error of the union of the best pools, for each budget.",
    key=("compat", "budget", "n_pools"),
    columns=(
        _COMPAT,
        _BUDGET,
        _NUM,
        _IDS,
        _PREDICTED,
        Column(
            name="is_best",
            dtype="bool",
            nullable=True,
            doc="the choice of this budget; null where measurements leave none (see curation_choice)",
        ),
        Column(name="extrapolated", dtype="bool", doc="more passes over an example than any curve has measured"),
    ),
)
_CHECK = TableSpec(
    schema="curation",
    name="plan_check",
    doc="Unions of pools as trained, beside the law's prediction from single pools.",
    key=("compat", "n_pools", "samples_seen"),
    columns=(
        _COMPAT,
        _NUM,
        _IDS,
        Column(name="samples_seen", dtype="int64", low=1, doc="of each training"),
        _PREDICTED,
        Column(name="measured_error", dtype="float64", low=0, high=1, doc="mean validation error of the trainings"),
        Column(
            name="stderr", dtype="float64", low=0, doc="standard error of a measured error, pooled over all of them"
        ),
        Column(
            name="test_error", dtype="float64", low=0, high=1, doc="mean test error of the trainings; decides nothing"
        ),
    ),
)
_FRONT = TableSpec(
    schema="curation",
    name="pareto_front",
    doc="Least predicted error against budget, the unions as trained, and the choices.",
    key=("series", "budget"),
    columns=(
        Column(
            name="series",
            dtype="str",
            doc="a form's least prediction, a union as trained, or what the plan says of a budget",
        ),
        _BUDGET,
        Column(
            name="error",
            dtype="float64",
            low=0,
            doc="predicted, or mean of the trainings on validation part or test split",
        ),
        Column(name="low", dtype="float64", nullable=True, doc="mean - 1.645 standard errors; null for predictions"),
        Column(name="high", dtype="float64", nullable=True, doc="mean + 1.645 standard errors; null for predictions"),
    ),
)
_TABLES = (_CHOICE, _LAWS, _DRAWING, _PLAN, _CHECK, _FRONT)
_NAMED: dict[Compat, str] = {"paper": "the paper's form", "official": "the form of the authors' code"}


@analysis(
    AnalysisSpec(
        name="pool_laws",
        version=2,
        wants=("reading",),
        doc="Utility and half-life of each quality pool, and the best union for every compute budget as far as "
        "measurements allow.",
        source="Goyal et al., Scaling Laws for Data Filtering, CVPR 2024 (arXiv 2404.07177)",
        config=PoolLawsConfig,
        needs=("tables", "model"),
        reads=("quality_pools",),
        tables=_TABLES,
        pictures=(
            Picture(
                table="pareto_front",
                title="Least predicted error against budget, and the unions as trained",
                x="budget",
                y="error",
                series="series",
                low="low",
                high="high",
                log_x=True,
            ),
            *(
                picture
                for form in _FORMS
                for picture in (
                    Picture(
                        table="pool_fit",
                        title=f"Learning curves and laws of the pools, {_NAMED[form]}",
                        x="samples_seen",
                        y="error",
                        series="series",
                        low="low",
                        high="high",
                        log_x=True,
                        where=(("compat", form),),
                    ),
                    Picture(
                        table="curation_plan",
                        title=f"Predicted error by number of pools, {_NAMED[form]}",
                        x="budget",
                        y="predicted_error",
                        series="n_pools",
                        log_x=True,
                        where=(("compat", form),),
                    ),
                )
            ),
        ),
    )
)
def pool_laws(
    data: ExampleSet,
    *,
    config: PoolLawsConfig,
    seed: int,
    progress: Progress,
    tables: Callable[[str], pl.DataFrame],
    model: nn.Module,
) -> dict[str, pl.DataFrame]:
    """Tables ``curation_choice``, ``pool_laws``, ``pool_fit``, ``curation_plan``, ``plan_check`` and ``pareto_front``.

    Args:
        data: both splits; of the test split only the audited model's error is measured.
        config: budgets and fit.
        seed: of the bootstrap.
        progress: called with (forms fitted, in all, "laws fitted").
        tables: gives ``pools``, ``pool_curves`` and ``pool_unions`` of the analysis ``quality_pools``.
        model: the audited model; only its test error is used, as a line to compare the plan with.

    Raises:
        NotApplicable: no test split, or the pools did not apply.
    """
    _, test = splits_by_id(data, name="pool_laws")
    size, num_validation = (int(tables("pools")[name][0]) for name in ("num_examples", "num_validation"))
    curves = curves_of(tables("pool_curves"), size=size, num_validation=num_validation)
    unions = tables("pool_unions").sort("n_pools", "point", "seed")
    model_error = error_rate(model, test)
    rows: dict[str, list[dict[str, Any]]] = {t.name: [] for t in _TABLES}
    for number, form in enumerate(_FORMS):
        fits = fit_pool_laws(
            curves,
            objective=cast(Objective, config.objective),
            compat=form,
            bootstrap=config.bootstrap,
            seed=derive_seed("bootstrap", seed),
        )
        found = {"pool_laws": _laws(curves, fits, config.objective), "pool_fit": _drawing(curves, fits)}
        if fits.fits:
            found |= _planned(curves, unions, fits, config, form, num_validation)
        for name, new in found.items():
            rows[name] += [{"compat": form, "model_error": model_error, **row} for row in new]
        progress(number + 1, len(_FORMS), "laws fitted")
    # a union as trained is the same beside either form
    rows["pareto_front"] = list({(row["series"], row["budget"]): row for row in rows["pareto_front"]}.values())
    return {t.name: frame_of(t, rows[t.name]) for t in _TABLES}


def _planned(
    curves: Sequence[PoolCurve],
    unions: pl.DataFrame,
    fits: PoolFits,
    config: PoolLawsConfig,
    form: Compat,
    num_validation: int,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of ``curation_choice``, ``curation_plan``, ``plan_check`` and ``pareto_front`` of one form."""
    best_first = sorted(fits.fits, key=lambda f: f.law.b)
    laws, order = {f.pool_id: f.law for f in best_first}, [f.pool_id for f in best_first]
    alone = next(c for c in curves if c.pool_id == order[0])
    size, longest = alone.pool_size, alone.samples_seen[-1]
    check: list[dict[str, Any]] = []
    # What can be compared: point -> number of the best pools -> (predicted, measured).
    points: dict[int, dict[int, tuple[float, float]]] = {
        int(n): {1: (float(laws[order[0]].error(n, pool_size=size)), float(e))}
        for n, e in zip(alone.samples_seen, alone.mean, strict=True)
    }
    noise = _noise(unions, num_validation)
    for (num, point), own in unions.group_by("n_pools", "point", maintain_order=True):
        ids, samples = own["pools"][0].split(", "), int(own["samples_seen"][0])
        error, on_test = (float(own[name].to_numpy().mean()) for name in ("validation_error", "test_error"))
        predicted = float(mixture_error([laws[i] for i in ids], samples, pool_size=size))
        check.append(
            {
                "n_pools": num,
                "pools": own["pools"][0],
                "samples_seen": samples,
                "predicted_error": predicted,
                "measured_error": error,
                "stderr": noise.stderr,
                "test_error": on_test,
            }
        )
        if set(ids) == set(order[:num]):
            points[point][num] = predicted, error
    about = _agreement(check)
    budgets = np.unique([max(1, round(b * size)) for b in config.budgets])
    plan = best_pool(list(laws.values()), budgets, pool_size=size)
    choices, rows, front = [], [], []
    for q, budget in enumerate(budgets.tolist()):
        chosen = int(plan.num_pools[q])
        why, reliable, needed = _verdict(plan, q, points, miss=about["plan_miss"], noise=noise)
        what = ", ".join(order[:chosen]) if reliable else UNRELIABLE
        choices.append({"budget": budget, "choice": what, "why": why, "num_needed": needed, **about})
        if form == "paper":
            front.append(
                {"series": "chosen" if reliable else UNRELIABLE, "budget": budget, "error": plan.errors[q].min()}
            )
        rows += [
            {
                "budget": budget,
                "n_pools": num,
                "pools": ", ".join(order[:num]),
                "predicted_error": plan.errors[q, num - 1],
                "is_best": num == chosen if reliable else None,
                "extrapolated": bool(budget / num > longest),
            }
            for num in range(1, len(order) + 1)
        ]
    ends = [*budgets, *alone.samples_seen]
    drawn = np.unique(np.geomspace(min(ends), max(ends), _DRAWN).round())
    least = best_pool(list(laws.values()), drawn, pool_size=size).errors.min(1)
    front += [
        {"series": f"predicted ({form})", "budget": int(n), "error": e} for n, e in zip(drawn, least, strict=True)
    ]
    half = _Z90 * noise.stderr
    for row in check:
        name, budget, error = f"trained, {row['n_pools']} pools", row["samples_seen"], row["measured_error"]
        front.append({"series": name, "budget": budget, "error": error, "low": error - half, "high": error + half})
        front.append({"series": f"{name}, test split", "budget": budget, "error": row["test_error"]})
    return {"curation_choice": choices, "curation_plan": rows, "plan_check": check, "pareto_front": front}


class _Noise(NamedTuple):
    """What the mean validation error of a union owes to chance, pooled over the unions; NaN without unions."""

    # variance of the mean by initialisation and batch order, over the seeds; 0 for one seed, which has no spread
    seeds: float
    sampling: float  # variance by the draw of the validation part
    num_validation: int

    @property
    def stderr(self) -> float:
        return math.sqrt(self.seeds + self.sampling)

    @property
    def least(self) -> float:
        """The difference of two measured errors that is 2 standard errors."""
        return _WORSE * math.sqrt(2.0) * self.stderr

    def needed(self, margin: float) -> int | None:
        """Validation examples with which ``margin`` is ``least``; None when the seeds alone are over it."""
        left = margin**2 / (2 * _WORSE**2) - self.seeds
        return math.ceil(self.num_validation * self.sampling / left) if left > 0 else None


def _noise(unions: pl.DataFrame, num_validation: int) -> _Noise:
    error, num = unions["validation_error"].to_numpy(), unions["seed"].n_unique()
    if not num:
        return _Noise(math.nan, math.nan, num_validation)
    spread = unions.group_by("n_pools", "point", maintain_order=True).agg(pl.col("validation_error").var())
    seeds = float(spread["validation_error"].to_numpy().mean()) / num if num > 1 else 0.0
    return _Noise(seeds, float((error * (1 - error)).mean()) / num_validation, num_validation)


def _agreement(check: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """``plan_miss`` and ``plan_spearman`` of the rows of ``plan_check``."""
    predicted, trained = (np.array([row[c] for row in check]) for c in ("predicted_error", "measured_error"))
    varied = len(check) > 2 and np.ptp(predicted) > 0 and np.ptp(trained) > 0
    return {
        "plan_miss": float(np.abs(predicted - trained).mean()) if check else None,
        "plan_spearman": float(spearmanr(predicted, trained).statistic) if varied else None,
    }


def _verdict(
    plan: Plan, q: int, points: dict[int, dict[int, tuple[float, float]]], *, miss: float | None, noise: _Noise
) -> tuple[str, bool, int | None]:
    """Why the least prediction of budget ``q`` is a choice or none, whether it is one, and how many examples would
    tell."""
    if plan.errors.shape[1] == 1:
        return "there is one pool", True, None
    if miss is None:
        return "by the law alone: no union was trained", True, None
    first, second = np.sort(plan.errors[q])[:2]
    margin = float(second - first)
    if margin <= miss:
        return f"the two least predictions are {margin:.2g} apart, and miss measurements by {miss:.2g}", False, None
    if margin <= noise.least:
        needed = noise.needed(margin)
        more = f"about {needed} would" if needed else "the seeds differ by more: more seeds would"
        return (
            f"the two least predictions are {margin:.2g} apart; {noise.num_validation} validation examples tell "
            f"{noise.least:.2g}, {more}",
            False,
            needed,
        )
    compared = {n: cells for n, cells in points.items() if len(cells) > 1}
    if compared:
        point = min(compared, key=lambda n: abs(math.log(n / plan.budgets[q])))
        cells = compared[point]
        expected, best = (min(cells, key=lambda num, i=i: cells[num][i]) for i in (0, 1))  # type: ignore[misc]
        if cells[expected][1] - cells[best][1] > noise.least:
            return (
                f"at {point} samples the law expects {expected} pools to be best; measured, {best} were: error "
                f"{cells[best][1]:.3g} against {cells[expected][1]:.3g}",
                False,
                None,
            )
    return f"{margin:.2g} below the next, predictions miss by {miss:.2g}; no measurement contradicts", True, None


def _laws(curves: Sequence[PoolCurve], fits: PoolFits, objective: str) -> list[dict[str, Any]]:
    fitted = {f.pool_id: f for f in fits.fits}
    rows = []
    for curve in curves:
        row = {"pool_id": curve.pool_id, "objective": objective, "stderr": curve.stderr}
        fit = fitted.get(curve.pool_id)
        if fit is None:
            rows.append(row | {"status": "refused", "reason": fits.refused[curve.pool_id]})
            continue
        rmse = math.sqrt(fit.sse / len(fit.residuals))
        poor = [f"{name} is at the end of its range" for name in fit.on_bound]
        if rmse > _POOR * curve.stderr:
            poor.append(f"the residuals are {_times(rmse, curve.stderr)} standard errors of a point")
        rows.append(
            row
            | {"status": "poor fit" if poor else "fitted", "reason": "; ".join(poor), "rmse": rmse}
            | {name: getattr(fit.law, name) for name in ("a", "b", "tau", "d")}
            | {name: getattr(fit, name) for name in ("b_lo", "b_hi", "tau_lo", "tau_hi", "sse")}
        )
    return rows


def _times(rmse: float, stderr: float) -> str:
    return f"{rmse / stderr:.1f}" if stderr > 0 else "infinitely many"


def _drawing(curves: Sequence[PoolCurve], fits: PoolFits) -> list[dict[str, Any]]:
    laws = {f.pool_id: f.law for f in fits.fits}
    rows: list[dict[str, Any]] = []
    for curve in curves:
        half = _Z90 * curve.stderr
        for n, error in zip(curve.samples_seen, curve.mean, strict=True):
            rows.append(
                {
                    "series": f"{curve.pool_id} measured",
                    "samples_seen": int(n),
                    "error": error,
                    "low": error - half,
                    "high": error + half,
                }
            )
        if law := laws.get(curve.pool_id):
            points: Array = np.unique(np.geomspace(curve.samples_seen[0], curve.samples_seen[-1], _DRAWN).round())
            fitted = law.error(points, pool_size=curve.pool_size)
            rows += [
                {"series": f"{curve.pool_id} law", "samples_seen": int(n), "error": e}
                for n, e in zip(points, fitted, strict=True)
            ]
    return rows
