"""Real data in: files and bundled sets become an :class:`ExampleSet`. Importing this package registers every source."""

from sources import idx, image_folder, npz, sklearn_sets, table
from sources.example_set import ExampleSet
from sources.loading import detect, load
from sources.planted import plant_label_noise

__all__ = ["ExampleSet", "detect", "idx", "image_folder", "load", "npz", "plant_label_noise", "sklearn_sets", "table"]
