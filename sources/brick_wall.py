"""A brick wall drawn from a seed, with its mortar as the mask, in three qualities: a test bed of topology and label
noise.

    u, v    pixel coordinates, turned and waved;  courses k = floor(v / P), bricks j = floor(u' / Q), mortar of width m
    accurate  (v - kP < m) or (u' mod Q < m), of which the largest 8-connected component; the rest is drawn as brick
    noisy     the mask displaced by a smooth field of 0.2 m, thinned to its skeleton, redrawn by a square pen
    pseudo    two clusters of colour, the less saturated one: what a program without labels would say

Groups: ``id``, the wall as it is trained on, and six that are not: ``angles`` (turned by 20 to 45 degrees), ``colors``
(bricks of any hue), ``graffiti``, ``objects``, ``occlusion`` (each takes the mortar that it covers from the label) and
``shadows``.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365), whose 420 photographs these walls stand for:
b0 = 1 of every accurate mask of ``id``, thin mortar of one width, labels of three qualities. At 128 pixels, 5/50/95%
over 60 walls: foreground 0.24/0.28/0.33, b1 8/14/33, Dice of noisy labels 0.58/0.65/0.70, of pseudo labels
0.66/0.83/0.93. Not photographs: what is learnt on them is not claimed of real walls.

Shapes: S pixels a side; images uint8 (3, S, S), masks bool (S, S).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InvalidInput

GROUPS = ("id", "angles", "colors", "graffiti", "objects", "occlusion", "shadows")
LABELS = ("accurate", "noisy", "pseudo")
_EIGHT = np.ones((3, 3), bool)
_FEWEST = 16  # pixels of a component of a pseudo label

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Wall:
    """One wall.

    Attributes:
        image: uint8 (3, S, S), RGB.
        masks: "accurate", "noisy" and "pseudo" -> bool (S, S), True where mortar is.
    """

    image: NDArray[np.uint8]
    masks: dict[str, Mask]


def brick_wall(seed: int, *, size: int = 128, group: str = "id") -> Wall:
    """A wall of this seed.

    Args:
        seed: in [0, 2**63).
        size: S, pixels a side, in [32, 1024].
        group: one of ``GROUPS``.

    Raises:
        InvalidInput: size or group out of range.

    >>> wall = brick_wall(3, size=64)
    >>> wall.image.shape, bool(wall.masks["accurate"].any())
    ((3, 64, 64), True)
    """
    if not 32 <= size <= 1024:
        raise InvalidInput(f"size = {size} is outside its allowed range: >= 32 and <= 1024 pixels")
    if group not in GROUPS:
        raise InvalidInput(f"group = {group!r} is none of {', '.join(GROUPS)}")
    draw = _Draw(np.random.default_rng(seed), size)
    course, brick, accurate, mortar = _bond(draw, group)
    pixels = _painted(draw, course, brick, accurate, group)
    pixels, accurate = _covered(draw, pixels, accurate, group)
    pixels = draw.blur(pixels, 0.6) + draw.rng.normal(0, 0.01, pixels.shape)
    image = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    masks = {"accurate": accurate, "noisy": _noisy(draw, accurate, mortar), "pseudo": _pseudo(draw, image)}
    return Wall(image=image.transpose(2, 0, 1).copy(), masks=masks)


class _Draw:
    """The random numbers of one wall, and its grid."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.down, self.right = np.mgrid[:size, :size].astype(np.float64) - (size - 1) / 2

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def smooth(self, sigma: float, std: float) -> Float:
        """White noise behind a Gaussian filter that wraps around, of this standard deviation; (S, S)."""
        from scipy.ndimage import gaussian_filter

        field: Float = gaussian_filter(self.rng.standard_normal((self.size, self.size)), sigma, mode="wrap")
        return field * (std / field.std())

    def blur(self, pixels: Float, sigma: float) -> Float:
        """Each channel of (S, S, 3) behind a Gaussian filter."""
        from scipy.ndimage import gaussian_filter

        found: Float = gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
        return found

    def along(self, angle: float) -> Float:
        """(S, S) position of each pixel in a direction, -1 to 1 over the wall."""
        reach = self.right * np.cos(angle) + self.down * np.sin(angle)
        return np.asarray(reach / np.abs(reach).max())

    def place(self) -> tuple[float, float]:
        """A point of the wall, (right, down) of its centre."""
        half = (self.size - 1) / 2
        return self.uniform(-half, half), self.uniform(-half, half)


def _bond(draw: _Draw, group: str) -> tuple[NDArray[np.int64], NDArray[np.int64], Mask, float]:
    """Course and brick of each pixel, the mortar, and its width."""
    height = draw.size * draw.uniform(0.07, 0.13)
    length = height * draw.uniform(2.4, 3.4)
    mortar = max(2.2, height * draw.uniform(0.22, 0.34))
    degrees = draw.uniform(-8, 8)
    if group == "angles":
        degrees = draw.uniform(20, 45) * (1 if draw.rng.random() < 0.5 else -1)
    angle = np.deg2rad(degrees)
    rise, run = height + mortar, length + mortar
    u, v = (
        flat + draw.smooth(draw.size / 8, 0.1 * height) + draw.smooth(1.5, 0.35) + draw.uniform(0, period)
        for flat, period in (
            (draw.right * np.cos(angle) + draw.down * np.sin(angle), run),
            (draw.down * np.cos(angle) - draw.right * np.sin(angle), rise),
        )
    )
    course = np.floor(v / rise).astype(np.int64)
    course -= course.min()
    shifts = 0.5 * (np.arange(course.max() + 1) % 2) + draw.rng.uniform(-0.08, 0.08, int(course.max()) + 1)
    along = u + shifts[course] * run
    brick = np.floor(along / run).astype(np.int64)
    brick -= brick.min()
    accurate = (v % rise < mortar) | (along % run < mortar)
    return course, brick, _largest(accurate), mortar


def _largest(mask: Mask) -> Mask:
    """The largest 8-connected component; a fragment in a corner is no mortar."""
    from scipy.ndimage import label

    named, num = label(mask, _EIGHT)
    if num < 2:
        return mask
    sizes = np.bincount(named.ravel())
    sizes[0] = 0
    return np.asarray(named == sizes.argmax())


def _painted(draw: _Draw, course: NDArray[np.int64], brick: NDArray[np.int64], mortar: Mask, group: str) -> Float:
    """(S, S, 3) in [0, 1] before blur and noise."""
    from skimage.color import hsv2rgb

    rng = draw.rng
    each = (int(course.max()) + 1, int(brick.max()) + 1)
    hue = draw.uniform(30, 360) if group == "colors" else draw.uniform(0, 20)
    hue_of = hue + rng.uniform(-5, 5, each)[course, brick]
    saturation = draw.uniform(0.42, 0.65) + rng.uniform(-0.06, 0.06, each)[course, brick]
    value = draw.uniform(0.5, 0.75) + rng.uniform(-0.08, 0.08, each)[course, brick]
    value = value + draw.smooth(0.8, 0.04) + draw.smooth(5, 0.03)
    for _ in range(int(rng.poisson(3))):
        right, down = draw.place()
        radius = draw.size * draw.uniform(0.04, 0.12)
        distance = (draw.right - right) ** 2 + (draw.down - down) ** 2
        stain = np.exp(-distance / (2 * radius**2)) * (draw.smooth(1.5, 1.0) > 0)
        value = value + 0.25 * stain
        saturation = saturation * (1 - 0.7 * stain)
    hue_of = np.where(mortar, draw.uniform(20, 45), hue_of)
    saturation = np.where(mortar, draw.uniform(0.03, 0.15), saturation)
    value = np.where(mortar, draw.uniform(0.62, 0.85) + draw.smooth(0.8, 0.05), value)
    value = value * (1 + 0.12 * draw.along(draw.uniform(0, 2 * np.pi)))
    pixels: Float = hsv2rgb(np.stack([hue_of % 360 / 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)], -1))
    return pixels


def _covered(draw: _Draw, pixels: Float, mortar: Mask, group: str) -> tuple[Float, Mask]:
    """What stands before the wall, and what is left of the label."""
    if group == "shadows":
        edge = draw.along(draw.uniform(0, 2 * np.pi)) - draw.uniform(-0.4, 0.4)
        return pixels * (0.4 + 0.6 / (1 + np.exp(-edge * 25)))[..., None], mortar
    if group == "graffiti":
        for _ in range(int(draw.rng.integers(2, 6))):
            stroke, paint = _stroke(draw), draw.rng.uniform(0, 1, 3)
            pixels = np.where(stroke[..., None], 0.1 * pixels + 0.9 * paint, pixels)
        return pixels, mortar
    if group in ("objects", "occlusion"):
        low, high = (0.18, 0.35) if group == "occlusion" else (0.06, 0.15)
        for _ in range(1 if group == "occlusion" else int(draw.rng.integers(1, 4))):
            body = _ellipse(draw, low, high)
            paint = draw.rng.uniform(0.05, 0.95, 3) + draw.smooth(2.0, 0.05)[..., None]
            pixels, mortar = np.where(body[..., None], paint, pixels), mortar & ~body
    return pixels, mortar


def _ellipse(draw: _Draw, low: float, high: float) -> Mask:
    (right, down), angle = draw.place(), draw.uniform(0, np.pi)
    one, other = (draw.size * draw.uniform(low, high) for _ in range(2))
    x, y = draw.right - right, draw.down - down
    long, short = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.asarray((long / one) ** 2 + (short / other) ** 2 < 1)


def _stroke(draw: _Draw) -> Mask:
    """A cubic Bezier curve drawn with a round pen."""
    from scipy.ndimage import distance_transform_edt

    corners = np.array([draw.place() for _ in range(4)])
    t = np.linspace(0, 1, 6 * draw.size)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    at = np.rint(weights @ corners + (draw.size - 1) / 2).astype(np.int64)
    free = np.ones((draw.size, draw.size), bool)
    free[at[:, 1], at[:, 0]] = False
    return np.asarray(distance_transform_edt(free) < draw.size * draw.uniform(0.015, 0.04))


def _noisy(draw: _Draw, mask: Mask, mortar: float) -> Mask:
    """A quick drawing: the right lines, near their places, of one width."""
    from scipy.ndimage import binary_dilation, map_coordinates
    from skimage.morphology import skeletonize

    down, right = (draw.smooth(draw.size / 20, 0.2 * mortar) for _ in range(2))
    rows, columns = np.mgrid[: draw.size, : draw.size]
    moved = map_coordinates(mask.astype(np.uint8), [rows + down, columns + right], order=0, mode="nearest") > 0
    pen = max(2, round(draw.size / 128))
    return np.asarray(binary_dilation(skeletonize(moved), np.ones((pen, pen), bool)))


def _pseudo(draw: _Draw, image: NDArray[np.uint8]) -> Mask:
    """2-means of the colours, started from the least and the most saturated quarter."""
    from scipy.ndimage import label

    colours = draw.blur(image / 255.0, 1.2).reshape(-1, 3)
    top = colours.max(1)
    saturation = (top - colours.min(1)) / np.maximum(top, 1e-9)
    low, high = np.quantile(saturation, [0.25, 0.75])
    centres = np.stack([colours[saturation <= low].mean(0), colours[saturation >= high].mean(0)])
    nearest = np.zeros(len(colours), np.int64)
    for _ in range(10):
        nearest = np.square(colours[:, None] - centres).sum(2).argmin(1)
        centres = np.stack([colours[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(2)])
    mask = (nearest == 0).reshape(draw.size, draw.size)
    named, _ = label(mask, _EIGHT)
    sizes = np.bincount(named.ravel())
    return np.asarray(mask & (sizes[named] >= _FEWEST))
