"""What a stage gives to a method: the stages that each need stands on, and what is stored there.

A stage depends on what its method needs, so that a change upstream makes it stale; the callables are made when the work
runs and load nothing before they are called. What a job gives stands beside it in ``assets.provider``.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets import imported, models
from assets.provider import JobProvider, Provider, Unlearn, UnlearnFrom
from assets.references import Listed, methods
from assets.stage import Run, Stage
from contracts import schema
from contracts.errors import NotApplicable, NotTrusted, UnknownName
from contracts.methods import MethodSpec, attack, maker, recipe, source, unlearner
from contracts.params import references
from contracts.progress import Progress
from contracts.stores import CheckpointStore
from contracts.subject import ADAPTERS, GIVEN, NO_REFERENCES, OUTPUTS, RETRAIN, Subject
from contracts.tables import TableSpec
from sources.example_set import ExampleSet
from sources.made import Made, made_from
from tasks.base import require

if TYPE_CHECKING:
    from torch import nn

    from recipes.ensemble import ReferenceEnsemble

STANDS_ON = {
    "model": "target",
    "encoder": "target",
    "outputs": "target",
    "unlearn": "target",
    "early_models": "early",
    "ensemble": "ensemble",
    "ensemble_if_any": "ensemble",
    "ensemble_outputs": "ensemble",
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
_SHARED = ("learnt_from", "judged_on")  # roles of originals that are of a whole made set
_UNLEARNING = {"unlearn", "unlearn_from"}
TRAINING = {"train", "train_many", "early_at", "recipe", *_UNLEARNING}


def stages_of(
    spec: MethodSpec,
    config: Any,
    upstream: Mapping[str, Stage],
    *,
    scores: Mapping[str, Stage],
    curated: Mapping[str, Stage],
    analyses: Mapping[str, Stage] = MappingProxyType({}),
) -> tuple[Stage, ...]:
    """The stages a method reads, the examples first: those of its needs, of the scores, splits, data sets and analyses
    that its configuration names, and of the analyses that it reads. The plan's names were checked before
    (``assets.references``)."""
    wanted = [upstream["examples"], *models_of(spec, upstream).values()]
    listed = {"score": scores, "split": curated, "dataset": curated, "analysis": analyses}
    wanted += [listed[found.kind][found.name] for found in references(config) if found.kind in listed]
    wanted += [analyses[name] for name in getattr(spec, "reads", ())]
    if _UNLEARNING & set(spec.needs) and (plan := upstream["examples"].subject.unlearning):
        run = [c.name for c in plan.methods] + [r.name for r in references(config) if r.kind == "unlearner"]
        wanted += [stage for name in run for stage in models_of(unlearner.get(name).spec, upstream).values()]
    return tuple(dict.fromkeys(wanted))


def read_of_references(subject: Subject) -> frozenset[str]:
    """What the plan's methods read of reference models: nothing, "readings", or "readings" and whole "outputs".

    Attacks that can do without references do not have them trained; where they are there, they tell on which scale a
    model speaks.
    """
    found = [] if subject.outputs_only else methods(subject)
    return frozenset(word for method in found for word in _read_of_references(method))


def _read_of_references(found: Listed) -> set[str]:
    """What one method of a plan reads of them."""
    if found.kind == "attack":
        asks = bool(getattr(found.spec, "references", 0))
        whole = asks and "outputs" in found.spec.wants
    else:
        whole = "ensemble_outputs" in found.spec.needs
        asks = whole or "ensemble" in found.spec.needs
        named = [ref.name for ref in references(found.config) if ref.kind == "attack"] if asks else []
        whole |= any("outputs" in attack.get(name).spec.wants for name in named)
    return ({"readings"} if asks else set()) | ({"outputs"} if whole else set())


def models_of(spec: MethodSpec, upstream: Mapping[str, Stage]) -> dict[str, Stage]:
    """The stages of models that a method's needs stand on, by name."""
    return {on: upstream[on] for need in spec.needs if (on := STANDS_ON.get(need)) in upstream}


def plan_of(subject: Subject, spec: MethodSpec) -> dict[str, Any]:
    """Parts of the plan that a method's result depends on besides its stages: the version of the source that reads the
    data it is given, and what stands behind the callables it is given."""
    plan: dict[str, Any] = {"source_version": source.get(subject.source.name).spec.version}
    if TRAINING & set(spec.needs):
        plan |= models.training(subject)
    if "device" in spec.needs:
        plan["device"] = subject.device
    if "early_at" in spec.needs:
        plan["early"] = subject.early
    if _UNLEARNING & set(spec.needs) and subject.unlearning:
        plan["unlearners"] = subject.unlearning.methods
        plan["in_use"] = subject.unlearning.decides
    return plan


def provided(run: Run, spec: MethodSpec, upstream: Mapping[str, Stage]) -> dict[str, Any]:
    """The keyword arguments for one call of a method in a stage."""
    return StageProvider(run, upstream).provided(spec)


def refuse_unavailable(subject: Subject) -> None:
    """Nothing, when every need of every method that the plan lists can be met where the method runs.

    Raises:
        NotApplicable: one cannot; names the method's place in the plan, the need, and what can be met there. Or it
            reads reference models, and the plan's policy is that there are none.
    """
    recipe_spec = recipe.get(subject.recipe.name).spec if subject.recipe.name else None
    for method in methods(subject):
        if subject.ensemble.policy.name == NO_REFERENCES and _read_of_references(method):
            raise NotApplicable(
                f"{method.where}: {method.kind} {method.spec.name} reads reference models, and ensemble.policy is "
                f"{NO_REFERENCES}. Leave it out, or state one of the policies {RETRAIN}, {ADAPTERS}, {GIVEN}"
            )
        can = available(method.kind)
        if recipe_spec is not None and not recipe_spec.early and method.kind == "unlearner":
            can -= {"early_models", "early_at"}  # a job ends without a result where another stage says why it has none
        if lacking := [need for need in method.spec.needs if need not in can]:
            raise NotApplicable(
                f"{method.where}: {method.kind} {method.spec.name} needs {', '.join(lacking)}, which the plan's recipe "
                f"or the place where {method.kind} methods run cannot give; it can give: "
                f"{', '.join(sorted(can)) or 'nothing'}"
            )


def pool_and_population(subject: Subject, data: ExampleSet) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the data, ascending, of the examples that attacks are run on, and of those that no model saw.

    Raises:
        ConfigError, DataError: given models that do not fit the plan or the data, or a test split that is too small.
    """
    if subject.ensemble.policy.name == GIVEN and read_of_references(subject):
        from recipes.given import given_set

        given = given_set(data, ensemble=subject.ensemble)
        return given.pool, given.population
    from recipes.design import pool_and_population as drawn
    from recipes.policies import seed_of

    return drawn(data, ensemble=subject.ensemble, seed=seed_of(subject))


def available(kind: str) -> frozenset[str]:
    """The needs that can be met for methods of a kind ("split" for a plan's curators, "dataset" for its makers);
    nothing is kept from the analyses but rows imported for scores, and the secrets of makers."""
    everything = StageProvider.meets()
    return {
        "score": everything - {"splits", "tables", "made", "secret"},
        "split": everything - {"tables", "imported", "made", "secret"},
        "dataset": everything - {"tables", "imported", "made"},
        "analysis": everything - {"imported", "secret"},
        "unlearner": JobProvider.meets() - {"model"},  # it is called with the model that it changes
    }.get(kind, frozenset())


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
    if getattr(spec, "base", False):
        return f"{kind} {spec.name} needs the model before its training; there are only a model's outputs."
    looks = kind != "attack" and ("encoder" in spec.needs or not spec.needs)
    if looks and data.provenance.get("values") == OUTPUTS:
        return f"{kind} {spec.name} looks at what describes the examples; the table of outputs has no features."
    return ""


@dataclass(frozen=True)
class StageProvider(Provider):
    """In a stage: what it read of the stages upstream, beside what follows from plan, data and model."""

    run: Run
    upstream: Mapping[str, Stage]

    @property
    def subject(self) -> Subject:  # type: ignore[override]
        return self.run.subject

    @property
    def data(self) -> ExampleSet:  # type: ignore[override]
        return self.run.data

    @property
    def progress(self) -> Progress:  # type: ignore[override]
        return self.run.progress

    def model(self) -> nn.Module:
        return models.load_model(self.run, self.upstream["target"])

    def encoder(self) -> nn.Module:
        if not self.subject.outputs_only:
            return self.model()
        from explain.embeddings import over_features

        return over_features(math.prod(self.data.input_shape), self.data.num_classes)

    def outputs(self) -> Callable[[ExampleSet], Any]:
        """Examples -> (N, K) logits that the stage of the audited model stored.

        Raises:
            NotApplicable: it stored none.
        """
        require(self.data, "what reads whole outputs", "outputs")
        stored, meta = self.run.load(self.upstream["target"], models.READINGS)
        models.refuse_other_training(self.run, self.upstream["target"], meta)
        return lambda data: stored["logits"][self.data.positions(data.example_id)]

    def early_models(self) -> Sequence[nn.Module]:
        return models.load_early(self.run, self.upstream["early"])

    def ensemble(self) -> ReferenceEnsemble:
        return models.load_ensemble(self.run, self.upstream["ensemble"])

    def ensemble_outputs(self) -> ReferenceEnsemble:
        return self.ensemble()

    def ensemble_if_any(self) -> ReferenceEnsemble | None:
        return self.ensemble() if "ensemble" in self.upstream else None

    def unlearn(self) -> Unlearn:
        return Unlearn(self, self.model)

    def unlearn_from(self) -> UnlearnFrom:
        return UnlearnFrom(self)

    def scores(self) -> Callable[[str], pl.DataFrame]:
        return self.run.stored_score

    def splits(self) -> Callable[[str], pl.DataFrame]:
        return lambda name: _split(self.run, name)

    def tables(self) -> Callable[[str], pl.DataFrame]:
        return lambda name: _table(self.run, name)

    def select_where(self) -> Callable[[str], Any]:
        return self.run.select_where

    def checkpoints(self) -> CheckpointStore:
        return self.run.checkpoints()

    def made(self) -> Callable[[str], Made]:
        return lambda name: made_set(self.run, name)

    def secret(self) -> bytes:
        key = getattr(self.run.stage.config.get("config"), "key", "")  # a name of a set has no space
        of = f"{self.run.subject.subject} key {key}" if key else self.run.asset
        return hmac.digest(self.run.warehouse.salt(), f"made data set {of}".encode(), "sha256")

    def imported(self) -> pl.DataFrame:
        return imported.rows_of(self.run)


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


def made_set(run: Run, name: str) -> Made:
    """A made data set that the stage reads.

    Raises:
        NotTrusted: it was not made, and why.
    """
    dep = next(dep for dep in run.stage.deps if dep.path == ("curation", name))
    if reason := run.why_not(dep):
        raise NotTrusted(reason)
    arrays, meta = run.load(dep)

    def stored(table: TableSpec) -> pl.DataFrame:
        return run.read(table, {"dataset_id": name}).select(c.name for c in table.columns if c.name != "dataset_id")

    members = run.read(schema.MEMBERS, {"dataset_id": name}).sort("example_id")
    by_role = {role: members.filter(pl.col("role") == role)["example_id"].to_numpy() for role in _SHARED}
    drawn_from = stored(schema.DRAWN_FROM)
    if len(by_role["learnt_from"]):  # what is a source by name as well has that role alone
        by_role["learnt_from"] = np.union1d(by_role["learnt_from"], drawn_from["example_id"].to_numpy())
    return Made(
        examples=made_from(arrays, meta),
        drawn_from=drawn_from,
        **by_role,
        tables={table.name: stored(table) for table in maker.get(meta["method"]).spec.tables},
    )


def _split(run: Run, name: str) -> pl.DataFrame:
    """(example_id, role) of a stored split.

    Raises:
        NotTrusted: it was not made, and why.
    """
    made = next((dep for dep in run.stage.deps if dep.path == ("curation", name)), None)
    if made is not None and (reason := run.why_not(made)):
        raise NotTrusted(reason)
    return run.read(schema.MEMBERS, {"dataset_id": name}).select("example_id", "role")
