"""A payload in one file, opened as memory maps, and rewritten without some of its examples.

The file is a safetensors file: 8 bytes of header length, a JSON header, arrays one behind the other. Its metadata say
the kind of payload and its settings; beside the payload's arrays it holds ``example_id`` (N,) and, where given, ``y``.

Erasure is physical: the remaining examples are written block by block into a file beside it, which is flushed to disk
and then takes the name, so that after a crash there is the old file or the new one and never a half. Memory maps that
are open keep the old bytes until they are closed. Nothing here unpickles; sizes are checked before anything is mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError, IntegrityError, UnsafeFile
from sources.files import sha256 as sha256_of
from sources.payloads import graph, pairs, tokens  # noqa: F401  (their kinds become known)
from sources.payloads.arrays import part_of, payload_of, stored
from sources.payloads.base import Part, Payload
from sources.rows import Rows

FORMAT = "palimpsest payload 1"
_TYPES = {"U8": "uint8", "I32": "int32", "I64": "int64", "F32": "float32", "F64": "float64"}
_NAMES = {np.dtype(name): code for code, name in _TYPES.items()}
_MAX_HEADER = 2**20


class Stored(NamedTuple):
    """What a payload file holds: as ``ExampleSet`` has them; ``y`` None where it has none."""

    x: Any
    y: NDArray[Any] | None
    example_id: NDArray[np.int64]


class Erased(NamedTuple):
    """How many examples were taken out of a file, and the SHA-256 of the file as it is now."""

    num_erased: int
    sha256: str


def write_payload(path: Path, x: Any, *, example_id: NDArray[np.int64], y: NDArray[Any] | Rows | None = None) -> str:
    """Write examples into a new file, or in place of an old one, and return its SHA-256.

    Args:
        path: where; the folder exists.
        x: an array, ``Rows`` or payload of N examples.
        example_id: int64 (N,), unique.
        y: (N, ...) targets that go with them (masks).

    Raises:
        DataError: numbers that do not match, or a type that the file has no word for.
    """
    payload = payload_of(x)
    payload.check()
    num = len(payload)
    if example_id.dtype != np.int64 or example_id.shape != (num,) or len(np.unique(example_id)) != num:
        raise DataError(f"{path.name}: example_id is {example_id.dtype} {example_id.shape}, not unique int64 ({num},)")
    if y is not None and len(y) != num:
        raise DataError(f"{path.name}: {len(y)} targets for {num} examples")
    parts = {f"x/{name}": part for name, part in payload.parts().items()}
    parts |= {"example_id": part_of(example_id)} | ({} if y is None else {"y": part_of(y)})
    strange = [name for name, part in parts.items() if part.dtype not in _NAMES]
    if strange:
        raise DataError(
            f"{path.name}: {strange[0]} is {parts[strange[0]].dtype}; a file holds {', '.join(_TYPES.values())}"
        )
    settings = {"kind": payload.kind, **payload.settings}
    return _replace(path, {"format": FORMAT, "settings": json.dumps(settings, sort_keys=True)}, parts)


def open_payload(path: Path, *, sha256: str = "") -> Stored:
    """The examples of a file as memory maps: nothing but the header is read.

    Args:
        path: of the file.
        sha256: what the whole file is compared with, in one pass; "" leaves it.

    Raises:
        IntegrityError: the file is not what was recorded.
        UnsafeFile: a header that is larger than one can be.
        DataError: no payload file, truncated, or arrays that make no payload.
    """
    if sha256 and (found := sha256_of(path)) != sha256:
        raise IntegrityError(f"{path.name} has SHA-256 {found}, recorded is {sha256}")
    metadata, arrays = _mapped(path)
    try:
        settings = json.loads(metadata["settings"])
        kind = Payload.kinds[settings["kind"]]
        own = {name.removeprefix("x/"): values for name, values in arrays.items() if name.startswith("x/")}
        payload = kind.from_parts(own, settings)
        ids = np.asarray(arrays["example_id"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path.name} is no payload file of a known kind: {type(error).__name__} {error}") from None
    y = arrays.get("y")
    if ids.dtype != np.int64 or ids.shape != (len(payload),) or (y is not None and len(y) != len(ids)):
        raise DataError(f"{path.name}: {len(payload)} examples, {ids.dtype} {ids.shape} ids")
    payload.check()
    return Stored(stored(payload), y, ids)


def erase_examples(path: Path, ids: Iterable[int] | NDArray[np.int64]) -> Erased:
    """Take examples out of a payload file; ids that are not in it count as taken out already.

    A graph loses the nodes and every edge of theirs.

    Raises:
        UnsafeFile: the file has another name (a hard link), under which the old bytes would stay.
        DataError: as ``open_payload``.
    """
    path = path.resolve(strict=True)  # a link would be replaced, and what it leads to would stay
    with contextlib.suppress(FileNotFoundError):
        _beside(path).unlink()  # what a crash left
    if path.stat().st_nlink > 1:
        raise UnsafeFile(
            f"{path.name} has {path.stat().st_nlink} names (hard links); the others would keep what is erased"
        )
    x, y, example_id = open_payload(path)
    gone = np.isin(example_id, np.asarray(list(ids), np.int64))
    if not gone.any():
        return Erased(0, sha256_of(path))
    kept = np.flatnonzero(~gone)
    left = payload_of(x).only(kept)
    targets = None if y is None else Rows([y], kept)
    return Erased(int(gone.sum()), write_payload(path, left, example_id=example_id[kept], y=targets))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.rewritten")


def _replace(path: Path, metadata: Mapping[str, str], parts: Mapping[str, Part]) -> str:
    """Write beside, flush, rename, flush the folder."""
    order = sorted(parts, key=lambda name: (-parts[name].dtype.itemsize, name))  # large items first: all are aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        part = parts[name]
        start, end = end, end + math.prod(part.shape) * part.dtype.itemsize
        header[name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    beside = _beside(path)
    state = hashlib.sha256()
    try:
        with beside.open("wb") as stream:
            for block in itertools.chain([len(text).to_bytes(8, "little"), text], _bytes(order, parts)):
                state.update(block)
                stream.write(block)
            stream.flush()
            if path.exists():
                beside.chmod(path.stat().st_mode & 0o7777)
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return state.hexdigest()


def _bytes(order: Iterable[str], parts: Mapping[str, Part]) -> Iterator[bytes]:
    for name in order:
        part, num = parts[name], 0
        for block in part.blocks():
            num += block.size
            yield np.ascontiguousarray(block, part.dtype.newbyteorder("<")).tobytes()
        if num != math.prod(part.shape):
            raise DataError(f"{name} has {num} values, {math.prod(part.shape)} were announced")


def _mapped(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Metadata and arrays of a safetensors file, judged by header and size alone."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise DataError(f"{path.name} is no payload file, or truncated: {size:,} bytes")
        if length > _MAX_HEADER:
            raise UnsafeFile(f"{path.name} has a header of {length:,} bytes, more than {_MAX_HEADER:,}")
        text = stream.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}")
        found = sorted((*map(int, entry["data_offsets"]), name) for name, entry in header.items())
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in header.items()}
        dtypes = {name: np.dtype(_TYPES[entry["dtype"]]).newbyteorder("<") for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path.name} is no payload file ({FORMAT}): {error}") from None
    arrays: dict[str, NDArray[Any]] = {}
    end = 0
    for start, stop, name in found:
        num = math.prod(shapes[name])
        if start != end or stop - start != num * dtypes[name].itemsize or min(shapes[name], default=0) < 0:
            raise DataError(f"{path.name}: array {name!r} {shapes[name]} does not fill the bytes {start:,}..{stop:,}")
        end = stop
    if 8 + length + end != size:
        raise DataError(
            f"{path.name} is truncated or longer than its header says: {size:,} bytes, not {8 + length + end:,}"
        )
    for start, _, name in found:
        empty = not math.prod(shapes[name])
        arrays[name] = (
            np.empty(shapes[name], dtypes[name])
            if empty
            else np.memmap(path, dtypes[name], "r", 8 + length + start, shapes[name])
        )
    return metadata, arrays
