"""What a subject's plan means in data: its source, read and validated, with the inputs that its model is given."""

from __future__ import annotations

import dataclasses

import numpy as np

from contracts.subject import Subject
from sources.example_set import ExampleSet
from sources.loading import load


def load_examples(subject: Subject) -> ExampleSet:
    """Read, validate and return the data set that a subject names.

    Examples that the plan is ``without`` are left out; the scale of the inputs stays that of the whole source, so that
    theirs is one part in N of two numbers a feature. A node of a graph that is left out takes its edges along; edges
    that the plan is ``without_edges`` of are left out by themselves.

    With ``model.inputs`` raw, a model is given the values as they are stored, cast to float32: images 0 to 255 and
    features in their own units, which is what a model trained elsewhere may have been given.

    Raises:
        As :func:`sources.load`.
    """
    data = load(subject.source.name, subject.source.config, seed=subject.seed)
    if subject.without:
        data = data.without(subject.without)
    if subject.without_edges:
        data = data.without_edges(subject.without_edges)
    if subject.model.inputs == "standardised":
        return data
    one = (1,) * len(data.input_shape)
    return dataclasses.replace(data, center=np.zeros(one, np.float32), scale=np.ones(one, np.float32))
