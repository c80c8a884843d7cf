"""What a subject's plan means in code: its data, its architecture, its recipe, its device, and the versions of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from contracts.errors import ConfigError
from contracts.methods import recipe, source
from contracts.params import Config
from contracts.subject import Subject
from sources import load
from sources.example_set import ExampleSet

if TYPE_CHECKING:
    from recipes.training import Trainer


def load_examples(subject: Subject) -> ExampleSet:
    """Read, validate and return the data set that a subject names."""
    return load(subject.source.name, subject.source.config, seed=subject.seed)


def device_of(subject: Subject) -> str:
    """``cuda`` or ``cpu``: what ``device: auto`` means on this machine."""
    if subject.device != "auto":
        return subject.device
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
        "model": model_version(subject.model.name),
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
    """``seed -> fresh model`` of the subject's architecture for the shape of its data."""
    from recipes.models import build

    num_outputs = data.num_classes or 1
    shape = (data.num_users,) if data.task == "ranking" else data.input_shape
    return lambda seed: build(
        subject.model.name, subject.model.config, input_shape=shape, num_outputs=num_outputs, seed=seed
    )
