"""What is wrong with a data set as a whole: one row an issue that was looked for, found or not, and what to do.

| issue | about | statistic |
|---|---|---|
| outliers | training examples | share that is called, see ``outliers`` |
| order | neighbours, labels | how far the order of the rows tells what is alike, see ``order`` |
| imbalance | each class | its share over an equal share, see ``shares`` |
| group | each group of test examples | what its quality lacks to the others', see ``groups`` |
| train_test | test examples | share with a near copy in training, see ``train_test_duplicates`` |
| near_constant | each feature, or pictures | share of the most common value; blank pictures, see ``shares`` |

Measured, defaults, a small MLP: the order of scikit-learn's digits tells (0.21: they were written by one person after
the other), so does that of breast_cancer (0.06), that of Fashion-MNIST does not (0.004, p 0.31); of 952 test emoji 53
have a near copy in training, 12 byte for byte (flags of territories); shirts (class 6) are answered worst, by 21
points; no set has outliers. All of Fashion-MNIST, 60,000 training and 10,000 test images of 28 x 28, takes 94 s of one
core, 75 of them the exact search among the training images, whose time grows with their square (``index: hnsw`` has one
that does not), and 0.65 GiB above what the data and the libraries hold: vectors of the images and the index of them,
which grow with their number. 1,797 digits take 0.7 s.

p-values are adjusted within an issue, not over them: each issue is a question of its own at level ``alpha``. A row that
was not found says that nothing was found with this many examples, not that there is nothing.

Source: the questions are those of cleanlab's Datalab (Northcutt, Kuan, Mueller et al., 2023), with tests and intervals
of their own; its parts have their sources. Not label errors: those are scores (``label_quality``,
``knn_disagreement``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import DataError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from explain.neighbours import METHODS
from explain.payloads import PayloadSpace, check_finite
from recipes.predict import read
from scoring.near_duplicates import comparable
from sources.example_set import ExampleSet
from stats import clopper_pearson, holm
from studies.issues import groups, order, outliers, shares
from studies.issues.neighbourhood import SPACES, Neighbourhood, neighbourhood
from studies.issues.tables import EXAMPLES, ISSUES, KINDS, Issue, informing, tables_of
from studies.train_test_duplicates import TrainTestConfig, twins_across


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuesConfig(Config):
    look_for: tuple[str, ...] = param(KINDS, choices=KINDS, doc="issues that are looked for")
    k: int = param(10, ge=2, le=500, doc="nearest neighbours of an example")
    space: str = param("data", choices=SPACES, doc="what nearness is of: what examples hold, or what the model sees")
    index: str = param("exact", choices=METHODS, doc="exact search, or the approximate hnsw for more than some 10^5")
    alpha: float = param(0.05, gt=0, lt=0.5, doc="level of each issue: of a false alarm, of outliers the false share")
    permutations: int = param(199, ge=19, le=100_000, doc="order: permutations of the rows")
    least_order: float = param(0.02, ge=0, lt=1, doc="order: smallest statistic that is an issue, however sure")
    imbalance: float = param(0.1, gt=0, le=1, doc="share of an equal share below which a class is rare")
    columns: tuple[str, ...] = param((), doc="group: columns whose values are groups; all of the data's when empty")
    clusters: int = param(8, ge=0, le=200, doc="group: clusters of what the examples hold; 0: none")
    smallest: int = param(20, ge=5, unit="examples", doc="group: smallest that is tested")
    least_gap: float = param(0.05, ge=0, lt=1, doc="group: smallest gap of quality that is an issue")
    constant: float = param(0.99, gt=0.5, le=1, doc="near_constant: share of the most common value")


@analysis(
    AnalysisSpec(
        name="dataset_issues",
        doc="Outliers, an order that tells, rare classes, groups that are answered worse, copies across the splits, "
        "features that hardly vary.",
        source="questions of cleanlab's Datalab (Northcutt et al. 2023), with tests of their own",
        config=IssuesConfig,
        needs=("model", "encoder"),
        wants=("features",),
        tables=(ISSUES, EXAMPLES),
        pictures=(
            Picture(
                table=EXAMPLES.name,
                title="Outliers, the furthest first",
                kind="examples",
                x="example_id",
                y="value",
                series="issue",
                value="value",
                where=(("issue", "outliers"),),
            ),
        ),
        judge=informing,
        finds=lambda config, limits, _: [],  # none counts
    )
)
def dataset_issues(
    data: ExampleSet,
    *,
    config: IssuesConfig,
    seed: int,
    model: nn.Module,
    encoder: nn.Module,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """See the module.

    Args:
        data: both splits; without test examples ``group`` and ``train_test`` are left out.
        model: its quality on test examples is what groups are compared by.
        encoder: of ``space: model``.

    Raises:
        NotApplicable: examples that are no vectors or images.
        DataError: fewer than three training examples, values that are not finite, a column that the data lack.
    """
    data = comparable("dataset_issues", data)
    if unknown := [name for name in config.columns if name not in data.columns]:
        known = ", ".join(sorted(data.columns)) or "none"
        raise DataError(f"dataset_issues: {data.name} has no column {', '.join(unknown)}; it has: {known}")
    if len(data.part("train")) < 3:
        raise DataError(f"dataset_issues: {data.name} has {len(data.part('train'))} training examples; 3 are needed")
    looked = _Look(data, config, seed, model, encoder)
    found: list[Issue] = []
    for number, kind in enumerate(KINDS):
        if kind in config.look_for:
            found += getattr(looked, kind)()
        progress(number + 1, len(KINDS), "issues")
    return tables_of(found)


class _Look:
    """Each kind of issue as a method of its name."""

    def __init__(self, data: ExampleSet, config: IssuesConfig, seed: int, model: nn.Module, encoder: nn.Module) -> None:
        self.data, self.config, self.seed, self.model = data, config, seed, model
        self.train, self.test = data.part("train"), data.part("test")
        self._encoder = encoder

    @cached_property
    def space(self) -> PayloadSpace:
        """What the training examples hold: searched once, for whoever asks."""
        return PayloadSpace(self.train.x, self.train.example_id)

    @cached_property
    def near(self) -> Neighbourhood:
        of = self.config
        own = self.space if of.space == "data" else None
        return neighbourhood(self.train, self._encoder, k=of.k, space=of.space, index=of.index, payloads=own)

    def outliers(self) -> Iterator[Issue]:
        remote = outliers.remoteness(self.near)
        p_values, usual = outliers.tail_p_values(remote), np.exp(remote - np.median(remote))
        called = np.flatnonzero(p_values <= self.config.alpha)
        called = called[np.argsort(-remote[called], kind="stable")]
        share = len(called) / len(remote)
        low, high = clopper_pearson(len(called), len(remote), alpha=self.config.alpha)
        few = len(remote) < outliers.FEWEST
        yield Issue(
            issue="outliers",
            about="training examples",
            found=bool(len(called)),
            severity=share,
            statistic="share called outlying",
            value=share,
            low=float(low),
            high=float(high),
            num_examples=len(remote),
            what=f"Fewer than {outliers.FEWEST} examples: no tail can be fitted, so none is called."
            if few
            else f"{len(called):,} of {len(remote):,} training examples lie further from their neighbours than the "
            "others' distances explain.",
            examples=[
                (
                    int(self.train.example_id[row]),
                    float(usual[row]),
                    f"{usual[row]:.2f} times as far from its neighbours as is usual, adjusted p {p_values[row]:.2g}",
                )
                for row in called
            ],
        )

    def order(self) -> Iterator[Issue]:
        place = order.places(self.train)
        rng = np.random.default_rng(derive_seed(self.seed, "order"))
        near = order.order_test(place, self.near.position, permutations=self.config.permutations, rng=rng)
        y = self.train.y
        if y.ndim > 1:  # a mask is no number: the task says which are alike
            y = self.train.task.strata(self.train.x, y, self.train.example_id)
        label = order.label_test(place, y, classes=self.train.task.gives("classes"))
        adjusted = holm([near[1], label[1]])
        said = (
            ("neighbours", "excess of neighbours that lie near in the order", near[0]),
            ("labels", "share of the spread of places that the label explains", label[0]),
        )
        for (about, statistic, value), p_value in zip(said, adjusted.tolist(), strict=True):
            found = p_value <= self.config.alpha and value >= self.config.least_order
            yield Issue(
                issue="order",
                about=about,
                found=found,
                severity=min(value, 1.0) if found else 0.0,
                statistic=statistic,
                value=value,
                p_value=p_value,
                num_examples=len(self.train),
                what=f"The order of the training examples {'tells' if found else 'does not tell'} about their "
                f"{about}: {statistic} {value:.3f}, adjusted p {p_value:.2g}.",
            )

    def imbalance(self) -> Iterator[Issue]:
        if not self.train.task.gives("classes"):
            return
        num = self.train.num_classes
        found = shares.rare_classes(self.train.y, num, imbalance=self.config.imbalance, alpha=self.config.alpha)
        for name, own, high, rare in zip(self.train.class_names, *found, strict=True):
            yield Issue(
                issue="imbalance",
                about=name,
                found=bool(rare),
                severity=float(np.clip(1 - own, 0, 1)) if rare else 0.0,
                statistic="share over an equal share",
                value=float(own),
                low=0.0,
                high=float(high),
                num_examples=len(self.train),
                what=f"Class {name!r} has {own:.2f} of an equal share, at most {high:.2f}"
                f"{f'; below {self.config.imbalance:g} is rare.' if rare else '.'}",
            )

    def group(self) -> Iterator[Issue]:
        if not len(self.test):
            return
        quality = read(self.model, self.test).quality
        columns = {name: self.test.columns[name].astype(str) for name in self.config.columns or self.test.columns}
        if self.test.task.gives("classes"):
            columns["class"] = np.array(self.test.class_names)[self.test.y]
        if self.config.clusters:
            columns["cluster"] = self._clusters()
        tested = groups.tested_groups(quality, columns, smallest=self.config.smallest, alpha=self.config.alpha)
        for one in tested:
            found = one.p_value <= self.config.alpha and one.gap >= self.config.least_gap
            worse = one.rows[np.argsort(quality[one.rows], kind="stable")]
            yield Issue(
                issue="group",
                about=one.name,
                found=found,
                severity=one.gap if found else 0.0,
                statistic="mean quality of the others above the group's",
                value=one.gap,
                low=one.low,
                high=one.high,
                p_value=one.p_value,
                num_examples=len(one.rows),
                what=f"{one.name}: {self.test.task.spec.quality} {one.quality:.1%} on {len(one.rows):,} test examples, "
                f"{one.others:.1%} on the others; adjusted p {one.p_value:.2g} over {len(tested)} groups.",
                examples=[
                    (int(self.test.example_id[row]), float(quality[row]), f"in {one.name}; value: quality")
                    for row in (worse if found else ())
                ],
            )

    def _clusters(self) -> np.ndarray:
        """Of the test examples, by what the examples hold: clusters in what the model sees would be of its errors."""
        check_finite(self.test.x, self.test.example_id)
        test = self.space.vectors(np.arange(len(self.test)), of=self.test.x)
        seed = derive_seed(self.seed, "clusters") % 2**32
        return groups.clusters(self.space.points, test, num=self.config.clusters, seed=seed)

    def train_test(self) -> Iterator[Issue]:
        if not len(self.test):
            return
        asked = TrainTestConfig(index=self.config.index)
        tables = twins_across(self.data, config=asked, space=self.space)
        row: Mapping[str, Any] = tables["train_test_summary"].row(0, named=True)
        found = row["num_identical"] > 0 or row["share_low"] > asked.chance
        twins = tables["train_test_duplicates"].iter_rows(named=True) if found else ()
        yield Issue(
            issue="train_test",
            about="test examples",
            found=found,
            severity=row["share"] if found else 0.0,
            statistic="share with a near copy in training",
            value=row["share"],
            low=row["share_low"],
            high=row["share_high"],
            num_examples=row["num_test"],
            what=f"{row['num_twins']:,} of {row['num_test']:,} test examples have a near copy in training, "
            f"{row['num_identical']:,} of them byte for byte.",
            examples=[
                (one["example_id"], one["distance_ratio"], f"near copy of {one['train_id']}; value: distance ratio")
                for one in twins
            ],
        )

    def near_constant(self) -> Iterator[Issue]:
        if len(self.train.input_shape) > 1:
            yield self._blank()
            return
        x = np.asarray(self.train.x[:])
        found = shares.near_constant(x, constant=self.config.constant, alpha=self.config.alpha)
        names = self.train.feature_names or tuple(f"feature {k}" for k in range(x.shape[1]))
        for name, common, low, called in zip(names, *found, strict=True):
            yield Issue(
                issue="near_constant",
                about=name,
                found=bool(called),
                severity=float(common) if called else 0.0,
                statistic="share of the most common value",
                value=float(common),
                low=float(low),
                high=1.0,
                num_examples=len(x),
                what=f"{common:.2%} of the training examples have the same value of {name!r}.",
            )

    def _blank(self) -> Issue:
        spread = shares.blank(self.train.x)
        rows = np.flatnonzero(shares.is_blank(spread))
        share = len(rows) / len(spread)
        low, high = clopper_pearson(len(rows), len(spread), alpha=self.config.alpha)
        return Issue(
            issue="near_constant",
            about="pictures",
            found=bool(len(rows)),
            severity=share,
            statistic="share of blank pictures",
            value=share,
            low=float(low),
            high=float(high),
            num_examples=len(spread),
            what=f"{len(rows):,} of {len(spread):,} training pictures are of one colour.",
            examples=[
                (int(self.train.example_id[row]), float(spread[row]), "pixels hardly vary; value: their spread")
                for row in rows
            ],
        )
