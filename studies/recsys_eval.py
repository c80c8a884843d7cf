"""Plain training, loss truncation and personalised denoising (PLD) of one recommender, against the noise in its data.

What was planted in the data before is taken out. For every noise ratio r and seed floor(r |train_u|) random items are
added to each user's training list (``sources.planted.plant_interactions``), and the backbone is trained three ways
(recipe ``bpr``):

    none          every interaction of a user alike often
    truncation    the noise rate of each batch with the largest losses left out; it is told the true rate, so it is run
                  only where there is planted noise to tell of
    pld           told nothing; see recipes.recsys

Measured: Recall@20/50 and NDCG@20/50 on the test split (training items taken out, truncated ideal gain), and
noisy_update_share, the share of planted interactions among those in the optimiser steps from epoch ``count_from`` on.
Ratio 0 is the data as it is, whose own noise nobody knows.

Source: Zhang et al., "Personalized Denoising Implicit Feedback for Robust Recommender System" (WWW 2025, arXiv
    2502.00348),
section 5; Wang et al., WSDM 2021 (arXiv 2006.04153) for truncation. Told the right rate, truncation can equal PLD or
beat it in recall; it takes its updates from the users whose losses are high.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from recipes.models import Build, builder
from recipes.recsys import BprConfig, bpr, num_steps
from recipes.recsys_lists import Lists
from recipes.recsys_topk import evaluate_topk
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.planted import plant_interactions, planted_interactions, without_planted
from studies.retraining import mean_interval
from tasks.base import require

METHODS = ("none", "truncation", "pld")
METRICS = ("recall20", "recall50", "ndcg20", "ndcg50")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecsysEvalConfig(Config):
    """Noise, backbone and training; the training fields mean what they mean in the recipe."""

    noise_ratios: tuple[float, ...] = param(
        (0.0, 0.3), ge=0, le=10, doc="added interactions per training interaction of each user, increasing"
    )
    seeds: int = param(3, ge=1, le=100, doc="trainings of each kind, each with noise of its own")
    backbone: str = param("mf", choices=("mf", "lightgcn"), doc="the model")
    dim: int = param(32, ge=1, le=65_536, doc="length of its vectors")
    loss: str = param("bpr", choices=("bpr", "bce"), doc="pairwise, or pointwise")
    pool: int = param(5, ge=1, le=1000, doc="pld: candidates k")
    tau: float = param(0.1, gt=0, le=1e6, unit="nats", doc="pld: temperature")
    warmup_epochs: int = param(5, ge=0, le=100_000, unit="epochs", doc="plain epochs before denoising")
    epochs: int = param(60, ge=1, le=100_000, doc="of each training; the last model is measured")
    count_from: int = param(
        15, ge=0, le=100_000, unit="epochs", doc="epochs before updates are counted; fewer than epochs"
    )
    lr: float = param(1e-2, gt=0, le=100, doc="AdamW, constant")
    weight_decay: float = param(0.01, ge=0, le=1, doc="AdamW's own, decoupled")
    reg: float = param(1e-3, ge=0, le=1, doc="weight of the batch's squared norms in the loss")
    batch: int = param(1024, ge=1, le=1_000_000, unit="users", doc="users a step")

    def check(self) -> None:
        if not self.noise_ratios or any(a >= b for a, b in pairwise(self.noise_ratios)):
            raise ConfigError(f"RecsysEvalConfig.noise_ratios = {self.noise_ratios} must be at least one, increasing")
        if self.count_from >= self.epochs:
            raise ConfigError(f"RecsysEvalConfig.count_from = {self.count_from} must be < epochs = {self.epochs}")

    def recipe(self, method: str, *, noise_rate: float) -> BprConfig:
        """The recipe's configuration for one of ``METHODS``."""
        return BprConfig(
            loss=self.loss,
            denoise=method,
            pool=self.pool,
            tau=self.tau,
            drop_rate=noise_rate,
            warmup_epochs=self.warmup_epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            reg=self.reg,
            batch=self.batch,
            epochs=self.epochs,
        )


def _share(name: str, doc: str, *, nullable: bool = False) -> Column:
    return Column(name=name, dtype="float64", low=0, high=1, nullable=nullable, doc=doc)


_HEAD = (
    Column(name="method", dtype="str", choices=METHODS, doc="how noise is kept out of the steps"),
    Column(name="backbone", dtype="str", choices=("mf", "lightgcn"), doc="the model"),
    Column(name="loss", dtype="str", choices=("bpr", "bce"), doc="what a step minimises"),
    Column(name="noise_ratio", dtype="float64", low=0, high=10, doc="interactions added per training interaction"),
)
_RUNS = TableSpec(
    schema="scores",
    name="recsys_eval",
    doc="Ranking quality and noisy updates of every training.",
    key=("method", "noise_ratio", "repeat"),
    columns=(
        *_HEAD,
        Column(name="repeat", dtype="int64", low=0, doc="number of the training; its seed differs from the others'"),
        _share("recall20", "mean over users of the share of test items among the first 20"),
        _share("recall50", "the same among the first 50"),
        _share("ndcg20", "normalised discounted gain at 20, truncated ideal"),
        _share("ndcg50", "the same at 50"),
        _share(
            "noise_share",
            "share of planted interactions in the training data; null when nothing is known of any",
            nullable=True,
        ),
        _share(
            "noisy_update_share", "their share in the optimiser steps; null when nothing is known of any", nullable=True
        ),
    ),
)
_MEANS = TableSpec(
    schema="scores",
    name="recsys_eval_means",
    doc="The same, mean over the repeats with 90% Student intervals.",
    key=("method", "noise_ratio"),
    columns=(
        *_HEAD,
        Column(name="num_repeats", dtype="int64", low=1, doc="trainings averaged"),
        *(
            column
            for name in (*METRICS, "noisy_update_share")
            for column in (
                _share(name, f"mean of {name}", nullable=name == "noisy_update_share"),
                Column(
                    name=f"{name}_low",
                    dtype="float64",
                    nullable=True,
                    doc="lower end of its interval; null for one repeat",
                ),
                Column(name=f"{name}_high", dtype="float64", nullable=True, doc="upper end"),
            )
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="recsys_eval",
        doc="Recall, NDCG and share of updates spent on noise for plain, truncated and personally denoised training.",
        source="Zhang et al., Personalized Denoising Implicit Feedback, WWW 2025 (arXiv 2502.00348)",
        config=RecsysEvalConfig,
        wants=("interactions",),
        tables=(_MEANS, _RUNS),
        pictures=tuple(
            Picture(
                table="recsys_eval_means",
                title=title,
                x="noise_ratio",
                y=y,
                series="method",
                low=f"{y}_low",
                high=f"{y}_high",
                kind="dots" if y == "noisy_update_share" else "lines",
            )
            for y, title in (
                ("recall20", "Recall@20 against noise added to the training data"),
                ("ndcg20", "NDCG@20 against noise added to the training data"),
                ("noisy_update_share", "Share of the updates spent on noise"),
            )
        ),
    )
)
def recsys_eval(
    data: ExampleSet, *, config: RecsysEvalConfig, seed: int, progress: Progress
) -> dict[str, pl.DataFrame]:
    """Tables ``recsys_eval_means`` and ``recsys_eval``; see the head of this file.

    Args:
        data: both splits of a ranking set.
        config: noise, backbone, training.
        seed: root of noise and trainings; the three methods of a repeat share both.
        progress: called with (trainings done, in all, "recommenders trained").

    Raises:
        NotApplicable: another task than ranking.
        DataError: no test interaction; users or items out of range, a pair twice; too few items left to plant.
        Diverged: a training is no longer finite.
    """
    require(data, "recsys_eval", "interactions")
    if not (data.split == "test").any():
        raise DataError(f"{data.name} has no test interaction to find", example_ids=data.example_id)
    Lists.of(data)  # refuses what is out of range or twice before anything is planted
    test = Lists.of(data.part("test"))
    build = builder(config.backbone, {"dim": config.dim}, input_shape=(data.num_users,), num_outputs=data.num_classes)
    plans = [(ratio, repeat) for ratio in config.noise_ratios for repeat in range(config.seeds)]
    clean = without_planted(data)
    rows: list[dict[str, object]] = []
    for number, (ratio, repeat) in enumerate(plans):
        noise_seed, run_seed = (derive_seed(word, seed, repeat) for word in ("noise", "recommender"))
        train = (plant_interactions(clean, ratio=ratio, seed=noise_seed)[0] if ratio else clean).part("train")
        noisy = planted_interactions(train)
        rate = float("nan") if noisy is None else float(noisy.mean())
        for place, method in enumerate(METHODS):
            if method != "truncation" or rate > 0:
                found = measure(
                    build,
                    train,
                    test,
                    config=config.recipe(method, noise_rate=np.nan_to_num(rate)),
                    seed=run_seed,
                    noisy=noisy,
                    count_from=config.count_from,
                )
                rows.append(
                    {
                        "method": method,
                        "backbone": config.backbone,
                        "loss": config.loss,
                        "noise_ratio": ratio,
                        "repeat": repeat,
                        "noise_share": rate,
                        **found,
                    }
                )
            progress(number * len(METHODS) + place + 1, len(plans) * len(METHODS), "recommenders trained")
    runs = frame_of(_RUNS, rows)
    return {"recsys_eval_means": _means(runs, config), "recsys_eval": runs}


def measure(
    build: Build,
    train: ExampleSet,
    test: Lists,
    *,
    config: BprConfig,
    seed: int,
    noisy: NDArray[np.bool_] | None,
    count_from: int,
) -> dict[str, float]:
    """Train once; the four metrics of ``METRICS`` and ``noisy_update_share`` (NaN when ``noisy`` is None).

    Args:
        noisy: (N,) which rows of ``train`` are noise.
        count_from: first epoch whose steps are counted.
    """
    skip = count_from * num_steps(len(train), config)
    counts = np.zeros(3, np.int64)  # steps, noisy updates, updates

    def observe(rows: Tensor, losses: Tensor) -> None:
        counts[0] += 1
        if noisy is not None and counts[0] > skip:
            counts[1:] += noisy[rows.numpy()].sum(), len(rows)

    model = bpr(build, train, config=config, seed=seed, observe=None if noisy is None else observe)
    found = evaluate_topk(model, known=Lists.of(train), test=test)
    return {**found, "noisy_update_share": float(counts[1] / counts[2]) if counts[2] else float("nan")}


def _means(runs: pl.DataFrame, config: RecsysEvalConfig) -> pl.DataFrame:
    rows: list[dict[str, object]] = []
    for (method, ratio), group in runs.group_by("method", "noise_ratio", maintain_order=True):
        row: dict[str, object] = {
            "method": method,
            "backbone": config.backbone,
            "loss": config.loss,
            "noise_ratio": ratio,
            "num_repeats": group.height,
        }
        for name in (*METRICS, "noisy_update_share"):
            known = group[name].drop_nulls().to_numpy()
            interval = mean_interval(known) if len(known) else (None, None, None)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
        rows.append(row)
    return frame_of(_MEANS, rows)
