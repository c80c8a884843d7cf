"""The leaderboard of removal methods: each on random, class-wise, worst-case, easiest, owner's, lowest-loss and
influence-coherent forget sets, against retraining, with what it costs.

Accuracies are mean qualities of the examples' task (``tasks.base``): shares of right answers of a classifier.

    run r = 1..R, seed s_r:
        original_r    the recipe on every training example           the untouched model, none
        retrained_r   the recipe on all but F, the same seed         the reference, retrain
        method_r      the method from original_r, told F             from the audited model nothing starts
        UA = 100 - acc(F), RA, TA, MIA-efficacy                      in percent
        avg_gap = mean of |UA - UA'|, |RA - RA'|, |TA - TA'|, |MIA - MIA'|          ' = retrained_r
    gap_ratio = avg_gap / avg_gap of the untouched models
    excess    = avg_gap on F - avg_gap of the same method on the random set, same run
    gap_floor = the same distance between retrainings of two seeds

A kind of set has one set F for all runs, and every run has an original of its own: so the runs are independent repeats
of the whole procedure, and differ as models do and not as sets do. A result is about the method on this recipe and
data, not about one published model; for that see the stage ``unlearning`` and the attacks.

A method that does well on the random set and has a large excess on the worst case was graded on easy questions. On the
worst-case set retraining itself keeps UA near 0, so that a model from which nothing was removed has a small gap there:
read a gap beside that of ``none``; a ratio of 1 is as good as doing nothing.

Ranks go by avg_gap; two methods that share a letter of ``groups`` cannot be told apart (paired t tests over runs, Holm
over all pairs of the set; stats/pairwise.py). A method that diverged in any run has no rank. KLoM (stats/klom.py) asks
more than any average: whether the margins of single examples have the law that retraining gives them.

Configurations are the plan's, or chosen with ``tuning_runs`` on a validation set that shares nothing with the judged
one (``tuning``). Times are those of one process on this machine and of models made alone, since models that are made at
once are cheaper each: the first run of a method (all runs where it takes one model at a time), and of retraining one
model on the first set.

Source: Zhang et al., "Challenging Forgets" (ECCV 2024, arXiv 2403.07362), evaluation by sets; metrics of Fan et al.,
SalUn (ICLR 2024); KLoM and influence sets of Georgiev et al. (ICLR 2025, arXiv 2410.23232). Not a membership audit of
the result: for that see the attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import polars as pl
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, InvalidInput, NotApplicable, NotTheModel
from contracts.leaderboard import METRICS, REFERENCE, TABLES, UNTOUCHED
from contracts.methods import AnalysisSpec, analysis, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.ensemble import ReferenceEnsemble
from scoring.worst_case_forget import WorstCaseForgetConfig
from sources.example_set import ExampleSet
from studies.leaderboard.frames import Record, frames_of, gaps_of
from studies.leaderboard.observed import Asked, Shapes
from studies.leaderboard.pictures import PICTURES
from studies.leaderboard.sets import ALL_SETS, SETS, Ids, forget_set
from studies.leaderboard.tuning import tune

_BLOCK = 32  # models that are made, and held, at a time; of retrainings those of a set at least
_WHAT_STOPS = (Diverged, DataError, NotTheModel)  # DataError: outputs of a model just changed that are not finite
Evaluate = Callable[..., Mapping[str, float | None]]
Figures = dict[str, float | None]
_Made = tuple[nn.Module, float | None]  # and the seconds that it took, where it was made alone


class UnlearnFrom(Protocol):
    """Runs a registered unlearner on any model; see ``unlearn_from`` of ``contracts.methods.NEEDS``."""

    def config(self, name: str, /) -> Config: ...

    def refusal(self, name: str, /) -> str: ...

    def many(
        self,
        models: Sequence[nn.Module],
        name: str,
        /,
        *,
        retain: Sequence[ExampleSet],
        forget: Sequence[ExampleSet],
        seeds: Sequence[int],
        changed: Mapping[str, Any],
    ) -> Sequence[nn.Module | Exception] | None: ...

    def __call__(
        self,
        model: nn.Module,
        name: str,
        /,
        *,
        retain: ExampleSet,
        forget: ExampleSet,
        seed: int,
        changed: Mapping[str, Any],
    ) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaderboardConfig(Config):
    methods: tuple[str, ...] = param(
        (),
        doc="registered unlearners, beside retrain and none; none named: every one, those that do not apply with the "
        "reason",
        ref="unlearner",
    )
    sets: tuple[str, ...] = param(SETS, choices=ALL_SETS, doc="kinds of forget sets")
    seeds: int = param(3, ge=3, le=1000, doc="runs R, each with an original and a retraining of its own; KLoM needs 4")
    tuning_runs: int = param(
        0,
        ge=0,
        le=100,
        doc="runs a method and set to choose its lr (or what its paper searched) on a validation set; 0: the plan's",
    )
    search: WorstCaseForgetConfig = param(
        WorstCaseForgetConfig(), doc="budget and group of the sets, and the search; its direction is set by the kind"
    )
    sample: int = param(
        300, ge=2, le=1_000_000, unit="examples", doc="of each part, whose answers and margins are compared and stored"
    )
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of intervals; family-wise of the comparisons")

    def check(self) -> None:
        for name in ("methods", "sets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"LeaderboardConfig.{name} = {values} lists something twice")
        if not self.sets:
            raise ConfigError("LeaderboardConfig.sets is empty: methods are compared on at least one")


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """One forget set and what its runs share.

    Attributes:
        validation: ids of the set that tuning forgets; None where there is none, and ``why`` says it.
    """

    kind: str
    retain: ExampleSet
    forget: ExampleSet
    asked: Asked
    validation: Ids | None = None
    why: str = ""

    @property
    def untold(self) -> Ids:
        """What is left for training without the set and without its validation set."""
        assert self.validation is not None
        return np.setdiff1d(self.retain.example_id, self.validation)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Retrained:
    """Retrainings without a set, one a run; the one that tuning compares with; seconds of a model trained alone."""

    models: Sequence[nn.Module]
    of_tuning: nn.Module | None
    alone_s: float | None


@analysis(
    AnalysisSpec(
        name="leaderboard",
        wants=("losses", "reading"),
        doc="Every removal method on random, class, worst-case, easiest, owner, lowest-loss and influence forget sets "
        "against retraining: gap, cost, ranks with who cannot be told from whom, KLoM.",
        source="Zhang et al., Challenging Forgets, ECCV 2024 (arXiv 2403.07362); Georgiev et al., ICLR 2025 (arXiv "
        "2410.23232)",
        config=LeaderboardConfig,
        needs=("model", "train_many", "unlearn_from", "evaluate", "ensemble_if_any", "clock"),
        tables=TABLES,
        pictures=PICTURES,
    )
)
def leaderboard(
    data: ExampleSet,
    *,
    config: LeaderboardConfig,
    seed: int,
    model: nn.Module,
    train_many: Callable[..., Sequence[nn.Module]],
    unlearn_from: UnlearnFrom,
    evaluate: Evaluate,
    ensemble_if_any: ReferenceEnsemble | None,
    clock: Callable[[], float],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Run every method on every kind of forget set.

    Args:
        data: both splits.
        config: methods, sets, runs, budget of tuning.
        seed: root of the sets, the trainings, the unlearners and the metrics.
        model: the audited model, which searches for sets read; not changed, and no run starts from it.
        train_many: ``(ids of each training set, seeds, *, data) -> models``.
        unlearn_from: ``(model, name, *, retain, forget, seed, changed) -> model``; ``config(name)``, ``refusal(name)``;
            ``many(models, name, *, retain, forget, seeds, changed)``: models or errors, or None.
        evaluate: ``(model, *, retain, forget, test, seed, metrics) -> {ua, ra, ta, mia_efficacy}`` in percent.
        ensemble_if_any: for the set ``influence``.
        clock: seconds; differences of it are run times.
        progress: called with (runs done, all, "leaderboard").

    Returns:
        ``TABLES`` by name, rows in the order of sets, then methods, retraining first.

    Raises:
        NotApplicable: no set can be drawn, or the metrics are not defined for retraining.
        Diverged: retraining itself, or a search for a set, left the finite numbers; there is no reference.
        InvalidInput: no test split; see ``studies.forget_selectors.choose`` and the unlearners.
    """
    train, test = data.part("train").by_id(), data.part("test").by_id()
    if not len(test):
        raise InvalidInput(f"{data.name} has no test split: TA and the membership test cannot be measured")
    every = config.methods or tuple(m.spec.name for m in unlearner)
    names = tuple(name for name in every if name not in (REFERENCE, UNTOUCHED))
    refusals = {name: unlearn_from.refusal(name) for name in names}
    draw = partial(
        forget_set,
        config=config.search,
        ensemble=ensemble_if_any,
        unlearn=lambda name, **sets: unlearn_from(model, name, **sets, changed={}),
    )
    judged, unfit = _sets(data, train, model, draw, config=config, seed=seed, test=test)
    tuned = config.tuning_runs if judged else 0
    total = len(judged) * (len(names) * (config.seeds + tuned) + 2 * config.seeds)
    told = _Told(progress, total)
    seeds = [derive_seed("leaderboard", seed, run) % 2**31 for run in range(config.seeds)]
    originals = train_many([train.example_id] * len(seeds), seeds, data=train)
    records: list[Record] = []
    for one, fresh in _retrained(judged, train_many, train, seeds=seeds, clock=clock):
        bench = _Bench(one, fresh, originals, seeds, test, unlearn_from, evaluate, clock, told)
        records.append(bench.controls())
        records.append(bench.measured(UNTOUCHED, lambda run: (originals[run], None)))
        for name in names:
            if refusals[name]:
                records.append(Record(one.kind, name, one.asked, status="not_applicable", why=refusals[name]))
                told(config.seeds + tuned)
                continue
            records.append(bench.judged(name, budget=tuned))
    for kind, why in unfit.items():
        records += [
            Record(kind, name, None, status="not_applicable", why=refusals.get(name) or why)
            for name in (REFERENCE, UNTOUCHED, *names)
        ]
    order = {kind: at for at, kind in enumerate(config.sets)}
    records.sort(key=lambda record: order[record.forget_set])
    return frames_of(records, alpha=config.alpha, seed=derive_seed("klom", seed))


class _Told:
    """Counts the runs that are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, more: int = 1) -> None:
        self._done += more
        self._progress(min(self._done, self._total), self._total, "leaderboard")


def _sets(
    data: ExampleSet,
    train: ExampleSet,
    model: nn.Module,
    draw: Callable[..., Ids],
    *,
    config: LeaderboardConfig,
    seed: int,
    test: ExampleSet,
) -> tuple[list[Judged], dict[str, str]]:
    """The judged sets with their validation sets, and kind -> why there is none, before anything is trained.

    Raises:
        NotApplicable: none can be drawn.
    """
    judged, unfit = [], {}
    for kind in config.sets:
        try:
            ids = draw(kind, model, train, seed=derive_seed("judged", seed))
        except NotApplicable as error:
            unfit[kind] = str(error)
            continue
        gone = np.isin(train.example_id, ids)
        retain, forget = (train.take(np.flatnonzero(rows)) for rows in (~gone, gone))
        validation, why = None, ""
        if config.tuning_runs:
            try:
                validation = draw(kind, model, retain, seed=derive_seed("validation", seed))
            except (NotApplicable, DataError) as error:
                why = f"no validation set: {error}"
        asked = Asked.of(
            data,
            retain=retain.example_id,
            forget=forget.example_id,
            test=test.example_id,
            most=config.sample,
            seed=derive_seed(kind, seed),
        )
        judged.append(Judged(kind=kind, retain=retain, forget=forget, asked=asked, validation=validation, why=why))
    if not judged:
        kind, why = next(iter(unfit.items()))
        raise NotApplicable(f"no forget set can be drawn; {kind}: {why}")
    return judged, unfit


def _retrained(
    judged: Sequence[Judged],
    train_many: Callable[..., Sequence[nn.Module]],
    train: ExampleSet,
    *,
    seeds: Sequence[int],
    clock: Callable[[], float],
) -> Iterator[tuple[Judged, _Retrained]]:
    """Each set with its retrainings, those of several sets trained at once; the very first one alone, by the clock."""
    wanted = [
        [one.retain.example_id] * len(seeds) + ([one.untold] if one.validation is not None else []) for one in judged
    ]
    groups: list[list[int]] = [[]]
    for at, members in enumerate(wanted):
        if groups[-1] and sum(len(wanted[k]) for k in groups[-1]) + len(members) > _BLOCK:
            groups.append([])
        groups[-1].append(at)
    for group in groups:
        ids = [one for at in group for one in wanted[at]]
        run = [seed for at in group for seed in (*seeds, *seeds[:1])[: len(wanted[at])]]
        alone, models = None, []
        if group[0] == 0:
            start = clock()
            models = list(train_many(ids[:1], run[:1], data=train))
            alone = clock() - start
        models += train_many(ids[len(models) :], run[len(models) :], data=train)
        for at in group:
            own, models = models[: len(wanted[at])], models[len(wanted[at]) :]
            of_tuning = own[len(seeds)] if len(own) > len(seeds) else None
            yield judged[at], _Retrained(models=own[: len(seeds)], of_tuning=of_tuning, alone_s=alone)
            alone = None


@dataclass(eq=False)
class _Bench:
    """Everything that is done on one forget set."""

    one: Judged
    fresh: _Retrained
    originals: Sequence[nn.Module]
    seeds: Sequence[int]
    test: ExampleSet
    unlearn_from: UnlearnFrom
    evaluate: Evaluate
    clock: Callable[[], float]
    told: _Told
    yard: list[Figures] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = Shapes.of(self.fresh.models[0], self.originals[0], self.one.asked)

    def controls(self) -> Record:
        """Retraining, by which all others are measured.

        Raises:
            NotApplicable, Diverged: it cannot be measured; there is no reference.
        """
        record = Record(self.one.kind, REFERENCE, self.one.asked)
        for run, model in enumerate(self.fresh.models):
            figures = self._figures(model, run)
            self.yard.append(figures)
            wall = self.fresh.alone_s if run == 0 else None
            self._keep(record, model, run, figures, wall)
        return record

    def measured(self, name: str, make: Callable[[int], _Made], *, tuned: str = "") -> Record:
        """All runs of a method; what stops one is its status, and not the end of the others."""
        record = Record(self.one.kind, name, self.one.asked, tuned=tuned)
        for run in range(len(self.seeds)):
            try:
                model, wall = make(run)
                self._keep(record, model, run, self._figures(model, run), wall)
            except NotApplicable as error:
                record.stop("not_applicable", str(error))
                self.told(len(self.seeds) - run)
                break
            except _WHAT_STOPS as error:
                status = "refused" if isinstance(error, NotTheModel) else "diverged"
                record.stop(status, str(error), run=run, seed=self.seeds[run])
                self.told()
        return record

    def judged(self, name: str, *, budget: int) -> Record:
        """A method with its plan's configuration, or tuned on the validation set first. The first run is made alone, by
        the clock; the others together where the method allows it."""
        changed, tries = self._tuned(name, budget) if budget else ({}, [])
        sets, together = {"retain": self.one.retain, "forget": self.one.forget}, dict[int, nn.Module | Exception]()

        def make(run: int) -> _Made:
            if run and run not in together:
                runs = range(run, min(run + _BLOCK, len(self.seeds)))
                many = self.unlearn_from.many(
                    [self.originals[r] for r in runs],
                    name,
                    **{role: [examples] * len(runs) for role, examples in sets.items()},
                    seeds=[self.seeds[r] for r in runs],
                    changed=changed,
                )
                together.update(zip(runs, many or (), strict=False))
            if run in together:
                found = together.pop(run)
                if isinstance(found, Exception):
                    raise found
                return found, None
            start = self.clock()
            model = self.unlearn_from(self.originals[run], name, **sets, seed=self.seeds[run], changed=changed)
            return model, self.clock() - start

        said = ", ".join(f"{field}={value:g}" for field, value in changed.items())
        record = self.measured(name, make, tuned=said)
        record.tries = tries
        return record

    def _tuned(self, name: str, budget: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        one, reference = self.one, self.fresh.of_tuning
        if reference is None:
            self.told(budget)
            return {}, [{"place": 0, "field": "", "status": "not_applicable", "why": one.why, "chosen": False}]
        assert one.validation is not None
        sets = {"retain": one.retain.subset(one.untold), "forget": one.retain.subset(one.validation)}
        yard = self.evaluate(reference, **sets, test=self.test, seed=self.seeds[0], metrics=METRICS)

        def attempt(changed: Mapping[str, Any]) -> dict[str, Any]:
            row: dict[str, Any] = {"num_forget": len(sets["forget"]), "status": "ok", "why": ""}
            try:
                start, seed = self.fresh.models[0], self.seeds[0]
                made = self.unlearn_from(start, name, **sets, seed=seed, changed=changed)
                found = self.evaluate(made, **sets, test=self.test, seed=seed, metrics=METRICS)
                row |= {m: found[m] for m in METRICS} | gaps_of(found, yard)
            except NotApplicable as error:
                row |= {"status": "not_applicable", "why": str(error)}
            except _WHAT_STOPS as error:
                row |= {"status": "refused" if isinstance(error, NotTheModel) else "diverged", "why": str(error)}
            return row

        changed, tries = tune(self.unlearn_from.config(name), budget=budget, attempt=attempt)
        self.told(budget)
        return changed, tries

    def _figures(self, model: nn.Module, run: int) -> Figures:
        sets = {"retain": self.one.retain, "forget": self.one.forget, "test": self.test}
        found = self.evaluate(model, **sets, seed=self.seeds[run], metrics=METRICS)
        return {name: found[name] for name in METRICS}

    def _keep(self, record: Record, model: nn.Module, run: int, figures: Figures, wall: float | None) -> None:
        record.seen.add(model, self.one.asked)
        if run == 0:
            record.seen.place = self.shapes.place(model)
        if run == (1 if record.method == REFERENCE else 0):  # retraining is compared with that of another seed
            record.seen.cka = self.shapes.cka(model)
        row = {"run": run, "seed": self.seeds[run], **figures, **gaps_of(figures, self.yard[run]), "wall_s": wall}
        record.rows.append(row | {"status": "ok", "why": ""})
        self.told()
