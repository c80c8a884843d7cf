"""The linear datamodeling score: does an attribution predict what training on other subsets would have done?

    LDS_j = Spearman over models m in B of ( sum_{i in S_m} tau_ji ,  f_j(S_m) )         B: half of the reference models
    f_j     the margin of j under model m (classes: the reading ``signal``); other tasks: minus its loss

of the unseen examples j, which no reference model trained on. The models of A, the other half, may serve as attribution
themselves, so that nothing is judged by the models that it was made of:

    trak           projected gradients of a few models of their own (``scoring.trak``)
    gradient_dot   phi(j)' phi(i) Q_i of the same gradients, without the kernel
    influence      the ensemble's: mean quality of j with i minus without, models of A (``scoring.influence``)
    margin         the same of f_j in place of the quality: the datamodel of subset means, models of A
    random         noise: about 0

The intervals are percentile bootstraps over the examples j; all share the models of B, whose number bounds what can be
told: of two independent rankings of M models the Spearman correlation has standard deviation 1/sqrt(M - 1) an example.

Source: Park et al., TRAK (ICML 2023, arXiv 2303.14186), definition 2.3; Ilyas et al., Datamodels (ICML 2022). Feldman
& Zhang, NeurIPS 2020 (influence).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import DataError, InvalidInput
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.ensemble import ReferenceEnsemble
from scoring.influence import influence_matrix
from scoring.pool import qualities, readings_of
from scoring.projected_gradients import output_of
from scoring.trak import TrakConfig, attributed, dot_products, drawn_targets, trained_models
from sources.example_set import ExampleSet
from sources.frames import frame_of
from tasks.base import require

Floats = NDArray[np.float64]
METHODS = ("trak", "gradient_dot", "influence", "margin", "random")


@dataclass(frozen=True, kw_only=True, slots=True)
class LdsConfig(TrakConfig):
    draws: int = param(1000, ge=10, le=1_000_000, doc="bootstrap draws of an interval")


_LDS = Column(
    name="lds",
    dtype="float64",
    low=-1,
    high=1,
    nullable=True,
    direction="higher = predicts better",
    doc="rank correlation of predicted and measured outputs over held-out models; null where either is constant",
)
_SUMMARY = TableSpec(
    schema="studies",
    name="lds",
    doc="How well attributions predict models that were trained on other subsets (linear datamodeling score).",
    key=("method",),
    columns=(
        Column(name="method", dtype="str", choices=METHODS, doc="what attributes"),
        _LDS,
        Column(name="low", dtype="float64", low=-1, high=1, nullable=True, doc="lower end of the 95% interval"),
        Column(name="high", dtype="float64", low=-1, high=1, nullable=True, doc="upper end"),
        Column(name="num_examples", dtype="int64", low=0, doc="unseen examples with a defined score"),
        Column(name="num_models", dtype="int64", low=0, doc="held-out models that judge"),
    ),
)
_EXAMPLES = TableSpec(
    schema="studies",
    name="lds_examples",
    doc="The linear datamodeling score of each unseen example.",
    key=("method", "example_id"),
    columns=(
        Column(name="method", dtype="str", choices=METHODS, doc="what attributes"),
        Column(name="example_id", dtype="int64", low=0, doc="the unseen example"),
        _LDS,
    ),
)


@analysis(
    AnalysisSpec(
        name="lds",
        wants=("reading", "features"),
        doc="Linear datamodeling score of attributions, judged by reference models on subsets they have not seen.",
        source="Park et al., TRAK, ICML 2023 (arXiv 2303.14186); Ilyas et al., Datamodels, ICML 2022",
        config=LdsConfig,
        needs=("ensemble", "train_many"),
        tables=(_SUMMARY, _EXAMPLES),
        pictures=(
            Picture(
                table="lds",
                kind="dots",
                x="method",
                y="lds",
                low="low",
                high="high",
                title="How well attributions predict training on other subsets (rank correlation)",
            ),
        ),
    )
)
def lds(
    data: ExampleSet,
    *,
    config: LdsConfig,
    seed: int,
    progress: Progress = silent,
    ensemble: ReferenceEnsemble,
    train_many: Callable[..., Sequence[nn.Module]],
) -> dict[str, pl.DataFrame]:
    """Scores of all attributions, on the examples of the population.

    Raises:
        NotApplicable: neither classes nor numbers, or a model that cannot be projected.
        DataError: fewer than four reference models, no population, an example of the ensemble that ``data`` does not
            have or whose target is another; NaN or infinite readings. Names the examples.
    """
    require(data, "lds", "reading", "features")
    output_of(data)
    data.check_targets()
    data = data.by_id()
    num_models = len(ensemble.keep)
    pool, population = _in_order(ensemble, ensemble.pool), _in_order(ensemble, ~ensemble.pool)
    if num_models < 4 or len(pool) < 2 or not len(population):
        raise DataError(
            f"lds needs four reference models, a pool and a population; there are {num_models} models, {len(pool)} and "
            f"{len(population)} examples"
        )
    known = ensemble.example_id[np.concatenate([pool, population])]
    if len(gone := np.setdiff1d(known, data.example_id)):
        raise DataError(f"{len(gone)} examples of the ensemble are not in {data.name}", example_ids=gone)
    train, unseen = data.subset(ensemble.example_id[pool]), data.subset(ensemble.example_id[population])
    data.check_targets()
    for part, columns in ((train, pool), (unseen, population)):
        other = part.y != ensemble.labels[columns]
        if other.any():
            raise DataError("targets differ from those the ensemble was trained on", example_ids=part.example_id[other])
    for _ in readings_of(ensemble, pool):
        pass  # refused where they are not finite
    targets = drawn_targets(unseen, config.targets, seed=seed)
    columns = population[unseen.positions(targets.example_id)]
    order = np.random.default_rng(derive_seed("judges", seed)).permutation(num_models)
    first, judges = np.sort(order[: num_models // 2]), np.sort(order[num_models // 2 :])
    outputs, keep = _outputs(ensemble, columns, data), ensemble.keep[:, pool]
    models = trained_models(train, train_many=train_many, config=config, seed=seed)
    found: dict[str, NDArray[Any]] = {
        "trak": attributed(models, train, targets, config=config, seed=seed, progress=progress),
        "gradient_dot": dot_products(models, train, targets, config=config, seed=seed),
        "influence": _influence(keep[first], qualities(ensemble, columns)[first]),
        "margin": subset_means(keep[first], outputs[first]),
        "random": np.random.default_rng(derive_seed("noise", seed)).normal(size=(len(targets), len(train))),
    }
    rows, each = [], []
    for method, tau in found.items():
        values = lds_of(tau, keep[judges], outputs[judges])
        low, high = bootstrap(values, draws=config.draws, seed=derive_seed("bootstrap", seed))
        defined = values[np.isfinite(values)]
        rows.append(
            {
                "method": method,
                "lds": float(defined.mean()) if len(defined) else None,
                "low": low,
                "high": high,
                "num_examples": len(defined),
                "num_models": len(judges),
            }
        )
        each += [
            {"method": method, "example_id": i, "lds": v}
            for i, v in zip(targets.example_id.tolist(), values.tolist(), strict=True)
        ]
    return {"lds": frame_of(_SUMMARY, rows), "lds_examples": frame_of(_EXAMPLES, each)}


def lds_of(tau: NDArray[np.floating], keep: NDArray[np.bool_], outputs: Floats) -> Floats:
    """LDS of each unseen example, float64 (T,) in [-1, 1]; NaN where predictions or outputs are constant.

    Args:
        tau: (T, N), influence of training examples on unseen ones; higher = raises the output.
        keep: (M, N) bool, members of each model's training set.
        outputs: (M, T), what each model said.

    Raises:
        InvalidInput: shapes that do not fit, or fewer than two models.

    >>> keep = np.array([[True, False], [False, True], [True, True]])
    >>> lds_of(np.array([[1.0, 2.0]]), keep, keep @ np.array([[10.0], [20.0]])).tolist()
    [1.0]
    """
    if tau.ndim != 2 or keep.shape[1:] != tau.shape[1:] or outputs.shape != (len(keep), len(tau)) or len(keep) < 2:
        raise InvalidInput(
            f"tau {tau.shape}, keep {keep.shape} and outputs {outputs.shape} do not fit two models or more"
        )
    predicted = keep.astype(np.float64) @ tau.T.astype(np.float64)
    a, b = (rankdata(values, axis=0) for values in (predicted, outputs))
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, np.clip((a * b).sum(0) / size, -1, 1), np.nan)


def subset_means(keep: NDArray[np.bool_], outputs: Floats) -> Floats:
    """Mean output of the models with i minus that of the models without, float64 (T, N); 0 where a side is empty."""
    inside = keep.sum(0)
    outside = len(keep) - inside
    total = outputs.sum(0)[:, None]
    with_i = outputs.T @ keep.astype(np.float64)
    found = with_i / np.maximum(inside, 1) - (total - with_i) / np.maximum(outside, 1)
    return np.where((inside > 0) & (outside > 0), found, 0.0)


def bootstrap(values: Floats, *, draws: int, seed: int, alpha: float = 0.05) -> tuple[float | None, float | None]:
    """Percentile interval of the mean over examples, those that are NaN left out; nothing below two."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    means = np.array([known[rng.integers(0, len(known), len(known))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def _in_order(ensemble: ReferenceEnsemble, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    columns = np.flatnonzero(chosen)
    return columns[np.argsort(ensemble.example_id[columns], kind="stable")]


def _outputs(ensemble: ReferenceEnsemble, columns: NDArray[np.int64], data: ExampleSet) -> Floats:
    out = np.empty((len(ensemble.keep), len(columns)))
    for rows, reading in readings_of(ensemble, columns):
        out[:, rows] = reading.signal if data.task.gives("classes") else -reading.loss
    return out


def _influence(keep: NDArray[np.bool_], quality: NDArray[np.bool_ | np.float64]) -> Floats:
    return np.concatenate([np.nan_to_num(part.infl) for part in influence_matrix(keep, quality)])
