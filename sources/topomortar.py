"""TopoMortar: 420 photographs of brick walls with their mortar as the mask, labels of three qualities, six shifted
groups.

    root/dataset/{train,val,test}/images/NNN.png                         RGB, 512 x 512
    root/dataset/{train,val,test}/{accurate,noisy,pseudo}/NNN.png        0 brick, 255 mortar; test walls: accurate alone
    root/dataset/splits.yaml, splits_small.yaml                          {1: {train: [path], val: [path], test: [path]}}
    root/dataset/dataset_types.txt                                       ID,group: indistr, or a kind of shift

git clone https://github.com/jmlipman/TopoMortar, and root is that folder. 50 training walls (10 of them in the small
set), 20 for validation, 350 to test on: 50 like the others and 50 of each shifted group. Column ``domain`` is the
group, ``id`` for ``indistr``. Test walls have accurate labels whatever is trained on. The shifted groups differ from
the training walls on purpose: leave them out (``shifted: false``) where members are told from test examples.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365); photographs and masks under the MIT licence.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import yaml

from contracts.errors import DataError
from contracts.methods import SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.brick_wall import LABELS
from sources.example_set import ExampleSet
from sources.files import check_size, inside, root_folder
from sources.given_splits import VAL, settle
from sources.image_masks import read_masks
from sources.pictures import PictureConfig, read_headers, read_pictures

_SPLITS = ("train", "val", "test")
_PLAIN = "indistr"
_VALUES, _MORTAR = (0, 255), 128
_ODD = 0.01  # share of pixels; one published mask has six pixels of value 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TopoMortarConfig(PictureConfig):
    """Which part of the data set, and which labels are learnt."""

    labels: str = param("accurate", choices=LABELS, doc="of training and validation walls")
    small: bool = param(False, doc="the training set of 10 walls, not that of 50")
    shifted: bool = param(True, doc="test walls of the six shifted groups too")
    val: str = param("auto", choices=VAL, doc="the 20 validation walls: auto leaves them out")


@source(
    SourceSpec(
        name="topomortar",
        doc="The TopoMortar photographs of brick walls, by the path of a checkout.",
        source="https://github.com/jmlipman/TopoMortar",
        config=TopoMortarConfig,
    )
)
def topomortar(*, config: TopoMortarConfig, seed: int) -> ExampleSet:
    """Every wall of the split files, uint8 (N, 3, H, W), with its mask.

    Raises:
        UnsafeFile: paths that leave the root, images above ``max_pixels``, arrays above ``max_bytes``.
        DataError: a list, a picture or a mask is missing or cannot be read; masks with values other than 0 and 255; a
            wall that is listed twice or whose group is not known.
    """
    root = root_folder(config.root)
    listed = _listed(root, "dataset/splits_small.yaml" if config.small else "dataset/splits.yaml", config)
    group_of = _groups(root, "dataset/dataset_types.txt", config)
    if unknown := sorted({Path(name).stem for _, name in listed} - group_of.keys()):
        raise DataError("walls without a group in dataset_types.txt", where=unknown)
    if not config.shifted:
        listed = [(split, name) for split, name in listed if group_of[Path(name).stem] == _PLAIN]
    kept, split, notes = settle(np.array([word for word, _ in listed], "<U5"), val=config.val, what="walls")
    chosen = [listed[row] for row in np.flatnonzero(kept)]
    images = [name for _, name in chosen]
    masks = [_mask_of(name, "accurate" if word == "test" else config.labels) for word, name in chosen]
    record = hashlib.sha256()

    def read(name: str) -> bytes:
        path = inside(root, name)
        check_size(path.stat().st_size, config.max_file_bytes, name)
        data = path.read_bytes()
        record.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        return data

    def peek(row: int) -> IO[bytes]:
        return inside(root, images[row]).open("rb")

    headers, _ = read_headers(images, peek, config)
    x = read_pictures(images, peek=peek, content=lambda row: read(images[row]), config=config, what="TopoMortar")
    sizes = [header.size for header in headers if header is not None]
    raw = read_masks(masks, read, sizes, (x.shape[2], x.shape[3]), max_bytes=config.max_bytes)
    other = (~np.isin(raw, _VALUES)).mean(axis=(1, 2))
    if (other > _ODD).any():
        raise DataError(
            f"{int((other > _ODD).sum())} masks hold values other than 0 and 255 in over {_ODD:.0%} of their pixels",
            where=[masks[row] for row in np.flatnonzero(other > _ODD)],
        )
    if other.any():
        notes = [*notes, f"{int((other > 0).sum())} masks hold other values than 0 and 255: mortar from {_MORTAR} on"]
    groups = [group_of[Path(name).stem] for name in images]
    return assemble(
        x,
        (raw >= _MORTAR).astype(np.uint8),
        name=config.name or "topomortar",
        task="segmentation",
        class_names=("brick", "mortar"),
        seed=seed,
        test_fraction=config.test_fraction,
        split=split,
        origin=np.array(images, dtype=str),
        standardise=config.standardise,
        columns={"domain": np.array(["id" if group == _PLAIN else group for group in groups], dtype=str)},
        provenance={
            "source": "topomortar",
            "num_files": 2 * len(images),
            "files_sha256": record.hexdigest(),
            "licence": config.licence or "MIT, jmlipman/TopoMortar",
            "notes": [f"labels of training walls are {config.labels}, those of test walls accurate", *notes],
        },
    )


def _listed(root: Path, name: str, config: TopoMortarConfig) -> list[tuple[str, str]]:
    """(split, path of the picture below the root) of fold 1, by split and path."""
    try:
        fold = yaml.safe_load(_text(root, name, config))[1]
        found = [(split, str(path)) for split in _SPLITS for path in fold[split]]
    except (yaml.YAMLError, LookupError, TypeError) as error:
        raise DataError(f"{name} is no list of walls by split ({type(error).__name__})") from None
    names = [path for _, path in found]
    if doubled := sorted({path for path in names if names.count(path) > 1}):
        raise DataError(f"{name} lists {len(doubled)} walls twice", where=doubled)
    return sorted(found, key=lambda pair: (_SPLITS.index(pair[0]), pair[1]))


def _groups(root: Path, name: str, config: TopoMortarConfig) -> dict[str, str]:
    """Number of a wall, as text -> its group."""
    rows = csv.DictReader(io.StringIO(_text(root, name, config)))
    if not {"ID", "group"} <= set(rows.fieldnames or ()):
        raise DataError(f"{name} has columns {rows.fieldnames}; ID and group are needed")
    return {row["ID"]: row["group"] for row in rows}


def _mask_of(image: str, labels: str) -> str:
    """dataset/train/images/001.png -> dataset/train/noisy/001.png."""
    path = Path(image)
    return (path.parent.parent / labels / path.name).as_posix()


def _text(root: Path, name: str, config: TopoMortarConfig) -> str:
    path = inside(root, name)
    check_size(path.stat().st_size, config.max_file_bytes, name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{name} is no text") from None
