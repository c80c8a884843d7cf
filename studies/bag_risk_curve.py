"""Which bag size, and how much of the instance loss, the responses of a data set can bear.

    theory        the risk formula (``bag_risk``) at n, d, and the s^2 and |theta|^2 of least squares on all responses
    monte_carlo   fits on Gaussian features of the same n, d, s^2, |theta|^2: what the formula leaves out at this size
    measured      the linear fit to bags of these very examples, over bags at random and noise: on test examples, the
                  squared distance of its mean over bags to the fit on all responses (bias^2), and its variance over
                  bags

``best`` marks the bag size of least risk of each rho and release. ``bag_rho`` says which rho a holder of the release
alone would choose. The owner of the responses runs this to choose k before a release; what was chosen by the responses
that are then released spends privacy of its own, so the choice belongs on public or earlier data.

Source: Javanmard et al., "Learning from Aggregate Responses" (ICLR 2024, arXiv 2401.11081), sections 4 and 5.
Features are standardised on the training split, and a constant is fitted beside them. No choice is made on the test
split, which reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.aggregate.linear import moments
from sources.bags import Bags, make_bags, release_bag_means
from sources.example_set import ExampleSet
from sources.frames import frame_of
from studies.bag_risk import (
    Risk,
    asymptotic_risk,
    effective_noise,
    rho_by_cross_validation,
    rho_by_plug_in,
    simulated_risk,
)
from tasks.base import require

Array = NDArray[np.float64]
SOURCES = ("theory", "monte_carlo", "measured")
_MOST_FEATURES = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class BagRiskConfig(Config):
    bag_sizes: tuple[int, ...] = param((1, 2, 3, 5, 8), ge=1, le=1_000_000, doc="k to compare, at least two bags each")
    rhos: tuple[float, ...] = param((0.0, 0.01, 0.03, 0.1, 0.3, 1.0), ge=0, le=1e6, doc="weights of the variance term")
    epsilons: tuple[float, ...] = param((), gt=0, le=1e6, doc="releases with label differential privacy, besides exact")
    clip: float | None = param(None, gt=0, le=1e12, doc="c, of responses around center; needed for epsilons")
    center: float = param(0.0, ge=-1e12, le=1e12, doc="what responses are clipped around")
    repeats: int = param(10, ge=2, le=1000, doc="draws of bags and noise, and of Gaussian features")

    def check(self) -> None:
        if not self.bag_sizes or not self.rhos:
            raise ConfigError("BagRiskConfig.bag_sizes and rhos must name one value at least")
        if self.epsilons and self.clip is None:
            raise ConfigError("BagRiskConfig.epsilons needs clip: noise has the scale of clipped responses")


_KEY = (
    Column(name="k", dtype="int64", low=1, unit="examples", doc="bag size"),
    Column(name="release", dtype="str", doc="exact means, or which epsilon"),
)
_CURVE = TableSpec(
    schema="studies",
    name="bag_risk_curve",
    doc="Excess risk of a linear fit to bag means by bag size, rho and epsilon.",
    key=("k", "release", "rho", "source"),
    columns=(
        *_KEY,
        Column(name="rho", dtype="float64", low=0, doc="weight of the variance within bags; 0 bag, 1 instance loss"),
        Column(name="curve", dtype="str", doc="release and rho, for pictures"),
        Column(name="source", dtype="str", choices=SOURCES, doc="formula, simulation, or these examples"),
        Column(name="epsilon", dtype="float64", low=0, nullable=True, doc="of the release; null: exact means"),
        Column(name="bias2", dtype="float64", low=0, nullable=True, doc="squared bias, in squares of the response"),
        Column(name="variance", dtype="float64", low=0, nullable=True, doc="variance, in squares of the response"),
        Column(
            name="risk",
            dtype="float64",
            low=0,
            nullable=True,
            direction="higher = worse",
            doc="excess risk, in squares of the response; null: infinite, as many bags as features",
        ),
        Column(name="stderr", dtype="float64", low=0, nullable=True, doc="of the risk over draws; null for theory"),
        Column(name="best", dtype="bool", doc="least risk of the bag sizes of this release, rho and source"),
    ),
)
_RHO = TableSpec(
    schema="studies",
    name="bag_rho",
    doc="The rho that is chosen from a release alone, at its first draw of bags.",
    key=("k", "release"),
    columns=(
        *_KEY,
        Column(name="sigma2", dtype="float64", low=0, nullable=True, doc="estimated noise; null: too few bags"),
        Column(name="theta2", dtype="float64", low=0, nullable=True, doc="estimated signal; null: too few bags"),
        Column(name="rho_plug_in", dtype="float64", low=0, nullable=True, doc="by the formula; null: too few bags"),
        Column(name="rho_cv", dtype="float64", low=0, nullable=True, doc="by five folds over bags; null: under 5 bags"),
    ),
)


@analysis(
    AnalysisSpec(
        name="bag_risk_curve",
        doc="What a linear fit to mean responses of bags loses, by bag size, loss and privacy.",
        source="Javanmard et al., Learning from Aggregate Responses, ICLR 2024 (arXiv 2401.11081)",
        config=BagRiskConfig,
        wants=("numbers", "features"),
        tables=(_CURVE, _RHO),
        pictures=tuple(
            Picture(
                table="bag_risk_curve",
                title=title,
                x="k",
                y="risk",
                series="curve",
                where=(("source", source),),
            )
            for source, title in (
                ("theory", "Excess risk by bag size, formula"),
                ("measured", "Excess risk by bag size, on these examples"),
            )
        ),
    )
)
def bag_risk_curve(
    data: ExampleSet, *, config: BagRiskConfig, seed: int, progress: Progress = silent
) -> dict[str, pl.DataFrame]:
    """Curves and choices.

    Args:
        data: both splits; numbers to predict; measured on the test split, or on the training split without one.

    Raises:
        NotApplicable: targets that are no numbers, more than 2,048 features, or no more training examples than
            features.
        ConfigError: a bag size that leaves fewer than two bags.
        DataError: no training example, targets that are none, values that are not finite.
    """
    require(data, "bag_risk_curve", "numbers", "features")
    data.check_targets()
    data = data.by_id()
    train, test = data.part("train"), data.part("test")
    if not len(train):
        raise DataError(f"{data.name}: there is no training example")
    x, scale = _standardised(train)
    seen = x if not len(test) else _flat(test, *scale)
    num, dim = x.shape
    if num <= dim + 2:
        raise NotApplicable(f"{data.name} has {num} training examples of {dim} features: the risk formula needs n > d")
    if large := [k for k in config.bag_sizes if num < 2 * k]:
        raise ConfigError(f"BagRiskConfig.bag_sizes = {large[0]} leaves fewer than two bags of {num} examples")
    all_of = moments(x, train.y, bags=Bags(np.arange(num))).fit(0.0, intercept=True)
    residual = train.y - all_of.predict(x)
    sigma2 = float(residual @ residual) / max(num - dim - 1, 1)
    theta2 = max(float(np.var(x @ all_of.theta)) - sigma2 * dim / num, 0.0)
    rows: list[dict[str, object]] = []
    rhos: list[dict[str, object]] = []
    releases = (None, *sorted(set(config.epsilons)))
    done, total = 0, len(config.bag_sizes) * len(releases)
    for k in sorted(set(config.bag_sizes)):
        for epsilon in releases:
            name = "exact" if epsilon is None else f"epsilon {epsilon:g}"
            noise = effective_noise(sigma2, k, epsilon=epsilon, clip=config.clip or 0.0)
            about = {"k": k, "release": name, "epsilon": epsilon}
            drawn = simulated_risk(
                num=num,
                dim=dim,
                sizes=(k,),
                rhos=config.rhos,
                sigma2=noise,
                theta2=theta2,
                repeats=config.repeats,
                seed=derive_seed("simulated", seed, k),
            )
            found, choice = _measured(x, train, seen, all_of.predict(seen), k, epsilon, config, seed)
            rhos.append(about | choice)
            for rho in sorted(set(config.rhos)):
                theory = asymptotic_risk(num / dim, k, rho=rho, sigma2=noise, theta2=theta2)
                for source, (risk, error) in (
                    ("theory", (theory, None)),
                    ("monte_carlo", drawn[k, rho]),
                    ("measured", found[rho]),
                ):
                    told = {"rho": rho, "curve": f"{name}, rho {rho:g}", "source": source, "stderr": error}
                    rows.append(about | told | _parts(risk))
            done += 1
            progress(done, total, "bag sizes and releases")
    least = pl.col("risk").min().over("release", "rho", "source")
    curve = frame_of(_CURVE, [row | {"best": False} for row in rows])
    return {
        "bag_risk_curve": curve.with_columns(best=(pl.col("risk") == least).fill_null(False)),
        "bag_rho": frame_of(_RHO, rhos),
    }


def _parts(risk: Risk) -> dict[str, object]:
    if not np.isfinite(risk.risk):
        return {"bias2": None, "variance": None, "risk": None}
    return {"bias2": risk.bias2, "variance": risk.variance, "risk": risk.risk}


def _standardised(train: ExampleSet) -> tuple[Array, tuple[Array, Array]]:
    x = _flat(train, np.zeros(1), np.ones(1))
    if x.shape[1] > _MOST_FEATURES:
        raise NotApplicable(
            f"{train.name} has {x.shape[1]} features; bag_risk_curve solves for {_MOST_FEATURES} at most"
        )
    center, spread = x.mean(0), x.std(0)
    scale = center, np.where(spread > 0, spread, 1.0)
    return (x - scale[0]) / scale[1], scale


def _flat(data: ExampleSet, center: Array, spread: Array) -> Array:
    x = data.inputs(slice(None)).astype(np.float64).reshape(len(data), -1)
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x).all(axis=1)
        raise DataError(f"{data.name}: values are not finite", example_ids=data.example_id[bad])
    return np.asarray((x - center) / spread)


def _measured(
    x: Array,
    train: ExampleSet,
    seen: Array,
    whole: Array,
    k: int,
    epsilon: float | None,
    config: BagRiskConfig,
    seed: int,
) -> tuple[dict[float, tuple[Risk, float]], dict[str, object]]:
    """rho -> (risk, standard error), and the choices of a holder of the first release."""
    total = {rho: np.zeros(len(seen)) for rho in config.rhos}
    squared: dict[float, list[float]] = {rho: [] for rho in config.rhos}
    choice: dict[str, object] = {}
    for draw in range(config.repeats):
        rng = np.random.default_rng(derive_seed("release", seed, k, draw, f"{epsilon}"))
        bags = make_bags(train.example_id, k, seed=derive_seed("bags", seed, k, draw))
        said = release_bag_means(
            train.y, bags, epsilon=epsilon, clip=None if epsilon is None else config.clip, center=config.center, rng=rng
        )
        means = said.means[:, 0]
        sums = moments(x, means, bags=bags)
        for rho in total:
            apart = sums.fit(rho, intercept=True).predict(seen) - whole
            total[rho] += apart
            squared[rho].append(float(apart @ apart) / len(seen))
        if draw == 0:
            choice = _choice(x, means, bags, config, seed)
    found = {}
    for rho, sizes in squared.items():
        mean = total[rho] / config.repeats
        bias2 = float(mean @ mean) / len(seen)
        spread = max(float(np.mean(sizes)) - bias2, 0.0)
        error = float(np.std(sizes, ddof=1)) / len(sizes) ** 0.5
        found[rho] = (Risk(bias2, spread), error)
    return found, choice


def _choice(x: Array, means: Array, bags: Bags, config: BagRiskConfig, seed: int) -> dict[str, object]:
    grid = sorted(set(config.rhos))
    plug = rho_by_plug_in(x, means, bags=bags, grid=grid, intercept=True)
    validated = None
    if len(bags) >= 5:
        folds = derive_seed("folds", seed)
        validated, _ = rho_by_cross_validation(x, means, bags=bags, seed=folds, grid=grid, intercept=True)
    return {
        "sigma2": plug.sigma2 if plug else None,
        "theta2": plug.theta2 if plug else None,
        "rho_plug_in": plug.rho if plug else None,
        "rho_cv": validated,
    }
