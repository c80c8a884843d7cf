"""Every model of a subject, trained by the plan's one recipe: audited, early, reference and shadow models, retrainings.

    theta_m = recipe(build, data[members[m]], seed[m])        m = 1 .. M

A membership attack is calibrated on reference models, and unlearning on retrainings: both say something of the audited
model only when they are made as it was made (Carlini et al. 2022, section IV; Shokri et al. 2017). So nothing above
this module calls a trainer of its own: it asks a :class:`Trainer`, which calls the recipe, or the recipe's own faster
way to do the same for many models at once (``RecipeSpec.stacked``).

What a recipe can do is what it declares; what it is given is what it has parameters for. A recipe of another package
needs no more than ``(build, data, *, config, seed)``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from contracts import methods
from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.methods import RecipeSpec
from contracts.params import Config
from contracts.progress import Progress, silent
from contracts.registry import Method
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import Observe
from recipes.inputs import Inputs
from recipes.models import Build
from recipes.rng import local_rng
from recipes.stacked import check_members
from sources.example_set import ExampleSet
from tasks.base import require

_SHARE = 1000  # the progress of one model among many is told in thousandths of it


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A recipe with its configuration, on one architecture and one device.

    Attributes:
        recipe: a registered recipe, or its name.
        build: seed -> fresh model, the architecture under audit.
        config: the recipe's own configuration.
        device: "cpu" or "cuda"; where the models are when they are returned, too.

    Raises:
        UnknownName: no such recipe.
        ConfigError: a configuration of another recipe, or a declaration that the recipe's function does not keep.
    """

    recipe: str | Method[RecipeSpec]
    build: Build
    config: Any
    device: str = "cpu"

    def __post_init__(self) -> None:
        spec = self.spec
        if not isinstance(self.config, spec.config):
            raise ConfigError(f"recipe {spec.name} takes a {spec.config.__name__}, not a {type(self.config).__name__}")
        declared = {"early": "stop_after", "observable": "observe"}
        broken = [flag for flag, name in declared.items() if getattr(spec, flag) and not self.takes(name)]
        if spec.counts_steps and "steps" not in _fields(spec.config):
            broken.append("counts_steps")
        if broken:
            raise ConfigError(
                f"recipe {spec.name} declares {', '.join(broken)} without the parameter that goes with it "
                "(early: stop_after; observable: observe; counts_steps: the field steps of its configuration)"
            )

    @property
    def method(self) -> Method[RecipeSpec]:
        return methods.recipe.get(self.recipe) if isinstance(self.recipe, str) else self.recipe

    @property
    def spec(self) -> RecipeSpec:
        return self.method.spec

    def takes(self, name: str) -> bool:
        """Whether the recipe's function can be given a keyword argument of this name."""
        parameters = inspect.signature(self.method.function).parameters
        by_name = {p.name for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        return name in by_name or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def of_length(self, *, effort: float = 1.0, steps: int | None = None) -> Trainer:
        """The same recipe with ``effort`` times its epochs (at least one), or for exactly ``steps`` optimiser steps.

        Raises:
            ConfigError: both are given.
            NotApplicable: the recipe has no epochs, or cannot count steps.
        """
        name, change = self.spec.name, {}
        if steps is not None:
            if effort != 1.0:
                raise ConfigError(f"a training of {steps} steps has no effort = {effort:g}: give one of them")
            if not self.spec.counts_steps:
                raise NotApplicable(f"recipe {name} cannot be told to train for {steps} steps.")
            change = {"steps": steps}
        elif effort != 1.0:
            if "epochs" not in _fields(type(self.config)):
                raise NotApplicable(f"recipe {name} has no epochs to multiply by {effort:g}.")
            change = {"epochs": max(1, round(self.config.epochs * effort))}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **change)) if change else self

    def one(
        self,
        data: ExampleSet,
        seed: int,
        *,
        stop_after: int | None = None,
        observe: Observe | None = None,
        checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
        progress: Progress = silent,
    ) -> nn.Module:
        """One model trained on every row of ``data``, in eval mode on the device.

        PyTorch's global generator starts from the seed and is put back, so that a recipe that draws from it (a
        shuffling ``DataLoader``) gives the same model for the same seed.

        Args:
            stop_after: epochs after which the full run is left; None trains to the end.
            observe: called with the rows and outputs of every mini-batch before its step.
            checkpoints: where the recipe keeps a run that can be resumed, if it keeps any.
            progress: as the recipe tells it.

        Raises:
            NotApplicable: the recipe is not defined for the data's task, cannot stop early, or cannot be observed.
            ConfigError: the recipe returns something else than a model.
            Others: as the recipe raises.
        """
        spec = self.spec
        self._refuse_task(data)
        if stop_after is not None:
            self._refuse_early()
        if observe is not None and not spec.observable:
            raise NotApplicable(f"recipe {spec.name} does not show its mini-batches (it is not declared observable).")
        given: dict[str, Any] = {"device": self.device, "checkpoints": checkpoints, "progress": progress}
        given = {name: value for name, value in given.items() if self.takes(name)}
        given |= {} if stop_after is None else {"stop_after": stop_after}
        given |= {} if observe is None else {"observe": observe}
        with local_rng(derive_seed("recipe", seed), device=self.device):
            model = self.method(self.build, data, config=self.config, seed=seed, **given)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"recipe {spec.name} returned a {type(model).__name__}, not a torch.nn.Module")
        return model.to(self.device).eval()

    def many(
        self,
        data: ExampleSet,
        *,
        members: Sequence[np.ndarray],
        seeds: Sequence[int],
        inputs: Inputs | None = None,
        progress: Progress = silent,
    ) -> list[nn.Module]:
        """One model for each set of ``members``, trained to the end: see :meth:`snapshots`."""
        return self.snapshots(data, members=members, seeds=seeds, epochs=(None,), inputs=inputs, progress=progress)[0]

    def snapshots(
        self,
        data: ExampleSet,
        *,
        members: Sequence[np.ndarray],
        seeds: Sequence[int],
        epochs: Sequence[int | None],
        inputs: Inputs | None = None,
        progress: Progress = silent,
    ) -> list[list[nn.Module]]:
        """For each of ``epochs``, M models left after it, in eval mode, in the order of ``seeds``.

        The recipe's own stacked path when it has one and the network can take it; else the recipe itself, called for
        every model and epoch.

        Args:
            data: the examples that members point into.
            members: M arrays of distinct positions in ``data``, in training order, sizes >= 1 and not necessarily
                equal.
            seeds: M seeds.
            epochs: at least one, in any order; None is the end of the run.
            inputs: ``data``'s inputs when they are in memory already.
            progress: called with how far all of them are, "training".

        Raises:
            NotApplicable: the recipe is not defined for the data's task, or cannot stop early and shall.
            ConfigError, DataError: as ``recipes.stacked.check_members``.
            Others: as the recipe raises.
        """
        rows = check_members(data, members, seeds)
        self._refuse_task(data)
        if any(epoch is not None for epoch in epochs):
            self._refuse_early()
        stacked = self.spec.stacked
        if stacked is not None:
            found = _unless_refused(
                stacked,
                self.build,
                data,
                config=self.config,
                device=self.device,
                members=rows,
                seeds=seeds,
                epochs=epochs,
                inputs=inputs,
                progress=progress,
            )
            if found is not None:
                return found
        alone = list(self._alone(data, rows, seeds, epochs, progress))
        return [alone[k * len(rows) : (k + 1) * len(rows)] for k in range(len(epochs))]

    def each(
        self,
        data: ExampleSet,
        *,
        members: Sequence[np.ndarray],
        seeds: Sequence[int],
        progress: Progress = silent,
    ) -> Iterator[nn.Module]:
        """The models of :meth:`many` in their order. Those of a recipe without a stacked path are trained as they are
        asked for: of large ones the last and the one in training are in memory, not all."""
        if self.spec.stacked is not None:
            yield from self.many(data, members=members, seeds=seeds, progress=progress)
            return
        rows = check_members(data, members, seeds)
        self._refuse_task(data)
        yield from self._alone(data, rows, seeds, (None,), progress)

    def _alone(
        self,
        data: ExampleSet,
        rows: Sequence[np.ndarray],
        seeds: Sequence[int],
        epochs: Sequence[int | None],
        progress: Progress,
    ) -> Iterator[nn.Module]:
        """The recipe itself, called for every epoch and model, models of one epoch after one another."""
        sets = [data if np.array_equal(own, np.arange(len(data))) else data.take(own) for own in rows]
        total = len(epochs) * len(sets)
        runs = [(part, seed, epoch) for epoch in epochs for part, seed in zip(sets, seeds, strict=True)]
        for number, (part, seed, epoch) in enumerate(runs):

            def tell(done: int, of: int, _: str, number: int = number) -> None:
                progress(_SHARE * number + _SHARE * min(done, of) // max(of, 1), _SHARE * total, "training")

            yield self.one(part, seed, stop_after=epoch, progress=tell)
            progress(_SHARE * (number + 1), _SHARE * total, "training")

    def _refuse_task(self, data: ExampleSet) -> None:
        require(data, f"recipe {self.spec.name}", *self.spec.wants)

    def _refuse_early(self) -> None:
        name = self.spec.name
        if not self.spec.early:
            raise NotApplicable(
                f"recipe {name} cannot stop early (it is not declared early), so it has no early models."
            )


def _unless_refused(stacked: Callable[..., Any], *args: Any, **kwargs: Any) -> list[list[nn.Module]] | None:
    """The models of the stacked path; None for a network that it does not take. The recipe itself says why, if it
    must."""
    try:
        return stacked(*args, **kwargs)  # type: ignore[no-any-return]
    except NotApplicable:
        return None


def _fields(config: type[Config]) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}
