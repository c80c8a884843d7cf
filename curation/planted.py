"""Data sets with planted harm, so that an audit of them can be judged: which examples are harmed is known.

    symmetric, asymmetric    labels flipped to any other class, or to the next one
    swap                     labels permuted among some examples
    confusion                labels of two classes swapped
    trigger                  a bright patch, and a label of the manipulator's choice

The made examples bear the ids of the originals, so that a score of the planted set is joined with the truth on them.
Definitions, draws and sources: ``sources.planted_poison``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from contracts.errors import ConfigError
from contracts.methods import MakerSpec, made_table, maker
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column
from sources.example_set import ExampleSet
from sources.made import Made, made_examples
from sources.planted_poison import add_poison_trigger, interclass_confusion, label_flips, random_label_swap
from tasks.base import require

TRUTH = made_table(
    "planted",
    doc="What was planted: the truth that audits of the set are judged by.",
    columns=(
        Column(name="manipulated", dtype="bool", doc="its image or its label was changed, or its label took part"),
        Column(name="true_label", dtype="int64", low=0, doc="class index before"),
        Column(name="label", dtype="int64", low=0, doc="class index now"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlantedConfig(Config):
    manipulation: str = param(
        "symmetric", choices=("symmetric", "asymmetric", "swap", "confusion", "trigger"), doc="what is planted"
    )
    share: float = param(0.1, gt=0, le=1, doc="of the training examples that take part")
    classes: tuple[int, ...] = param((0, 1), ge=0, le=1_000_000, doc="confusion: the two classes")
    target: int = param(0, ge=0, le=1_000_000, doc="trigger: class that images with the patch get")
    patch: int = param(3, ge=1, le=1024, unit="pixels", doc="trigger: side of the patch, bottom right")

    def check(self) -> None:
        if len(self.classes) != 2 or self.classes[0] == self.classes[1]:
            raise ConfigError(f"PlantedConfig.classes = {self.classes} must be two different classes")


@maker(
    MakerSpec(
        name="planted",
        doc="Plants wrong labels or a trigger in the training examples, and keeps which are harmed.",
        source="Goel et al., TMLR 2024 (arXiv 2402.14015); Patrini et al., CVPR 2017 (flips)",
        config=PlantedConfig,
        wants=("classes", "features"),
        tables=(TRUTH,),
        after_erasure="drop",
    )
)
def planted(data: ExampleSet, *, config: PlantedConfig, seed: int, progress: Progress) -> Made:
    """The training examples with the harm in them.

    Raises:
        NotApplicable: no class labels; a trigger in what is no image.
        ConfigError: a share, class or patch that the data do not allow.
    """
    require(data, "planted", "classes", "features")
    data.check_targets()
    data = data.by_id()
    count = round(config.share * len(data))
    match config.manipulation:
        case "swap":
            harmed, ids = random_label_swap(data, count=count, seed=seed)
        case "confusion":
            harmed, ids = interclass_confusion(data, classes=(config.classes[0], config.classes[1]), count=count)
        case "trigger":
            harmed, ids = add_poison_trigger(data, count=count, target=config.target, patch=config.patch, seed=seed)
        case flips:
            harmed, ids = label_flips(data, count=count, symmetric=flips == "symmetric", seed=seed)
    progress(1, 1, "examples")
    return Made(
        examples=made_examples(
            data,
            name=f"{data.name}, with {config.manipulation} planted",
            x=np.ascontiguousarray(harmed.x[:]),
            y=harmed.y,
            example_id=data.example_id,
            provenance={"made_by": "planted", "of": data.name, "manipulated": len(ids)},
        ),
        drawn_from=pl.DataFrame({"made_id": data.example_id, "example_id": data.example_id}),
        tables={
            TRUTH.name: pl.DataFrame(
                {
                    "made_id": data.example_id,
                    "manipulated": np.isin(data.example_id, ids),
                    "true_label": data.y,
                    "label": harmed.y,
                }
            )
        },
    ).validate(data)
