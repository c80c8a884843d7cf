"""Folders of pictures, one sub-folder a class, with or without folders for the splits.

    root/CLASS/*.png                                 the test split is drawn
    root/train/CLASS/*, root/test/CLASS/*            as it is; the words of ``sources.given_splits``: Training and
                                                     Testing, seg_train
        [, root/val/CLASS/*]                         and seg_test, ...
    root/CLASS/train/*, root/CLASS/test/*            the same, said below each class
    root/OWNER/CLASS/*, root/CLASS/OWNER/*           label_level 2 or 1, owner_level 1 or 2

Folders that hold one folder and no picture (seg_train/seg_train/CLASS) are passed through; pictures of a split that lie
in no class folder have no label and are left out. How pictures are decoded:
``sources.pictures``. Owners are a level of folders, or come from a table of the columns ``file`` and ``owner``; so do
step, domain, client and group: a level of folders where a whole number is given, else a column of that table.

Ids come from pixels, label, owner and given split: see ``sources.identity``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import polars as pl

from contracts.errors import ConfigError, DataError, UnsafeFile
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.columns import BesideConfig, as_column
from sources.example_set import ExampleSet
from sources.files import MAX_BYTES, PICTURES, check_size, entries, files_below, head, inside, is_junk, root_folder
from sources.given_splits import VAL, WORDS, settle, split_of, spoken_for
from sources.loading import only
from sources.mask_folders import mask_folders
from sources.pictures import PictureConfig, as_they_are, read_headers, read_pictures
from sources.table_files import as_texts, read_table

_FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")


@dataclass(frozen=True, kw_only=True)  # no slots: two bases have fields
class ImageFolderConfig(BesideConfig, PictureConfig):
    folder: str = param("", doc="folder below the root that holds the pictures; the root itself when empty")
    label_level: int = param(1, ge=1, le=9, doc="level of folders that is the class; 1 is the topmost below the split")
    owner_level: int | None = param(None, ge=1, le=9, doc="level of folders that is the owner")
    owner_table: str = param("", doc="table inside the root with the columns file and owner")
    val: str = param("auto", choices=VAL, doc="validation pictures: auto leaves them out where there are test pictures")

    def check(self) -> None:
        if self.owner_level is not None and (self.owner_level == self.label_level or self.owner_table):
            raise ConfigError(
                f"ImageFolderConfig.owner_level = {self.owner_level} is the label's level, or given beside owner_table"
            )
        wanted = [column for column in self.beside().values() if not column.isdecimal()]
        if wanted and not self.owner_table:
            raise ConfigError(
                f"ImageFolderConfig: {wanted[0]!r} is no level of folders (a whole number), and owner_table names no "
                "table that could have it as a column"
            )


class _Tree(NamedTuple):
    """The pictures below a folder in the order of their paths, and what was passed over."""

    names: list[str]  # relative to the folder, POSIX
    below: list[tuple[str, ...]]  # the folders between split and file
    words: list[str]  # split: "train", "test" or "val"
    given: bool  # whether folders say the split
    notes: list[str]


def _detects(path: Path) -> bool:
    if not path.is_dir():
        return False
    with contextlib.suppress(DataError):
        if mask_folders(path):
            return False
    with contextlib.suppress(OSError, DataError, UnsafeFile):
        return any(head(file, 4).startswith(PICTURES) for file in _some_files(path))
    return False


def _some_files(folder: Path, *, depth: int = 0, most: int = 20) -> Iterator[Path]:
    """The first files of each folder below, down to six levels: enough to see whether they are pictures."""
    listed = entries(folder)
    yield from ([e for e in listed if not e.is_dir()][:most] if depth else [])
    for entry in listed:
        if entry.is_dir() and not entry.is_symlink() and depth < 6:
            yield from _some_files(entry, depth=depth + 1, most=most)


def _from_path(path: Path, asked: Asked) -> Reading:
    only(
        asked,
        "an image folder",
        id="ids are made from the pictures",
        split="train, test and val folders say it",
        task="it is classification",
        drop="move what is not wanted out of the folder",
    )
    config: dict[str, object] = {"root": str(path)}
    if asked.label is not None:
        if not asked.label.isdecimal():
            raise ConfigError(
                f"--label {asked.label!r} names nothing in an image folder: labels are the names of the sub-folders; "
                "--label 2 takes the second level of them"
            )
        config["label_level"] = int(asked.label)
    if asked.owner is not None:
        config |= {"owner_level": int(asked.owner)} if asked.owner.isdecimal() else _owner_table(path, asked.owner)
    if asked.val is not None:
        config["val"] = asked.val
    tree = _tree(path)
    headers, _ = read_headers(tree.names, lambda row: inside(path, tree.names[row]).open("rb"), PictureConfig(root="."))
    size, notes = as_they_are(headers)
    return Reading(config | size, tuple(notes))


def _owner_table(path: Path, name: str) -> dict[str, object]:
    """Where the table lies: in the folder of the pictures or beside it."""
    if (path / name).is_file():
        return {"owner_table": name}
    beside = path.parent / Path(name).name
    if beside.is_file():
        return {"root": str(path.parent), "folder": path.name, "owner_table": beside.name}
    raise ConfigError(
        f"--owner {name!r} is neither a level of folders (1 is the topmost) nor a table in {path} or beside it; a "
        "table has the columns file and owner"
    )


@source(
    SourceSpec(
        name="image_folder",
        version=2,
        doc="Folder with one sub-folder of images a class, or with train/ and test/ (and val/) of such folders.",
        source="the layout of torchvision.datasets.ImageFolder",
        config=ImageFolderConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def image_folder(*, config: ImageFolderConfig, seed: int) -> ExampleSet:
    """Every image below the class folders.

    Raises:
        UnsafeFile: links that leave the root, images above ``max_pixels``, arrays above ``max_bytes``.
        DataError: one class or none, empty ones, files that are no images or truncated (all named at once), images of
            different sizes, images without an owner where a table names them.
    """
    root = root_folder(config.root)
    base = inside(root, config.folder, folder=True) if config.folder else root
    tree = _tree(base, table=config.owner_table if base == root else "")
    if not tree.names:
        raise DataError(f"{base} holds no images in class folders (root/CLASS/*.png or root/train/CLASS/*.png)")
    kept, split, notes = settle(np.array(tree.words, "<U5"), val=config.val, what="pictures")
    rows = np.flatnonzero(kept)
    names = [tree.names[row] for row in rows]
    labels = _level(tree, rows, config.label_level, what="label")
    owner = _level(tree, rows, config.owner_level, what="owner") if config.owner_level else None
    origin = np.array(names, dtype=str)
    beside = config.beside()
    levels = {name: int(column) for name, column in beside.items() if column.isdecimal()}
    columns = {name: _level(tree, rows, level, what=name) for name, level in levels.items()}
    if config.owner_table:
        wanted = {name: column for name, column in beside.items() if name not in levels}
        owner, more = columns_of(root, config.owner_table, names, base, wanted)
        columns |= {name: as_column(values, origin, name=beside[name]) for name, values in more.items()}
    record = hashlib.sha256()

    def peek(row: int) -> IO[bytes]:
        path = inside(base, names[row])
        check_size(path.stat().st_size, config.max_file_bytes, names[row])
        return path.open("rb")

    def content(row: int) -> bytes:
        data = inside(base, names[row]).read_bytes()
        record.update(f"{names[row]}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        return data

    x = read_pictures(names, peek=peek, content=content, config=config, what=base.name)
    class_names, y = np.unique(labels, return_inverse=True)
    if len(class_names) == 1:
        raise DataError(
            f"{base.name}: all pictures lie in the folder {str(class_names[0])!r}, and the class of a picture is the "
            "sub-folder it lies in (cat/1.png, dog/2.png); a table of labels beside pictures is not read"
        )
    return assemble(
        x,
        y.astype(np.int64),
        name=config.name or base.name,
        task="classification",
        class_names=class_names.tolist(),
        seed=seed,
        test_fraction=config.test_fraction,
        split=split if tree.given else None,
        owner=owner,
        origin=origin,
        standardise=config.standardise,
        columns=columns,
        provenance={
            "source": "image_folder",
            "num_files": len(names),
            "files_sha256": record.hexdigest(),
            "licence": config.licence,
            "notes": [*notes, *tree.notes],
        },
    )


def _tree(root: Path, *, table: str = "") -> _Tree:
    """Every file below the class folders of ``root``.

    Args:
        table: name of a file beside them that is known.

    Raises:
        DataError: class folders without files, all of them named; names that are no text.
    """
    notes: list[str] = []
    top, beside = _unwrapped(root)
    folders = [e for e in entries(top) if e.is_dir()]
    spoken = spoken_for([f.name for f in folders if any(e.is_dir() for e in entries(f))])
    bare = [f.name for f in folders if f.name not in spoken and split_of(f.name)]  # no class folders in it
    given = "train" in spoken.values() and len(spoken) > 1
    beside += [e.name for e in entries(top) if not e.is_dir()]
    if given or (list(spoken.values()) == ["train"] and bare):
        bases = sorted(((top / name, split) for name, split in spoken.items()), key=lambda b: list(WORDS).index(b[1]))
        other = [f.name for f in folders if f.name not in spoken and f.name not in bare]
        notes += [f"folders left out, as they are no split: {', '.join(other)}"] if other else []
        notes += [
            f"{name} is left out: its pictures lie in no class folder, so that they have no label" for name in bare
        ]
    else:
        bases = [(top, "train")]
    found: list[tuple[str, tuple[str, ...], str]] = []
    empty = []
    for base, split in bases:
        base, passed = _unwrapped(base)
        inside(root, base.relative_to(root), folder=True)
        listed = entries(base)
        beside += [*passed, *(e.name for e in listed if not e.is_dir() and base != top)]
        of_split = []
        for folder in (e for e in listed if e.is_dir()):
            files = list(files_below(root, folder))
            empty += [folder.relative_to(root).as_posix()] if not files else []
            of_split += [(p.relative_to(root).as_posix(), p.relative_to(base).parts[:-1], split) for p in files]
        found += sorted(of_split)
    if empty:
        raise DataError(
            f"class folder {', '.join(map(repr, empty[:10]))} holds no images"
            + (f"; {len(empty)} such folders in all" if len(empty) > 1 else "")
        )
    if not given and (words := _split_below(found)):
        given, notes = True, [*notes, "the folders below each class say what is for training and testing"]
        found = [(name, (below[0], *below[2:]), word) for (name, below, _), word in zip(found, words, strict=True)]
    for name, _, _ in found:
        if not name.isprintable():  # also true of bytes that are not UTF-8
            raise DataError(f"file name {name!r} cannot be used: it is not printable text")
    beside = [name for name in beside if name != table]
    if beside:
        more = f" and {len(beside) - 5} more" if len(beside) > 5 else ""
        notes.append(f"files left out, as they lie in no class folder: {', '.join(beside[:5])}{more}")
    junk = Counter(path.name for path in root.rglob("*") if is_junk(path))
    if junk:
        notes.append(f"passed over: {', '.join(f'{name} ({n})' for name, n in junk.most_common(5))}")
    names, below, words = zip(*found, strict=True) if found else ((), (), ())
    return _Tree(list(names), list(below), list(words), given, notes)


def _unwrapped(folder: Path) -> tuple[Path, list[str]]:
    """The folder itself, or the one folder in it where no picture lies beside that (data/data/cat,
    seg_train/seg_train/cat); and the names of the files that were passed by."""
    passed: list[str] = []
    while True:
        folders, files = _listed(folder)
        if len(folders) != 1 or folders[0].is_symlink() or _pictures(files):
            return folder, passed
        below, within = _listed(folders[0])
        if not below or _pictures(within):
            return folder, passed
        passed += [file.name for file in files]
        folder = folders[0]


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder."""
    listed = entries(folder)
    return [e for e in listed if e.is_dir()], [e for e in listed if not e.is_dir()]


def _pictures(files: list[Path]) -> bool:
    return any(head(file, 4).startswith(PICTURES) for file in files)


def _split_below(found: list[tuple[str, tuple[str, ...], str]]) -> list[str]:
    """The split that the folder below its class says of each picture; none unless all say one, and not all the same."""
    words = [split_of(below[1]) if len(below) > 1 else None for _, below, _ in found]
    return [str(word) for word in words] if None not in words and {"train"} < set(words) else []


def _level(tree: _Tree, rows: np.ndarray, level: int, *, what: str) -> np.ndarray:
    """(N,) str, the name of the folder at that level above each picture.

    Raises:
        DataError: pictures that do not lie so deep.
    """
    shallow = [tree.names[row] for row in rows if len(tree.below[row]) < level]
    if shallow:
        raise DataError(f"{len(shallow)} pictures lie in no folder of level {level}, the {what}'s", where=shallow)
    return np.array([tree.below[row][level - 1] for row in rows], dtype=str)


def columns_of(
    root: Path, table: str, names: list[str], base: Path, wanted: dict[str, str]
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """(N,) str, the owner of each picture, and the wanted columns by name: of the row of its path, else of its file
    name where that is unique in the table. None where the table has columns that are wanted, and none of owners.

    Raises:
        DataError: columns that are missing, files named twice, pictures without a row.
    """
    data = read_table(root, table, max_bytes=MAX_BYTES)
    file = next((n for n in data.schema if n.lower() in _FILE_COLUMNS), None)
    rest = [n for n in data.schema if n != file and n not in wanted.values()]
    owner = next((n for n in rest if n.lower() == "owner"), rest[0] if len(rest) == 1 and not wanted else None)
    if file is None or (owner is None and not wanted):
        raise DataError(f"{table} needs the columns file and owner; it has: {', '.join(data.schema)}")
    paths = data.column(file).cast(pl.String).fill_null("").to_list()
    known = {path: at for at, path in enumerate(paths)}
    if len(known) < len(paths):
        doubled = [name for name, n in Counter(paths).items() if n > 1]
        raise DataError(f"{table}: {len(doubled)} files are named more than once: {', '.join(doubled[:10])}")
    missing = []
    found = []
    for name in names:
        keys = (name, f"{base.name}/{name}", Path(name).name)
        key = next((k for k in keys if k in known), None)
        missing += [name] if key is None else []
        found.append(-1 if key is None else known[key])
    if missing:
        raise DataError(f"{table}: {len(missing)} pictures have no row", where=missing)
    columns = {}
    for name, column in wanted.items():
        series = data.column(column).gather(found)
        if series.dtype.is_temporal() or series.dtype.is_nested():
            raise DataError(
                f"{table}: column {column!r} is {series.dtype}; whole numbers and text are kept as {name!r}"
            )
        numbers = series.dtype.is_numeric() and not series.null_count()
        texts = series.cast(pl.String).fill_null("")
        columns[name] = series.to_numpy() if numbers else np.array(texts.to_list(), dtype=str)
    owners = None if owner is None else as_texts(data.column(owner)).fill_null("").gather(found)
    return None if owners is None else np.array(owners.to_list(), dtype=str), columns
