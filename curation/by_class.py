"""Forget one class, by its name.

    forget = {i : class_names[y_i] = class_name}

The retain set then holds no example of the class; accuracies on it are over the other classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from contracts.errors import DataError
from contracts.methods import CuratorSpec, curator
from contracts.params import param
from curation.members import ForgetConfig, forget_retain
from sources.example_set import ExampleSet
from tasks.base import require


@dataclass(frozen=True, kw_only=True, slots=True)
class ByClassConfig(ForgetConfig):
    class_name: str = param(doc="name of the class, as the source gives it")


@curator(
    CuratorSpec(
        name="by_class",
        doc="Forgets all training examples of one class.",
        config=ByClassConfig,
        wants=("classes",),
        after_erasure="drop",
    )
)
def by_class(data: ExampleSet, *, config: ByClassConfig, seed: int) -> pl.DataFrame:
    """(example_id, role, reason) over the training split; ``seed`` is not used.

    Raises:
        NotApplicable: regression.
        DataError: no class of that name (the known ones are listed).
    """
    require(data, "by_class", "classes")
    if config.class_name not in data.class_names:
        raise DataError(f"{data.name} has no class {config.class_name!r}; classes are: {', '.join(data.class_names)}")
    index = data.class_names.index(config.class_name)
    return forget_retain(
        data,
        data.example_id[(data.y == index) & (data.split == "train")],
        what=f"class {config.class_name!r}",
        reason=f"of class {config.class_name}",
        allow_empty=config.allow_empty,
    )
