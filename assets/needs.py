"""What the pipeline hands to a method: each word of ``contracts.methods.NEEDS``, the stages it stands on, how it is made.

A stage depends on what its method needs, so that a change upstream makes it stale; the callables are made when the work
runs and load nothing before they are called.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets import imported, models
from assets.stage import Run, Stage
from contracts import schema
from contracts.errors import NotApplicable, NotTrusted, UnknownName
from contracts.methods import MethodSpec, source, unlearner
from contracts.params import Config
from contracts.subject import OUTPUTS, Subject
from recipes.plan import device_of, model_builder, recipe_config
from recipes.plan import trainer as recipe_of
from sources.example_set import ExampleSet
from tasks.base import require

if TYPE_CHECKING:
    from torch import nn

STANDS_ON = {
    "model": "target",
    "encoder": "target",
    "outputs": "target",
    "unlearn": "target",
    "early_models": "early",
    "ensemble": "ensemble",
}
_OF_OUTPUTS = {
    "encoder",
    "outputs",
    "scores",
    "splits",
    "tables",
    "select_where",
    "imported",
}  # needs that a table of outputs can meet
_COMPARED = 512  # retained examples on which a result must answer as its weights do, beside all forgotten ones
_UNLEARNING = {"unlearn", "unlearn_from"}
TRAINING = {"train", "train_many", "early_at", "recipe", *_UNLEARNING}


def stages_of(
    spec: MethodSpec,
    config: Any,
    upstream: Mapping[str, Stage],
    *,
    scores: Mapping[str, Stage],
    splits: Mapping[str, Stage],
    analyses: Mapping[str, Stage] = MappingProxyType({}),
) -> tuple[Stage, ...]:
    """The stages a method reads, the examples first.

    Args:
        config: the method's; its fields ``score`` or ``scores`` (``split`` or ``splits``) name the stored ones it reads,
            ``unlearner`` or ``methods`` the unlearners it runs.

    Raises:
        UnknownName: it names a score or a split that the subject does not list, or reads an analysis that it does not, or
            an unlearner that is not registered.
    """
    wanted = [upstream["examples"], *(upstream[on] for need in spec.needs if (on := STANDS_ON.get(need)) in upstream)]
    for kind, stages in (("score", scores), ("split", splits)):
        if f"{kind}s" in spec.needs:
            wanted += [_named(kind, name, stages, spec.name) for name in names_in(config, kind)]
    wanted += [_named("analysis", name, analyses, spec.name) for name in getattr(spec, "reads", ())]
    if _UNLEARNING & set(spec.needs):
        for name in (*names_in(config, "unlearner"), *names_in(config, "method")):
            unlearner.get(name)
    return tuple(dict.fromkeys(wanted))


def plan_of(subject: Subject, spec: MethodSpec) -> dict[str, Any]:
    """Parts of the plan that a method's result depends on besides its stages: the version of the source that reads the data
    it is given, and what stands behind the callables it is given."""
    plan: dict[str, Any] = {"source_version": source.get(subject.source.name).spec.version}
    if TRAINING & set(spec.needs):
        plan |= models.training(subject)
    if "early_at" in spec.needs:
        plan["early"] = subject.early
    if _UNLEARNING & set(spec.needs) and subject.unlearning:
        plan["unlearners"] = subject.unlearning.methods
        plan["in_use"] = subject.unlearning.decides
    return plan


def names_in(config: Any, kind: str) -> Sequence[str]:
    """The names that a configuration, or one inside it, gives in its field ``score`` or ``scores`` (``split`` or ``splits``)."""
    one, many = getattr(config, kind, ""), getattr(config, f"{kind}s", ())
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    inside = [name for part in parts if isinstance(part, Config) for name in names_in(part, kind)]
    return [name for name in (one, *many, *inside) if isinstance(name, str) and name]


def _named(kind: str, name: str, stages: Mapping[str, Stage], method: str) -> Stage:
    if name not in stages:
        raise UnknownName(f"{method} reads a {kind} that the plan does not list before it: {kind}", name, stages)
    return stages[name]


def provided(run: Run, spec: MethodSpec, upstream: Mapping[str, Stage]) -> dict[str, Any]:
    """The keyword arguments for one call of a method."""
    return {need: _MAKE[need](run, upstream) for need in spec.needs}


def refuse(run: Run, spec: MethodSpec, kind: str) -> None:
    """Raise :class:`NotApplicable` when the method is not defined for the data's task, or needs what there is not."""
    require(run.data, f"{kind} {spec.name}", *spec.wants)
    if run.subject.outputs_only and (why := lacks(spec, kind, run.data)):
        raise NotApplicable(why)


def lacks(spec: MethodSpec, kind: str, data: ExampleSet) -> str:
    """What a method needs and a table of outputs has not, as a sentence; "" when it applies."""
    if lacking := [need for need in spec.needs if need not in _OF_OUTPUTS]:
        words = ", ".join(need.replace("_", " ") for need in lacking)
        return f"{kind} {spec.name} needs {words}; there are only a model's outputs."
    if getattr(spec, "references", 0):
        return (
            f"{kind} {spec.name} needs reference models, so a model and its recipe; there are only a model's outputs."
        )
    looks = kind != "attack" and ("encoder" in spec.needs or not spec.needs)
    if looks and data.provenance.get("values") == OUTPUTS:
        return f"{kind} {spec.name} looks at what describes the examples; the table of outputs has no features."
    return ""


def trainer(run: Run) -> Callable[..., nn.Module]:
    """``(data, seed, *, effort, steps, observe) -> model``: the subject's own recipe from a fresh initialisation."""
    method = recipe_of(run.subject, run.data)

    def train(
        data: ExampleSet, seed: int, *, effort: float = 1.0, steps: int | None = None, observe: Any = None
    ) -> nn.Module:
        length = method.of_length(effort=effort, steps=steps)
        return length.one(data, seed, observe=observe, progress=run.progress)

    return train


def _early_at(run: Run) -> Callable[[Sequence[int]], Mapping[int, Sequence[nn.Module]]]:
    """``epochs -> {epoch: models}`` of one run."""
    from recipes.early import early_snapshots

    subject = run.subject

    def at(epochs: Sequence[int]) -> Mapping[int, Sequence[nn.Module]]:
        return early_snapshots(
            model_builder(subject, run.data),
            run.train,
            recipe=subject.recipe.name,
            config=recipe_config(subject),
            seeds=models.early_seeds(subject),
            epochs=epochs,
            device=device_of(subject),
            progress=run.progress,
        )

    return at


def _train_many(run: Run) -> Callable[..., Sequence[nn.Module]]:
    """``(ids of each training set, seeds, *, data) -> models`` of the subject's own recipe."""

    def train_many(
        members: Sequence[Any], seeds: Sequence[int], *, data: ExampleSet | None = None
    ) -> Sequence[nn.Module]:
        data = run.data if data is None else data
        rows = [data.positions(ids) for ids in members]
        return recipe_of(run.subject, data).many(data, members=rows, seeds=seeds, progress=run.progress)

    return train_many


@dataclass(frozen=True)
class _UnlearnFrom:
    """``(model, name, *, retain, forget, seed) -> model``: any model after a registered unlearner with the plan's configuration.

    The unlearner works on a copy of its own: one that changes its argument cannot change what later runs start from. What
    comes back is a fresh model with the result's arrays; a result that answers otherwise than its arrays do is refused.
    """

    run: Run
    upstream: Mapping[str, Stage]

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of the subject's plan; without one, all that are defined for its task."""
        plan = self.run.subject.unlearning
        if plan is None:
            return tuple(m.spec.name for m in unlearner if self.run.data.task.gives(*m.spec.wants))
        return tuple(choice.name for choice in plan.methods)

    @property
    def in_use(self) -> str:
        """The method that removes what people ask to remove: the one that decides the audit; retrain without a plan."""
        plan = self.run.subject.unlearning
        return "retrain" if plan is None else plan.decides

    def __call__(self, model: nn.Module, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int) -> nn.Module:
        from recipes.as_saved import refuse_unlike, reloaded

        plan, method = self.run.subject.unlearning, unlearner.get(name)
        chosen = {choice.name: choice.config for choice in plan.methods} if plan else {}
        result = method(
            copy.deepcopy(model),
            retain=retain,
            forget=forget,
            config=method.spec.config.from_mapping(chosen.get(name, {})),
            seed=seed,
            progress=self.run.progress,
            **provided(self.run, method.spec, self.upstream),
        )
        fresh = reloaded(result, model_builder(self.run.subject, retain), what=name)
        for part in (retain.take(np.arange(min(len(retain), _COMPARED))), forget):
            if len(part):
                refuse_unlike(result, fresh, part, what=name)
        return fresh


@dataclass(frozen=True)
class _Unlearn:
    """``(name, *, retain, forget, seed) -> model``: the audited model after a registered unlearner."""

    run: Run
    upstream: Mapping[str, Stage]

    @property
    def _from(self) -> _UnlearnFrom:
        return _UnlearnFrom(self.run, self.upstream)

    @property
    def methods(self) -> tuple[str, ...]:
        """As of :class:`_UnlearnFrom`."""
        return self._from.methods

    @property
    def in_use(self) -> str:
        """As of :class:`_UnlearnFrom`."""
        return self._from.in_use

    def __call__(self, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int) -> nn.Module:
        model = models.load_model(self.run, self.upstream["target"])
        return self._from(model, name, retain=retain, forget=forget, seed=seed)


def _outputs(run: Run, target: Stage) -> Callable[[ExampleSet], Any]:
    """examples -> (N, K) logits that the stage stored.

    Raises:
        NotApplicable: it stored none.
    """
    require(run.data, "what reads whole outputs", "outputs")
    stored, meta = run.load(target, models.READINGS)
    models.refuse_other_training(run, target, meta)
    return lambda data: stored["logits"][run.data.positions(data.example_id)]


def _encoder(run: Run, target: Stage) -> nn.Module:
    if not run.subject.outputs_only:
        return models.load_model(run, target)
    from explain.embeddings import over_features

    return over_features(math.prod(run.data.input_shape), run.data.num_classes)


def _evaluate() -> Callable[..., dict[str, float]]:
    from unlearning.metrics import evaluate

    return evaluate


def _table(run: Run, name: str) -> pl.DataFrame:
    """A table of an analysis that the stage reads.

    Raises:
        UnknownName: none of them has it.
        NotApplicable: that analysis does not apply, and why.
    """
    of = {
        table.name: (dep, table)
        for dep in run.stage.deps
        if dep.path[0] in ("analyses", "audits")
        for table in dep.tables
    }
    if name not in of:
        raise UnknownName("table", name, of)
    dep, table = of[name]
    if reason := run.why_not(dep):
        raise NotApplicable(reason)
    return run.read(table)


def _split(run: Run, name: str) -> pl.DataFrame:
    """(example_id, role) of a stored split.

    Raises:
        NotTrusted: it was not made, and why.
    """
    made = next((dep for dep in run.stage.deps if dep.path == ("curation", name)), None)
    if made is not None and (reason := run.why_not(made)):
        raise NotTrusted(reason)
    return run.read(schema.MEMBERS, {"dataset_id": name}).select("example_id", "role")


_MAKE: dict[str, Callable[[Run, Mapping[str, Stage]], Any]] = {
    "model": lambda run, up: models.load_model(run, up["target"]),
    "encoder": lambda run, up: _encoder(run, up["target"]),
    "outputs": lambda run, up: _outputs(run, up["target"]),
    "early_models": lambda run, up: models.load_early(run, up["early"]),
    "early_at": lambda run, up: _early_at(run),
    "ensemble": lambda run, up: models.load_ensemble(run, up["ensemble"]),
    "train": lambda run, up: trainer(run),
    "recipe": lambda run, up: recipe_of(run.subject, run.data),
    "train_many": lambda run, up: _train_many(run),
    "unlearn": _Unlearn,
    "unlearn_from": _UnlearnFrom,
    "evaluate": lambda run, up: _evaluate(),
    "scores": lambda run, up: run.stored_score,
    "splits": lambda run, up: lambda name: _split(run, name),
    "select_where": lambda run, up: run.select_where,
    "tables": lambda run, up: lambda name: _table(run, name),
    "imported": lambda run, up: imported.rows_of(run),
}
