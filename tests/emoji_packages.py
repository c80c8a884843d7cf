"""Two small packages in the shape of npm's emoji-datasource: drawn shapes on transparent ground."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("Animals", "Food", "Flags")


def write_packages(root: Path, *, each: int = 6, side: int = 16) -> Path:
    """``each`` emoji of three categories in two styles; the last flag is missing in the Twitter style."""
    rng, entries = np.random.default_rng(0), []
    for number in range(each * len(CATEGORIES)):
        code = f"1F{600 + number}"
        last = number == each * len(CATEGORIES) - 1
        entries.append(
            {
                "unified": code,
                "image": f"{code.lower()}.png",
                "category": CATEGORIES[number // each],
                "has_img_google": True,
                "has_img_twitter": not last,
            }
        )
    for style in ("google", "twitter"):
        package = root / f"emoji-datasource-{style}"
        pictures = package / "img" / style / "64"
        pictures.mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(entries[::-1]), encoding="utf-8")
        for entry in entries:
            if entry[f"has_img_{style}"]:
                drawn = rng.integers(0, 256, (side, side, 4), dtype=np.uint8)
                drawn[: side // 2, :, 3], drawn[side // 2 :, :, 3] = 0, 255
                Image.fromarray(drawn, "RGBA").save(pictures / entry["image"])
    return root
