"""Audit of unlearning methods over shadow runs: one set of trained models, every method tried on all of them.

    run r = 1..R    train on base + IN_r + UNLEARN_r  ->  method removes UNLEARN_r  ->  reading of every target
    per method      U-LiRA, per-example effect and epsilon, collateral on IN_r, relearning of UNLEARN_r beside OUT_r
    canaries        copies of test examples under a wrong target, each k times in training, with states of their own

Two reference rows are always there. ``none`` removes nothing: what it shows is the power of the audit, and an audit
that does not expose the canaries there lets no method pass. ``retrain`` is exact: what it shows is the audit's false
alarms. Training is stacked (``train_many``), once for all methods and once more for retraining, and so are the methods
that can be (``UnlearnerSpec.plan``). The runs come in blocks of 20, so 20 models of each method are held at a time, and
the result does not depend on the block (to rounding, where methods are stacked).

Source: Hayes et al., SaTML 2025 (arXiv 2403.01218); canaries after Jagielski et al., NeurIPS 2020.
An example counts as exposed when its removed and never-seen runs differ after Holm's correction over all targets and
their distance mu is beyond sqrt(2) PhiInv(tolerated AUC): worst case, whatever the mean. It is evidence about the
method and its configuration on this data and recipe, not about one deletion that was carried out; for that see the
attacks on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from attacks.membership.shadow_results import Recorded, tables_of
from attacks.membership.shadow_tables import CANARIES, EXAMPLES, PICTURES, U_LIRA
from attacks.membership.unlearning import IN, OUT, UNLEARN, three_state_design
from attacks.relearning import relearn
from attacks.shadow_verdicts import found_of, judge_shadow_unlearning
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable, NotTheModel
from contracts.methods import AnalysisSpec, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.predict import read
from sources.example_set import ExampleSet
from sources.planted_poison import plant_canaries
from tasks.base import Reading

NONE, RETRAIN = "none", "retrain"
CANARY_SHARE = 0.1  # most of a run's training examples that are canaries: they must not change what the model is
_BLOCK = 20  # runs whose models are held at a time
_FEWEST_TARGETS = 15
_FAILURES = (Diverged, DataError, NotTheModel)
Ids = NDArray[np.int64]
Outcome = nn.Module | Diverged | DataError | NotTheModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowUnlearningConfig(Config):
    runs: int = param(
        60, ge=9, le=100_000, doc="shadow runs R, a multiple of 3; a pass needs 60, for 19 others a state"
    )
    targets: int = param(
        400,
        ge=_FEWEST_TARGETS,
        le=1_000_000,
        unit="examples",
        doc="audited; at most half of training. A run removes a third of them, and the result covers sets of about "
        "that share",
    )
    methods: tuple[str, ...] = param(
        (),
        doc="registered unlearners, beside the references none and retrain; the plan's method in use when none is "
        "given",
        ref="unlearner",
    )
    canaries: int = param(10, ge=0, le=100_000, doc="planted; fewer where they would be over 10% of training")
    repeats: int = param(
        10, ge=1, le=10_000, doc="copies of each canary in training; 1 where no example may be there twice"
    )
    relearn_steps: int = param(20, ge=1, le=100_000, doc="steps of relearning")
    relearn_lr: float = param(0.01, gt=0, le=10, doc="learning rate of relearning; momentum is 0.9")
    relearn_margin: float = param(
        0.05, ge=0, lt=1, doc="of the former quality (accuracy for classes) that relearning may fall short of"
    )
    delta: float = param(1e-5, gt=0, lt=1, doc="delta of the examples' epsilon")
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        if self.runs % 3:
            raise ConfigError(f"ShadowUnlearningConfig.runs = {self.runs} must be a multiple of 3")
        if len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"ShadowUnlearningConfig.methods = {self.methods} lists something twice")


@analysis(
    AnalysisSpec(
        name="shadow_unlearning",
        version=2,
        wants=("reading", "losses"),
        doc="Unlearning methods over shadow runs: U-LiRA, worst examples, canaries, collateral damage, relearning.",
        source="Hayes et al., SaTML 2025 (arXiv 2403.01218)",
        config=ShadowUnlearningConfig,
        needs=("train_many", "unlearn_from"),
        tables=(U_LIRA, EXAMPLES, CANARIES),
        pictures=PICTURES,
        judge=judge_shadow_unlearning,
        finds=lambda config, _, in_use: found_of(in_use, canaries=config.canaries > 0),
    )
)
def shadow_unlearning_audit(
    data: ExampleSet,
    *,
    config: ShadowUnlearningConfig,
    seed: int,
    train_many: Callable[..., Sequence[nn.Module]],
    unlearn_from: Callable[..., nn.Module],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Carry out the runs and judge every method on them.

    Args:
        data: both splits; targets come from the training split, canaries are copies from the test split.
        config: runs, targets, methods.
        seed: root of the design, the draws, the trainings and the bootstrap.
        train_many: (ids of each training set, seeds, *, data) -> models of the subject's recipe.
        unlearn_from: (model, method, *, retain, forget, seed) -> model after a registered unlearner, which leaves its
            argument as it is; its attribute ``in_use`` names the plan's method in use, and ``many``, if it has one,
            does many models at once.
        progress: called with (runs done, runs, "shadow unlearning runs").

    Returns:
        ``u_lira`` (a row a method), ``u_lira_examples`` (a row a method and example), ``u_lira_canaries``.

    Raises:
        NotApplicable: models whose answers cannot be read.
        DataError: targets out of range, or too few training examples for every run to have all three states.
        Diverged: training or retraining itself left the finite numbers; there is no reference.
    """
    plan = _plan(data, config=config, seed=seed)
    asked = config.methods or (getattr(unlearn_from, "in_use", RETRAIN),)
    names = [NONE, *(m for m in asked if m not in (NONE, RETRAIN)), RETRAIN]
    recorded = {name: Recorded() for name in names}
    before: list[Reading] = []
    for block, trained, retrained in _trained(plan, train_many, seed=seed):
        retain, forget = ([plan.data.subset(ids(r)) for r in block] for ids in (plan.retain, plan.forget))
        after: dict[str, Sequence[Outcome]] = {NONE: trained, RETRAIN: retrained}
        for name in names[1:-1]:
            seeds = [derive_seed("shadow", name, seed, run) for run in block]
            after[name] = _unlearned(unlearn_from, trained, name, retain=retain, forget=forget, seeds=seeds)
        for place, run in enumerate(block):
            before.append(read(trained[place], plan.audited))
            for name, record in recorded.items():
                try:
                    found = after[name][place]
                    if isinstance(found, Exception):
                        raise found
                    _record(record, found, before[-1], plan, run, config=config)
                except _FAILURES as error:
                    # Outputs that are not finite come as DataError from a model that has just been changed: its fault
                    # too.
                    if name in (NONE, RETRAIN):
                        raise
                    record.failed(str(error), refused=isinstance(error, NotTheModel))
            progress(run + 1, config.runs, "shadow unlearning runs")
    return tables_of(
        recorded,
        np.stack([reading.values for reading in before]),
        plan.state,
        target_ids=plan.target_ids,
        canary_ids=plan.originals,
        wrong=plan.audited.y[len(plan.target_ids) :],
        num_train=round(float(np.mean([len(plan.train(r)) for r in range(config.runs)]))),
        repeats=plan.repeats,
        steps=config.relearn_steps,
        delta=config.delta,
        alpha=config.alpha,
        seed=derive_seed("bootstrap", seed),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Plan:
    """Who is in which run. Columns of ``state``: N targets, then C canaries.

    Attributes:
        data: the examples and the canaries' copies, in the order of the ids.
        members: the ids each column stands for: itself, or a canary's copies.
        audited: the examples that are read, one a column.
        repeats: copies of each canary.
    """

    data: ExampleSet
    state: NDArray[np.int8]
    members: list[Ids]
    base: Ids
    target_ids: Ids
    originals: Ids
    audited: ExampleSet = field(repr=False)
    repeats: int

    def _ids(self, run: int, states: Sequence[int], *more: Ids) -> Ids:
        chosen = [self.members[j] for j in np.flatnonzero(np.isin(self.state[run], states))]
        return np.sort(np.concatenate([*more, *chosen]))

    def train(self, run: int) -> Ids:
        return self._ids(run, (IN, UNLEARN), self.base)

    def retain(self, run: int) -> Ids:
        return self._ids(run, (IN,), self.base)

    def forget(self, run: int) -> Ids:
        return self._ids(run, (UNLEARN,))


def _plan(data: ExampleSet, *, config: ShadowUnlearningConfig, seed: int) -> _Plan:
    data = data.validate().by_id()
    train = np.random.default_rng(derive_seed("targets", seed)).permutation(data.example_id[data.split == "train"])
    num_targets = min(config.targets, len(train) // 2)
    if num_targets < _FEWEST_TARGETS:
        raise DataError(
            f"{data.name}: {len(train)} training examples are too few for shadow runs; {2 * _FEWEST_TARGETS} are needed"
        )
    targets, base = np.sort(train[:num_targets]), np.sort(train[num_targets:])
    state = three_state_design(config.runs, num_targets, seed=derive_seed("states", seed))
    if any((state == s).sum(axis=1).min() < 2 for s in (IN, OUT, UNLEARN)):
        raise DataError(f"{data.name}: {num_targets} targets leave a run with fewer than 2 examples of a state")
    members, originals = [np.array([i]) for i in targets], np.empty(0, np.int64)
    # A canary is trained on in two runs of three.
    repeats = config.repeats if data.task.repeatable else 1
    fit = int(1.5 * CANARY_SHARE * len(train) / repeats)
    num_canaries = min(config.canaries, int((data.split == "test").sum()), fit)
    if num_canaries and (planted := _canaries(data, num_canaries, repeats, seed=derive_seed("canaries", seed))):
        data, copies, originals = planted
        members += list(copies)
        canary_state = three_state_design(config.runs, num_canaries, seed=derive_seed("canary states", seed))
        state = np.concatenate([state, canary_state], axis=1)
    return _Plan(
        data=data,
        state=state,
        members=members,
        base=base,
        target_ids=targets,
        originals=originals,
        audited=data.subset(np.array([own[0] for own in members])),
        repeats=repeats,
    )


def _canaries(data: ExampleSet, count: int, repeats: int, *, seed: int) -> tuple[ExampleSet, Ids, Ids] | None:
    """The data with canaries, or None where the task has no wrong targets: the audit then cannot pass, and says why."""
    try:
        return plant_canaries(data, count=count, repeats=repeats, seed=seed)
    except NotApplicable:
        return None


def _trained(
    plan: _Plan, train_many: Callable[..., Sequence[nn.Module]], *, seed: int
) -> Iterator[tuple[range, Sequence[nn.Module], Sequence[nn.Module]]]:
    """(runs, models trained on everything of each, models retrained without what each forgets), block by block."""
    for start in range(0, len(plan.state), _BLOCK):
        runs = range(start, min(start + _BLOCK, len(plan.state)))
        trained, retrained = (
            train_many([ids(r) for r in runs], [derive_seed(what, seed, r) for r in runs], data=plan.data)
            for what, ids in (("shadow", plan.train), ("shadow retrain", plan.retain))
        )
        yield runs, trained, retrained


def _unlearned(
    unlearn_from: Callable[..., nn.Module],
    models: Sequence[nn.Module],
    name: str,
    *,
    retain: Sequence[ExampleSet],
    forget: Sequence[ExampleSet],
    seeds: Sequence[int],
) -> Sequence[Outcome]:
    """Every model after a method, or what it failed with: at once, where that is offered."""
    many = getattr(unlearn_from, "many", lambda *_, **__: None)
    together: Sequence[Outcome] | None = many(models, name, retain=retain, forget=forget, seeds=seeds)
    if together is not None:
        return together
    found: list[Outcome] = []
    for model, kept, gone, seed in zip(models, retain, forget, seeds, strict=True):
        try:
            found.append(unlearn_from(model, name, retain=kept, forget=gone, seed=seed))
        except _FAILURES as error:
            found.append(error)
    return found


def _record(
    record: Recorded,
    model: nn.Module,
    before: Reading,
    plan: _Plan,
    run: int,
    *,
    config: ShadowUnlearningConfig,
) -> None:
    """Readings after unlearning, and how the run's removed and never-seen targets are relearned."""
    state = plan.state[run, : len(plan.target_ids)]
    rows = np.flatnonzero(state != IN)
    removed = state[rows] == UNLEARN
    reading = read(model, plan.audited)
    taught = relearn(
        model, plan.audited.subset(plan.target_ids[rows]), removed, steps=config.relearn_steps, lr=config.relearn_lr
    )
    known = before.quality[rows]
    wanted = (1 - config.relearn_margin) * float(known[removed].mean())
    area = np.full(len(state), np.nan)
    area[rows] = taught.area
    record.readings.append(reading.values)
    record.area.append(area)
    record.steps.append((taught.steps_to(wanted, removed), taught.steps_to(wanted, ~removed)))
