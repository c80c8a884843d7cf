"""Emoji in several styles: the same things drawn by different hands, which is a domain shift with the content held
fixed.

    root/emoji-datasource-google/   emoji.json, img/google/64/*.png       npm install emoji-datasource-google@16
    emoji-datasource-twitter@16
    root/emoji-datasource-twitter/  emoji.json, img/twitter/64/*.png      and root is the folder node_modules

One example is one emoji in one style: the picture on white, the class its category, column ``domain`` the style and
``group`` its code point. An emoji is in the same split in every style, drawn within its category: a test picture is of
something that no training picture shows. Variants by skin tone are not read. What of an emoji is there in one style
only is left out.

Licences: art of the Google style Apache-2.0 (Noto), of the Twitter style CC-BY-4.0 (Twitter, Inc and other
contributors: attribution);
the packages MIT (Cal Henderson).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from contracts.errors import ConfigError, DataError
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.example_set import ExampleSet
from sources.files import check_size, inside, manifest, root_folder
from sources.pictures import PictureConfig, read_pictures
from sources.splits import stratified_split

_PACKAGE, _SIDE = "emoji-datasource-{style}", 64
LICENCE = "Google style: Apache-2.0; Twitter style: CC-BY-4.0, Twitter, Inc and other contributors; packages: MIT"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmojiConfig(PictureConfig):
    styles: tuple[str, ...] = param(
        ("google", "twitter"), choices=("google", "twitter"), doc="packages read, in the order of the examples"
    )
    categories: tuple[str, ...] = param((), doc="classes; () takes every category but those of fewer emoji than fewest")
    fewest: int = param(50, ge=2, le=10_000, unit="emoji", doc="of a category that is taken")

    def check(self) -> None:
        if not self.styles or len(set(self.styles)) < len(self.styles):
            raise ConfigError(f"EmojiConfig.styles = {self.styles} must name at least one style, none twice")


@source(
    SourceSpec(
        name="emoji",
        doc="Emoji of npm's emoji-datasource packages: one picture a style, the category for a class, the style for a "
        "domain.",
        source="https://github.com/iamcal/emoji-data, version 16.0.0",
        config=EmojiConfig,
    )
)
def emoji(*, config: EmojiConfig, seed: int) -> ExampleSet:
    """Every emoji of the categories in every style, uint8 (N, 3, H, W).

    Raises:
        DataError: a package or a picture is missing, or the packages list other emoji than emoji.json may.
        UnsafeFile: a file outside the root, or one that is too large.
    """
    root = root_folder(config.root)
    lists = [list_of(root, style) for style in config.styles]
    entries = listed_emoji(lists[0], config)
    there = [e for e in entries if all(e[f"has_img_{style}"] for style in config.styles)]
    names = categories_of(there, config)
    there = sorted((e for e in there if e["category"] in names), key=lambda e: e["unified"])
    label = np.array([names.index(e["category"]) for e in there], np.int64)
    split = stratified_split(label, np.arange(len(there)), test_fraction=config.test_fraction, seed=seed)
    paths = [picture_of(root, style, e) for style in config.styles for e in there]
    origin = np.array([path.relative_to(root).as_posix() for path in paths], dtype=str)
    x = read_pictures(
        origin.tolist(),
        peek=lambda row: paths[row].open("rb"),
        content=lambda row: _on_white(paths[row].open("rb")),
        config=config,
        what=f"the emoji in {root}",
    )
    times = len(config.styles)
    return assemble(
        x,
        np.tile(label, times),
        name=config.name or "emoji",
        task="classification",
        class_names=names,
        seed=seed,
        test_fraction=config.test_fraction,
        split=np.tile(split, times),
        origin=origin,
        standardise=config.standardise,
        columns={
            "domain": np.repeat(np.array(config.styles, dtype=str), len(there)),
            "group": np.tile(np.array([e["unified"] for e in there], dtype=str), times),
        },
        provenance={
            "source": "emoji",
            "files": manifest(root, lists),
            "licence": config.licence or LICENCE,
            "split": "drawn by emoji within each category: the same in every style",
            "notes": [
                f"{len(entries) - len(there)} of {len(entries)} emoji are left out: no such category, or not in every "
                "style"
            ],
        },
    )


def picture_of(root: Path, style: str, entry: dict[str, Any]) -> Path:
    """The file of an emoji in a style."""
    return inside(root, f"{_PACKAGE.format(style=style)}/img/{style}/{_SIDE}/{entry['image']}")


def list_of(root: Path, style: str) -> Path:
    """The file that lists the emoji of a style."""
    return inside(root, f"{_PACKAGE.format(style=style)}/emoji.json")


def listed_emoji(path: Path, config: EmojiConfig) -> list[dict[str, Any]]:
    """The entries of emoji.json.

    Raises:
        DataError: it is no list of emoji.
        UnsafeFile: it is too large.
    """
    check_size(path.stat().st_size, config.max_file_bytes, path.name)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        wanted = ("unified", "image", "category", *(f"has_img_{style}" for style in config.styles))
        if not entries or not all(key in entry for entry in entries for key in wanted):
            raise KeyError(wanted)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path.name} is no list of emoji of the emoji-datasource packages ({error})") from None
    return list(entries)


def categories_of(entries: list[dict[str, Any]], config: EmojiConfig) -> list[str]:
    """Names of the categories that are taken.

    Raises:
        ConfigError: fewer than two, or one that there is not.
    """
    found = [e["category"] for e in entries]
    names = list(config.categories) or sorted({c for c in found if found.count(c) >= config.fewest})
    if len(names) < 2 or not set(names) <= set(found):
        known = ", ".join(sorted(set(found)))
        raise ConfigError(f"EmojiConfig.categories = {tuple(names)}: two or more of {known} are needed")
    return names


def _on_white(stream: IO[bytes]) -> bytes:
    """A picture without its transparency, as PNG bytes."""
    with stream, Image.open(stream) as image:
        drawn = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    out = io.BytesIO()
    flat.save(out, format="PNG")
    return out.getvalue()
