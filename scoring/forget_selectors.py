"""Ways to choose a forget set of m training examples, side by side: what the bi-level search must be compared with.

    random            m drawn without replacement                            the usual test of unlearning
    worst_case        bi-level search, hardest to forget                     scoring.worst_case_forget
    easiest           bi-level search, easiest to forget
    lowest_loss       m lowest cross-entropies of the audited model          the cheap rival of worst_case
    highest_loss      m highest                                              the cheap rival of easiest
    moderate          m middle places by || h(x) - median of h over its class ||_2, h the penultimate activations
    lowest_gradient   m lowest norms of the example's loss gradient, all parameters

With ``group = "class"`` a class is chosen by the mean over its examples. Ties go to the smaller id. The curator ``forget_set``
stores one of these sets as a split; the analysis ``forget_selectors`` compares them. A selector that the model is not fit for (no
output layer, no gradient norm) is left out of the comparison and named with the reason.

Source: the comparison in Zhang et al., "Challenging Forgets" (ECCV 2024, arXiv 2403.07362); moderate coreset: Xia et al.,
"Moderate Coreset" (ICLR 2023), of which the authors' code forgets the middle window. These are sets for testing unlearners; a
forget request says which examples are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.methods import EXAMPLE_ID, AnalysisSpec, CuratorSpec, Picture, analysis, curator
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.embeddings import embeddings
from recipes.frames import frame_of
from recipes.inputs import Inputs, model_device, model_dtype
from scoring.grand import GrandConfig, grand
from scoring.streaming import check
from scoring.worst_case_forget import (
    Unlearn,
    WorstCaseForgetConfig,
    budget_of,
    check_model,
    cross_entropy_nats,
    groups_of,
    select_worst_case,
)
from sources.example_set import ExampleSet


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """A chosen set.

    Attributes:
        selector: how it was chosen.
        example_id: int64 (n,), first choice first; examples of one class stand together when classes were chosen.
        value: float64 (n,), what it was chosen by, in the selector's own unit.
    """

    selector: str
    example_id: NDArray[np.int64]
    value: NDArray[np.float64]


def choose(
    selector: str,
    model: nn.Module,
    data: ExampleSet,
    *,
    config: WorstCaseForgetConfig,
    seed: int,
    unlearn: Unlearn | None = None,
    progress: Progress = silent,
) -> ForgetSet:
    """The forget set of one selector.

    Args:
        selector: one of ``SELECTORS``.
        model: the audited model; not changed.
        data: the training examples; the result depends on their ids, not on their order.
        config: budget and group of all selectors; the rest is for the two searches, whose direction is their own.
        seed: of ``random`` and of the searches.
        unlearn: for the searches with lower = "unlearner".
        progress: told by the searches.

    Raises:
        ConfigError: no such selector.
        DataError, Diverged, NotApplicable: see ``select_worst_case`` and the scores used.
    """
    if selector not in SELECTORS:
        raise ConfigError(f"selector = {selector!r} is not one of {', '.join(SELECTORS)}")
    check(f"forget set {selector}", data, [model])
    data = data.by_id()
    group, num = groups_of(data, config.group)
    budget = budget_of(num, config)
    check_model(model, data)
    if selector in ("worst_case", "easiest"):
        direction = "hardest" if selector == "worst_case" else "easiest"
        found = select_worst_case(
            model, data, config=config.turned(direction), seed=seed, unlearn=unlearn, progress=progress
        )
        rows = np.argsort(found.rank)[: found.selected.sum()]
        value = found.w
    else:
        if selector == "random":
            value_G = np.random.default_rng(derive_seed("random forget set", seed)).permutation(num) / num
        else:
            value_G = np.bincount(group, weights=_VALUES[selector](model, data)) / np.bincount(group)
        order = np.argsort(-value_G if selector == "highest_loss" else value_G, kind="stable")
        if selector == "moderate":
            order = np.roll(order, budget // 2 - num // 2)  # the middle window of m comes first
        place_G = np.empty(num, np.int64)
        place_G[order] = np.arange(num)
        place, value = place_G[group], value_G[group]
        rows = np.argsort(place, kind="stable")[: (place < budget).sum()]
    return ForgetSet(selector, data.example_id[rows], value[rows])


def _loss(model: nn.Module, data: ExampleSet) -> NDArray[np.float64]:
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model), preload_bytes=0)
    return cross_entropy_nats(model, inputs)


def _distance(model: nn.Module, data: ExampleSet) -> NDArray[np.float64]:
    """|| h(x) - median of h over the class ||_2."""
    features = embeddings(model, data).astype(np.float64)
    distance = np.empty(len(data))
    for label in np.unique(data.y):
        of_class = data.y == label
        own = features[of_class]
        distance[of_class] = np.linalg.norm(own - np.median(own, axis=0), axis=1)
    return distance


def _gradient(model: nn.Module, data: ExampleSet) -> NDArray[np.float64]:
    return grand(data, config=GrandConfig(), seed=0, early_models=[model])["grand"].to_numpy()


# name -> what each example is chosen by
_VALUES: Mapping[str, Callable[[nn.Module, ExampleSet], NDArray[np.float64]]] = {
    "lowest_loss": _loss,
    "highest_loss": _loss,
    "moderate": _distance,
    "lowest_gradient": _gradient,
}
SELECTORS: tuple[str, ...] = ("random", "worst_case", "easiest", *_VALUES)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetSetConfig(Config):
    selector: str = param(choices=SELECTORS, doc="how the set is chosen")
    search: WorstCaseForgetConfig = param(
        WorstCaseForgetConfig(),
        doc="budget and group; the rest is for the searches, whose direction is set by the selector",
    )


@curator(
    CuratorSpec(
        name="forget_set",
        doc="Forgets the set that a selector chooses: hardest or easiest by bi-level search, lowest loss, moderate, random; or classes.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362)",
        config=ForgetSetConfig,
        needs=("model", "unlearn"),
    )
)
def forget_set(
    data: ExampleSet, *, config: ForgetSetConfig, seed: int, model: nn.Module, unlearn: Unlearn | None = None
) -> pl.DataFrame:
    """(example_id, role, reason) over the training split, by id; the reason gives selector, place in the set and value.

    Args:
        data: the training split, or a set whose training split is meant; classification.
        config: the selector, the budget and the search.
        seed: of ``random`` and of the searches.
        model: the audited model; not changed.
        unlearn: used for searches with lower = "unlearner" alone.

    Raises:
        As :func:`choose`.
    """
    train = data.part("train")
    chosen = choose(config.selector, model, train, config=config.search, seed=seed, unlearn=unlearn)
    num = len(chosen.example_id)
    forget = pl.DataFrame(
        {
            "example_id": chosen.example_id,
            "role": ["forget"] * num,
            "reason": [
                f"{config.selector} {v:.6g}, place {k} of {num}" for k, v in enumerate(chosen.value.tolist(), 1)
            ],
        }
    )
    everyone = pl.DataFrame({"example_id": np.sort(train.example_id)})
    return everyone.join(forget, on="example_id", how="left", maintain_order="left").with_columns(
        pl.col("role").fill_null("retain"), pl.col("reason").fill_null("not selected")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetSelectorsConfig(Config):
    selectors: tuple[str, ...] = param(SELECTORS, choices=SELECTORS, doc="which to compare")
    search: WorstCaseForgetConfig = param(
        WorstCaseForgetConfig(),
        doc="budget and group of all; the rest is for the searches, whose direction is set here",
    )

    def check(self) -> None:
        if not self.selectors or len(set(self.selectors)) < len(self.selectors):
            raise ConfigError(f"ForgetSelectorsConfig.selectors = {self.selectors} must be distinct and not empty")


_SELECTOR = Column(name="selector", dtype="str", choices=SELECTORS, doc="how the set was chosen")
_OVERLAP = TableSpec(
    schema="scores", name="forget_selectors", key=("selector", "other"), version=2,
    doc="How much the forget sets of two selectors have in common, and how well the audited model fits the first. A selector that "
    "does not apply has one row, with the reason and no figure.",
    columns=(
        _SELECTOR, Column(name="other", dtype="str", choices=SELECTORS, doc="the set it is compared with"),
        Column(name="num_forget", dtype="int64", low=1, nullable=True, doc="examples in the selector's set"),
        Column(name="shared", dtype="int64", low=0, nullable=True, doc="examples in both sets"),
        Column(
            name="jaccard", dtype="float64", low=0, high=1, nullable=True, direction="higher = more alike",
            doc="shared / in either",
        ),
        Column(
            name="jaccard_chance", dtype="float64", low=0, high=1, nullable=True,
            doc="the same for two sets of these sizes drawn at random (ratio of expectations)",
        ),
        Column(
            name="mean_loss", dtype="float64", unit="nats", low=0, nullable=True, direction="higher = less well fitted",
            doc="mean cross-entropy of the selector's set under the audited model, before any unlearning",
        ),
        Column(
            name="largest_class", dtype="float64", low=0, high=1, nullable=True,
            doc="share of the selector's set in its commonest class: does it pick classes rather than examples",
        ),
        Column(name="why", dtype="str", doc="why the selector does not apply; empty when it does"),
    ),
)  # fmt: skip
_MEMBERS = TableSpec(
    schema="scores", name="forget_selector_members", key=("selector", "example_id"),
    doc="The examples each selector would forget.",
    columns=(
        _SELECTOR, EXAMPLE_ID,
        Column(name="place", dtype="int64", low=1, doc="1 = first choice"),
        Column(name="priority", dtype="float64", low=0, high=1, direction="higher = chosen earlier", doc="1 - (place - 1) / n"),
        Column(name="value", dtype="float64", low=0, doc="what it was chosen by: w, nats, a distance, a norm; for random its place / N"),
    ),
)  # fmt: skip


@analysis(
    AnalysisSpec(
        name="forget_selectors",
        doc="Forget sets by bi-level search beside random, lowest loss, moderate coreset and gradient norm.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362)",
        version=2,
        config=ForgetSelectorsConfig,
        needs=("model", "unlearn"),
        tables=(_OVERLAP, _MEMBERS),
        pictures=(
            Picture(
                table="forget_selectors", title="Overlap of each forget set with the worst case", kind="bars",
                x="selector", y="jaccard", where=(("other", "worst_case"),),
            ),
            Picture(
                table="forget_selector_members", title="First choices of each selector", kind="examples",
                x="example_id", y="priority", series="selector",
            ),
        ),
    )
)  # fmt: skip
def forget_selectors(
    data: ExampleSet,
    *,
    config: ForgetSelectorsConfig,
    seed: int,
    model: nn.Module,
    unlearn: Unlearn | None = None,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Choose one set by each selector and compare them.

    Args:
        data: both splits; the training split is chosen from.
        config: which selectors, and the search.
        seed: of the random set and of the searches.
        model: the audited model; not changed.
        unlearn: used for searches with lower = "unlearner" alone.
        progress: told (selectors done, all, "forget sets").

    Raises:
        NotApplicable: no selector applies.
        ConfigError, DataError, Diverged: as :func:`choose`.
    """
    train = data.part("train")
    sets: list[ForgetSet] = []
    rows: list[dict[str, object]] = []
    for number, name in enumerate(config.selectors):
        try:
            sets.append(choose(name, model, train, config=config.search, seed=seed, unlearn=unlearn))
        except NotApplicable as error:
            rows.append({"selector": name, "other": name, "why": str(error)})
        progress(number + 1, len(config.selectors), "forget sets")
    if not sets:
        raise NotApplicable(f"no selector applies; {rows[0]['selector']}: {rows[0]['why']}")
    loss = _loss(model, train)
    for one in sets:
        where = train.positions(one.example_id)
        for other in sets:
            shared = len(np.intersect1d(one.example_id, other.example_id))
            a, b = len(one.example_id), len(other.example_id)
            by_chance = a if one is other else a * b / len(train)
            rows.append(
                {
                    "selector": one.selector,
                    "other": other.selector,
                    "num_forget": a,
                    "shared": shared,
                    "jaccard": shared / (a + b - shared),
                    "jaccard_chance": by_chance / (a + b - by_chance),
                    "mean_loss": float(loss[where].mean()),
                    "largest_class": float(np.bincount(train.y[where]).max() / a),
                    "why": "",
                }
            )
    members = [
        pl.DataFrame(
            {
                "selector": [one.selector] * len(one.example_id),
                "example_id": one.example_id,
                "place": np.arange(1, len(one.example_id) + 1),
                "priority": 1.0 - np.arange(len(one.example_id)) / len(one.example_id),
                "value": one.value,
            }
        )
        for one in sets
    ]
    return {"forget_selectors": frame_of(_OVERLAP, rows), "forget_selector_members": pl.concat(members)}
