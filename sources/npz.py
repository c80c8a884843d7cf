"""NumPy archives (``numpy.savez``, ``numpy.savez_compressed``), never with pickle.

    x, y [, ids, owner, split]                 one table of examples; other arrays of one value an example may be
                                               kept beside them (step, domain, client, group, keep)
    x_train, y_train, x_test, y_test           two, with a test split of their own (the Keras convention), and a third,
                                               x_val and
        [, x_val, y_val]                       y_val; ids and owner, if there, run over training, test, then validation
                                               rows

    x  (N, D) numbers          -> float32 features
       (N, H, W) [, channels]  -> images (N, C, H, W): uint8 kept, anything else float32; C in {1, 3, 4}, first or last
    y  (N,), (N, 1), (N, K)    whole numbers and text are classes; floats are targets; (N, K) is one-hot: see
       ``sources.labels``

An archive is judged before an array is made: every member must be a plain ``.npy``; the header's shape times its item
size must be exactly the bytes that the zip directory lists, and these must be possible for the compressed bytes there
(a deflate stream expands 1032 times at most). Values are then streamed by blocks of rows into the final array, to the
end of the member, so that its CRC is checked.

Ids without an ``ids`` array come from values, label, owner and split.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble, check_ids
from sources.columns import BesideConfig, as_column
from sources.example_set import ExampleSet
from sources.files import (
    BAD_ZIP,
    DEFLATE_RATIO,
    ImageConfig,
    check_size,
    head,
    inside,
    manifest,
    refuse_pickle,
    root_folder,
)
from sources.given_splits import VAL, read_splits, settle, split_of, without_splits
from sources.labels import TASKS, encode_labels
from sources.loading import only
from sources.rows import BLOCK_BYTES

_MAX_HEADER = 10_000
_GUESSES = {  # what arrays are called; "train_images" and "X_train" are these and a word of a split
    "x": ("x", "images", "image", "data", "features", "inputs", "input", "embeddings", "arr_0"),
    "y": ("y", "label", "labels", "target", "targets", "class", "classes", "arr_1"),
}
_SPLITS = ("train", "test", "val")


@dataclass(frozen=True, kw_only=True)  # no slots: two bases have fields
class NpzConfig(BesideConfig, ImageConfig):
    file: str = param(doc="name of the archive inside the root")
    x: str = param("x", doc="array of values")
    y: str = param("y", doc="array of labels")
    ids: str = param("ids", doc="array of ids, where there is one")
    owner: str = param("owner", doc="array of owners, where there is one")
    split: str = param("split", doc="array of 'train', 'test' and 'val', where there is one")
    x_train: str = param("x_train", doc="training values; where this array exists, the six are read")
    y_train: str = param("y_train", doc="training labels")
    x_test: str = param(
        "x_test", doc="test values; without them a test split is drawn, unless there are validation rows"
    )
    y_test: str = param("y_test", doc="test labels")
    x_val: str = param("x_val", doc="validation values, where there are any")
    y_val: str = param("y_val", doc="validation labels")
    val: str = param("auto", choices=VAL, doc="validation rows: auto leaves them out where there are test rows")
    layout: str = param("auto", choices=("auto", "chw", "hwc"), doc="where the channels of images are")
    task: str = param("auto", choices=TASKS, doc="auto: floats of many values are targets")
    class_names: tuple[str, ...] = param((), doc="names of the classes; their numbers or texts when empty")
    white: int = param(255, ge=1, le=255, doc="raw value of uint8 images that becomes 1.0")


@dataclass(frozen=True, slots=True)
class _Member:
    """One array as its header declares it, checked against the directory of the zip."""

    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int


def is_archive(path: Path) -> bool:
    """Whether a file is a NumPy archive, by its content."""
    if head(path, 2) != b"PK":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except BAD_ZIP:
        return False


def _from_path(path: Path, asked: Asked) -> Reading:
    only(asked, "a NumPy archive", drop="it has arrays x and y, and others are not read")
    with open_archive(path) as archive:
        members = members_of(archive, path)
    names = ", ".join(f"{n} {m.dtype} {m.shape}" for n, m in members.items())
    found = _roles(members, path)
    if asked.label is not None:
        if "x_train" in found:
            raise ConfigError(
                f"--label {asked.label!r} cannot be used: {path.name} has its labels in {found['y_train']}"
            )
        found["y"] = asked.label
    if not ({"x", "y"} <= found.keys() or {"x_train", "y_train"} <= found.keys()):
        raise DataError(
            f"{path.name} needs arrays x and y (pass --label for y), or x_train, y_train, x_test, y_test; it has: "
            f"{names}"
        )
    found |= {role: value for role in ("owner", "split") if (value := getattr(asked, role)) is not None}
    found |= {"ids": asked.id} if asked.id is not None else {}
    unknown = [name for name in found.values() if name not in members]
    if unknown:
        raise ConfigError(f"{path.name} has no array {', '.join(unknown)}; it has: {names}")
    used = {*found.values(), *(role for role in ("ids", "owner", "split") if role in members)}
    unused = [name for name in members if name not in used]
    config = {role: name for role, name in found.items() if name != role}
    config |= {option: value for option in ("task", "val") if (value := getattr(asked, option)) is not None}
    notes = [f"arrays left out, as they are neither values, labels, ids, owners nor splits: {', '.join(unused)}"]
    return Reading({"root": str(path.parent), "file": path.name, **config}, tuple(notes if unused else ()))


def _roles(members: Iterable[str], path: Path) -> dict[str, str]:
    """Role -> array, as far as the names tell: x and y, or of each split that is there; "X_train" and "train_images"
    are x_train.

    Raises:
        DataError: two arrays for one role.
    """
    found: dict[str, str] = {}
    for name in members:
        split = split_of(name)
        stem = "_".join(part for part in re.split(r"[^a-z0-9]+", name.lower()) if part and split_of(part) is None)
        role = next((role for role, called in _GUESSES.items() if (stem if split else name.lower()) in called), None)
        if role is None:
            continue
        role = f"{role}_{split}" if split else role
        if role in found:
            if split is None:  # "images" and "data": the first of _GUESSES is meant
                order = [called for called in _GUESSES[role]]
                found[role] = min(found[role], name, key=lambda n: order.index(n.lower()))
                continue
            raise DataError(f"{path.name}: arrays {found[role]} and {name} could both be {role}; leave one of them")
        found[role] = name
    if "x_train" in found:
        return {role: name for role, name in found.items() if role not in _GUESSES}
    return {role: name for role, name in found.items() if role in _GUESSES}


@source(
    SourceSpec(
        name="npz",
        version=2,
        doc="NumPy archive (.npz) with x and y, optionally ids, owner, split; or x_train, y_train, x_test, y_test, "
        "x_val, y_val.",
        source="NumPy NEP 1, the .npy format",
        config=NpzConfig,
        detects=is_archive,
        from_path=_from_path,
    )
)
def npz(*, config: NpzConfig, seed: int) -> ExampleSet:
    """The arrays of one archive.

    Raises:
        UnsafeFile: outside the root, object arrays or other pickles, sizes that the bytes cannot hold or above
            ``max_bytes``.
        DataError: not an archive, truncated, damaged, arrays missing or not matching.
    """
    root = root_folder(config.root)
    path = inside(root, config.file)
    check_size(path.stat().st_size, config.max_bytes, path.name)
    with open_archive(path) as archive:
        members = members_of(archive, path)
        several = config.x_train in members
        splits = [s for s in _SPLITS if s == "train" or getattr(config, f"x_{s}") in members] if several else [""]
        pairs = [tuple(getattr(config, f"{role}_{s}" if s else role) for role in ("x", "y")) for s in splits]
        beside = config.beside()
        optional = {k: getattr(config, k) for k in ("ids", "owner", "split")}
        asked = [*(name for role, name in optional.items() if name != role), *beside.values()]
        absent = [name for name in (*itertools.chain(*pairs), *asked) if name not in members]
        if absent:
            raise DataError(f"{path.name} has no array {', '.join(absent)}; it has: {', '.join(members)}")
        if several and config.split in members:
            raise DataError(f"{path.name} says twice what is for testing: {config.split} and {config.x_train}")
        sizes = [members[x].shape[0] for x, _ in pairs]
        x = _read_values(archive, [members[x] for x, _ in pairs], config)
        raw = [
            _column(archive, members[y], y, config, num=num, labels=True)
            for (_, y), num in zip(pairs, sizes, strict=True)
        ]
        extra = {
            role: _column(archive, members[name], name, config, num=len(x))
            for role, name in optional.items()
            if name in members
        }
        kept_beside = {role: _column(archive, members[name], name, config, num=len(x)) for role, name in beside.items()}
    origin = np.array(
        [f"{name}[{row}]" for (name, _), num in zip(pairs, sizes, strict=True) for row in range(num)], dtype=str
    )
    for (_, y), values in zip(pairs, raw, strict=True):
        if (values.dtype.kind, values.shape[1:]) != (raw[0].dtype.kind, raw[0].shape[1:]):
            raise DataError(
                f"{pairs[0][1]} is {raw[0].dtype} {raw[0].shape[1:]}, {y} is {values.dtype} {values.shape[1:]}"
            )
    labels = np.concatenate(raw)
    columns = {role: as_column(values, origin, name=beside[role]) for role, values in kept_beside.items()}
    words = np.repeat(np.array(splits, "<U5"), sizes) if several else None
    if "split" in extra:
        words = read_splits(extra["split"], origin, name=config.split)
    ids = check_ids(extra["ids"]) if "ids" in extra else None
    owner = extra.get("owner")
    split, notes = None, without_splits(config.val) if words is None else []
    if "ids" in extra and extra["ids"].dtype.kind == "f":
        notes.append("ids are written as floats and read as whole numbers")
    if words is not None:
        kept, split, said = settle(words, val=config.val, what="examples")
        notes += said
        if not kept.all():
            x, labels, origin = x[kept], labels[kept], origin[kept]
            ids, owner = (None if column is None else column[kept] for column in (ids, owner))
            columns = {role: values[kept] for role, values in columns.items()}
    task, y, names, mapped = encode_labels(labels, origin, task=config.task, class_names=config.class_names)
    if several and len(splits) == 1:
        split = None  # training arrays alone: a test split is drawn
    return assemble(
        x,
        y,
        name=config.name or path.stem,
        task=task,
        class_names=names,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids,
        split=split,
        owner=owner,
        origin=origin,
        white=config.white,
        standardise=config.standardise,
        columns=columns,
        provenance={
            "source": "npz",
            "files": manifest(root, [path]),
            "licence": config.licence,
            "notes": [*notes, *mapped],
        },
    )


def open_archive(path: Path) -> zipfile.ZipFile:
    """An archive, unread.

    Raises:
        DataError, UnsafeFile: damaged, or a pickle.
    """
    refuse_pickle(path)
    try:
        return zipfile.ZipFile(path)
    except BAD_ZIP as error:
        raise DataError(f"{path.name} is not a readable NumPy archive: {error}") from None


def members_of(archive: zipfile.ZipFile, path: Path) -> dict[str, _Member]:
    """Every array of the archive by its name, judged by header and directory alone."""
    members: dict[str, _Member] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        where = f"{path.name}: member {info.filename!r}"
        if not info.filename.endswith(".npy"):
            raise UnsafeFile(f"{where} is not an array")
        if name in members:
            raise UnsafeFile(f"{where} is listed twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise UnsafeFile(f"{where} is encrypted or compressed in a way that NumPy does not write")
        most = info.compress_size * (DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1)
        if info.compress_size > path.stat().st_size or info.file_size > most:
            raise UnsafeFile(f"{where} declares {info.file_size:,} bytes; its bytes in the file cannot hold as many")
        try:
            with archive.open(info) as stream:
                member = _header(stream, info, where)
        except DataError:
            raise
        except (*BAD_ZIP, zlib.error, EOFError) as error:
            raise DataError(f"{where} is damaged: {error}") from None
        if member.dtype.hasobject:
            raise UnsafeFile(f"{where} holds Python objects, which are pickles; none is ever loaded")
        declared = member.offset + math.prod(member.shape) * member.dtype.itemsize
        if declared != info.file_size:
            raise UnsafeFile(f"{where} declares {declared:,} bytes, the archive lists {info.file_size:,}")
        members[name] = member
    return members


def _header(stream: IO[bytes], info: zipfile.ZipInfo, where: str) -> _Member:
    start = stream.read(12)
    version = (start[6], start[7]) if len(start) == 12 and start[:6] == b"\x93NUMPY" else None
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where} is not a .npy array of format 1.0 or 2.0")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > _MAX_HEADER:
        raise UnsafeFile(f"{where} has a header of {length:,} bytes, more than {_MAX_HEADER:,}")
    text = io.BytesIO(start[8:] + stream.read(8 + width + length - 12))
    parse = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = parse(text)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise DataError(f"{where} has an unreadable header: {error}") from None
    if dtype.kind not in "biufUSO" or dtype.itemsize == 0 or any(s < 0 for s in shape):
        raise DataError(f"{where} holds {dtype} {shape}, which is neither numbers nor text")
    return _Member(info, dtype, shape, fortran and len(shape) > 1, 8 + width + length)


def _read_values(archive: zipfile.ZipFile, members: list[_Member], config: NpzConfig) -> np.ndarray:
    first = members[0]
    for member in members:
        if member.dtype.kind not in "biuf" or len(member.shape) not in (2, 3, 4):
            raise DataError(
                f"{member.info.filename} holds {member.dtype} {member.shape}; "
                "values are numbers (N, D), (N, H, W) or (N, H, W, C)"
            )
        if member.shape[1:] != first.shape[1:] or member.dtype != first.dtype:
            raise DataError(
                f"ragged: {member.info.filename} holds {member.dtype} {member.shape[1:]}, "
                f"{first.info.filename} {first.dtype} {first.shape[1:]}"
            )
    axes = _axes(first, config.layout)
    images = len(first.shape) > 2
    target = np.dtype(np.uint8 if images and first.dtype == np.uint8 else np.float32)
    row = (1, *first.shape[1:]) if len(first.shape) == 3 else tuple(first.shape[a] for a in axes[1:])
    shape = (sum(m.shape[0] for m in members), *row)
    check_size(math.prod(shape) * target.itemsize, config.max_bytes, f"{config.file}: values")
    out = np.empty(shape, target)
    start = 0
    for member in members:
        for block in row_blocks(archive, member):
            part = out[start : start + len(block)]
            with np.errstate(over="ignore"):  # becomes Inf, which validation refuses by id
                part[...] = block[:, None] if block.ndim == 3 else block.transpose(axes)
            start += len(block)
    return out


def _axes(member: _Member, layout: str) -> tuple[int, ...]:
    if len(member.shape) < 4:
        return tuple(range(len(member.shape)))
    first, last = member.shape[1] in (1, 3, 4), member.shape[3] in (1, 3, 4)
    if layout == "auto" and first == last:
        raise DataError(
            f"{member.info.filename} has shape {member.shape}: which axis holds the channels cannot be told; set layout"
        )
    return (0, 3, 1, 2) if layout == "hwc" or (layout == "auto" and last) else (0, 1, 2, 3)


def _column(
    archive: zipfile.ZipFile, member: _Member, name: str, config: NpzConfig, *, num: int, labels: bool = False
) -> np.ndarray:
    """One value an example, (N,); labels as they are, (N, ...)."""
    if member.shape[:1] != (num,) or (math.prod(member.shape) != num and not labels):
        raise DataError(f"array {name!r} has shape {member.shape}, there are {num} examples")
    check_size(member.info.file_size, config.max_bytes, f"{config.file}: {name}")
    shape = member.shape if labels else (num,)
    blocks = [block.reshape(-1) for block in row_blocks(archive, member)]
    values = (np.concatenate(blocks) if blocks else np.empty(0, member.dtype)).reshape(shape)
    if values.dtype.kind == "S":
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"array {name!r} holds bytes that are not UTF-8: {error}") from None
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def row_blocks(archive: zipfile.ZipFile, member: _Member) -> Iterator[np.ndarray]:
    """Rows in blocks of bounded size, in order. An array in Fortran order comes as a single block."""
    row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
    step = member.shape[0] if member.fortran else max(1, BLOCK_BYTES // max(1, row_bytes))
    try:
        with archive.open(member.info) as stream:
            stream.read(member.offset)
            for start in range(0, member.shape[0], max(1, step)):
                num = min(step, member.shape[0] - start)
                data = stream.read(num * row_bytes)
                if len(data) != num * row_bytes:
                    raise DataError(
                        f"{member.info.filename} is truncated: {num * row_bytes - len(data):,} bytes are missing"
                    )
                block = np.frombuffer(data, member.dtype)
                shape = (num, *member.shape[1:])
                yield block.reshape(shape[::-1]).T if member.fortran else block.reshape(shape)
            stream.read(1)  # reaching the end is what makes zipfile compare the CRC
    except DataError:
        raise
    except (*BAD_ZIP, zlib.error, EOFError) as error:
        raise DataError(f"{member.info.filename} is truncated or damaged: {error}") from None
