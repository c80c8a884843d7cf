"""Influence of training examples on unseen ones by projected gradients, averaged over a few models.

    phi_m(z)   projected gradient of the output f (``projected_gradients``) under model m, m = 1 .. R
    K_m      = Phi_m' Phi_m + lambda_m I,   lambda_m = ridge tr(Phi_m' Phi_m) / k       Phi_m (N, k): training examples
    Q_im     = 1 - p_m(i) (classes), y_i - f_m(i) (numbers): minus the slope of the loss in f
    tau_ji   = w_j mean_m[ phi_m(j)' K_m^{-1} phi_m(i) ] mean_m[ Q_im ]
               w_j = 1: of the margin of j;  numbers: w_j = mean_m 2 (y_j - f_m(j)): of minus its squared error

positive = helps j. The models are of the subject's own recipe on random halves of the training examples, or on all of
them. For a linear model and squared error, one model and ridge lambda, phi(j)' K^{-1} phi(i) Q_i is what leaving i out
changes in the prediction of j, times 1 - h_i (its leverage).

Source: Park et al., "TRAK: Attributing Model Behavior at Scale" (ICML 2023, arXiv 2303.14186), equations 13 to 17;
LoGra's projection: Choe et al. (arXiv 2405.13954). The average of Q is apart from that of the kernel, as in the paper.
Not the ensemble's own influence (``influence``), which needs hundreds of models; ``lds`` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import DataError, InvalidInput
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.streaming import check_outputs
from scoring.projected_gradients import PROJECTIONS, output_of, projected_gradients
from sources.example_set import ExampleSet
from tasks.base import require

Floats = NDArray[np.float64]
Products = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class TrakConfig(Config):
    """Projection, kernel and models; shared by all that attribute."""

    projection: str = param("random", choices=PROJECTIONS, doc="of gradients; logra: low rank in each linear map")
    dim: int = param(512, ge=1, le=65_536, doc="k, dimensions of the projected gradient at most")
    ridge: float = param(1.0, gt=0, le=1e6, doc="lambda in mean eigenvalues of the kernel")
    models: int = param(4, ge=1, le=1000, doc="R, models that are averaged")
    trained_on: str = param("halves", choices=("halves", "all"), doc="random halves of the training examples, or all")
    targets: int = param(256, ge=1, le=100_000, doc="unseen examples that are explained, drawn at random; all if fewer")
    batch: int = param(256, ge=1, le=1_000_000, doc="examples a forward pass; bounds memory")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrakPairsConfig(TrakConfig):
    top: int = param(5, ge=1, le=10_000, doc="most helpful and most harmful examples kept for each target")


_PAIRS = TableSpec(
    schema="scores",
    name="trak_pairs",
    doc="Of each unseen example the training examples that help its answer most, and those that harm it most.",
    key=("target_id", "train_id"),
    columns=(
        Column(name="target_id", dtype="int64", low=0, doc="the unseen example"),
        Column(name="train_id", dtype="int64", low=0, doc="the training example"),
        Column(name="kind", dtype="str", choices=("helps", "harms"), doc="among the highest, or the lowest"),
        Column(name="rank", dtype="int64", low=1, doc="1 = most"),
        Column(
            name="influence",
            dtype="float64",
            direction="higher = helps more",
            doc="estimated change of the target's margin (numbers: of minus its squared error) by the example",
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="trak",
        wants=("reading", "features"),
        doc="Training examples that help and harm the answers to unseen ones, by projected gradients of a few models.",
        source="Park et al., TRAK, ICML 2023 (arXiv 2303.14186); Choe et al., LoGra (arXiv 2405.13954)",
        config=TrakPairsConfig,
        needs=("train_many",),
        tables=(_PAIRS,),
        pictures=(
            Picture(
                table="trak_pairs",
                kind="examples",
                x="train_id",
                y="influence",
                series="target_id",
                where=(("kind", "helps"),),
                title="Training examples that help unseen ones most, by projected gradients",
            ),
        ),
    )
)
def trak(
    data: ExampleSet,
    *,
    config: TrakPairsConfig,
    seed: int,
    progress: Progress = silent,
    train_many: Callable[..., Sequence[nn.Module]],
) -> dict[str, pl.DataFrame]:
    """The strongest pairs; targets are of the test split.

    Args:
        data: both splits; classes or numbers.

    Raises:
        NotApplicable: another task, or a model that cannot be projected so.
        DataError: no training or no test example, targets that are none, outputs that are not finite.
    """
    require(data, "trak", "reading", "features")
    output_of(data)
    data.check_targets()
    train, test = data.part("train").by_id(), data.part("test").by_id()
    if len(train) < 2 or not len(test):
        raise DataError(
            f"{data.name}: trak explains test examples by training examples; there are {len(test)} of these"
        )
    targets = drawn_targets(test, config.targets, seed=seed)
    tau = attributions(train, targets, train_many=train_many, config=config, seed=seed, progress=progress)
    rows = []
    top = min(config.top, len(train) // 2)
    for j, row in enumerate(tau):
        order = np.argsort(-row, kind="stable")
        for kind, chosen in (("helps", order[:top]), ("harms", order[::-1][:top])):
            rows.append(
                pl.DataFrame(
                    {
                        "target_id": np.full(top, targets.example_id[j]),
                        "train_id": train.example_id[chosen],
                        "kind": [kind] * top,
                        "rank": np.arange(1, top + 1),
                        "influence": row[chosen].astype(np.float64),
                    }
                )
            )
    return {"trak_pairs": pl.concat(rows)}


def drawn_targets(test: ExampleSet, most: int, *, seed: int) -> ExampleSet:
    """At most so many examples, drawn by id, in the order of their ids."""
    rng = np.random.default_rng(derive_seed("targets", seed))
    return test.take(np.sort(rng.permutation(len(test))[:most]))


def trained_models(
    train: ExampleSet, *, train_many: Callable[..., Sequence[nn.Module]], config: TrakConfig, seed: int
) -> Sequence[nn.Module]:
    """R models of the recipe on random halves of the examples, or on all."""
    sets, rng = [], np.random.default_rng(derive_seed("halves", seed))
    for _ in range(config.models):
        half = np.sort(rng.permutation(len(train))[: max(1, len(train) // 2)])
        sets.append(train.example_id[half] if config.trained_on == "halves" else train.example_id)
    return train_many(sets, [derive_seed("trak", seed, m) for m in range(config.models)], data=train)


def attributions(
    train: ExampleSet,
    targets: ExampleSet,
    *,
    train_many: Callable[..., Sequence[nn.Module]],
    config: TrakConfig,
    seed: int,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """tau, float32 (targets, training examples), in their orders.

    One model is projected at a time: memory is one (N, k), the kernel, and the result.
    """
    models = trained_models(train, train_many=train_many, config=config, seed=seed)
    return attributed(models, train, targets, config=config, seed=seed, progress=progress)


def attributed(
    models: Sequence[nn.Module],
    train: ExampleSet,
    targets: ExampleSet,
    *,
    config: TrakConfig,
    seed: int,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """As :func:`attributions`, of models that there are.

    Raises:
        InvalidInput: no models.
    """
    return _averaged(models, train, targets, config, seed, _kernel(config.ridge), progress)


def dot_products(
    models: Sequence[nn.Module], train: ExampleSet, targets: ExampleSet, *, config: TrakConfig, seed: int
) -> NDArray[np.float32]:
    """As :func:`attributed` without the kernel, phi(j)' phi(i) in its place: the baseline."""
    return _averaged(models, train, targets, config, seed, lambda own, other: other @ own.T, silent)


def _kernel(ridge: float) -> Products:
    return lambda own, other: kernel_products(own, other, ridge=ridge)


def _averaged(
    models: Sequence[nn.Module],
    train: ExampleSet,
    targets: ExampleSet,
    config: TrakConfig,
    seed: int,
    products: Products,
    progress: Progress,
) -> NDArray[np.float32]:
    if not models:
        raise InvalidInput("attribution needs at least one model")
    tau = np.zeros((len(targets), len(train)), np.float32)
    slope, weight = np.zeros(len(train)), np.zeros(len(targets))
    for m, model in enumerate(models):
        check_outputs("trak", train, model)
        own, other = (
            projected_gradients(
                model,
                part,
                projection=config.projection,
                dim=config.dim,
                seed=derive_seed("map", seed),
                batch=config.batch,
            )
            for part in (train, targets)
        )
        tau += products(own.phi, other.phi)
        slope += _slope(train, own.output) / len(models)
        weight += (_slope(targets, other.output) * 2 if train.task.gives("numbers") else 1.0) / len(models)
        progress(m + 1, len(models), "models projected")
    tau *= (slope / len(models)).astype(np.float32)
    tau *= weight.astype(np.float32)[:, None]
    return tau


def kernel_products(phi: NDArray[np.float32], targets: NDArray[np.float32], *, ridge: float) -> NDArray[np.float32]:
    """phi(j)' (Phi' Phi + lambda I)^{-1} phi(i), float32 (T, N), with lambda = ridge tr(Phi' Phi) / k.

    Args:
        phi: (N, k); targets: (T, k).
        ridge: > 0.
    """
    kernel = np.zeros((phi.shape[1], phi.shape[1]))
    for start in range(0, len(phi), _BLOCK):
        part = phi[start : start + _BLOCK].astype(np.float64)
        kernel += part.T @ part
    kernel[np.diag_indices_from(kernel)] += ridge * (np.trace(kernel) or 1.0) / len(kernel)
    solved = np.linalg.solve(kernel, targets.T.astype(np.float64))
    out = np.empty((len(targets), len(phi)), np.float32)
    for start in range(0, len(phi), _BLOCK):
        out[:, start : start + _BLOCK] = (phi[start : start + _BLOCK].astype(np.float64) @ solved).T
    return out


def _slope(data: ExampleSet, output: Floats) -> Floats:
    """Minus the slope of the loss in f: 1 - p_y = 1 / (1 + e^f), or half that of the squared error, y - f."""
    if data.task.gives("numbers"):
        return np.asarray(data.y - output)
    return np.asarray(np.exp(-np.logaddexp(0.0, output)))
