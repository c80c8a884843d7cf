"""Quality pools: what a model learns from each slice of a score alone, and from the slices together.

1. The best ``fraction`` of the scored training examples is cut, by the value of any stored score, into P pools of equal
   size (ties by id; what does not divide is left out at the worse end). pool_1 is the best end. ``stratified`` cuts
   every class by itself, so that the pools have the same classes. Without it a pool of the easiest examples lacks whole
   classes, and its error is theirs: on handwritten digits, cut by EL2N, the root mean squared distance of the laws
   fitted to the curves (analysis ``pool_laws``) was 0.015 to 0.10 as a whole (two draws) and 0.001 to 0.008 by class
   (three). Cut are the examples that a validation part, ``validation`` of each class, leaves: no pool holds any of that
   part.
2. The subject's own recipe is trained on each pool alone, one run a budget and seed, and its error recorded on the
   validation part and on the test split. A run a budget, because a learning rate that decays within a run bends the
   curve.
3. ``unions``: the 2 .. P best pools together, best first by the utility fitted to validation errors, are trained for as
   many samples as the points of the curves, so that what the laws predict from single pools can be held against
   measurements.

Whatever is chosen here and in ``pool_laws`` is chosen on the validation part; test errors are reported beside. The
stored score may have been computed by models that saw the validation part: it orders the examples that are trained on,
nothing more. The validation part has the label noise of the training split; wrong labels drawn at random raise every
error, not their order.

Laws, plan and the check of the plan are the analysis ``pool_laws``, which trains nothing.

Source: Goyal et al., "Scaling Laws for Data Filtering" (CVPR 2024, arXiv 2404.07177), sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.pools import cut
from studies.retraining import Seen, error_rate, hold_out, scored, splits_by_id, strata_of
from studies.scaling_fit import PoolCurve, fit_pool_laws


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityPoolsConfig(Config):
    score: str = param("el2n", doc="name of the stored score that orders the examples", ref="score")
    best: str = param("lowest", choices=("lowest", "highest"), doc="end of the score that pool_1 takes")
    num_pools: int = param(4, ge=2, le=16, doc="pools of equal size")
    fraction: float = param(1.0, gt=0, le=1, doc="share of the scored examples, from the best end, cut into pools")
    stratified: bool = param(True, doc="cut every class by itself; without it pools differ in their classes too")
    efforts: tuple[float, ...] = param(
        (0.05, 0.1, 0.2, 0.4, 0.8), gt=0, le=1000, doc="points of a curve, in the recipe's own epochs; increasing"
    )
    seeds: int = param(2, ge=1, le=100, doc="trainings a pool or union and point")
    validation: float = param(0.2, gt=0, lt=1, doc="share of each class held out of every pool, to fit and choose on")
    unions: bool = param(True, doc="train the unions of the best pools too: without them no plan can be checked")

    def check(self) -> None:
        if len(self.efforts) < 3 or any(a >= b for a, b in pairwise(self.efforts)):
            raise ConfigError(f"QualityPoolsConfig.efforts = {self.efforts} must be at least 3, increasing")


POOL = Column(name="pool_id", dtype="str", doc="pool_1 is the best end of the score")
_SEED = Column(name="seed", dtype="int64", low=0, doc="number of the repeat")
_SEEN = Column(name="samples_seen", dtype="int64", low=1, doc="examples passed forward and backward, repeats counted")
_ERROR = Column(
    name="validation_error",
    dtype="float64",
    low=0,
    high=1,
    doc="error of this run on the validation part; laws are fitted to it",
)
_TEST_ERROR = Column(
    name="test_error", dtype="float64", low=0, high=1, doc="error of this run on the test split; a report"
)
_POOLS = TableSpec(
    schema="scores",
    name="pools",
    doc="The quality pools: how many examples of which values.",
    key=("pool_id",),
    columns=(
        POOL,
        Column(name="num_examples", dtype="int64", low=1, doc="examples of the pool"),
        Column(name="num_validation", dtype="int64", low=1, doc="examples of the validation part, in no pool"),
        Column(name="score_low", dtype="float64", doc="least value of the score in the pool"),
        Column(name="score_high", dtype="float64", doc="greatest value of the score in the pool"),
    ),
)
_CURVES = TableSpec(
    schema="scores",
    name="pool_curves",
    doc="Errors of the subject's recipe trained on one pool alone, a run a row.",
    key=("pool_id", "seed", "samples_seen"),
    columns=(
        POOL,
        _SEED,
        _SEEN,
        Column(name="epoch", dtype="float64", low=0, unit="passes", doc="samples_seen / examples of the pool"),
        _ERROR,
        _TEST_ERROR,
    ),
)
_UNIONS = TableSpec(
    schema="scores",
    name="pool_unions",
    doc="Errors of the recipe trained on the union of the best pools, a run a row.",
    key=("n_pools", "point", "seed"),
    columns=(
        Column(name="n_pools", dtype="int64", low=2, doc="pools in the union, best first"),
        Column(name="pools", dtype="str", doc="their ids, most negative fitted b first"),
        Column(
            name="point",
            dtype="int64",
            low=1,
            doc="samples seen at the point of the pools' curves that it stands beside",
        ),
        _SEED,
        _SEEN,
        _ERROR,
        _TEST_ERROR,
    ),
)


@analysis(
    AnalysisSpec(
        name="quality_pools",
        version=3,
        wants=("reading",),
        doc="Quality pools of a score: learning curves of the recipe on each pool alone and on unions of the best.",
        source="Goyal et al., Scaling Laws for Data Filtering, CVPR 2024 (arXiv 2404.07177)",
        config=QualityPoolsConfig,
        needs=("scores", "train"),
        tables=(_POOLS, _CURVES, _UNIONS),
        pictures=(
            Picture(
                table="pool_curves",
                title="Test error of each quality pool alone, first seed",
                x="samples_seen",
                y="test_error",
                series="pool_id",
                log_x=True,
                where=(("seed", 0),),
            ),
        ),
    )
)
def quality_pools(
    data: ExampleSet,
    *,
    config: QualityPoolsConfig,
    seed: int,
    progress: Progress,
    scores: Callable[[str], pl.DataFrame],
    train: Callable[..., nn.Module],
) -> dict[str, pl.DataFrame]:
    """Tables ``pools``, ``pool_curves`` and ``pool_unions``; see the head of this file.

    Args:
        data: both splits. Training examples without a value of the score are in no pool.
        config: pools and points.
        seed: root of the trainings. All pools and unions share their initialisations.
        progress: called with (trainings done, in all at most, "trainings on pools").
        scores: gives (example_id, value) of a stored score by name.
        train: ``(data, seed, *, effort, observe) -> model``.

    Raises:
        NotApplicable: no test split, or a validation part of fewer than 20 examples.
        DataError: a stale score, fewer scored examples than pools.
        ConfigError: the efforts come to fewer than three different lengths of training.
        InvalidInput: the recipe does not tell of its mini-batches.
    """
    whole, test = splits_by_id(data, name="quality_pools")
    examples, values = scored(whole, scores(config.score), score=config.score)
    examples, values, validation = hold_out(examples, values, config.validation, seed=seed, name="quality_pools")
    strata = strata_of(examples) if config.stratified else np.zeros(len(examples), np.int64)
    pool = cut(
        values,
        examples.example_id,
        strata,
        num_pools=config.num_pools,
        fraction=config.fraction,
        best=config.best,
        what=config.score,
    ).pool
    names = [f"pool_{p + 1}" for p in range(config.num_pools)]
    size = int((pool == 0).sum())
    runs = len(config.efforts) * config.seeds
    total, done = runs * (len(names) + (len(names) - 1) * config.unions), 0

    def run(pools: Sequence[int], effort: float) -> list[dict[str, Any]]:
        """Samples seen, validation and test error of every seed."""
        nonlocal done
        members, found = examples.subset(examples.example_id[np.isin(pool, pools)]), []
        for repeat in range(config.seeds):
            seen = Seen()
            model = train(members, derive_seed("quality pools", seed, repeat), effort=effort, observe=seen)
            seen.check("quality_pools")
            found.append(
                {
                    "seed": repeat,
                    "samples_seen": seen.samples,
                    "validation_error": error_rate(model, validation),
                    "test_error": error_rate(model, test),
                }
            )
            done += 1
            progress(done, total, "trainings on pools")
        return found

    rows: list[dict[str, Any]] = []
    points: dict[
        float, int
    ] = {}  # effort -> samples seen of one pool; efforts that round to the same epochs are one point
    for p, name in enumerate(names):
        for effort in config.efforts if p == 0 else tuple(points):
            found = run([p], effort)
            if p == 0 and found[0]["samples_seen"] in points.values():
                continue
            points.setdefault(effort, found[0]["samples_seen"])
            rows += [{"pool_id": name, "epoch": one["samples_seen"] / size, **one} for one in found]
        if len(points) < 3:
            raise ConfigError(
                f"QualityPoolsConfig.efforts = {config.efforts} come to {len(points)} lengths of training of this "
                f"recipe ({sorted(points.values())} samples); at least 3 are needed: spread them more widely"
            )
    runs_of = frame_of(_CURVES, rows)
    about = [
        {
            "pool_id": name,
            "num_examples": size,
            "num_validation": len(validation),
            "score_low": float(values[pool == p].min()),
            "score_high": float(values[pool == p].max()),
        }
        for p, name in enumerate(names)
    ]
    unions: list[dict[str, Any]] = []
    fits = (
        fit_pool_laws(curves_of(runs_of, size=size, num_validation=len(validation)), bootstrap=0).fits
        if config.unions
        else ()
    )
    order = [f.pool_id for f in sorted(fits, key=lambda f: f.law.b)]
    for num in range(2, len(order) + 1):
        lengths: set[int] = set()
        for effort, point in points.items():
            if point >= num * size:  # a pass over the union at least
                found = run([names.index(i) for i in order[:num]], effort / num)
                if (length := found[0]["samples_seen"]) in lengths:
                    continue  # its epochs round to those of another point
                lengths.add(length)
                about_union = {"n_pools": num, "pools": ", ".join(order[:num]), "point": point}
                unions += [about_union | one for one in found]
    return {"pools": frame_of(_POOLS, about), "pool_curves": runs_of, "pool_unions": frame_of(_UNIONS, unions)}


def curves_of(runs: pl.DataFrame, *, size: int, num_validation: int) -> list[PoolCurve]:
    """The learning curve of each pool out of the validation errors of its runs (``pool_curves``), pools in order of
    appearance.

    One seed says nothing of its own noise; then the sampling error of the ``num_validation`` examples stands in.
    """
    curves = []
    for (name,), own in runs.group_by("pool_id", maintain_order=True):
        wide = own.sort("seed", "samples_seen")
        seen = wide["samples_seen"].unique().sort().to_numpy()
        errors_SJ = wide["validation_error"].to_numpy().reshape(-1, len(seen))
        mean = errors_SJ.mean(0)
        one = math.sqrt(float((mean * (1 - mean)).mean()) / num_validation) if len(errors_SJ) == 1 else math.nan
        curves.append(PoolCurve(str(name), size, seen.astype(np.float64), errors_SJ, stderr=one))
    return curves
