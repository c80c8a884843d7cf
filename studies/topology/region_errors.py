"""Where predicted masks go wrong: pieces and holes missed or invented, boundaries, skeletons, an image and a group at a
time.

    of every test image and foreground class: Dice, clDice, HD95, errors of b0 and b1, components and holes missed,
    invented (``measures``); of every group of images the means with a 95% interval; of every loss against the first,
    over the same images, the p-value of sign flips of their differences

The audited model stands beside models of the same recipe that were trained here with other losses, if any are named:
``losses: [ce_dice, cldice]`` trains both, the first is the baseline, and each image's figure is its mean over ``seeds``
trainings before it is compared. Groups are the values of a column (``by: domain``); they are never pooled, as a mean
over images like the training images and others says nothing of either.

Not a comparison that chooses a loss: with many measures and groups some p-value is small by chance.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365), whose metrics and test these are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import not_finite, outputs_of
from recipes.segmentation.losses import LOSSES
from recipes.training import Trainer
from sources.example_set import ExampleSet
from stats.paired import sign_flip_p_value
from studies.topology.measures import (
    Masks,
    betti_error,
    cl_dice_score,
    components,
    dice_score,
    hd95,
    holes,
    unmatched,
)
from tasks.base import require

AUDITED = "audited"
_FLIPS = 9_999
_COUNTS = {
    "b0_error": "difference of the number of 8-connected components",
    "b1_error": "difference of the number of holes",
    "components_missed": "true components without a partner among the predicted ones",
    "components_invented": "predicted components without a true partner",
    "holes_missed": "true holes without a partner: regions that ran into one another",
    "holes_invented": "predicted holes without a true partner",
}
_SHARES = {"dice": "overlap of the masks", "cl_dice": "overlap of each mask with the other's skeleton"}
MEASURES = (*_SHARES, "hd95_px", *_COUNTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionErrorsConfig(Config):
    """Groups, and losses that are compared."""

    by: str = param("", doc="column whose values are the groups of test images; all images are one when empty")
    losses: tuple[str, ...] = param(
        (), choices=tuple(LOSSES), doc="losses that are trained and compared with the first"
    )
    seeds: int = param(1, ge=1, le=20, doc="trainings of each of these losses")
    shown: int = param(8, ge=1, le=64, unit="images", doc="images with the most unmatched pieces that are drawn")

    def check(self) -> None:
        if len(set(self.losses)) < len(self.losses) or len(self.losses) == 1:
            raise ConfigError(f"RegionErrorsConfig.losses = {list(self.losses)}: two or more, none twice, or none")


_MODEL = Column(name="model", dtype="str", doc="audited, or the loss that it was trained with")
_CLASS = Column(name="class_name", dtype="str", doc="foreground class")
_ABOUT = Column(name="about", dtype="str", doc="group of the test image; all where there are no groups")
_ERRORS = TableSpec(
    schema="scores",
    name="region_errors",
    key=("example_id", "class_name", "model", "seed"),
    doc="What is wrong with the predicted mask of each test image.",
    columns=(
        Column(name="example_id", dtype="int64", low=0, doc="id of the test image"),
        _CLASS,
        _MODEL,
        Column(name="seed", dtype="int64", low=0, doc="number of the training; 0 for the audited model"),
        _ABOUT,
        *(
            Column(name=n, dtype="float64", low=0, high=1, direction="higher = better", doc=doc)
            for n, doc in _SHARES.items()
        ),
        Column(
            name="hd95_px",
            dtype="float64",
            unit="px",
            low=0,
            nullable=True,
            direction="lower = better",
            doc="95th percentile of the distance of boundaries; null where a mask is empty",
        ),
        *(Column(name=n, dtype="int64", low=0, direction="lower = better", doc=doc) for n, doc in _COUNTS.items()),
    ),
)
_SUMMARY = TableSpec(
    schema="scores",
    name="region_summary",
    key=("model", "class_name", "about", "measure"),
    doc="Mean errors of masks over the test images of each group, and each loss against the first.",
    columns=(
        _MODEL,
        _CLASS,
        _ABOUT,
        Column(name="measure", dtype="str", choices=MEASURES, doc="which column of region_errors"),
        Column(name="num_images", dtype="int64", low=0, doc="test images that have a value"),
        Column(name="value", dtype="float64", low=0, nullable=True, doc="mean over images of the mean over trainings"),
        Column(name="value_low", dtype="float64", low=0, nullable=True, doc="lower end of Student's 95% interval"),
        Column(name="value_high", dtype="float64", low=0, nullable=True, doc="upper end"),
        Column(
            name="difference",
            dtype="float64",
            nullable=True,
            doc="mean difference to the first loss over the same images; null for the audited model and the first",
        ),
        Column(
            name="p_value", dtype="float64", low=0, high=1, nullable=True, doc="two-sided, of sign flips of differences"
        ),
    ),
)
_SHOWN = TableSpec(
    schema="scores",
    name="region_outlines",
    key=("example_id",),
    doc="Test images whose predicted masks have the most pieces and holes without a partner.",
    columns=(
        Column(name="example_id", dtype="int64", low=0, doc="id of the test image"),
        Column(name="unmatched", dtype="int64", low=0, doc="components and holes missed or invented, of all classes"),
        Column(
            name="predicted_runs",
            dtype="floats",
            doc="predicted foreground, row after row: lengths of runs, background first",
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="region_errors",
        doc="Topology and boundaries of predicted masks: what is missed and invented, by group, and loss against loss.",
        source="Valverde, Koga et al., TopoMortar, BMVC 2025 (arXiv 2503.03365)",
        config=RegionErrorsConfig,
        needs=("model", "recipe"),
        wants=("features", "pixels"),
        tables=(_SUMMARY, _ERRORS, _SHOWN),
        pictures=(
            Picture(
                table="region_summary",
                title="Regions that ran into one another",
                kind="dots",
                x="about",
                y="value",
                series="model",
                low="value_low",
                high="value_high",
                where=(("measure", "holes_missed"),),
            ),
            Picture(
                table="region_summary",
                title="Pieces that are not there",
                kind="dots",
                x="about",
                y="value",
                series="model",
                low="value_low",
                high="value_high",
                where=(("measure", "components_invented"),),
            ),
            Picture(
                table="region_outlines",
                title="Most pieces and holes without a partner",
                kind="outlines",
                x="example_id",
                y="predicted_runs",
                value="unmatched",
            ),
        ),
    )
)
def region_errors(
    data: ExampleSet,
    *,
    config: RegionErrorsConfig,
    seed: int,
    model: nn.Module,
    recipe: Trainer,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Errors of masks of the test split.

    Args:
        data: both splits; pictures with masks.
        config: groups and losses.
        seed: of the trainings, and of random sign flips.
        model: the audited one.
        recipe: the plan's; with ``losses``, one whose configuration has a field ``loss``.
        progress: called with trainings done.

    Returns:
        ``region_summary``, ``region_errors`` and ``region_outlines``, by model, class, group, or image.

    Raises:
        NotApplicable: examples without masks, no test image; losses are to be compared and the recipe takes none.
        ConfigError: no such column.
        DataError: masks with values that are no class, or outputs that are not finite; names the examples.
    """
    require(data, "region_errors", "features", "pixels")
    data.check_targets()
    test = data.part("test").by_id()
    if not len(test):
        raise NotApplicable(f"region_errors: {data.name} has no test image")
    about = _groups(test, config.by)
    parts = [_of_model(model, test, about, name=AUDITED, number=0)]
    for done, (name, number, other) in enumerate(_trained(data, recipe, config, seed=seed), 1):
        parts.append(_of_model(other, test, about, name=name, number=number))
        progress(done, len(config.losses) * config.seeds, "trainings with other losses")
    errors = pl.concat(parts).sort("model", "seed", "class_name", "example_id")
    return {
        "region_summary": _summary(errors, config.losses, seed=derive_seed("flips", seed)),
        "region_errors": errors,
        "region_outlines": _worst(model, test, errors, config.shown),
    }


def _groups(test: ExampleSet, by: str) -> NDArray[np.str_]:
    if by and by not in test.columns:
        known = ", ".join(sorted(test.columns)) or "none"
        raise ConfigError(f"RegionErrorsConfig.by = {by!r} is no column of {test.name}; there are: {known}")
    return test.columns[by].astype(str) if by else np.full(len(test), "all")


def _trained(
    data: ExampleSet, recipe: Trainer, config: RegionErrorsConfig, *, seed: int
) -> Iterator[tuple[str, int, nn.Module]]:
    """(loss, number of the training, model) of each loss that is compared; equal numbers start alike."""
    if config.losses and getattr(recipe.config, "loss", None) not in LOSSES:
        raise NotApplicable(f"region_errors: recipe {recipe.spec.name} has no loss of masks to compare others with.")
    train = data.part("train").by_id()
    for name in config.losses:
        other = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, loss=name))
        for number in range(config.seeds):
            yield name, number, other.one(train, derive_seed("region_errors", seed, number))


def _predicted(model: nn.Module, test: ExampleSet) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """(rows, classes (B, H, W)), some images at a time."""
    inputs = Inputs(test, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    for rows, logits in outputs_of(model, inputs, batch=None):
        if (broken := ~np.isfinite(logits).all((1, 2, 3))).any():
            raise not_finite(broken, test.take(np.arange(rows.start, rows.stop)))
        yield rows, logits.argmax(1)


def _of_model(model: nn.Module, test: ExampleSet, about: NDArray[np.str_], *, name: str, number: int) -> pl.DataFrame:
    parts = []
    for rows, found in _predicted(model, test):
        true = test.targets(rows)
        for label in range(1, test.num_classes):
            parts.append(
                pl.DataFrame(
                    {
                        "example_id": test.example_id[rows],
                        "class_name": [test.class_names[label]] * len(true),
                        "model": [name] * len(true),
                        "seed": np.full(len(true), number, np.int64),
                        "about": about[rows].tolist(),
                        **measured(found == label, true == label),
                    }
                )
            )
    return pl.concat(parts).with_columns(pl.col("hd95_px").fill_nan(None))


def measured(predicted: Masks, true: Masks) -> Mapping[str, NDArray[Any]]:
    """(N,) of each of ``MEASURES``, of masks bool (N, H, W)."""
    num, betti = len(true), betti_error(predicted, true)
    whole = unmatched(components(predicted), components(true), num)
    inner = unmatched(holes(predicted), holes(true), num)
    return {
        "dice": dice_score(predicted, true),
        "cl_dice": cl_dice_score(predicted, true),
        "hd95_px": hd95(predicted, true),
        "b0_error": betti[:, 0],
        "b1_error": betti[:, 1],
        "components_missed": whole[:, 0],
        "components_invented": whole[:, 1],
        "holes_missed": inner[:, 0],
        "holes_invented": inner[:, 1],
    }


def _summary(errors: pl.DataFrame, losses: tuple[str, ...], *, seed: int) -> pl.DataFrame:
    """One row a model, class, group and measure."""
    image = ["model", "class_name", "about", "example_id"]
    each = errors.group_by(image).agg(pl.col(m).cast(pl.Float64).mean() for m in MEASURES).sort(image)
    rows = []
    for (name, class_name, about), part in each.group_by(image[:3], maintain_order=True):
        first = None
        if name in losses[1:]:
            same = (pl.col("model") == losses[0]) & (pl.col("class_name") == class_name) & (pl.col("about") == about)
            first = each.filter(same)
        for measure in MEASURES:
            values = part[measure].drop_nulls().to_numpy()
            low, high = _interval(values)
            row = {"model": name, "class_name": class_name, "about": about, "measure": measure}
            row |= {"num_images": len(values), "value": values.mean() if len(values) else None}
            row |= {"value_low": low, "value_high": high, "difference": None, "p_value": None}
            if first is not None:
                pairs = part.join(first.select("example_id", base=measure), on="example_id").drop_nulls(
                    [measure, "base"]
                )
                if pairs.height:
                    own, base = pairs[measure].to_numpy(), pairs["base"].to_numpy()
                    row["difference"] = float((own - base).mean())
                    row["p_value"] = (
                        sign_flip_p_value(own, base, seed=seed, flips=_FLIPS) if (own != base).any() else 1.0
                    )
            rows.append(row)
    types = {c.name: pl.Float64 for c in _SUMMARY.columns if c.dtype == "float64"}
    return pl.DataFrame(rows, schema_overrides=types)


def _interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Student's 95% interval of a mean of numbers that are not negative; none of fewer than two."""
    if len(values) < 2:
        return None, None
    slack = float(scipy_stats.t.isf(0.025, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return max(0.0, float(values.mean()) - slack), float(values.mean()) + slack


def _worst(model: nn.Module, test: ExampleSet, errors: pl.DataFrame, num: int) -> pl.DataFrame:
    """The images with the most unmatched pieces under the audited model, the smallest ids of equals."""
    pieces = [m for m in _COUNTS if m.endswith(("missed", "invented"))]
    worst = (
        errors.filter(pl.col("model") == AUDITED)
        .group_by("example_id")
        .agg(pl.sum_horizontal(pieces).sum().alias("unmatched"))
        .sort(["unmatched", "example_id"], descending=[True, False])
        .head(num)
    )
    some = test.subset(worst["example_id"].to_numpy())
    runs: dict[int, list[float]] = {}
    for rows, found in _predicted(model, some):
        runs |= {int(i): runs_of(m > 0) for i, m in zip(some.example_id[rows], found, strict=True)}
    drawn = pl.Series("predicted_runs", [runs[i] for i in worst["example_id"]], dtype=pl.List(pl.Float64))
    return worst.with_columns(drawn).select(c.name for c in _SHOWN.columns)


def runs_of(mask: NDArray[np.bool_]) -> list[float]:
    """Lengths of the runs of a mask row after row, the first of background.

    >>> runs_of(np.array([[True, True], [False, True]]))
    [0.0, 2.0, 1.0, 1.0]
    """
    flat = np.concatenate([[False], mask.reshape(-1)])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[float] = np.diff(np.concatenate([[0], ends, [mask.size]])).astype(float).tolist()
    return lengths
