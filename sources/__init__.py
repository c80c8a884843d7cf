"""Real data in: files and bundled sets become an :class:`ExampleSet`. Importing this package registers every source."""

from sources import idx, image_folder, interactions, npz, sklearn_sets, synthetic_interactions, table
from sources.example_set import ExampleSet
from sources.loading import detect, load
from sources.planted import plant_interactions, plant_label_noise, planted_interactions

__all__ = [
    "ExampleSet", "detect", "idx", "image_folder", "interactions", "load", "npz",
    "plant_interactions", "plant_label_noise", "planted_interactions", "sklearn_sets", "synthetic_interactions", "table",
]  # fmt: skip
