"""The worst-case forget set: the m training examples that a model still fits after they were unlearned.

    upper   min (max)_{w in S}  sum_i w_i l_i(theta_u(w)) + gamma s ||w||^2,     S = {w in [0, 1]^N, sum w = m}
    lower   theta_u(w) = unlearning of w from the audited weights, anew in every upper step  (scoring.lower_level)
    step    w <- Proj_S( w -+ eta (l / s + 2 gamma w) )          l (N,) loss, eval mode, no augmentation

l is the loss that the examples' task is read by (``tasks.base``): cross-entropy in nats of a classifier, squared error
in variances of the target of a regression. Low loss on the forget set after unlearning is a failed erasure, so
minimising looks for the *hardest* set to forget and maximising (+) for the easiest. Read-out: the set is the first m by
w. Most w are exactly 0 or 1, so equal ones go by the loss after unlearning, which the search was minimising
(maximising), and only then by example id: every place of the rank means something. With ``group="class"`` there is one
weight a class and l_c is the sum over the class; equal classes go by their mean loss, the examples of one class by
their own. Because the lower level moves by signs, d theta_u / d w = 0 and the gradient above is complete.

s is the scale of l, the median absolute deviation from its median. A weight of 1 is overtaken only once eta times the
difference of losses exceeds 1: with the published fixed steps (s = 1, eta 1e-3 to 1e-2) w hardly moves in 10 to 20
steps, and the random start comes back. It does so too when s is the range of l, which one outlier sets; the median
deviation is never above the range, so eta * range >= 1. On digits, of the scales tried, it led to the lowest upper
objective; far larger steps only find the lowest losses after one lower level. eta falls as (step + 1)^-decay: the lower
level is noisy (batch order, and initialisation for "retrain"), and a class is hard as long as it is not forgotten, so
that constant steps go round in circles. A start of ones has the same bias for classes, of which few are forgotten
wholly: there the start is uniform. The search stops early when in two steps running the top m changed by less than
    ``tolerance`` and w moved by less than that share
of its largest step: a set that stays while small steps still gather is not yet the answer. Overlap with the start is
reported.

Source: Zhang et al., "Challenging Forgets: Unveiling the Worst-Case Forget Sets in Machine Unlearning" (ECCV 2024,
    arXiv
2403.07362) and the authors' code, which takes the upper losses on augmented batches in train mode and is not followed
there. Not a ranking of examples one by one: the set is chosen together. "m lowest losses" is the cheap rival to compare
it with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged
from contracts.methods import ScoreSpec, score
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from recipes.streaming import Moments, check, check_outputs, in_order_of
from scoring.capped_simplex import project_capped_simplex
from scoring.lower_level import LOWER_LEVELS, unlearn_weighted
from sources.example_set import ExampleSet
from tasks.base import answers, require

_FORWARD = 1024  # examples a forward pass of the upper level
_ROUNDING = 1e-9  # relative
Unlearn = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstCaseForgetConfig(Config):
    """Both levels of the search."""

    direction: str = param("hardest", choices=("hardest", "easiest"), doc="which set is searched")
    fraction: float = param(0.1, gt=0, lt=1, doc="share of the examples (classes) to forget; at least one")
    start: str = param(
        "auto",
        choices=("auto", "random", "uniform"),
        doc="random: m weights of 1, as published; uniform: m / N each; auto: uniform for classes, random for examples",
    )
    group: str = param("example", choices=("example", "class"), doc="what a weight belongs to")
    lower: str = param("ft", choices=(*LOWER_LEVELS, "unlearner"), doc="lower level; unlearner: a registered one")
    unlearner: str = param(
        "", doc="with lower = 'unlearner': its name; it gets the first m as forget set", ref="unlearner"
    )
    upper_steps: int = param(10, ge=1, le=1000, doc="most steps of w")
    lower_epochs: int = param(5, ge=1, le=1000, unit="epochs", doc="of signSGD in every upper step")
    lr_lower: float = param(1e-3, gt=0, le=1, doc="how far signSGD moves every parameter in a step")
    lr_upper: float = param(1.0, gt=0, le=1e6, doc="eta: step of w in units of 1 / scale of the losses")
    decay: float = param(0.5, ge=0, le=1, doc="eta / (step + 1)^decay; 0 as published")
    scale_aware: bool = param(True, doc="divide the losses by their scale; False takes eta as published, in 1 / loss")
    gamma: float = param(
        1e-4, ge=0, le=1, doc="weight of ||w||^2, in units of s; lr_upper * gamma < 0.5, or w oscillates"
    )
    batch: int = param(256, ge=1, le=1_000_000, unit="examples", doc="examples a step of signSGD")
    l1: float = param(1e-3, ge=0, le=1, doc="ft_l1 only: weight of the L1 norm in the first epoch")
    tolerance: float = param(
        0.01, ge=0, lt=1, doc="stop when less than this share of the set changes, and w hardly moves; 0 takes all steps"
    )

    def turned(self, direction: str) -> WorstCaseForgetConfig:
        """The same search in the given direction."""
        return dataclasses.replace(self, direction=direction)

    @property
    def sign(self) -> float:
        """1 when the lowest losses after unlearning are searched, -1 when the highest are."""
        return 1.0 if self.direction == "hardest" else -1.0

    def check(self) -> None:
        if (self.lower == "unlearner") != bool(self.unlearner):
            raise ConfigError("WorstCaseForgetConfig.unlearner goes with lower = 'unlearner', which needs it")
        if self.lr_upper * self.gamma >= 0.5:
            raise ConfigError(
                f"WorstCaseForgetConfig.lr_upper * gamma = {self.lr_upper * self.gamma:g} must be < 0.5, or w "
                "oscillates"
            )


@dataclass(frozen=True, eq=False)
class Selection:
    """What a search found. Everything a row an example is in the order of ``example_id``, ascending.

    Attributes:
        example_id: int64 (N,).
        w: float64 (N,) in [0, 1], the weight of the example or of its class; sum over examples (classes) = ``budget``.
        rank: int64 (N,), 1 to N: by w, then loss, then id; a class stands together.
        selected: bool (N,), of the first ``budget`` examples (classes).
        loss: float64 (N,), the task's loss under the model of the last lower level.
        budget: m, examples or classes.
        objective: the upper objective of each step in units of the loss, at the weights that its lower level unlearned;
            [0] is the start's.
        changed: share of the top m that each step replaced.
        overlap_with_start: share of the random start that is still in the set; None for a uniform start.
    """

    example_id: NDArray[np.int64]
    w: NDArray[np.float64]
    rank: NDArray[np.int64]
    selected: NDArray[np.bool_]
    loss: NDArray[np.float64]
    budget: int
    objective: tuple[float, ...]
    changed: tuple[float, ...]
    overlap_with_start: float | None

    @property
    def forget_ids(self) -> NDArray[np.int64]:
        """Ids of the set, ascending."""
        return self.example_id[self.selected]


def select_worst_case(
    model: nn.Module,
    data: ExampleSet,
    *,
    config: WorstCaseForgetConfig,
    seed: int,
    unlearn: Unlearn | None = None,
    progress: Progress = silent,
) -> Selection:
    """Search the hardest (easiest) set to forget.

    Args:
        model: the audited model; not changed.
        data: the N examples it was trained on, in any order: the result depends on their ids alone.
        config: see :class:`WorstCaseForgetConfig`.
        seed: of the random start and of the lower levels.
        unlearn: ``(name, *, retain, forget, seed) -> model``; needed for lower = "unlearner".
        progress: called with (upper steps done, most, "worst-case selection").

    Raises:
        NotApplicable: classes to choose among where the task has none, or a model that the lower level cannot work on.
        DataError: fewer than two examples (classes), ids twice, labels the model has no output for.
        ConfigError: lower = "unlearner" without ``unlearn``.
        Diverged: the model, or what a lower level made of it, is not finite.
    """
    check("worst_case_forget", data, [model], wants=("losses",))
    if config.lower == "unlearner" and unlearn is None:
        raise ConfigError("lower = 'unlearner' needs the callable that runs it, unlearn")
    data = data.by_id()
    group, num = groups_of(data, config.group)
    budget, size = budget_of(num, config), np.bincount(group)
    check_model(model, data)
    inputs = Inputs(data, dtype=model_dtype(model), device=model_device(model))
    w, start = _start(num, budget, config, derive_seed("worst-case start", seed))
    top = _by_weight(w, np.zeros(num))[:budget]
    objective: list[float] = []
    changed: list[float] = []
    moved: list[float] = []
    for step in range(config.upper_steps):
        student = _lower(model, inputs, w, group, top, config, derive_seed("lower", seed, step), unlearn)
        loss_N = losses_of(student, inputs)
        loss: NDArray[np.float64] = np.bincount(group, weights=loss_N).astype(np.float64)
        scale = _scale(loss) if config.scale_aware else 1.0
        objective.append(float(w @ loss + config.gamma * scale * (w @ w)))
        slope = loss / scale + 2.0 * config.gamma * w
        before, previous = w, top
        w = project_capped_simplex(w - config.sign * config.lr_upper / (step + 1.0) ** config.decay * slope, budget)
        top = _by_weight(w, config.sign * loss / size)[:budget]
        changed.append(1.0 - len(np.intersect1d(top, previous)) / budget)
        moved.append(float(np.abs(w - before).sum()))
        progress(step + 1, config.upper_steps, "worst-case selection")
        if step and max(changed[-2:]) < config.tolerance and max(moved[-2:]) < config.tolerance * max(moved):
            break
    rank, selected = _read_out(w, loss_N, group, config, budget)
    return Selection(
        example_id=data.example_id,
        w=w[group],
        rank=rank,
        selected=selected,
        loss=loss_N,
        budget=budget,
        objective=tuple(objective),
        changed=tuple(changed),
        overlap_with_start=None if start is None else len(np.intersect1d(top, start)) / budget,
    )


def _start(
    num: int, budget: int, config: WorstCaseForgetConfig, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """The first weights, and which they choose."""
    if config.start == "uniform" or (config.start == "auto" and config.group == "class"):
        return np.full(num, budget / num), None
    chosen = np.random.default_rng(seed).permutation(num)[:budget]
    w = np.zeros(num)
    w[chosen] = 1.0
    return w, chosen


@torch.no_grad()
def losses_of(model: nn.Module, inputs: Inputs) -> NDArray[np.float64]:
    """(N,) loss of every example, eval mode: what the task reads; of class logits in full precision,

    softplus(log sum_{k != y} exp(z_k - z_y)) in float64: a loss of 1e-9 keeps its digits, where 1 - p_y has none.

    Raises:
        Diverged: outputs that are not finite; names the examples.
    """
    task, losses = inputs.data.task, np.empty(len(inputs))
    logits = task.gives("outputs", "classes")
    with eval_mode(model):
        for start in range(0, len(inputs), _FORWARD):
            stop = min(start + _FORWARD, len(inputs))
            if not logits:
                losses[start:stop] = task.read(model, inputs.slice(start, stop)).loss
                continue
            batch = inputs.slice(start, stop)
            z_BK = answers(model, batch).double()
            y_B1 = batch.targets[:, None]
            others_BK = (z_BK - z_BK.gather(1, y_B1)).scatter(1, y_B1, -torch.inf)
            losses[start:stop] = torch.nn.functional.softplus(others_BK.logsumexp(1)).cpu().numpy()
    broken = ~np.isfinite(losses)
    if broken.any():
        ids = inputs.data.example_id[broken]
        raise Diverged(f"the model's outputs on {len(ids)} examples are not finite (first id {ids[0]})")
    return losses


def _lower(
    model: nn.Module,
    inputs: Inputs,
    w: NDArray[np.float64],
    group: NDArray[np.int64],
    top: NDArray[np.int64],
    config: WorstCaseForgetConfig,
    seed: int,
    unlearn: Unlearn | None,
) -> nn.Module:
    if config.lower == "unlearner":
        assert unlearn is not None
        forget = np.isin(group, top)
        ids = inputs.data.example_id
        retain, gone = inputs.data.subset(ids[~forget]), inputs.data.subset(ids[forget])
        return unlearn(config.unlearner, retain=retain, forget=gone, seed=seed)
    return unlearn_weighted(
        model,
        inputs,
        torch.from_numpy(w[group]),
        lower=config.lower,
        epochs=config.lower_epochs,
        lr=config.lr_lower,
        batch=config.batch,
        seed=seed,
        alpha=config.l1,
    )


def groups_of(data: ExampleSet, kind: str) -> tuple[NDArray[np.int64], int]:
    """Index of the weight of each example, (N,), and how many weights there are. A class without examples has none.

    Raises:
        NotApplicable: classes of a task that has none.
    """
    if kind == "example":
        return np.arange(len(data)), len(data)
    require(data, "a forget set of whole classes", "classes")
    classes, group = np.unique(data.y, return_inverse=True)
    return group.reshape(-1), len(classes)


def budget_of(num: int, config: WorstCaseForgetConfig) -> int:
    """m: the share of ``num`` examples (classes), at least one, and one is kept.

    Raises:
        DataError: fewer than two.
    """
    if num < 2:
        raise DataError(f"{num} {config.group} to choose a forget set from; two are needed, one of them to keep")
    return min(max(round(config.fraction * num), 1), num - 1)


def check_model(model: nn.Module, data: ExampleSet) -> None:
    """Refuse, before work starts, weights that are not finite, targets that are none of the task's, and labels the
    model has no output for.

    Raises:
        Diverged, NotApplicable, DataError.
    """
    for name, p in model.named_parameters():
        if p.is_floating_point() and not bool(p.isfinite().all()):
            raise Diverged(f"worst_case_forget: {name} of the audited model is not finite")
    with eval_mode(model):
        check_outputs("worst_case_forget", data, model)


def _scale(loss: NDArray[np.float64]) -> float:
    """Median absolute deviation; the mean one when half of the losses are equal; the median itself when all are.

    Equal means up to rounding, which must not be blown up to steps of size 1.
    """
    median = float(np.median(loss))
    deviation = np.abs(loss - median)
    for spread in (float(np.median(deviation)), float(deviation.mean())):
        if spread > _ROUNDING * median:
            return spread
    return median or 1.0


def _read_out(
    w: NDArray[np.float64],
    loss_N: NDArray[np.float64],
    group: NDArray[np.int64],
    config: WorstCaseForgetConfig,
    budget: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of each example: its rank, 1 to N, and whether its group is among the first ``budget``."""
    place_G = _places(_by_weight(w, config.sign * np.bincount(group, weights=loss_N) / np.bincount(group)))
    order_N = np.lexsort((config.sign * loss_N, place_G[group]))
    return 1 + _places(order_N), place_G[group] < budget


def _by_weight(w: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Entries by descending weight, equal ones by ascending loss, then by index (they are in the order of the ids)."""
    return np.lexsort((loss, -w))


def _places(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each entry in ``order``, from 0."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstCaseScoreConfig(WorstCaseForgetConfig):
    starts: int = param(1, ge=1, le=100, doc="searches from different random starts, whose w is averaged")


@score(
    ScoreSpec(
        name="worst_case_forget",
        trains=True,
        wants=("losses", "reading"),
        doc="Place of the example in the forget set that is hardest (easiest) to unlearn, by bi-level search.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362)",
        version=2,
        config=WorstCaseScoreConfig,
        needs=("model", "unlearn"),
        columns=(
            Column(
                name="hardness",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = harder to forget",
                doc="the rank as a number: 1 - (rank - 1) / N when the hardest set was searched, rank / N when the "
                "easiest; the hardest set is its highest, the easiest its lowest values",
            ),
            Column(
                name="w",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = in the searched set",
                doc="relaxed membership, mean over starts; the weights of all examples (classes) sum to the budget",
            ),
            Column(
                name="w_stderr",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                doc="standard error over random starts; null for one start",
            ),
            Column(
                name="rank",
                dtype="int64",
                low=1,
                doc="1 to N, 1 = first of the searched set: by w, then by loss_after_unlearn (lowest first for the "
                "hardest), then by id",
            ),
            Column(name="selected", dtype="bool", doc="in the searched set: of the first budget examples (classes)"),
            Column(
                name="loss_after_unlearn",
                dtype="float64",
                direction="lower = still fitted after unlearning",
                doc="the task's loss (cross-entropy, nats) under the model of the last lower level, mean over starts",
            ),
            Column(name="upper_step", dtype="int64", low=1, doc="upper steps taken, most over starts"),
            Column(
                name="overlap_with_start",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                doc="share of the random start left in the set, mean over starts; 1 = the search did not move. Null: "
                "uniform start",
            ),
            Column(name="direction", dtype="str", choices=("hardest", "easiest"), doc="which set was searched"),
            Column(name="budget", dtype="int64", low=1, doc="examples (classes) in the set"),
            Column(name="num_starts", dtype="int64", low=1, doc="searches averaged"),
        ),
        value="hardness",
        higher_means="harder to forget",
    )
)
def worst_case_forget(
    data: ExampleSet,
    *,
    config: WorstCaseScoreConfig,
    seed: int,
    model: nn.Module,
    unlearn: Unlearn | None = None,
    progress: Progress = silent,
) -> pl.DataFrame:
    """Membership of every example in the worst-case (or easiest) forget set, and its place in it.

    Args:
        data: the training split.
        config: see the class.
        seed: of the random starts and of the lower levels.
        model: the audited model; not changed.
        unlearn: runs a registered unlearner; used for lower = "unlearner" alone.
        progress: called with (upper steps done, most, "worst-case selection").

    Returns:
        One row an example, in the order of ``data``; columns as declared.

    Raises:
        As :func:`select_worst_case`.
    """
    steps = config.starts * config.upper_steps
    runs = []
    for start in range(config.starts):

        def tell(done: int, total: int, what: str, before: int = start * config.upper_steps) -> None:
            progress(before + done, steps, what)

        runs.append(
            select_worst_case(
                model, data, config=config, seed=derive_seed("start", seed, start), unlearn=unlearn, progress=tell
            )
        )
    w, losses = Moments(len(data)), Moments(len(data))
    for run in runs:
        w.add(run.w)
        losses.add(run.loss)
    weight, first = w.mean.clip(0.0, 1.0), runs[0]
    group, num = groups_of(data.subset(first.example_id), config.group)
    weight_G = np.empty(num)
    weight_G[group] = weight
    rank, selected = _read_out(weight_G, losses.mean, group, config, first.budget)
    hard = rank if config.direction == "easiest" else len(rank) + 1 - rank
    overlaps = [run.overlap_with_start for run in runs if run.overlap_with_start is not None]
    frame = pl.DataFrame(
        {
            "example_id": first.example_id,
            "hardness": hard / len(rank),
            "w": weight,
            "w_stderr": w.stderr,
            "rank": rank,
            "selected": selected,
            "loss_after_unlearn": losses.mean,
        }
    ).with_columns(
        pl.lit(max(len(run.objective) for run in runs), pl.Int64).alias("upper_step"),
        pl.lit(float(np.mean(overlaps)) if overlaps else None, pl.Float64).alias("overlap_with_start"),
        pl.lit(config.direction).alias("direction"),
        pl.lit(first.budget, pl.Int64).alias("budget"),
        pl.lit(len(runs), pl.Int64).alias("num_starts"),
    )
    return in_order_of(frame, data)
