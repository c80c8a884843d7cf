"""A data set as a folder for other programs: whole or not there at all, with a manifest of what was written.

    FOLDER/manifest.json     SHA-256 and size of every other file, digest of the examples, where they are from
    FOLDER/...               the format's own files, and the documents that the caller gives (data sheet, metadata)

It is written beside its place and renamed at the end, so that a folder of that name is a whole export.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from contracts.errors import ConfigError, DataError, IntegrityError, UnknownName
from contracts.progress import Progress
from curation.export.arrays import idx, npz
from curation.export.columns import jsonl, parquet
from curation.export.images import class_folders, webdataset
from sources.example_set import ExampleSet

MANIFEST = "manifest.json"
FORMATS: Mapping[str, Callable[[ExampleSet, Path, Progress], None]] = {
    "parquet": parquet,
    "jsonl": jsonl,
    "npz": npz,
    "idx": idx,
    "folder": class_folders,
    "webdataset": webdataset,
}
Documents = Callable[[Mapping[str, Mapping[str, Any]]], Mapping[str, str | Iterable[str]]]


def export_set(
    data: ExampleSet,
    to: Path,
    *,
    format: str,
    made: Mapping[str, str],
    documents: Documents,
    progress: Progress,
) -> Path:
    """Write a data set into a new folder; its manifest's path.

    Args:
        data: examples, both splits or one.
        to: the folder; it is made, and may exist only if it is empty.
        format: one of ``FORMATS``.
        made: where the set is from, text -> text, for the manifest.
        documents: the format's files with their SHA-256 and sizes -> {file name: text, or its parts in order} that is
            written beside them.

    Raises:
        UnknownName: the format; lists the known.
        DataError: there is no example.
        ConfigError: the folder cannot be made: see :func:`refuse_folder`.
        NotApplicable: the examples do not fit the format; says which they do.
    """
    if format not in FORMATS:
        raise UnknownName("export format", format, FORMATS)
    refuse_folder(to)
    if not len(data):
        raise DataError(f"{data.name}: there is no example to export")
    partial = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.absolute().parent))
    try:
        FORMATS[format](data, partial, progress)
        files = _listed(partial)
        for name, text in documents(files).items():
            with (partial / name).open("w", encoding="utf-8") as file:
                file.writelines([text] if isinstance(text, str) else text)
        about = {
            "format": format,
            "examples": len(data),
            "digest": data.digest,
            "class_names": list(data.class_names),
            "made": dict(made),
            "files": _listed(partial, known=files),
        }
        (partial / MANIFEST).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        for path in (*(p for p in partial.rglob("*") if p.is_file()), partial):
            _to_disk(path)
        partial.rename(to)
        _to_disk(to.absolute().parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return to / MANIFEST


def _to_disk(path: Path) -> None:
    """What is in a file, or which files are in a folder, is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_folder(to: Path) -> None:
    """Raise :class:`ConfigError` for a folder that an export cannot be written to."""
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise ConfigError(f"{to} is there already: an export is written to a new folder, and overwrites nothing")
    if not to.absolute().parent.is_dir():
        raise ConfigError(f"{to} cannot be written: no folder {to.absolute().parent}")


def verify_export(folder: Path) -> int:
    """Compare an exported folder with its manifest; the number of files that were read.

    Raises:
        IntegrityError: no manifest, or files that are missing, changed, or not listed; names them.
    """
    path = folder / MANIFEST
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder} is no whole export: {path.name} cannot be read ({error})") from error
    found = {name: facts for name, facts in _listed(folder).items() if name != MANIFEST}
    wrong = [f"{name} is missing" for name in sorted(set(listed) - set(found))]
    wrong += [f"{name} is not listed" for name in sorted(set(found) - set(listed))]
    wrong += [f"{name} was changed" for name in sorted(set(found) & set(listed)) if found[name] != listed[name]]
    if wrong:
        raise IntegrityError(f"{folder} is not what was exported: {'; '.join(wrong[:10])}")
    return len(found)


def _listed(folder: Path, *, known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """Path below the folder -> SHA-256 and size, in the order of the paths; those that are ``known`` are not read
    again."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if known is not None and name in known:
            found[name] = known[name]
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[name] = {"sha256": digest, "bytes": path.stat().st_size}
    return found
