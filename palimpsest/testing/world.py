"""A world: a few examples, a network and a recipe, and what methods need of them, made when it is first asked for.

``World.run(method, ...)`` returns a method's output in one comparable form:
    score, curator   the polars frame              attack   float64 (T, N)
    analysis   {table: polars frame}               maker    the sources.made.Made
    unlearner, recipe   all parameters and buffers, float64 (d,)       source   the ExampleSet
"""

from __future__ import annotations

import dataclasses
import functools
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from attacks.membership import Evidence
from attacks.membership.tokens import TokenReadings, zlib_bytes
from contracts.errors import NotApplicable
from contracts.methods import NEEDS, analysis, unlearner
from contracts.params import Config
from contracts.progress import silent
from contracts.registry import Method
from contracts.stores import NoStore
from contracts.subject import Ensemble
from contracts.tables import Column
from palimpsest.testing.kinds import kind_of
from recipes.early import early_models, early_snapshots
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.predict import predict_logits, read, read_tokens
from recipes.training import Trainer
from sources.example_set import ExampleSet
from sources.made import Made
from sources.payloads.tokens import Tokens
from tasks.base import gives

Spoil = Callable[[ExampleSet, int, str], ExampleSet]
_EARLY_SEEDS = (3, 4)


class Needs(Mapping[str, Any]):
    """word of ``contracts.methods.NEEDS`` -> what a method is given; each is made on first use.

    Words that this world cannot meet are missing, as with a recipe that cannot stop early.
    """

    def __init__(self, made: Mapping[str, Callable[[], Any]]) -> None:
        self._make = dict(made)
        self._made: dict[str, Any] = {}

    def __getitem__(self, need: str) -> Any:
        if need not in self._made:
            self._made[need] = self._make[need]()
        return self._made[need]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


@dataclass
class World:
    """See the module; made by :func:`make_world`.

    Attributes:
        examples: both splits.
        trainer: network and recipe of the audited model.
        fitting: the recipe's configuration under which models fit their training sets.
        early_at: epoch of the early models.
        configs: (kind, name of a method) -> fields of its configuration that have no default, or a quicker value.
        given: needs that stand for those made here.
        spoil: (data, id, "below" or "above") -> data in which that example has a target that is none.
    """

    examples: ExampleSet
    trainer: Trainer
    fitting: Config
    early_at: int = 3
    num_models: int = 8
    configs: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    spoil: Spoil | None = None
    _others: dict[str, World] = field(default_factory=dict, init=False, repr=False)
    _usual: dict[str, tuple[Method[Any], Any]] = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def train(self) -> ExampleSet:
        """The training examples."""
        return self.examples.part("train")

    @functools.cached_property
    def needs(self) -> Mapping[str, Any]:
        """See :class:`Needs`."""
        return ChainMap(dict(self.given), Needs(_makers(self)))  # type: ignore[arg-type]

    @functools.cached_property
    def evidence(self) -> Evidence:
        """Two audited models on the ensemble's pool: the first is also one of the references, the other is a
        stranger."""
        ensemble: ReferenceEnsemble = self.needs["ensemble"]
        people, stranger = self.examples.subset(ensemble.example_id), self.trainer.one(self.train, 9)
        whole = ensemble.logits is not None
        models = [self.needs["model"], stranger]
        said = np.stack([ensemble.reading[0], *(read(model, people).values for model in models)])
        logits = np.stack([ensemble.outputs[0], *(predict_logits(m, people) for m in models)]) if whole else None
        found = Evidence.of_ensemble(
            ensemble,
            said,
            logits,
            task=self.examples.task,
            constants=self.examples.constants,
            target_index=np.array([0, -1, -1]),
            outputs=whole,
        )
        before = self.trainer.build(0).to(self.trainer.device)
        candidates = self.examples.subset(found.example_id)
        tokens = None
        if self.examples.task.gives("tokens"):
            of = np.stack([read_tokens(model, candidates) for model in (before, *models)])
            tokens = TokenReadings(target=of, zlib_bytes=zlib_bytes(candidates))
        return dataclasses.replace(found, base=read(before, candidates).values, tokens=tokens)

    def on(self, device: str) -> World:
        """The same world with its models trained, and kept, on a device; kept under the device's name."""
        if device not in self._others:
            trainer = dataclasses.replace(self.trainer, device=device)
            given = {need: _on(device, thing) for need, thing in self.given.items()}
            self._others[device] = dataclasses.replace(self, trainer=trainer, given=given)
        return self._others[device]

    def like(self, name: str, odd: Callable[[ExampleSet], ExampleSet]) -> World:
        """The same world of odd examples, with models that were trained on them; kept under ``name``."""
        if name not in self._others:
            self._others[name] = dataclasses.replace(self, examples=odd(self.examples))
        return self._others[name]

    def meets(self, method: Method[Any]) -> bool:
        """Whether the task gives what the method wants, and the world what it needs."""
        spec = method.spec
        own = {"tables", "imported"} if kind_of(method) in ("analysis", "score") else set()
        wants = gives(self.examples, *getattr(spec, "wants", ()))
        return bool(wants and set(getattr(spec, "needs", ())) - own <= set(self.needs))

    def data(self, method: Method[Any]) -> ExampleSet:
        """What a method is given: both splits for an analysis, the training examples for all others."""
        return self.examples if kind_of(method) == "analysis" else self.train

    def config(self, method: Method[Any], **changed: Any) -> Any:
        """A legal configuration: the fields given for this method, defaults for the rest.

        Raises:
            AssertionError: a required field without a value; says how to give one.
        """
        spec = method.spec
        given = {**self.configs.get((kind_of(method), spec.name), {}), **changed}
        required = [
            f.name
            for f in dataclasses.fields(spec.config)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in given
        ]
        if required:
            raise AssertionError(
                f"{spec.name} has required fields {', '.join(required)}: check_method(method, config={{...}}) takes "
                "values"
            )
        return spec.config.from_mapping(given)

    def needs_of(self, method: Method[Any], needs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The keyword arguments of one call; ``needs`` replaces those made here."""
        found = {}
        for need in method.spec.needs:
            if needs is not None and need in needs:
                found[need] = needs[need]
            elif need == "tables" and need not in self.given:
                found[need] = self._tables(method)
            elif need == "imported" and need not in self.given:
                found[need] = self._imported(method)
            elif need in self.needs:
                found[need] = self.needs[need]
            else:
                raise AssertionError(f"{method.spec.name} needs {need!r} ({NEEDS[need]}), which this world cannot give")
        return found

    def run(
        self,
        method: Method[Any],
        *,
        data: ExampleSet | None = None,
        evidence: Evidence | None = None,
        needs: Mapping[str, Any] | None = None,
        seed: int = 0,
        **changed: Any,
    ) -> Any:
        """The method's output; ``changed`` are fields of its configuration."""
        kind, config = kind_of(method), self.config(method, **changed)
        if kind == "attack":
            return method(self.evidence if evidence is None else evidence, config=config, seed=seed)
        if kind == "source":
            return method(config=config, seed=seed)
        data = self.data(method) if data is None else data
        if kind == "recipe":
            trainer = Trainer(recipe=method, build=self.trainer.build, config=config, device=self.trainer.device)
            place = {"device": trainer.device} if trainer.takes("device") else {}
            return flat(method(trainer.build, data, config=config, seed=seed, **place))
        given = self.needs_of(method, needs)
        if kind in ("analysis", "maker"):
            return method(data, config=config, seed=seed, progress=silent, **given)
        if kind in ("score", "curator"):
            return method(data, config=config, seed=seed, **given)
        model = (ChainMap(dict(needs), self.needs) if needs else self.needs)["model"]  # type: ignore[arg-type]
        retain, forget = halves(data)
        return flat(method(model, retain=retain, forget=forget, config=config, seed=seed, **given))

    def usual(self, method: Method[Any]) -> Any:
        """What the method says of the world's own examples, computed once; or the reason why it does not apply."""
        name = f"{kind_of(method)} {method.spec.name}"
        known, said = self._usual.get(name, (None, None))
        if known != method:  # of another package, or with another declaration
            try:
                said = self.run(method)
            except NotApplicable as error:
                said = error
            self._usual[name] = (method, said)
        if isinstance(said, NotApplicable):
            raise said
        return said

    def refusal(self, method: Method[Any]) -> str:
        """Why the method does not apply to these examples, in its own words; "" where it does."""
        try:
            self.usual(method)
        except NotApplicable as error:
            return str(error)
        return ""

    def _tables(self, method: Method[Any]) -> Callable[[str], pl.DataFrame]:
        """What the analyses that the method reads have stored, each with its own small configuration."""

        @functools.cache
        def stored() -> dict[str, pl.DataFrame]:
            return {k: v for name in method.spec.reads for k, v in self.run(analysis.get(name)).items()}

        return lambda name: stored()[name]

    def _imported(self, method: Method[Any]) -> pl.DataFrame:
        """Rows such as another program may have made for this very score: every column within its range."""
        num = len(self.train)
        columns = {column.name: _some(column, num) for column in method.spec.columns}
        return pl.DataFrame({"example_id": self.train.example_id, **columns})


def make_world(
    examples: ExampleSet,
    *,
    trainer: Trainer,
    fitting: Config | None = None,
    early_at: int = 3,
    num_models: int = 8,
    configs: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    given: Mapping[str, Any] | None = None,
    spoil: Spoil | None = None,
) -> World:
    """A world of your own examples, as for a task of your own.

    Args:
        examples: some dozens, both splits, ids neither consecutive nor in order, several owners.
        trainer: ``recipes.training.Trainer``: recipe, network and a configuration that takes a second.
        fitting: a longer one, under which models fit; ``trainer``'s own when not given.
        early_at, num_models: of the early models and the reference ensemble.
        configs, given: see :class:`World`.
        spoil: by default a label outside the classes, a number that is not finite, or a token outside the vocabulary.
    """
    return World(
        examples=examples,
        trainer=trainer,
        fitting=trainer.config if fitting is None else fitting,
        early_at=early_at,
        num_models=num_models,
        configs=configs or {},
        given=given or {},
        spoil=spoil or spoil_for(examples),
    )


def spoil_for(examples: ExampleSet) -> Spoil | None:
    """How one target of examples like these is spoilt; None where this module knows of no way."""

    def label(data: ExampleSet, victim: int, end: str) -> ExampleSet:
        y = data.y.copy()
        y[data.example_id == victim] = -1 if end == "below" else data.num_classes
        return dataclasses.replace(data, y=y)

    def number(data: ExampleSet, victim: int, end: str) -> ExampleSet:
        y = data.y.copy()
        y[data.example_id == victim] = -np.inf if end == "below" else np.nan
        return dataclasses.replace(data, y=y)

    def token(data: ExampleSet, victim: int, end: str) -> ExampleSet:
        texts, marks, lengths = data.x.texts(slice(None))
        ends, changed = np.concatenate([[0], np.cumsum(lengths)]), texts.copy()
        changed[ends[int(data.positions([victim])[0]) + 1] - 1] = -1 if end == "below" else data.x.vocab_size
        return dataclasses.replace(data, x=Tokens(changed, ends, marks, vocab_size=data.x.vocab_size))

    if isinstance(examples.x, Tokens):
        return token
    return label if examples.class_names else number if examples.y.dtype.kind == "f" else None


def halves(data: ExampleSet) -> tuple[ExampleSet, ExampleSet]:
    """Retain and forget sets by id, so that they do not depend on the order of the rows; one example is retained."""
    chosen = data.example_id % 5 == 0
    if len(data) == 1 or chosen.all():
        return data, data.take(np.empty(0, np.int64))
    return data.take(np.flatnonzero(~chosen)), data.take(np.flatnonzero(chosen))


def flat(model: nn.Module) -> np.ndarray:
    """All parameters and buffers, float64 (d,)."""
    return torch.cat([t.detach().double().flatten() for t in model.state_dict().values()]).cpu().numpy()


def _on(device: str, thing: Any) -> Any:
    return dataclasses.replace(thing, device=device) if isinstance(thing, Trainer) else thing


def _same_examples(train: ExampleSet) -> Made:
    """The training examples themselves, each made from itself."""
    ids = np.sort(train.example_id)
    return Made(
        examples=dataclasses.replace(train.subset(ids), owner=np.full(len(ids), "")),
        drawn_from=pl.DataFrame({"made_id": ids, "example_id": ids}),
    )


def _makers(world: World) -> dict[str, Callable[[], Any]]:
    """need -> what makes it; those that task or recipe cannot give are left out."""
    from unlearning.metrics import evaluate

    trainer, examples, train, needs = world.trainer, world.examples, world.train, lambda: world.needs
    build, recipe, config = trainer.build, trainer.recipe, trainer.config

    def fresh(
        data: ExampleSet, seed: int, *, effort: float = 1.0, steps: int | None = None, observe: Any = None
    ) -> nn.Module:
        return trainer.of_length(effort=effort, steps=steps).one(data, seed, observe=observe)

    def train_many(
        members: Sequence[np.ndarray], seeds: Sequence[int], *, data: ExampleSet | None = None
    ) -> Sequence[nn.Module]:
        data = examples if data is None else data
        return trainer.many(data, members=[data.positions(ids) for ids in members], seeds=list(seeds))

    values = pl.DataFrame({"example_id": train.example_id, "value": np.sin(train.example_id.astype(np.float64))})
    ids = np.sort(train.example_id)
    groups = pl.DataFrame({"example_id": ids, "value": ids[np.arange(len(ids)) // 2 * 2]})  # pairs
    chosen = train.example_id % 3 == 1
    ensemble = functools.cache(
        lambda: train_ensemble(
            build,
            examples,
            recipe=recipe,
            config=world.fitting,
            ensemble=Ensemble(num_models=world.num_models, population_fraction=0.5),
            seed=1,
            outputs=examples.task.gives("outputs"),
            device=trainer.device,
        )
    )
    made: dict[str, Callable[[], Any]] = {
        "model": lambda: trainer.one(train, 0),
        "encoder": lambda: needs()["model"],
        "ensemble": ensemble,
        "build": lambda: build,
        "ensemble_if_any": ensemble,
        "clock": lambda: lambda: 0.0,  # equal runs take equal times here
        "recipe": lambda: trainer,
        "train": lambda: fresh,
        "train_many": lambda: train_many,
        "unlearn_from": lambda: _Unlearn(world),
        "unlearn": lambda: _UnlearnAudited(world),
        "evaluate": lambda: evaluate,
        "checkpoints": NoStore,
        "scores": lambda: lambda name: groups if name.endswith(".group_id") else values,
        "splits": lambda: (
            lambda name: pl.DataFrame({"example_id": train.example_id, "role": np.where(chosen, "forget", "retain")})
        ),
        "secret": lambda: bytes(range(32)),
        "device": lambda: trainer.device,
        "made": lambda: lambda name: _same_examples(train),
        "select_where": lambda: lambda where: train.example_id[chosen],
    }
    if examples.task.gives("outputs"):
        made |= {"outputs": lambda: functools.partial(predict_logits, needs()["model"]), "ensemble_outputs": ensemble}
    if trainer.spec.early:
        made["early_models"] = lambda: early_models(
            build, train, recipe=recipe, config=config, device=trainer.device, seeds=_EARLY_SEEDS, epoch=world.early_at
        )
        made["early_at"] = lambda: (
            lambda epochs: early_snapshots(
                build, train, recipe=recipe, config=config, device=trainer.device, seeds=_EARLY_SEEDS, epochs=epochs
            )
        )
    return made


class _Unlearn:
    """``(model, name, *, retain, forget, seed) -> model`` by any registered unlearner in its default configuration."""

    in_use = "retrain"

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(m.spec.name for m in unlearner if self._world.meets(m))

    def config(self, name: str) -> Config:
        config: Config = self._world.config(unlearner.get(name))
        return config

    def refusal(self, name: str) -> str:
        if self._world.meets(unlearner.get(name)):
            return ""
        return f"unlearner {name} does not apply to {self._world.examples.name}"

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
        method, given = self._given(name, changed)
        result: nn.Module = method(model, retain=retain, forget=forget, seed=seed, **given)
        return result

    def many(
        self, models: Sequence[nn.Module], name: str, *, changed: Mapping[str, Any] = MappingProxyType({}), **sets: Any
    ) -> list[Any] | None:
        """Many models at once, each with sets and seed of its own: a model or a ``Diverged`` for each; None of a method
        without a plan."""
        from unlearning.stacked import unlearn_many

        method, given = self._given(name, changed)
        return None if method.spec.plan is None else [*unlearn_many(method, models, **sets, **given)]

    def _given(self, name: str, changed: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        method = unlearner.get(name)
        if why := self.refusal(name):
            raise NotApplicable(why)
        config = dataclasses.replace(self.config(name), **changed)
        return method, {"config": config, **self._world.needs_of(method)}


class _UnlearnAudited(_Unlearn):
    """``(name, *, retain, forget, seed) -> model``: the audited model after a registered unlearner."""

    def __call__(self, name: str, **sets: Any) -> nn.Module:  # type: ignore[override]
        return super().__call__(self._world.needs["model"], name, **sets)


def _some(column: Column, num: int) -> pl.Series:
    """Values within the column's range."""
    place = np.arange(num)
    if column.choices:
        return pl.Series([column.choices[k % len(column.choices)] for k in place])
    if column.dtype == "bool":
        return pl.Series(place % 7 == 0)
    if column.dtype == "str":
        return pl.Series([""] * num)
    if column.dtype == "int64":
        return pl.Series([None] * num if column.nullable else (column.low or 0) + place % 2, dtype=pl.Int64)
    low = 0.0 if column.low is None else float(column.low)
    return pl.Series(np.linspace(low, low + 1.0 if column.high is None else float(column.high), num))
