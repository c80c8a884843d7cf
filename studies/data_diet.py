"""When do the early scores settle? EL2N, margins and GraNd over epochs, and how far each epoch can be trusted.

At every epoch t, R models from R initialisations as they pass it (scoring.el2n; with ``grand``, also scoring.grand over
all parameters), and of the scores s_t (N,) over the examples:
    seed halves      Spearman(mean of R/2 models, mean of the others), over random halvings: is R enough?
    single seeds     Spearman of two models, over all pairs: what one model is worth
    next epoch       Spearman(s_t, s_t') with t' the next epoch listed: has the ranking settled?
    input norm: ...  Spearman(s_t, ||x||): near +-1, the score says how large the input is and nothing of learning
    accuracy         share of the examples that a model has right: near 1, the models interpolate and the scores are
                     noise

The epoch to score at is an early one at which the halves and the next epoch agree and the input norm does not.

Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet" (NeurIPS 2021, arXiv 2107.07075), sections 3 and 5; the
input norm at initialisation: Kirsch (arXiv 2303.14753). Agreement says that a score is stable, not that it is useful:
for that, train on what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, InvalidInput
from contracts.methods import EXAMPLE_ID, AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.streaming import check
from scoring.el2n import MEANS, model_values
from scoring.grand import GrandConfig, grand
from sources.example_set import ExampleSet
from tasks.base import require

Values = NDArray[np.float64]
_EPOCH = Column(name="epoch", dtype="int64", low=0, unit="epochs", doc="epochs trained of the full recipe")
MEASURES = (
    "seed halves",
    "single seeds",
    "next epoch",
    "input norm: el2n",
    "input norm: grand_last_layer",
    "input norm: grand",
    "accuracy",
)
_MEAN, _STD = "mean over models", "sample standard deviation over models; null for one model"

DATA_DIET = TableSpec(
    schema="scores",
    name="data_diet",
    doc="EL2N, margin and GraNd of training examples at several early epochs.",
    columns=(
        EXAMPLE_ID,
        _EPOCH,
        Column(name="el2n", dtype="float64", low=0, high=2**0.5, direction="higher = harder", doc=_MEAN),
        Column(name="el2n_std", dtype="float64", low=0, high=2**0.5, nullable=True, doc=_STD),
        Column(
            name="margin",
            dtype="float64",
            low=-1,
            high=1,
            direction="higher = harder",
            doc="mean over models of max over wrong classes k of p_k - p_y; above 0 = wrong",
        ),
        Column(name="margin_std", dtype="float64", low=0, high=2**0.5, nullable=True, doc=_STD),
        Column(
            name="grand_last_layer",
            dtype="float64",
            low=0,
            nullable=True,
            direction="higher = harder",
            doc="mean gradient norm of the output layer; null when the logits do not come from a linear layer",
        ),
        Column(name="grand_last_layer_std", dtype="float64", low=0, nullable=True, doc=_STD),
        Column(
            name="grand",
            dtype="float64",
            low=0,
            nullable=True,
            direction="higher = harder",
            doc="mean gradient norm of all parameters; null unless it was asked for",
        ),
        Column(name="grand_std", dtype="float64", low=0, nullable=True, doc=_STD),
        Column(name="n_seeds", dtype="int64", low=1, doc="models averaged"),
    ),
    key=("example_id", "epoch"),
)
DATA_DIET_EPOCHS = TableSpec(
    schema="scores",
    name="data_diet_epochs",
    doc="How far the scores of an early epoch can be trusted: agreement between seeds, with the next epoch, with the "
    "input norm.",
    columns=(
        _EPOCH,
        Column(name="measure", dtype="str", choices=MEASURES, doc="what is measured; see the analysis"),
        Column(
            name="value",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            doc="Spearman correlation of EL2N unless the measure says otherwise, or the share that is right; null when "
            "undefined",
        ),
        Column(
            name="low",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            doc="5% quantile over the halvings, pairs or models; null where there is one value",
        ),
        Column(name="high", dtype="float64", low=-1, high=1, nullable=True, doc="95% quantile, likewise"),
        Column(name="num_examples", dtype="int64", low=1, doc="examples it was measured on"),
        Column(name="n_seeds", dtype="int64", low=1, doc="models"),
    ),
    key=("epoch", "measure"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataDietConfig(Config):
    """At which epochs, on how many examples."""

    epochs: tuple[int, ...] = param(
        (0, 1, 2, 3, 5, 8), ge=0, le=100_000, unit="epochs", doc="increasing; 0 = untrained"
    )
    max_examples: int = param(
        20_000, ge=2, le=10_000_000, doc="a random sample of the training split when it is larger"
    )
    halvings: int = param(20, ge=1, le=10_000, doc="random halvings of the models")
    grand: bool = param(False, doc="also GraNd over all parameters: a backward pass an epoch, model and example")
    batch: int = param(1024, ge=1, le=1_000_000, doc="examples a forward pass; bounds memory")

    def check(self) -> None:
        if not self.epochs or any(a >= b for a, b in zip(self.epochs, self.epochs[1:], strict=False)):
            raise ConfigError(f"DataDietConfig.epochs = {list(self.epochs)} must be increasing, at least one")


@analysis(
    AnalysisSpec(
        name="data_diet",
        version=2,
        wants=("outputs", "classes"),
        doc="EL2N, margin and GraNd at several early epochs, and how stable each epoch's ranking is.",
        source="Paul et al., Deep Learning on a Data Diet, NeurIPS 2021 (arXiv 2107.07075)",
        config=DataDietConfig,
        needs=("early_at",),
        tables=(DATA_DIET_EPOCHS, DATA_DIET),
        pictures=(
            Picture(
                table="data_diet_epochs",
                title="At which epoch do the early scores settle?",
                x="epoch",
                y="value",
                series="measure",
                low="low",
                high="high",
            ),
        ),
    )
)
def data_diet(
    data: ExampleSet,
    *,
    config: DataDietConfig,
    seed: int,
    progress: Progress = silent,
    early_at: Callable[[Sequence[int]], Mapping[int, Sequence[nn.Module]]],
) -> dict[str, pl.DataFrame]:
    """Scores of the training examples at every epoch, and their agreements.

    Args:
        data: both splits; the training split is scored. Classification.
        config: epochs and size.
        seed: of the sample and of the halvings.
        progress: called with (epochs done, epochs, "epochs scored").
        early_at: epochs -> R >= 1 models for each, one a seed, as they pass it in one run.

    Returns:
        ``data_diet``: one row an example and epoch; ``data_diet_epochs``: one row an epoch and measure.

    Raises:
        NotApplicable: another task than classification; with ``grand``, what :func:`scoring.grand.grand` cannot take.
        DataError: labels outside the model's outputs, NaN or infinite logits; names the examples.
        InvalidInput: no training examples, or no models.
        ConfigError: an epoch beyond the recipe's end (from ``early_at``).
    """
    require(data, "data_diet", "classes")
    train = _sample(data.part("train"), config.max_examples, seed=seed)
    if not len(train):
        raise InvalidInput(f"{data.name} has no training example to score")
    norm = _input_norms(train, config.batch)
    scores, rows, means = [], [], []
    models = early_at(config.epochs)
    for done, epoch in enumerate(config.epochs, start=1):
        values = _values(train, models[epoch], config.batch)  # (R, len(MEANS), N)
        every = _grand(train, models[epoch], config)
        scores.append(_scores(train, epoch, values).with_columns(every.get_columns()))
        means.append(values.mean(0))
        rows += _measures(epoch, values, norm, halvings=config.halvings, seed=seed)
        if config.grand:
            rows.append((epoch, "input norm: grand", _spearman(every["grand"].to_numpy(), norm), None, None))
        progress(done, len(config.epochs), "epochs scored")
    for epoch, now, after in zip(config.epochs, means, means[1:], strict=False):
        rows.append((epoch, "next epoch", _spearman(now[0], after[0]), None, None))
    rows.append((config.epochs[-1], "next epoch", None, None, None))
    columns = {"epoch": pl.Int64, "measure": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    epochs = pl.DataFrame(rows, schema=columns, orient="row").with_columns(
        num_examples=pl.lit(len(train), pl.Int64), n_seeds=pl.lit(len(values), pl.Int64)
    )
    return {"data_diet": pl.concat(scores), "data_diet_epochs": epochs.sort("epoch", "measure")}


def _sample(train: ExampleSet, most: int, *, seed: int) -> ExampleSet:
    """Ordered by id: the result does not depend on the order of the rows."""
    ids = np.sort(train.example_id)
    if len(ids) > most:
        rng = np.random.default_rng(derive_seed("data diet sample", seed))
        ids = np.sort(rng.choice(ids, most, replace=False))
    return train.subset(ids)


def _input_norms(data: ExampleSet, batch: int) -> Values:
    """||x|| of what a model sees, float64 (N,)."""
    norm = np.empty(len(data))
    for start in range(0, len(data), batch):
        rows = slice(start, min(start + batch, len(data)))
        x = data.inputs(rows)
        if isinstance(x, dict):  # a node's own numbers
            x = x["x"][x["nodes"]]
        norm[start : start + batch] = np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1)
    return norm


def _values(data: ExampleSet, models: Sequence[nn.Module], batch: int) -> Values:
    check("data_diet", data, models)
    values = np.empty((len(models), len(MEANS), len(data)))
    for rows, block in model_values("data_diet", data, models, batch=batch):
        values[:, :, rows] = block
    return values


def _grand(data: ExampleSet, models: Sequence[nn.Module], config: DataDietConfig) -> pl.DataFrame:
    """Columns grand and grand_std, null when they are not asked for."""
    if not config.grand:
        nothing = pl.repeat(None, len(data), dtype=pl.Float64, eager=True)
        return pl.DataFrame({"grand": nothing, "grand_std": nothing})
    return grand(data, config=GrandConfig(batch=config.batch), seed=0, early_models=models)[["grand", "grand_std"]]


def _scores(data: ExampleSet, epoch: int, values: Values) -> pl.DataFrame:
    mean = dict(zip(MEANS, values.mean(0), strict=True))
    spread = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    std = {name: pl.Series(s, nan_to_null=True) for name, s in zip(MEANS, spread, strict=True)}
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "epoch": np.full(len(data), epoch, np.int64),
            "el2n": mean["el2n"],
            "el2n_std": std["el2n"],
            "margin": mean["margin_max"],
            "margin_std": std["margin_max"],
            "grand_last_layer": pl.Series(mean["grand_last_layer"], nan_to_null=True),
            "grand_last_layer_std": std["grand_last_layer"],
            "n_seeds": np.full(len(data), len(values), np.int64),
        }
    )


Row = tuple[int, str, float | None, float | None, float | None]


def _measures(epoch: int, values: Values, norm: Values, *, halvings: int, seed: int) -> list[Row]:
    by_name = dict(zip(MEANS, values.transpose(1, 0, 2), strict=True))  # (R, N) each
    el2n, num = by_name["el2n"], len(values)
    # The halvings of every epoch are the same, so that epochs differ by their models alone.
    rng = np.random.default_rng(derive_seed("data diet halves", seed))
    halves: list[float | None] = []
    for _ in range(halvings if num > 1 else 0):
        order = rng.permutation(num)
        halves.append(_spearman(el2n[order[: num // 2]].mean(0), el2n[order[num // 2 :]].mean(0)))
    ranks = [rankdata(one) for one in el2n]
    pairs = [_correlation(a, b) for a, b in combinations(ranks, 2)]
    right = (by_name["margin_max"] < 0).mean(1)
    return [
        (epoch, "seed halves", *_summary(halves)),
        (epoch, "single seeds", *_summary(pairs)),
        (epoch, "input norm: el2n", _spearman(el2n.mean(0), norm), None, None),
        (epoch, "input norm: grand_last_layer", _spearman(by_name["grand_last_layer"].mean(0), norm), None, None),
        (epoch, "accuracy", *_summary(right.tolist())),
    ]


def _summary(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Mean, 5% and 95% quantile of what is defined; no interval for a single value."""
    known = [v for v in values if v is not None]
    if not known:
        return None, None, None
    if len(known) == 1:
        return known[0], None, None
    low, high = np.quantile(known, (0.05, 0.95))
    return float(np.mean(known)), float(low), float(high)


def _spearman(a: Values, b: Values) -> float | None:
    """Rank correlation, ties sharing their mean rank; None when a side is constant or not known."""
    if np.isnan(a).any() or np.isnan(b).any():
        return None
    return _correlation(rankdata(a), rankdata(b))


def _correlation(a: Values, b: Values) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return None if size == 0 else float(np.clip(a @ b / size, -1.0, 1.0))
