"""The audit of explanations: what a deletion of a few training examples does to the counterfactuals people were given.

    explanations   plain (k = 0), ROCERF in four strengths, ROAR, C-CHVAE; each made for rejected test examples
    deletions      worst (one partial sort), searched (step by step, then swaps), greedy (one set for all), random, a
                   stored split, none
    valid          the model really retrained without the set accepts x'

Two models can be explained. "logistic": a logistic regression on the training examples, for which the robust ones carry
a proof up to linearisation and retraining is exact. "audited": the audited model through local surrogates; retraining
is the subject's own recipe with other seeds, so "none" (nothing deleted, another seed) says how much of what breaks is
due to the seed alone. There every set costs a training: no deletion of its own for each explanation, fewer draws.

Intervals are Clopper-Pearson over the explanations, for random deletions over min(explanations, draws) effective trials
with the mean validity as the rate: explanations share their draws and draws their explanations. Reported, not judged:
no threshold of a plan speaks of explanations. Source: Krishna et al., ICML 2023 (arXiv 2302.04288); Pawelczyk et al.
2023 (arXiv 2208.14137).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from attacks.recourse_explained import AuditedModel, Explained, Logistic, decision
from attacks.recourse_invalidation import random_deletions
from attacks.recourse_tables import AUDIT, COUNTERFACTUALS, INFLUENCE, METHODS, SUMMARY
from contracts.errors import DataError, NotApplicable, UnknownName
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from explain.counterfactuals import Actions, Counterfactuals, cost, fit_logistic
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from sources.frames import frame_of
from stats import clopper_pearson
from tasks.base import require

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecourseAuditConfig(Config):
    """Whose explanations, which of them, against which deletions."""

    favourable: str = param("", doc="class name of the favourable decision; the last of two classes when not given")
    explains: str = param(
        "logistic", choices=("logistic", "audited"), doc="a logistic regression, or the audited model"
    )
    c: float = param(0.01, gt=0, le=1e6, doc="inverse regularisation of the logistic regression")
    methods: tuple[str, ...] = param(
        METHODS, choices=METHODS, doc="explanations compared; the audited model: those defined for it"
    )
    k_percent: tuple[float, ...] = param(
        (0.5, 1.0, 2.0, 3.0, 5.0),
        gt=0,
        lt=50,
        unit="percent",
        doc="deletions survived or made, of the training examples",
    )
    norm: int = param(2, ge=1, le=2, doc="of the distance")
    queries: int = param(30, ge=1, le=10_000, doc="rejected test examples explained, the smallest ids")
    draws: int = param(30, ge=1, le=10_000, doc="random deletions of each size")
    audited_draws: int = param(3, ge=1, le=1000, doc="the same when the audited model is retrained")
    immutable: tuple[str, ...] = param((), doc="features that cannot change")
    integer: tuple[str, ...] = param((), doc="features that are whole numbers")
    splits: tuple[str, ...] = param((), doc="stored splits whose forget role is deleted", ref="split")
    top: int = param(20, ge=1, le=100_000, doc="most harmful examples stored of each query")
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")


def _picture(deletion: str, title: str) -> Picture:
    return Picture(
        table="recourse_summary",
        title=title,
        x="k_percent",
        y="validity",
        series="method",
        low="validity_lo",
        high="validity_hi",
        where=(("deletion", deletion),),
    )


@analysis(
    AnalysisSpec(
        name="recourse_audit",
        wants=("classes", "features"),
        doc="Explanations and deletions: which counterfactual explanations become invalid when training examples are "
        "deleted.",
        source="Krishna et al., ICML 2023 (arXiv 2302.04288); Pawelczyk et al. 2023 (arXiv 2208.14137)",
        config=RecourseAuditConfig,
        needs=("model", "train_many", "splits"),
        tables=(SUMMARY, COUNTERFACTUALS, AUDIT, INFLUENCE),
        pictures=(
            _picture("searched", "Explanations valid after the worst deletion found for each, against its size"),
            _picture("greedy", "Explanations valid after one deletion meant to break them all, against its size"),
            _picture("random", "Explanations valid after random deletions, against their size"),
            Picture(
                table="recourse_summary",
                title="Cost of explanations against the deletions allowed",
                x="k_percent",
                y="mean_cost",
                series="method",
                where=(("deletion", "greedy"),),
            ),
        ),
    )
)
def recourse_audit(
    data: ExampleSet,
    *,
    config: RecourseAuditConfig,
    seed: int,
    model: nn.Module,
    train_many: Callable[..., Sequence[nn.Module]],
    splits: Callable[[str], pl.DataFrame],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Make explanations, delete, retrain, count.

    Args:
        data: both splits; feature vectors, two classes or a favourable one against all others.
        config: see its fields. A k that would not leave both classes is left out.
        seed: of random deletions, C-CHVAE, surrogates and retraining.
        model: the audited model; every explanation is also put to it.
        train_many: the subject's recipe without a deletion; called only for explains = "audited".
        splits: stored splits by name.
        progress: called for every kind of explanation made.

    Returns:
        ``recourse_summary``, ``robust_counterfactuals``, ``recourse_audit``, ``influence_on_recourse``.

    Raises:
        NotApplicable: not classification of feature vectors; more than two classes and no favourable one; nobody
            rejected.
        DataError: ids used twice, labels out of range, inputs or outputs of the model that are not finite, training
            examples of one class, or a split that leaves one class.
        UnknownName: a class or feature that the data does not have.
    """
    favourable = _checked(data, config)
    train, test = (data.part(split).by_id() for split in ("train", "test"))
    actions = Actions.of(data, immutable=config.immutable, integer=config.integer)
    predict_logits(model, train)  # a model whose outputs are not finite is refused, naming the examples
    examples = fit_logistic(
        train.inputs(slice(0, len(train))), (train.y == favourable).astype(np.int64), train.example_id, c=config.c
    )
    audited = decision(model, favourable)
    explained: Logistic | AuditedModel = (
        Logistic(examples, seed=seed)
        if config.explains == "logistic"
        else AuditedModel(examples, audited, train_many=train_many, favourable=favourable, seed=seed)
    )
    points = test.inputs(slice(0, len(test))).astype(np.float64)
    rejected = np.flatnonzero(explained.decide(points) < 0)[: config.queries]
    if not len(rejected):
        raise NotApplicable("recourse_audit explains rejected test examples, and the model rejects none.")
    x, query_id = points[rejected], test.example_id[rejected]
    fewest = int(min(examples.y.sum(), (1 - examples.y).sum()))
    sizes = {p: max(1, int(p * len(train) / 100)) for p in sorted(set(config.k_percent))}
    sizes = {p: k for p, k in sizes.items() if k < fewest}
    forgotten = {name: _forgotten(splits(name), name) for name in config.splits}
    issued = _issue(explained, x, config, sizes, actions, progress)
    outcomes = _outcomes(
        explained, issued, sizes, {n: examples.removed(ids) for n, ids in forgotten.items()}, config, seed, progress
    )
    return {
        SUMMARY.name: _summary(outcomes, issued, x, explained, audited, config),
        COUNTERFACTUALS.name: _counterfactuals(issued, x, query_id, explained, audited, config),
        AUDIT.name: _audit(outcomes, query_id),
        INFLUENCE.name: _influence(issued[0], query_id, examples.example_id, explained, config.top),
    }


@dataclass(frozen=True, eq=False)
class _Issued:
    """Explanations of one method, made for ``k`` deletions; percent 0: for none in particular."""

    method: str
    percent: float
    k: int
    given: Counterfactuals

    @property
    def points(self) -> Float:
        """(F, d): those found."""
        return np.asarray(self.given.x[self.given.found])


@dataclass(frozen=True, eq=False)
class _Outcome:
    """The explanations found by one method after B deletions of one kind (B = 1: also one of its own for each)."""

    issued: _Issued
    deletion: str
    split: str
    percent: float
    k: int
    num_removed: NDArray[np.int64]  # (B, F)
    logits: Float  # (B, F)


def _issue(
    explained: Explained,
    x: Float,
    config: RecourseAuditConfig,
    sizes: dict[float, int],
    actions: Actions,
    progress: Progress,
) -> list[_Issued]:
    """Every explanation; the plain ones first, whether or not they are listed: the others are compared with them."""
    methods = [m for m in METHODS if m in explained.methods and (m in config.methods or m == "plain")]
    wanted = [(m, p, k) for m in methods for p, k in (sizes.items() if m.startswith("rocerf") else ((0.0, 0),))]
    issued = []
    for number, (method, percent, k) in enumerate(wanted):
        given = explained.explain(method, x, k=k, norm=config.norm, actions=actions)
        issued.append(_Issued(method, percent, k, given))
        progress(number + 1, len(wanted), "kinds of explanations")
    return issued


def _outcomes(
    explained: Explained,
    issued: list[_Issued],
    sizes: dict[float, int],
    splits: dict[str, Bool],
    config: RecourseAuditConfig,
    seed: int,
    progress: Progress,
) -> list[_Outcome]:
    examples, out = explained.examples, []
    draws = config.draws if explained.exact else config.audited_draws
    # Deletions that do not depend on the explanations: one retraining each, for all of them.
    common: list[tuple[str, str, float, int, Bool]] = [
        ("random", "", p, k, random_deletions(examples, k=k, draws=draws, seed=seed)) for p, k in sizes.items()
    ]
    common += [("split", name, 0.0, 0, removed[None]) for name, removed in splits.items()]
    if not explained.exact:
        common.append(("none", "", 0.0, 0, np.zeros((draws, len(examples.y)), bool)))
    after = explained.retrained(np.concatenate([removed for *_, removed in common])) if common else None
    ends = np.cumsum([len(removed) for *_, removed in common])
    aimed: list[tuple[_Issued, float, int, Bool]] = []
    for number, i in enumerate(issued):
        if not i.given.found.any():
            continue
        logits = after(i.points) if after else np.empty((0, len(i.points)))
        for (deletion, split, p, k, removed), stop in zip(common, ends, strict=True):
            if deletion == "random" and i.percent not in (0.0, p):
                continue
            allowed = (p, k) if deletion == "random" else (i.percent, i.k)
            out.append(_outcome(i, deletion, split, *allowed, removed, logits[stop - len(removed) : stop]))
        for p, k in sizes.items():
            if i.percent not in (0.0, p):
                continue
            aimed.append((i, p, k, explained.greedy(i.points, k=k)))
            for deletion, removed, own in explained.own_deletions(i.points, k=k):
                count = removed.sum(axis=1).astype(np.int64)
                out.append(_Outcome(i, deletion, "", p, k, count[None], own[None]))
        progress(number + 1, len(issued), "kinds of explanations attacked")
    if aimed:
        after = explained.retrained(np.stack([removed for *_, removed in aimed]))
        for row, (i, p, k, removed) in enumerate(aimed):
            out.append(_outcome(i, "greedy", "", p, k, removed[None], after(i.points)[row : row + 1]))
    return out


def _outcome(i: _Issued, deletion: str, split: str, percent: float, k: int, removed: Bool, logits: Float) -> _Outcome:
    count = np.repeat(removed.sum(axis=1).astype(np.int64)[:, None], logits.shape[1], axis=1)
    return _Outcome(i, deletion, split, percent, k, count, logits)


def _summary(
    outcomes: list[_Outcome],
    issued: list[_Issued],
    x: Float,
    explained: Explained,
    audited: Callable[[Float], Float],
    config: RecourseAuditConfig,
) -> pl.DataFrame:
    plain, rows = issued[0].given, []
    plain_cost = cost(x, plain.x, norm=config.norm)
    for o in outcomes:
        given, valid = o.issued.given, o.logits >= 0
        trials = min(valid.shape) if o.deletion in ("random", "none") else valid.shape[1]
        rate = float(valid.mean())
        # A rate of 1 computed as a mean of 0s and 1s is exactly 1; the product may exceed the trials by rounding
        # otherwise.
        low, high = clopper_pearson(min(rate * trials, trials), trials, alpha=config.alpha)
        price, both = cost(x, given.x, norm=config.norm), given.found & plain.found
        base = float(plain_cost[both].sum())
        bound = explained.bound(o.issued.points, k=o.k) if o.deletion in ("worst", "searched") else None
        rows.append(
            {
                "method": o.issued.method,
                "k_percent": o.percent,
                "k": o.k,
                "deletion": o.deletion,
                "split": o.split,
                "num_explanations": valid.shape[1],
                "num_broken": int((~valid).any(axis=0).sum()),
                "validity": rate,
                "validity_lo": min(float(low), rate),
                "validity_hi": max(float(high), rate),
                "share_audited": float((audited(o.issued.points) >= 0).mean()),
                "mean_cost": float(price[given.found].mean()),
                "cost_ratio": float(price[both].sum()) / base if base > 0 else None,
                "mean_logit_after": float(o.logits.mean()),
                "bound_gap": None if bound is None else float((bound - o.logits[0]).max()),
            }
        )
    return frame_of(SUMMARY, rows, nan_to_null=False)


def _counterfactuals(
    issued: list[_Issued],
    x: Float,
    query_id: NDArray[np.int64],
    explained: Explained,
    audited: Callable[[Float], Float],
    config: RecourseAuditConfig,
) -> pl.DataFrame:
    parts = []
    for i in issued:
        found = pl.Series(i.given.found)
        bound = explained.bound(i.given.x, k=i.k)
        known = {
            "cost": cost(x, i.given.x, norm=config.norm),
            "logit": explained.decide(i.given.x),
            "worst_logit_linear": np.full(len(x), np.nan) if bound is None else bound,
            "logit_audited": audited(i.given.x),
        }
        frame = pl.DataFrame({"query_id": query_id, "found": found, "n_cuts": i.given.num_cuts, **known}).with_columns(
            method=pl.lit(i.method),
            k_percent=pl.lit(i.percent),
            k=pl.lit(i.k, pl.Int64),
            norm=pl.lit(config.norm, pl.Int64),
            x_cf=pl.Series(i.given.x.tolist(), dtype=pl.List(pl.Float64)),
        )
        parts.append(frame.with_columns(pl.when(pl.col("found")).then(pl.col(list(known)).fill_nan(None))))
    return pl.concat(parts).select([c.name for c in COUNTERFACTUALS.columns])


def _audit(outcomes: list[_Outcome], query_id: NDArray[np.int64]) -> pl.DataFrame:
    parts = []
    for o in outcomes:
        draws, num = o.logits.shape
        parts.append(
            pl.DataFrame(
                {
                    "query_id": np.tile(query_id[o.issued.given.found], draws),
                    "draw": np.repeat(np.arange(draws), num),
                    "num_removed": o.num_removed.ravel(),
                    "valid": (o.logits >= 0).ravel(),
                    "logit_after": o.logits.ravel(),
                }
            ).with_columns(
                method=pl.lit(o.issued.method),
                k_percent=pl.lit(o.percent),
                k=pl.lit(o.k, pl.Int64),
                deletion=pl.lit(o.deletion),
                split=pl.lit(o.split),
            )
        )
    return pl.concat([frame_of(AUDIT, []), *(p.select([c.name for c in AUDIT.columns]) for p in parts)])


def _influence(
    plain: _Issued, query_id: NDArray[np.int64], example_id: NDArray[np.int64], explained: Explained, top: int
) -> pl.DataFrame:
    a = explained.influence(plain.points)
    order = np.argsort(a, axis=1, kind="stable")[:, :top]
    value = np.take_along_axis(a, order, axis=1)
    return pl.DataFrame(
        {
            "query_id": np.repeat(query_id[plain.given.found], order.shape[1]),
            "example_id": example_id[order].ravel(),
            "rank": np.tile(np.arange(1, order.shape[1] + 1), len(order)),
            "a_over_n": value.ravel(),
        }
    ).filter(pl.col("a_over_n") < 0)


def _forgotten(members: pl.DataFrame, name: str) -> NDArray[np.int64]:
    ids = members.filter(pl.col("role") == "forget")["example_id"].to_numpy()
    if not len(ids):
        raise DataError(f"split {name} forgets no example")
    return np.asarray(ids, np.int64)


def _checked(data: ExampleSet, config: RecourseAuditConfig) -> int:
    """The index of the favourable class."""
    require(data, "recourse_audit", "classes")
    if len(data.input_shape) != 1:
        raise NotApplicable(
            f"recourse_audit changes features one by one; {data.name} has inputs of shape {data.input_shape}."
        )
    if not config.favourable and data.num_classes != 2:
        raise NotApplicable(
            f"recourse_audit needs a favourable decision: {data.name} has {data.num_classes} classes; name one in "
            "`favourable`."
        )
    if config.favourable and config.favourable not in data.class_names:
        raise UnknownName("class", config.favourable, data.class_names)
    ids, counts = np.unique(data.example_id, return_counts=True)
    if (counts > 1).any():
        raise DataError("ids are used twice", example_ids=ids[counts > 1])
    data.check_targets()
    return data.class_names.index(config.favourable) if config.favourable else 1
