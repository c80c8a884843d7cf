"""Emoji cut out of a ground: the mask is the drawing's own transparency, true to the pixel.

    root    as of ``emoji``: npm install emoji-datasource-google@16 emoji-datasource-twitter@16, the folder node_modules
    x       the emoji over a ground: two colours, one running into the other in some direction, drawn from the seed,
            the style and the code point
    y       1 where the drawing covers at least half of the pixel, else 0

One example is one emoji in one style. Column ``domain`` is the style, ``group`` the code point and ``category`` its
category. An emoji is in the same split in every style. On white, where most of the ground would give itself away, a
network learns "not white"; a ground of its own for each picture makes it learn the thing.

Licences: as of ``emoji``: Google style Apache-2.0 (Noto), Twitter style CC-BY-4.0 (Twitter, Inc and other contributors:
attribution).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contracts.digests import derive_seed
from contracts.errors import DataError
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.emoji import LICENCE, EmojiConfig, categories_of, list_of, listed_emoji, picture_of
from sources.example_set import ExampleSet
from sources.files import manifest, root_folder
from sources.pictures import read_pictures
from sources.splits import stratified_split

_HALF = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class EmojiMasksConfig(EmojiConfig):
    most: int | None = param(None, ge=2, le=100_000, unit="emoji", doc="taken, drawn by the seed; all when null")


@source(
    SourceSpec(
        name="emoji_masks",
        doc="Emoji of npm's emoji-datasource packages over a drawn ground, with their own outline as the mask.",
        source="https://github.com/iamcal/emoji-data, version 16.0.0",
        config=EmojiMasksConfig,
    )
)
def emoji_masks(*, config: EmojiMasksConfig, seed: int) -> ExampleSet:
    """Every emoji of the categories in every style, uint8 (N, 3, H, W), with its mask.

    Raises:
        DataError: a package or a picture is missing, or has no transparency.
        UnsafeFile: a file outside the root, or one that is too large.
    """
    root = root_folder(config.root)
    lists = [list_of(root, style) for style in config.styles]
    entries = listed_emoji(lists[0], config)
    there = [e for e in entries if all(e[f"has_img_{style}"] for style in config.styles)]
    names = categories_of(there, config)
    there = sorted((e for e in there if e["category"] in names), key=lambda e: e["unified"])
    if config.most is not None and config.most < len(there):
        chosen = np.random.default_rng(derive_seed("emoji", seed)).permutation(len(there))[: config.most]
        there = [there[row] for row in sorted(chosen.tolist())]
    label = np.array([names.index(e["category"]) for e in there], np.int64)
    split = stratified_split(label, np.arange(len(there)), test_fraction=config.test_fraction, seed=seed)
    both = [(style, e) for style in config.styles for e in there]
    paths = [picture_of(root, style, e) for style, e in both]
    origin = np.array([path.relative_to(root).as_posix() for path in paths], dtype=str)

    def content(row: int) -> bytes:
        style, entry = both[row]
        return _over_ground(paths[row], np.random.default_rng(derive_seed("ground", seed, style, entry["unified"])))

    x = read_pictures(
        origin.tolist(),
        peek=lambda row: paths[row].open("rb"),
        content=content,
        config=config,
        what=f"the emoji in {root}",
    )
    y = np.stack([_mask(path, size=(x.shape[3], x.shape[2])) for path in paths])
    empty = ~y.any((1, 2))
    if empty.any():
        raise DataError(f"{int(empty.sum())} emoji cover no pixel", where=origin[empty].tolist())
    times = len(config.styles)
    return assemble(
        x,
        y,
        name=config.name or "emoji_masks",
        task="segmentation",
        class_names=("ground", "emoji"),
        seed=seed,
        test_fraction=config.test_fraction,
        split=np.tile(split, times),
        origin=origin,
        standardise=config.standardise,
        columns={
            "domain": np.repeat(np.array(config.styles, dtype=str), len(there)),
            "group": np.tile(np.array([e["unified"] for e in there], dtype=str), times),
            "category": np.tile(np.array([e["category"] for e in there], dtype=str), times),
        },
        provenance={
            "source": "emoji_masks",
            "files": manifest(root, lists),
            "licence": config.licence or LICENCE,
            "split": "drawn by emoji within each category: the same in every style",
            "notes": [f"{len(there)} of {len(entries)} emoji are taken", "the ground is drawn, the emoji are not"],
        },
    )


def _over_ground(path: Path, rng: np.random.Generator) -> bytes:
    """The picture over two colours that run into one another, as PNG bytes."""
    colours, angle = rng.integers(0, 256, (2, 3)), rng.uniform(0, 2 * np.pi)
    with Image.open(path) as image:
        drawn = image.convert("RGBA")
    width, height = drawn.size
    down, right = np.mgrid[:height, :width]
    along = (right - (width - 1) / 2) * np.cos(angle) + (down - (height - 1) / 2) * np.sin(angle)
    share = (0.5 + 0.5 * along / max(float(np.abs(along).max()), 1.0))[..., None]
    ground = np.rint(share * colours[0] + (1 - share) * colours[1]).astype(np.uint8)
    flat = Image.alpha_composite(Image.fromarray(ground, "RGB").convert("RGBA"), drawn).convert("RGB")
    out = io.BytesIO()
    flat.save(out, format="PNG")
    return out.getvalue()


def _mask(path: Path, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) 1 where the drawing covers at least half of a pixel.

    Raises:
        DataError: a picture without transparency: everything would be the drawing.
    """
    with Image.open(path) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            raise DataError(f"{path.name} has no transparency: it says nothing of what is the drawing")
        alpha = image.convert("RGBA").getchannel("A")
    if alpha.size != size:
        alpha = alpha.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(np.asarray(alpha) >= _HALF, dtype=np.uint8)
