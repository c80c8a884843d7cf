"""Pictures as one array: PNG, JPEG, BMP, GIF, TIFF, WebP and PPM, decoded by Pillow into uint8 (N, C, H, W).

Grey (C = 1) when every picture is grey, else RGB. Headers are read first: pixel counts, sizes and the whole array are
checked before anything is decoded. Pictures of different sizes are refused unless ``size`` says what to resize to
(bilinear, antialiased). Transparency is dropped, EXIF rotation is not applied, files with several frames or more than 8
bits a channel are refused. All that cannot be read are named at once.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image

from contracts.errors import DataError, UnsafeFile
from contracts.params import param
from sources.files import ImageConfig, check_size

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GREY = ("1", "L")
_COLOUR = ("P", "RGB", "RGBA", "RGBX", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV")
_CLEAR = ("RGBA", "LA", "PA")
_OTHER = ("CMYK", "YCbCr", "LAB", "HSV")
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureConfig(ImageConfig):
    """Fields that every source of picture files has besides."""

    size: tuple[int, int] | None = param(
        None, ge=1, le=16_384, doc="height and width to resize to; as they are when not given"
    )
    channels: str = param("auto", choices=("auto", "grey", "rgb"), doc="auto: grey when every file is")
    max_pixels: int = param(64_000_000, ge=1, le=178_000_000, doc="largest image accepted")
    max_file_bytes: int = param(2**28, ge=1, le=2**34, unit="bytes", doc="largest image file accepted")


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture declares."""

    size: tuple[int, int]  # width, height
    mode: str


def read_headers(
    names: Sequence[str], peek: Callable[[int], IO[bytes]], config: PictureConfig
) -> tuple[list[Header | None], dict[int, str]]:
    """The header of each picture, None where there is none, and by row why.

    Args:
        names: of the pictures.
        peek: opens one by its row; closed here.

    Raises:
        UnsafeFile: more than ``max_pixels``.
    """
    headers: list[Header | None] = []
    bad: dict[int, str] = {}
    for row, name in enumerate(names):
        header = None
        try:
            with peek(row) as stream, opened(stream, name) as image:
                header = _judged(image, name, config)
        except DataError as error:
            bad[row] = str(error)
        headers.append(header)
    return headers, bad


def read_pictures(
    names: Sequence[str],
    *,
    peek: Callable[[int], IO[bytes]],
    content: Callable[[int], bytes],
    config: PictureConfig,
    what: str,
) -> np.ndarray:
    """All of them, uint8 (N, C, H, W).

    Args:
        names: of the pictures, for messages.
        peek: opens one by its row, for its header.
        content: its bytes, asked for once a row, in order.
        what: the whole, for messages.

    Raises:
        UnsafeFile: images above ``max_pixels``, arrays above ``max_bytes``.
        DataError: pictures that cannot be read, up to ten by name, or of different sizes.
    """
    headers, bad = read_headers(names, peek, config)
    good = [header for header in headers if header is not None]
    if not good:
        raise _unreadable(names, bad)
    common = _common_size(good)
    if config.size is None and not bad:
        _refuse_ragged(names, headers, common)
    height, width = config.size or common[::-1]
    grey = config.channels == "grey" or (config.channels == "auto" and all(h.mode in _GREY for h in good))
    shape = (len(names), 1 if grey else 3, height, width)
    check_size(int(np.prod(shape, dtype=object)), config.max_bytes, f"the decoded images of {what}")
    x = np.empty(shape, np.uint8)
    for row, (name, header) in enumerate(zip(names, headers, strict=True)):
        data = content(row)
        if header is None:
            continue
        try:
            x[row] = _decode(data, name, header, grey=grey, size=(width, height))
        except DataError as error:
            bad[row] = str(error)
    if bad:
        raise _unreadable(names, bad)
    return x


def as_they_are(headers: Sequence[Header | None]) -> tuple[dict[str, Any], list[str]]:
    """How pictures that are not alike are read, said for people: the field ``size`` where they differ in size, and
    notes of whatever is not kept of them."""
    good = [header for header in headers if header is not None]
    size, notes = _one_size(good, len(headers))
    clear = sum(header.mode in _CLEAR for header in good)
    other = Counter(header.mode for header in good if header.mode in _OTHER)
    grey = sum(header.mode in _GREY for header in good)
    if clear:
        notes.append(f"{clear:,} of {len(headers):,} pictures have transparency, which is dropped")
    notes += [f"{num:,} of {len(headers):,} pictures are {mode}, and are read as RGB" for mode, num in other.items()]
    if 0 < grey < len(good):
        notes.append(f"{grey:,} of {len(headers):,} pictures are grey, and are read as RGB like the others")
    return size, notes


def _one_size(good: Sequence[Header], num: int) -> tuple[dict[str, Any], list[str]]:
    if len({header.size for header in good}) < 2:
        return {}, []
    width, height = _common_size(good)
    odd = sum(header.size != (width, height) for header in good)
    what = f"{odd:,} of {num:,} pictures are not {width} x {height}, the most frequent size, and are resized to it"
    return {"size": [height, width]}, [f"{what} (size in the plan)"]


def _common_size(headers: Sequence[Header]) -> tuple[int, int]:
    """The most frequent width and height; the smaller one on a tie."""
    counts = Counter(header.size for header in headers)
    return min(counts, key=lambda size: (-counts[size], size))


def _unreadable(names: Sequence[str], bad: dict[int, str]) -> DataError:
    shown = "; ".join(bad[row] for row in sorted(bad)[:_SHOWN])
    if len(bad) == 1:
        return DataError(shown)
    more = f"; ... {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return DataError(f"{len(bad)} of {len(names)} pictures cannot be read: {shown}{more}")


def _judged(image: Image.Image, name: str, config: PictureConfig) -> Header:
    width, height = image.size
    if width * height > config.max_pixels:
        raise UnsafeFile(f"{name} declares {width} x {height} pixels, more than max_pixels = {config.max_pixels:,}")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a camera's JPEG with previews behind it
        raise DataError(f"{name} has {getattr(image, 'n_frames', 1)} frames; an example is one image")
    if image.mode not in _GREY + _COLOUR:
        raise DataError(f"{name} has pixels of mode {image.mode}; only 8 bits a channel are read")
    return Header((width, height), image.mode)


@contextlib.contextmanager
def opened(stream: IO[bytes], name: str) -> Iterator[Image.Image]:
    """Pillow's errors and warnings about the file, as ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=_FORMATS) as image:
                yield image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise UnsafeFile(f"{name}: {error}") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{name} cannot be read as an image: it is none of {', '.join(_FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise DataError(f"{name} cannot be read as an image: {error}") from None


def _decode(content: bytes, name: str, header: Header, *, grey: bool, size: tuple[int, int]) -> np.ndarray:
    with opened(io.BytesIO(content), name) as image:
        if image.size != header.size:
            raise DataError(f"{name} changed while it was read")
        image.load()
        converted = image.convert("L" if grey else "RGB")
        if converted.size != size:
            converted = converted.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(converted)
        return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _refuse_ragged(names: Sequence[str], headers: Sequence[Header | None], common: tuple[int, int]) -> None:
    width, height = common
    odd = [row for row, header in enumerate(headers) if header is not None and header.size != common]
    if odd:
        first = headers[odd[0]]
        assert first is not None
        raise DataError(
            f"ragged: {len(odd)} images are not {width} x {height}, the first is {names[odd[0]]} with "
            f"{first.size[0]} x {first.size[1]}; set size: [{height}, {width}] to resize",
            where=[names[row] for row in odd],
        )
