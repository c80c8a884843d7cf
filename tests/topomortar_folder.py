"""A folder in the shape of the TopoMortar data set: as many walls, drawn small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

GROUPS = ("angles", "colors", "graffiti", "objects", "shadows", "occlusion")


def write_topomortar(root: Path, *, side: int = 8, walls: tuple[int, int, int] = (50, 20, 350)) -> Path:
    """As many walls in the folders, lists and groups of the published data set, whose size is the default."""
    rng = np.random.default_rng(0)
    first, second, last = np.cumsum(walls).tolist()
    numbers = {
        "train": range(1, first + 1),
        "val": range(first + 1, second + 1),
        "test": range(second + 1, last + 1),
    }
    plain, each = second + walls[2] // 7, walls[2] // 7
    paths = {split: [f"dataset/{split}/images/{n:03d}.png" for n in own] for split, own in numbers.items()}
    for split, own in numbers.items():
        labels = ("accurate",) if split == "test" else ("accurate", "noisy", "pseudo")
        for folder in ("images", *labels):
            (root / "dataset" / split / folder).mkdir(parents=True)
        for number in own:
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "dataset" / split / "images" / f"{number:03d}.png")
            for place, label in enumerate(labels):
                mask = np.zeros((side, side), np.uint8)
                mask[place] = 255
                mask[-1, number % side] = 255
                Image.fromarray(mask).save(root / "dataset" / split / label / f"{number:03d}.png")
    rows = ["ID,group"]
    for number in range(1, last + 1):
        rows.append(f"{number:03d},{'indistr' if number <= plain else GROUPS[(number - plain - 1) // each]}")
    (root / "dataset" / "dataset_types.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name, train in (("splits", paths["train"][::-1]), ("splits_small", paths["train"][::5])):
        listed = {1: {"test": paths["test"], "train": train, "val": paths["val"]}}
        (root / "dataset" / f"{name}.yaml").write_text(yaml.safe_dump(listed), encoding="utf-8")
    return root
