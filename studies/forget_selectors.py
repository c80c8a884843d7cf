"""Ways to choose a forget set of m training examples, side by side: what the bi-level search must be compared with.

    random            m drawn without replacement                            the usual test of unlearning
    worst_case        bi-level search, hardest to forget                     scoring.worst_case_forget
    easiest           bi-level search, easiest to forget
    lowest_loss       m lowest losses of the audited model                   the cheap rival of worst_case
    highest_loss      m highest                                              the cheap rival of easiest
    moderate          m middle places by || h(x) - median of h over its class ||_2, h the penultimate activations
    lowest_gradient   m lowest norms of the example's loss gradient, all parameters

With ``group = "class"`` a class is chosen by the mean over its examples. Ties go to the smaller id. The curator
``forget_set`` stores one of these sets as a split; the analysis ``forget_selectors`` compares them. A selector that the
model is not fit for (no output layer, no gradient norm) is left out of the comparison and named with the reason.

Losses and accuracies are those of the examples' task (``tasks.base``: cross-entropy, share of right answers of a
classifier); moderate and whole classes need a task with classes.

How hard a set is to forget is what a model retrained without it makes of it: UA = 100 - mean quality in percent, and
the mean loss (low = hard). In each of T trials random sets and searches are drawn anew, and all sets of the trial are
retrained from one seed. A search has to beat what costs nothing, sorting by loss: worst_case against lowest_loss,
easiest against highest_loss, by
    ratio = exp(mean over trials of log(loss of the search's set / loss of the baseline's set)),   90% Student interval
        of the logarithm
The search won where the whole interval is on its side of 1, the baseline where it is on the other, else they cannot be
told apart. On digits (1,297 of them, MLP 64-128-10, a tenth forgotten, 8 splits of 3 or 5 trials) sorting by loss won
the hardest set in all 8 (the search's set has 2.1 to 4.2 times its loss after retraining; UA is 0 for both), and the
search won the easiest in all 8 (1.2 to 1.5 times the loss; UA 36 to 45 against 28 to 30 percent).

Source: the comparison in Zhang et al., "Challenging Forgets" (ECCV 2024, arXiv 2403.07362); moderate coreset: Xia et
    al.,
"Moderate Coreset" (ICLR 2023), of which the authors' code forgets the middle window. These are sets for testing
unlearners; a forget request says which examples are meant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from explain.embeddings import embeddings
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.streaming import check
from scoring.grand import GrandConfig, grand
from scoring.worst_case_forget import (
    Unlearn,
    WorstCaseForgetConfig,
    budget_of,
    check_model,
    groups_of,
    losses_of,
    select_worst_case,
)
from sources.example_set import ExampleSet
from sources.frames import frame_of
from studies.retraining import error_rate, mean_interval


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
        progress: called by the searches.

    Raises:
        ConfigError: no such selector.
        DataError, Diverged, NotApplicable: see ``select_worst_case`` and the scores used.
    """
    if selector not in SELECTORS:
        raise ConfigError(f"selector = {selector!r} is not one of {', '.join(SELECTORS)}")
    check(f"forget set {selector}", data, [model], wants=("losses", *_WANTS.get(selector, ())))
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
    return losses_of(model, inputs)


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
_WANTS: Mapping[str, tuple[str, ...]] = {"moderate": ("classes", "features")}  # besides losses, which all want
_DRAWN = ("random", "worst_case", "easiest")  # depend on the seed
SELECTORS: tuple[str, ...] = (*_DRAWN, *_VALUES)
_TINY = 1e-300  # a loss of 0 has a logarithm


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
        wants=("losses", "reading"),
        doc="Forgets the set that a selector chooses: hardest or easiest by bi-level search, lowest loss, moderate, "
        "random; or classes.",
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
        data: the training split, or a set whose training split is meant.
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

    trials: int = param(
        5, ge=2, le=1000, doc="retrainings without each set; random sets and searches are drawn anew for each"
    )

    def check(self) -> None:
        if not self.selectors or len(set(self.selectors)) < len(self.selectors):
            raise ConfigError(f"ForgetSelectorsConfig.selectors = {self.selectors} must be distinct and not empty")


_SELECTOR = Column(name="selector", dtype="str", choices=SELECTORS, doc="how the set was chosen")
BASELINE = {"worst_case": "lowest_loss", "easiest": "highest_loss"}  # what costs nothing and aims at the same
WINNERS = ("search", "baseline", "cannot be told apart")


def _over_trials(name: str, unit: str, doc: str, **more: Any) -> tuple[Column, ...]:
    """A figure and its lowest and highest value over the trials."""
    return (
        Column(name=name, dtype="float64", unit=unit, low=0, nullable=True, doc=doc, **more),
        Column(name=f"{name}_low", dtype="float64", unit=unit, low=0, nullable=True, doc=f"lowest {name} over trials"),
        Column(
            name=f"{name}_high", dtype="float64", unit=unit, low=0, nullable=True, doc=f"highest {name} over trials"
        ),
    )


_RETRAINED = TableSpec(
    schema="scores",
    name="forget_selector_difficulty",
    key=("selector",),
    doc="How hard the set of each selector is to forget: what models retrained without it make of it; and whether the "
    "bi-level searches beat sorting by loss.",
    columns=(
        _SELECTOR,
        Column(
            name="says", dtype="str", doc="of a search: which one won, in words; else empty, or why it does not apply"
        ),
        Column(name="num_forget", dtype="int64", low=1, nullable=True, doc="examples in the set"),
        Column(name="num_trials", dtype="int64", low=0, doc="retrainings without a set of this selector"),
        *_over_trials(
            "loss",
            "",
            "mean loss (cross-entropy, nats) of the set after retraining without it, geometric mean over trials",
            direction="lower = harder to forget",
        ),
        *_over_trials(
            "ua",
            "percent",
            "100 - mean quality of the set under the retrained model (share that it gets wrong), mean over trials",
            direction="lower = harder to forget",
        ),
        Column(
            name="baseline",
            dtype="str",
            choices=("", *BASELINE.values()),
            doc="the set by loss that a search is compared with",
        ),
        Column(
            name="ratio",
            dtype="float64",
            low=0,
            nullable=True,
            doc="loss of the search's set over that of its baseline, same trial, geometric mean",
        ),
        Column(
            name="ratio_low", dtype="float64", low=0, nullable=True, doc="lower end of its 90% interval over trials"
        ),
        Column(name="ratio_high", dtype="float64", low=0, nullable=True, doc="upper end"),
        Column(
            name="winner",
            dtype="str",
            choices=("", *WINNERS),
            doc="by that interval; empty when there is nothing to compare",
        ),
    ),
)
_OVERLAP = TableSpec(
    schema="scores",
    name="forget_selectors",
    key=("selector", "other"),
    version=2,
    doc="How much the forget sets of two selectors have in common, and how well the audited model fits the first. A "
    "selector that does not apply has one row, with the reason and no figure.",
    columns=(
        _SELECTOR,
        Column(name="other", dtype="str", choices=SELECTORS, doc="the set it is compared with"),
        Column(name="num_forget", dtype="int64", low=1, nullable=True, doc="examples in the selector's set"),
        Column(name="shared", dtype="int64", low=0, nullable=True, doc="examples in both sets"),
        Column(
            name="jaccard",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            direction="higher = more alike",
            doc="shared / in either",
        ),
        Column(
            name="jaccard_chance",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            doc="the same for two sets of these sizes drawn at random (ratio of expectations)",
        ),
        Column(
            name="mean_loss",
            dtype="float64",
            nullable=True,
            direction="higher = less well fitted",
            doc="mean loss (cross-entropy, nats) of the selector's set under the audited model, before any unlearning",
        ),
        Column(
            name="largest_class",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            doc="share of the selector's set in its commonest class: does it pick classes rather than examples; null "
            "without classes",
        ),
        Column(name="why", dtype="str", doc="why the selector does not apply; empty when it does"),
    ),
)
_MEMBERS = TableSpec(
    schema="scores",
    name="forget_selector_members",
    key=("selector", "example_id"),
    doc="The examples each selector would forget.",
    columns=(
        _SELECTOR,
        EXAMPLE_ID,
        Column(name="place", dtype="int64", low=1, doc="1 = first choice"),
        Column(
            name="priority",
            dtype="float64",
            low=0,
            high=1,
            direction="higher = chosen earlier",
            doc="1 - (place - 1) / n",
        ),
        Column(
            name="value",
            dtype="float64",
            doc="what it was chosen by: w, a loss, a distance, a norm; for random its place / N",
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="forget_selectors",
        wants=("losses", "reading"),
        doc="Forget sets by bi-level search beside random, lowest loss, moderate coreset and gradient norm: which is "
        "harder to forget for a model retrained without it.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362)",
        version=3,
        config=ForgetSelectorsConfig,
        needs=("model", "train_many", "unlearn"),
        tables=(_RETRAINED, _OVERLAP, _MEMBERS),
        pictures=(
            Picture(
                table="forget_selector_difficulty",
                title="Wrong after retraining without the set, percent (lower is harder to forget)",
                kind="dots",
                x="selector",
                y="ua",
                low="ua_low",
                high="ua_high",
            ),
            Picture(
                table="forget_selectors",
                title="Overlap of each forget set with the worst case",
                kind="bars",
                x="selector",
                y="jaccard",
                where=(("other", "worst_case"),),
            ),
            Picture(
                table="forget_selector_members",
                title="First choices of each selector",
                kind="examples",
                x="example_id",
                y="priority",
                series="selector",
            ),
        ),
    )
)
def forget_selectors(
    data: ExampleSet,
    *,
    config: ForgetSelectorsConfig,
    seed: int,
    model: nn.Module,
    train_many: Callable[..., Sequence[nn.Module]],
    unlearn: Unlearn | None = None,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Choose sets by each selector, retrain without them, and compare.

    Args:
        data: both splits; the training split is chosen from.
        config: which selectors, the search, the trials.
        seed: of the random sets, the searches and the retrainings.
        model: the audited model; not changed.
        train_many: ``(ids of each training set, seeds, *, data) -> models``, the retrainings of a trial at once.
        unlearn: used for searches with lower = "unlearner" alone.
        progress: called with (trials done, all, "trials of forget sets").

    Returns:
        ``forget_selector_difficulty``, one row a selector; ``forget_selectors`` and ``forget_selector_members``, the
        sets of the first trial.

    Raises:
        NotApplicable: no selector applies.
        ConfigError, DataError, Diverged: as :func:`choose`; Diverged also of a retraining.
    """
    train = data.part("train").by_id()
    sets, refused = _choose_all(config.selectors, model, train, config=config, seed=seed, unlearn=unlearn)
    if not sets:
        raise NotApplicable(f"no selector applies; {config.selectors[0]}: {refused[config.selectors[0]]}")
    first, losses, wrong = sets, [], []
    for trial in range(config.trials):
        if trial:
            drawn = tuple(name for name in sets if name in _DRAWN)
            again, _ = _choose_all(
                drawn, model, train, config=config, seed=derive_seed("forget set", seed, trial), unlearn=unlearn
            )
            sets = {**sets, **again}
        gone = [np.isin(train.example_id, one.example_id) for one in sets.values()]
        run = derive_seed("retraining", seed, trial) % 2**31
        models = train_many([train.example_id[~out] for out in gone], [run] * len(gone), data=train)
        judged = [_judge(fresh, train.take(np.flatnonzero(out))) for fresh, out in zip(models, gone, strict=True)]
        losses.append([loss for loss, _ in judged])
        wrong.append([share for _, share in judged])
        progress(trial + 1, config.trials, "trials of forget sets")
    after = _difficulty(first, np.array(losses).T, np.array(wrong).T)
    unfit = [
        {"selector": name, "says": why, "num_trials": 0, "baseline": "", "winner": ""} for name, why in refused.items()
    ]
    overlap = _overlaps(first, train, _loss(model, train))
    overlap += [{"selector": name, "other": name, "why": why} for name, why in refused.items()]
    return {
        "forget_selector_difficulty": frame_of(_RETRAINED, [*after, *unfit]),
        "forget_selectors": frame_of(_OVERLAP, overlap),
        "forget_selector_members": pl.concat(_members(one) for one in first.values()),
    }


def _choose_all(
    names: Sequence[str],
    model: nn.Module,
    train: ExampleSet,
    *,
    config: ForgetSelectorsConfig,
    seed: int,
    unlearn: Unlearn | None,
) -> tuple[dict[str, ForgetSet], dict[str, str]]:
    """Selector -> its set, and selector -> why it does not apply."""
    sets, refused = {}, {}
    for name in names:
        try:
            sets[name] = choose(name, model, train, config=config.search, seed=seed, unlearn=unlearn)
        except NotApplicable as error:
            refused[name] = str(error)
    return sets, refused


def _judge(model: nn.Module, forget: ExampleSet) -> tuple[float, float]:
    """Mean loss of a forget set, and 100 - its mean quality in percent."""
    return float(_loss(model, forget).mean()), 100.0 * error_rate(model, forget)


def _difficulty(
    sets: Mapping[str, ForgetSet], loss_ST: NDArray[np.float64], wrong_ST: NDArray[np.float64]
) -> list[dict[str, object]]:
    """One row a selector, from the losses and the percentages wrong of S sets in T trials.

    Raises:
        NotApplicable: a mean loss below 0: sets are compared by ratios of losses.
    """
    if (loss_ST < 0).any():
        raise NotApplicable(
            f"forget_selectors compares sets by ratios of losses; a mean loss of {loss_ST.min():.3g} has none"
        )
    row_of = {name: s for s, name in enumerate(sets)}
    log_ST = np.log(np.maximum(loss_ST, _TINY))
    rows: list[dict[str, object]] = []
    for name, s in row_of.items():
        row: dict[str, object] = {
            "selector": name,
            "says": "",
            "num_forget": len(sets[name].example_id),
            "num_trials": loss_ST.shape[1],
            "loss": float(np.exp(log_ST[s].mean())),
            "loss_low": loss_ST[s].min(),
            "loss_high": loss_ST[s].max(),
            "ua": wrong_ST[s].mean(),
            "ua_low": wrong_ST[s].min(),
            "ua_high": wrong_ST[s].max(),
            "baseline": "",
            "winner": "",
        }
        baseline = BASELINE.get(name, "")
        if baseline in row_of:
            row |= _compared(name, baseline, log_ST[s] - log_ST[row_of[baseline]])
        rows.append(row)
    return rows


def _compared(search: str, baseline: str, log_ratio_T: NDArray[np.float64]) -> dict[str, object]:
    """Whether the search's set is harder (easiest: easier) to forget than the one by loss, over paired trials."""
    ratio, low, high = (math.exp(min(max(v, -700.0), 700.0)) for v in mean_interval(log_ratio_T) if v is not None)
    below, above = ("search", "baseline") if search == "worst_case" else ("baseline", "search")
    winner = below if high < 1.0 else above if low > 1.0 else "cannot be told apart"
    found = {"search": f"the search won over {baseline}", "baseline": f"{baseline}, which costs nothing, won"}
    words = found.get(winner, f"it and {baseline}, which costs nothing, cannot be told apart")
    return {
        "says": f"{words}: after retraining the loss of the search's set is {ratio:.3g} ({low:.3g} to {high:.3g}) "
        f"times that of the set by loss, {len(log_ratio_T)} trials",
        "baseline": baseline,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "winner": winner,
    }


def _overlaps(sets: Mapping[str, ForgetSet], train: ExampleSet, loss: NDArray[np.float64]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for one, other in itertools.product(sets.values(), repeat=2):
        where = train.positions(one.example_id)
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
                "largest_class": float(np.bincount(train.y[where]).max() / a) if train.task.gives("classes") else None,
                "why": "",
            }
        )
    return rows


def _members(one: ForgetSet) -> pl.DataFrame:
    num = len(one.example_id)
    return pl.DataFrame(
        {
            "selector": [one.selector] * num,
            "example_id": one.example_id,
            "place": np.arange(1, num + 1),
            "priority": 1.0 - np.arange(num) / num,
            "value": one.value,
        }
    )
