"""Bulk results on disk: safetensors and report files, each with a SHA-256 manifest that is verified on every read.

Layout under ``home/artifacts`` for the name ``digits/models/target``:

    digits/models/target.<first 16 hex of SHA-256>.safetensors    the content, never changed in place
    digits/models/target.manifest.json                            names it; its rename is the moment of change

so that a reader sees the old artefact or the new one, whenever the writer dies. A file for people
(``digits/report.html``) gets its plain name as a second link to the same content. No pickle, and nothing is read by
its suffix: an artefact exists when its manifest does.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from contracts.digests import canonical_json, digest
from contracts.errors import DataError, Erased, IllegalName, IntegrityError, NotReady, UnsafeFile
from warehouse import fsio
from warehouse.faults import fault
from warehouse.filesums import FileSums

_META = "palimpsest"
_OS_ERROR = re.compile(r"os error (\d+)")  # how the library tells what the disk said
_MANIFEST = ".manifest.json"
ERASED = ".erased.json"  # in place of the manifest of what was erased for a forget request: for which, and when
_MAX_HEADER = 100 << 20
_MAX_MANIFEST = 16 << 20
_DTYPE_OF: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPES = frozenset(dtype.name for dtype in _DTYPE_OF.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A stored result: ``path`` is the file for people (reports) or the content itself (safetensors)."""

    name: str
    path: Path
    sha256: str
    size_bytes: int
    kind: str = "safetensors"

    def output(self) -> dict[str, Any]:
        """This artefact as an output of a stage, for ``Warehouse.complete``."""
        return {"kind": "artifact", "name": self.name, "digest": self.sha256}


class ArtifactStore:
    """Artefacts by name below one folder (``w.artifacts``).

    Attributes:
        sums: what is known of files that were read before; :meth:`trouble` alone believes it.
    """

    def __init__(self, root: Path, *, sums: FileSums | None = None) -> None:
        self.root, self.sums = root, sums or FileSums()

    def save(self, name: str, tensors: Mapping[str, Any], meta: Mapping[str, Any], *, finite: bool = True) -> Artifact:
        """Store numpy arrays (and a JSON-able ``meta``) under ``name``, replacing an earlier one.

        Raises:
            DataError: an array of a type without a plain form, or (unless ``finite`` is False) with NaN or Inf.
            IllegalName, UnsafeFile: the name.
        """
        arrays = {key: _array(name, key, value, finite=finite) for key, value in tensors.items()}
        embedded = {_META: canonical_json(meta)}

        def write(file: Path) -> None:  # from the arrays as they lie: nothing is copied
            try:
                safetensors.numpy.save_file(arrays, file, metadata=embedded)
            except safetensors.SafetensorError as error:
                code = _OS_ERROR.search(str(error))
                if code is None:
                    raise
                raise OSError(int(code[1]), os.strerror(int(code[1])), str(file)) from error

        return self._store(name, write, "safetensors", meta)

    def load(self, name: str, *, finite: bool = False) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        """The arrays and meta of ``name``, after verifying manifest, digest and header.

        The arrays lie in the file, which is mapped (copy on write: what is written to them stays in memory), so that
        evidence larger than memory can be read.

        Raises:
            NotReady: there is none.
            IntegrityError: what is stored is not what was written (or, with ``finite``, holds NaN or Inf).
        """
        path, manifest, data = self._read(name, "safetensors")
        spans = check_header(data, path)
        arrays = {key: np.frombuffer(data, t.dtype, t.size, t.start).reshape(t.shape) for key, t in spans.items()}
        if finite:
            for key, value in arrays.items():
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise IntegrityError(f"{path}: tensor {key} holds NaN or Inf")
        return arrays, dict(manifest["meta"])

    def save_bytes(self, name: str, data: bytes, *, meta: Mapping[str, Any] | None = None) -> Artifact:
        """Store a file for people, e.g. ``digits/report.html``; it is found under that name."""
        if not Path(name).suffix:
            raise DataError(f"artefact {name}: a file for people needs a suffix such as .html")

        def write(file: Path) -> None:
            file.write_bytes(data)

        return self._store(name, write, Path(name).suffix[1:], meta or {})

    def load_bytes(self, name: str) -> bytes:
        """The verified content of a file stored by :meth:`save_bytes`.

        Raises:
            NotReady, IntegrityError: as :meth:`load`.
        """
        return bytes(self._read(name, "")[2])

    def save_json(self, name: str, value: Any) -> Artifact:
        """Store JSON-able ``value`` as ``name`` + ``.json``."""
        return self.save_bytes(_json_name(name), canonical_json(value).encode("utf-8"))

    def load_json(self, name: str) -> Any:
        return json.loads(self.load_bytes(_json_name(name)))

    def describe(self, name: str) -> Artifact:
        """Name, path, digest and size from the manifest, without reading the content.

        Raises:
            NotReady: there is none.
            IntegrityError: the manifest is damaged.
        """
        manifest = self._manifest(name)
        return self._artifact(name, manifest)

    def sha256(self, name: str) -> str:
        return self.describe(name).sha256

    def verified(self, name: str) -> Artifact:
        """As :meth:`describe`, after reading all there is of ``name``: the manifest against itself, the content and the
        file for people against the manifest's digest, and the manifest's ``meta`` against the copy in the content.

        Raises:
            NotReady, IntegrityError, UnsafeFile: as :meth:`load`; names the file.
        """
        manifest = self._manifest(name)
        content = self._content_path(name, manifest)
        found = self._artifact(name, manifest)
        for path in dict.fromkeys((content, found.path)):
            try:
                same = fsio.sha256_of(path) == manifest["sha256"]
            except FileNotFoundError:
                raise IntegrityError(f"{path} is named by its manifest but does not exist") from None
            if not same:
                raise IntegrityError(f"{path} is damaged or was changed: its SHA-256 is not the one of its manifest")
        if manifest["kind"] == "safetensors" and _embedded(content) != canonical_json(manifest["meta"]):
            raise IntegrityError(f"{self._manifest_path(name)} was changed: its meta is not the one in {content.name}")
        return found

    def exists(self, name: str) -> bool:
        return self._manifest_path(name).exists()

    def holds(self, name: str, sha256: str) -> bool:
        """Whether ``name`` is stored with that digest, and undamaged; see :meth:`trouble`."""
        return not self.trouble(name, sha256)

    def trouble(self, name: str, sha256: str) -> str:
        """What is wrong with ``name`` as the artefact of that SHA-256, in words; "" where the manifest, the content and
        the file for people are as they were written. A file is read again only where something happened to it since it
        was read last (``warehouse.filesums``); :meth:`load` and :meth:`verified` always read."""
        try:
            manifest = self._manifest(name)
            if manifest["sha256"] != sha256:
                return f"artefact {name} was replaced by another"
            for path in dict.fromkeys((self._content_path(name, manifest), self._artifact(name, manifest).path)):
                if self.sums.sha256(path) != sha256:
                    return f"{path} is damaged or was changed: its SHA-256 is not the one on record"
        except (NotReady, IntegrityError, UnsafeFile) as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or name} cannot be read ({error.strerror})"
        return ""

    def remove(self, name: str, *, erased_for: str = "", at: str = "") -> None:
        """Delete ``name``; the manifest goes first, so no reader finds half of it.

        Args:
            erased_for: the forget request, of which whoever asks for the artefact is told; at: when, ISO 8601.
        """
        path = self._manifest_path(name)
        if not path.parent.exists():
            return
        with fsio.locked_folder(path.parent):
            fsio.sweep(path.parent)
            if erased_for:
                told = {"name": name, "request": erased_for, "at": at}
                sealed = canonical_json({**told, "check": digest(told)})
                fsio.write_bytes(self._erased_path(name), sealed.encode("utf-8") + b"\n")
            fault("erasure.after_tombstone")
            fsio.remove(path)
            fsio.remove(self._path(name))
            self._drop_content(name, keep="")
            fsio.sync_folder(path.parent)

    def names(self, prefix: str = "") -> list[str]:
        """Names of everything stored, or of what lies below ``prefix``."""
        base = fsio.confined(self.root, prefix) if prefix else self.root
        manifests = base.glob(f"**/*{_MANIFEST}")
        return sorted(m.relative_to(self.root).as_posix().removesuffix(_MANIFEST) for m in manifests)

    def store(self, prefix: str) -> PrefixStore:
        """The part of this store below ``prefix``, as a training's ``CheckpointStore``."""
        fsio.confined(self.root, prefix)
        return PrefixStore(self, prefix)

    def _store(self, name: str, write: Callable[[Path], None], kind: str, meta: Mapping[str, Any]) -> Artifact:
        path = self._path(name)
        fsio.make_folder(path.parent)
        with fsio.locked_folder(path.parent), fsio.staged(path) as made:
            fsio.sweep(path.parent)
            write(made)
            manifest = {
                "format": 1,
                "name": name,
                "kind": kind,
                "sha256": fsio.sha256_of(made),
                "size_bytes": made.stat().st_size,
                "meta": dict(meta),
            }
            content = self._content_path(name, manifest)
            if not self._unchanged(name, manifest, content):
                fault("artifacts.before_content")
                fsio.adopt(made, content)
                fault("artifacts.after_content")
                sealed = canonical_json({**manifest, "check": digest(manifest)})
                fsio.write_bytes(self._manifest_path(name), sealed.encode("utf-8") + b"\n")
                fsio.remove(self._erased_path(name))
                fault("artifacts.after_manifest")
            if kind != "safetensors" and not (path.exists() and path.samefile(content)):
                fsio.link_over(content, path)
            self._drop_content(name, keep=content.name)
        return self._artifact(name, manifest)

    def _unchanged(self, name: str, manifest: Mapping[str, Any], content: Path) -> bool:
        """The same is already there, and still intact: then writing it again would change nothing."""
        try:
            stored = self._manifest(name)
            return digest(stored) == digest(manifest) and fsio.sha256_of(content) == manifest["sha256"]
        except (NotReady, IntegrityError, OSError):
            return False

    def _read(self, name: str, kind: str) -> tuple[Path, Mapping[str, Any], mmap.mmap | bytes]:
        """Verified content, mapped. A writer may replace the artefact between our two reads: then look again."""
        for attempt in range(5):
            manifest = self._manifest(name)
            path = self._content_path(name, manifest)
            if kind and manifest["kind"] != kind:
                raise IntegrityError(f"{path} is {manifest['kind']}, expected {kind}")
            try:
                if path.stat().st_size != manifest["size_bytes"]:
                    raise IntegrityError(
                        f"{path} has {path.stat().st_size} bytes, its manifest says {manifest['size_bytes']}"
                    )
                data = _mapped(path)
            except FileNotFoundError:
                if attempt < 4 and self._manifest(name)["sha256"] != manifest["sha256"]:
                    continue
                raise IntegrityError(f"{path} is named by its manifest but does not exist") from None
            if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                raise IntegrityError(f"{path} is damaged: its SHA-256 is not the one its manifest records")
            return path, manifest, data
        raise IntegrityError(f"artefact {name} changed five times while it was read")

    def _manifest(self, name: str) -> dict[str, Any]:
        path = self._manifest_path(name)
        try:
            if path.stat().st_size > _MAX_MANIFEST:
                raise UnsafeFile(f"{path} has {path.stat().st_size} bytes; a manifest has at most {_MAX_MANIFEST}")
            text = path.read_bytes()
        except FileNotFoundError:
            self._refuse_erased(name)
            raise NotReady(f"there is no artefact {name!r} yet ({path} does not exist)") from None
        try:
            manifest = json.loads(text)
            check = manifest.pop("check")
            if check != digest(manifest) or manifest["name"] != name or manifest["format"] != 1:
                raise ValueError
            # Every byte counts: also a flip in the white space or in an escape is a damaged file.
            if text != canonical_json({**manifest, "check": check}).encode("utf-8") + b"\n":
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{path} is damaged: it is not the manifest of {name} that was written") from error
        return dict(manifest)

    def _artifact(self, name: str, manifest: Mapping[str, Any]) -> Artifact:
        binary = manifest["kind"] == "safetensors"
        path = self._content_path(name, manifest) if binary else self._path(name)
        return Artifact(
            name=name, path=path, sha256=manifest["sha256"], size_bytes=manifest["size_bytes"], kind=manifest["kind"]
        )

    def _path(self, name: str) -> Path:
        path = fsio.confined(self.root, name)
        for kept in (_MANIFEST, ERASED):
            if path.name.endswith(kept):
                raise IllegalName(f"artefact name {name!r} is not allowed: {kept} is kept for manifests")
        return path

    def _erased_path(self, name: str) -> Path:
        path = self._path(name)
        return path.with_name(path.name + ERASED)

    def _refuse_erased(self, name: str) -> None:
        """Nothing, where ``name`` was not erased.

        Raises:
            Erased: it was. IntegrityError: what says so is damaged.
        """
        try:
            told = self.erased(name)
        except FileNotFoundError:
            return
        raise Erased(
            f"artefact {name!r} was erased for forget request {told['request']} on {told['at'][:10]}: what it held "
            "cannot be rebuilt; an audit makes a new one, without the examples of that request"
        )

    def erased(self, name: str) -> dict[str, str]:
        """What lies in place of an erased artefact: its name, for which request, when.

        Raises:
            FileNotFoundError: nothing. IntegrityError: it is damaged.
        """
        path = self._erased_path(name)
        text = path.read_bytes()
        try:
            told = {key: str(value) for key, value in json.loads(text).items()}
            check = told.pop("check", None)  # earlier versions wrote none
            sealed = told if check is None else {**told, "check": digest(told)}
            if set(told) != {"name", "request", "at"} or told["name"] != name:
                raise ValueError
            if text != canonical_json(sealed).encode("utf-8") + b"\n":
                raise ValueError
        except (ValueError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{path} is damaged: it does not say for which request {name} was erased") from error
        return told

    def _manifest_path(self, name: str) -> Path:
        path = self._path(name)
        return path.with_name(path.name + _MANIFEST)

    def _content_path(self, name: str, manifest: Mapping[str, Any]) -> Path:
        path = self._path(name)
        return path.with_name(f"{path.name}.{manifest['sha256'][:16]}.{manifest['kind']}")

    def _drop_content(self, name: str, *, keep: str) -> None:
        """Remove content that no manifest names any more."""
        path = self._path(name)
        for old in path.parent.glob(f"{path.name}.{'[0-9a-f]' * 16}.*"):
            if old.name != keep:
                fsio.remove(old)


@dataclass(frozen=True, slots=True)
class PrefixStore:
    """``contracts.stores.CheckpointStore`` below a prefix. Checkpoints may hold NaN: resuming must not change them."""

    artifacts: ArtifactStore
    prefix: str

    def save(self, name: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
        return self.artifacts.save(f"{self.prefix}/{name}", tensors, meta, finite=False).sha256

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return self.artifacts.load(f"{self.prefix}/{name}")
        except NotReady:
            return None


class Span(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    size: int


def check_header(data: mmap.mmap | bytes, path: Path) -> dict[str, Span]:
    """Where each tensor of a safetensors image lies, by name.

    An image is refused whose header lies: too long, tensors that overlap, leave gaps, leave the file, or whose size is
    not that of their shape. Nothing is allocated from what the header claims.

    Raises:
        UnsafeFile: with what is wrong.
    """
    if len(data) < 8:
        raise UnsafeFile(f"{path} is too short to be safetensors: {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER, len(data) - 8):
        raise UnsafeFile(
            f"{path} claims a header of {length} bytes; the file has {len(data)}, the limit is {_MAX_HEADER}"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        spans: list[tuple[int, int, str, tuple[int, ...], str]] = sorted(
            (int(t["data_offsets"][0]), int(t["data_offsets"][1]), t["dtype"], tuple(map(int, t["shape"])), key)
            for key, t in header.items()
            if len(t["data_offsets"]) == 2
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UnsafeFile(f"{path} has no valid safetensors header: {error}") from error
    end = 0
    found: dict[str, Span] = {}
    for first, last, dtype, shape, key in spans:
        size = _DTYPE_OF[dtype].itemsize * math.prod(shape) if dtype in _DTYPE_OF else 0
        if dtype not in _DTYPE_OF or min(shape, default=0) < 0:
            raise UnsafeFile(f"{path} has a tensor of type {dtype} and shape {shape}")
        if first != end or last - first != size:
            raise UnsafeFile(f"{path} has a tensor at bytes {first} to {last}, expected {end} to {end + size}")
        end = last
        found[key] = Span(_DTYPE_OF[dtype], shape, 8 + length + first, math.prod(shape))
    if 8 + length + end != len(data):
        raise UnsafeFile(f"{path} has {len(data)} bytes, its header accounts for {8 + length + end}")
    return found


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The file's bytes; writing to them changes no file."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _embedded(path: Path) -> str | None:
    """The ``meta`` that :meth:`ArtifactStore.save` wrote into a safetensors file; None when there is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, _MAX_HEADER))
    try:
        meta = json.loads(text)["__metadata__"][_META]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(meta)


def _array(name: str, key: str, value: Any, *, finite: bool) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise DataError(f"artefact {name}: tensor {key} has type {array.dtype}; allowed: {', '.join(sorted(_DTYPES))}")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"artefact {name}: tensor {key} holds NaN or Inf")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def _json_name(name: str) -> str:
    return name if name.endswith(".json") else name + ".json"
