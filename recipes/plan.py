"""What a subject's plan means in code: its data, its architecture, its recipe, its device, and the versions of
these."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import ConfigError
from contracts.methods import recipe, source
from contracts.params import Config
from contracts.subject import Subject
from sources.example_set import ExampleSet
from sources.plan import load_examples as load_examples

if TYPE_CHECKING:
    from torch import nn

    from recipes.training import Trainer


def device_of(subject: Subject) -> str:
    """``cuda`` or ``cpu``: what ``device: auto`` means on this machine."""
    return default_device() if subject.device == "auto" else subject.device


def default_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def recipe_config(subject: Subject) -> Config:
    """The checked configuration of the subject's recipe."""
    return recipe.get(subject.recipe.name).spec.config.from_mapping(subject.recipe.config)


def versions(subject: Subject) -> dict[str, Any]:
    """The versions of the code that makes a subject's data and models: part of the key of whatever is made with them.

    Raises:
        UnknownName: no such source, recipe or model.
        ConfigError: a user's model whose source cannot be found.
    """
    from recipes.models import model_version

    return {
        "source": source.get(subject.source.name).spec.version,
        "recipe": recipe.get(subject.recipe.name).spec.version,
        "model": model_version(subject.model.name, folder=subject.model.folder),
    }


def trainer(subject: Subject, data: ExampleSet) -> Trainer:
    """What trains every model of the subject: its recipe, on its architecture for the shape of ``data``, on its device.

    Raises:
        ConfigError: the plan asks for CUDA and the recipe takes no device.
    """
    from recipes.training import Trainer

    found = Trainer(
        recipe=subject.recipe.name,
        build=model_builder(subject, data),
        config=recipe_config(subject),
        device=device_of(subject),
    )
    if subject.device == "cuda" and not found.takes("device"):
        raise ConfigError(
            f"recipe {subject.recipe.name} takes no device, so it trains on the CPU: set device: cpu or auto"
        )
    return found


def model_builder(subject: Subject, data: ExampleSet) -> Callable[[int], Any]:
    """``seed -> fresh model`` of the subject's architecture for the shape of its data.

    Raises:
        ConfigError: a user's module that has changed since this process loaded it.
    """
    from recipes.models import build, refuse_changed

    chosen = subject.model
    num_outputs = data.task.num_outputs(data)
    shape = (data.num_users,) if data.num_users else data.input_shape
    if ":" in chosen.name:
        refuse_changed(chosen.name, folder=chosen.folder)
    return lambda seed: build(
        chosen.name, chosen.config, input_shape=shape, num_outputs=num_outputs, seed=seed, folder=chosen.folder
    )


def trained_builder(subject: Subject, data: ExampleSet) -> Callable[[int], Any]:
    """``seed -> fresh model`` of the structure that the subject's recipe gives its models: what stored ones are loaded
    into, given ones too. That of :func:`model_builder`, but for recipes that say otherwise (``RecipeSpec.structure``).
    """
    build = model_builder(subject, data)
    if not subject.recipe.name:
        return build
    structure = recipe.get(subject.recipe.name).spec.structure
    return build if structure is None else structure(build, recipe_config(subject))  # type: ignore[no-any-return]


def tried_model(subject: Subject, data: ExampleSet) -> nn.Module:
    """A fresh model of the plan that has shown, on a few training examples, that it can be audited: trained by a
    gradient and read in eval mode, with finite answers of the right shape, on the plan's device.

    Raises:
        ConfigError: in one sentence, what it raises or answers.
        Others: as :func:`recipes.models.build` raises.
    """
    import torch

    from recipes.inputs import model_dtype
    from recipes.models import check_answers, of_user
    from recipes.rng import local_rng

    name, device = subject.model.name, device_of(subject)
    build = model_builder(subject, data)
    model = build(0)
    if data.num_users:
        return model
    rows = np.flatnonzero(data.split == "train")[:_TRIED]
    seen = data.inputs(rows)
    with of_user(name, f"to move to {device}"):
        model = model.to(device)
    if isinstance(seen, dict):
        _try_task(name, model, data, rows, device=device)
        return build(0)
    with of_user(name, f"to move to {device}"):
        x = torch.from_numpy(seen).to(device, model_dtype(model))
    with local_rng(0, device=device):
        for training in (False, True):  # training changes a model: a fresh one is given back
            answers = check_answers(name, model, x, shapes=(data.task.output_shape(data),), training=training)
            broken = ~torch.isfinite(answers).flatten(1).all(dim=1).cpu().numpy()
            if broken.any():
                ids = ", ".join(map(str, data.example_id[rows[broken]][:5].tolist()))
                raise ConfigError(
                    f"model {name!r} answers NaN or infinity to {int(broken.sum())} of {len(rows)} training examples "
                    f"(ids {ids})"
                )
            if training:
                with of_user(name, "to be trained"):
                    answers.square().mean().backward()
    return build(0)


def _try_task(name: str, model: nn.Module, data: ExampleSet, rows: np.ndarray, *, device: str) -> None:
    """As :func:`tried_model`, of a model whose inputs are named tensors: its task reads it and takes its losses."""
    import torch

    from recipes.inputs import Inputs, model_dtype
    from recipes.models import of_user
    from recipes.predict import eval_mode
    from recipes.rng import local_rng

    batch = Inputs(data, dtype=model_dtype(model), device=device).batch(torch.from_numpy(rows).to(device))
    with local_rng(0, device=device):
        with of_user(name, f"to answer {len(rows)} training examples"), eval_mode(model):
            reading = data.task.read(model, batch).values
        broken = ~np.isfinite(reading).all(axis=1)
        if broken.any():
            ids = ", ".join(map(str, data.example_id[rows[broken]][:5].tolist()))
            raise ConfigError(
                f"model {name!r} is read as NaN or infinity on {int(broken.sum())} of {len(rows)} training examples "
                f"(ids {ids})"
            )
        with of_user(name, "to be trained"):
            data.task.losses(model.train(), batch).mean().backward()


_TRIED = 64
