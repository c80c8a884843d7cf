"""Real data in: files and bundled sets become an :class:`ExampleSet`. Importing this package registers every source."""

from sources import (
    idx,
    image_folder,
    image_table,
    interactions,
    long_tail,
    npz,
    outputs,
    sklearn_sets,
    synthetic_interactions,
    table,
)
from sources.example_set import ExampleSet
from sources.loading import detect, load
from sources.planted import plant_interactions, plant_label_noise, planted_interactions
from sources.planted_poison import (
    add_poison_trigger,
    interclass_confusion,
    plant_canaries,
    random_label_swap,
    sample_deletion_set,
    triggered,
)

__all__ = [
    "ExampleSet",
    "add_poison_trigger",
    "detect",
    "idx",
    "image_folder",
    "image_table",
    "interactions",
    "interclass_confusion",
    "load",
    "long_tail",
    "npz",
    "outputs",
    "plant_canaries",
    "plant_interactions",
    "plant_label_noise",
    "planted_interactions",
    "random_label_swap",
    "sample_deletion_set",
    "sklearn_sets",
    "synthetic_interactions",
    "table",
    "triggered",
]
