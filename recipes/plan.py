"""What a subject's plan means in code: its data, its architecture, its recipe's configuration, its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts.methods import recipe
from contracts.params import Config
from contracts.subject import Subject
from sources import load
from sources.example_set import ExampleSet


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


def model_builder(subject: Subject, data: ExampleSet) -> Callable[[int], Any]:
    """``seed -> fresh model`` of the subject's architecture for the shape of its data."""
    from recipes.models import build

    num_outputs = data.num_classes or 1
    shape = (data.num_users,) if data.task == "ranking" else data.input_shape
    return lambda seed: build(
        subject.model.name, subject.model.config, input_shape=shape, num_outputs=num_outputs, seed=seed
    )
