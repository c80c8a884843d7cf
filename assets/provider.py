"""What a method is given, by the words of ``contracts.methods.NEEDS``: one provider, in a stage and in the process of a
job alike.

    Provider      what follows from the plan, the data and the audited model: training, unlearning, evaluation
    JobProvider   in the process of an unlearning job, which opens no database: models come as artifacts
    assets.needs.StageProvider   in a stage: with stored models, scores, splits and tables

A need is met by the method of that name, and nowhere else; a word without one cannot be met there, and a plan that
lists a method which needs it there is refused as it loads (``assets.needs.refuse_unavailable``).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, NotTheModel
from contracts.methods import NEEDS, MethodSpec, UnlearnerSpec, unlearner
from contracts.params import Config
from contracts.progress import Progress
from contracts.registry import Method
from contracts.subject import Subject
from recipes.plan import device_of, model_builder, recipe_config, trained_builder
from recipes.plan import trainer as recipe_of
from sources.example_set import ExampleSet
from tasks.base import lacking, require

if TYPE_CHECKING:
    from torch import nn

    from recipes.ensemble import ReferenceEnsemble
    from recipes.training import Trainer

_COMPARED = 512  # retained examples on which a result must answer as its weights do, beside all forgotten ones
Arrays = tuple[dict[str, np.ndarray], dict[str, Any]]


def early_seeds(subject: Subject) -> list[int]:
    """The seeds of the plan's early models."""
    return [derive_seed(subject.seed, "early", r) % 2**31 for r in range(subject.early.seeds)]


class Provider:
    """See the module.

    Attributes:
        subject: the plan. ``data``: its examples, both splits.
        progress: called with how far long work is.
    """

    subject: Subject
    data: ExampleSet
    progress: Progress

    @classmethod
    def meets(cls) -> frozenset[str]:
        """The needs that can be met here."""
        return frozenset(need for need in NEEDS if hasattr(cls, need))

    def provided(self, spec: MethodSpec) -> dict[str, Any]:
        """The keyword arguments for one call of a method."""
        return {need: getattr(self, need)() for need in spec.needs}

    def train(self) -> Callable[..., nn.Module]:
        """``(data, seed, *, effort, steps, observe) -> model``: the subject's own recipe from a fresh
        initialisation."""
        method = recipe_of(self.subject, self.data)

        def train(
            data: ExampleSet, seed: int, *, effort: float = 1.0, steps: int | None = None, observe: Any = None
        ) -> nn.Module:
            length = method.of_length(effort=effort, steps=steps)
            return length.one(data, seed, observe=observe, progress=self.progress)

        return train

    def build(self) -> Callable[[int], nn.Module]:
        """``seed -> fresh model`` of the subject's architecture."""
        return model_builder(self.subject, self.data)

    def recipe(self) -> Trainer:
        """The plan's recipe with its configuration, on its architecture and device."""
        return recipe_of(self.subject, self.data)

    def train_many(self) -> Callable[..., Sequence[nn.Module]]:
        """``(ids of each training set, seeds, *, data) -> models`` of the subject's own recipe."""

        def train_many(
            members: Sequence[Any], seeds: Sequence[int], *, data: ExampleSet | None = None
        ) -> Sequence[nn.Module]:
            data = self.data if data is None else data
            rows = [data.positions(ids) for ids in members]
            return recipe_of(self.subject, data).many(data, members=rows, seeds=seeds, progress=self.progress)

        return train_many

    def early_at(self) -> Callable[[Sequence[int]], Mapping[int, Sequence[nn.Module]]]:
        """``epochs -> {epoch: models}`` of one run."""
        from recipes.early import early_snapshots

        subject, data = self.subject, self.data

        def at(epochs: Sequence[int]) -> Mapping[int, Sequence[nn.Module]]:
            return early_snapshots(
                model_builder(subject, data),
                data.part("train"),
                recipe=subject.recipe.name,
                config=recipe_config(subject),
                seeds=early_seeds(subject),
                epochs=epochs,
                device=device_of(subject),
                progress=self.progress,
            )

        return at

    def device(self) -> str:
        """Where the plan's models are trained."""
        return str(device_of(self.subject))

    def clock(self) -> Callable[[], float]:
        """Seconds of a clock that only goes forward."""
        return time.perf_counter

    def evaluate(self) -> Callable[..., dict[str, float]]:
        """``(model, *, retain, forget, test, seed, metrics) -> {metric: percent}``."""
        from unlearning.metrics import evaluate

        return evaluate


class JobProvider(Provider):
    """In the process of one unlearning job.

    Args:
        model: the audited model; whoever needs it gets a copy of their own.
        load: (stage, name of an artifact of it) -> its arrays and meta, for the stages "early" and "ensemble".
    """

    def __init__(
        self,
        subject: Subject,
        data: ExampleSet,
        model: nn.Module,
        *,
        load: Callable[[str, str], Arrays],
        progress: Progress,
    ) -> None:
        self.subject, self.data, self.progress, self._model, self._load = subject, data, progress, model, load

    def model(self) -> nn.Module:
        return copy.deepcopy(self._model)

    def encoder(self) -> nn.Module:
        return self.model()

    def outputs(self) -> Callable[[ExampleSet], np.ndarray]:
        """Examples of the data set -> the audited model's outputs (N, K), float32."""
        from recipes.predict import predict_logits

        require(self.data, "what reads whole outputs", "outputs")
        return lambda data: predict_logits(self._model, data)

    def early_models(self) -> Sequence[nn.Module]:
        from recipes.checkpoints import load_arrays

        models = []
        for r in range(self.subject.early.seeds):
            model = trained_builder(self.subject, self.data)(0)
            load_arrays(model, self._load("early", f"seed{r}")[0])
            models.append(model.to(device_of(self.subject)).eval())
        return models

    def ensemble(self) -> ReferenceEnsemble:
        from recipes.ensemble import ReferenceEnsemble

        return ReferenceEnsemble.from_arrays(*self._load("ensemble", "result"))

    def ensemble_outputs(self) -> ReferenceEnsemble:
        return self.ensemble()


_OF_ONE_MODEL = Provider.meets() | {"model", "encoder", "outputs"}


@dataclass(frozen=True)
class UnlearnFrom:
    """``(model, name, *, retain, forget, seed) -> model``: any model after a registered unlearner with the plan's
    configuration.

    The unlearner works on a copy of its own: one that changes its argument cannot change what later runs start from.
    What comes back is a fresh model with the result's arrays; a result that answers otherwise than its arrays do is
    refused.
    """

    provider: Provider

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of the subject's plan; without one, all that are defined for its task and need no other models."""
        plan = self.provider.subject.unlearning
        if plan is None:
            gives = self.provider.data.task.gives
            return tuple(m.spec.name for m in unlearner if gives(*m.spec.wants) and set(m.spec.needs) <= _OF_ONE_MODEL)
        return tuple(choice.name for choice in plan.methods)

    @property
    def in_use(self) -> str:
        """The method that removes what people ask to remove: the one that decides the audit; retrain without a plan."""
        plan = self.provider.subject.unlearning
        return "retrain" if plan is None else plan.decides

    def config(self, name: str) -> Config:
        """The plan's configuration of a registered unlearner; its defaults where the plan does not list it."""
        plan = self.provider.subject.unlearning
        chosen = {choice.name: choice.config for choice in plan.methods} if plan else {}
        return unlearner.get(name).spec.config.from_mapping(chosen.get(name, {}))

    def refusal(self, name: str) -> str:
        """Why a registered unlearner does not apply to the subject's data, or has not what it needs here; "" when it
        applies. Nothing is loaded or computed."""
        spec, data, plan = unlearner.get(name).spec, self.provider.data, self.provider.subject.unlearning
        if why := lacking(data, spec.wants):
            return f"unlearner {name} does not apply to {data.name}, a {data.task} task: {why}"
        listed = {choice.name for choice in plan.methods} if plan else set()
        if name not in listed and (more := sorted(set(spec.needs) - _OF_ONE_MODEL)):
            return f"unlearner {name} needs {', '.join(more)}, which is there for methods that the plan lists"
        return ""

    def __call__(
        self,
        model: nn.Module,
        name: str,
        *,
        retain: ExampleSet,
        forget: ExampleSet,
        seed: int,
        changed: Mapping[str, Any] = MappingProxyType({}),
    ) -> nn.Module:
        method, given = self._method(name, changed)
        result = method(copy.deepcopy(model), retain=retain, forget=forget, seed=seed, **given)
        return self._as_saved(result, name, retain=retain, forget=forget)

    def many(
        self,
        models: Sequence[nn.Module],
        name: str,
        *,
        retain: Sequence[ExampleSet],
        forget: Sequence[ExampleSet],
        seeds: Sequence[int],
        changed: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[nn.Module | Diverged | DataError | NotTheModel] | None:
        """Many models at once, each with sets and seed of its own: what a call for each returns, or the error that it
        ends in; None of a method that can only be called for each (its declaration has no ``plan``)."""
        from unlearning.stacked import unlearn_many

        method, given = self._method(name, changed)
        if method.spec.plan is None:
            return None
        results = unlearn_many(method, models, retain=retain, forget=forget, seeds=seeds, **given)
        found: list[nn.Module | Diverged | DataError | NotTheModel] = []
        for result, kept, gone in zip(results, retain, forget, strict=True):
            try:
                found.append(
                    result if isinstance(result, Diverged) else self._as_saved(result, name, retain=kept, forget=gone)
                )
            except (Diverged, DataError, NotTheModel) as error:
                found.append(error)
        return found

    def _method(
        self, name: str, changed: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Method[UnlearnerSpec], dict[str, Any]]:
        """A registered unlearner and what it is given, whatever the model; ``changed`` as of a call."""
        method = unlearner.get(name)
        return method, {
            "config": dataclasses.replace(self.config(name), **changed),
            "progress": self.provider.progress,
            **self.provider.provided(method.spec),
        }

    def _as_saved(self, result: object, name: str, *, retain: ExampleSet, forget: ExampleSet) -> nn.Module:
        """A fresh model with the result's arrays, which must answer as the result does."""
        from recipes.as_saved import refuse_unlike, reloaded

        fresh = reloaded(result, trained_builder(self.provider.subject, retain), what=name)
        for part in (retain.take(np.arange(min(len(retain), _COMPARED))), forget):
            if len(part):
                refuse_unlike(result, fresh, part, what=name)  # type: ignore[arg-type]
        return fresh


@dataclass(frozen=True)
class Unlearn:
    """``(name, *, retain, forget, seed) -> model``: the audited model after a registered unlearner.

    Attributes:
        audited: gives the audited model.
    """

    provider: Provider
    audited: Callable[[], nn.Module]

    @property
    def _from(self) -> UnlearnFrom:
        return UnlearnFrom(self.provider)

    @property
    def methods(self) -> tuple[str, ...]:
        """As of :class:`UnlearnFrom`."""
        return self._from.methods

    @property
    def in_use(self) -> str:
        """As of :class:`UnlearnFrom`."""
        return self._from.in_use

    def __call__(self, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int) -> nn.Module:
        return self._from(self.audited(), name, retain=retain, forget=forget, seed=seed)
