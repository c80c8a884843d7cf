"""Pictures in a table: Parquet with a column of encoded pictures, as Hugging Face's ``datasets`` writes them, or shards
of one.

    image   {bytes, path} or bytes      one PNG, JPEG, ... a row; decoded as ``sources.pictures`` says
    label   whole numbers or text       names of the classes from the footer, where it has them

Rows that hold a path and no bytes are refused: nothing outside the table is opened. Ids without an ``id`` column come
from pixels, label, owner and given split.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked, Reading, SourceSpec, source
from contracts.params import param
from sources.assemble import assemble
from sources.example_set import ExampleSet
from sources.files import manifest, root_folder
from sources.pictures import PictureConfig, as_they_are, read_headers, read_pictures
from sources.table import (
    ColumnsConfig,
    beside_columns,
    column_ids,
    column_labels,
    column_texts,
    given_split,
    named_columns,
)
from sources.table_files import Table, picture_column, read_table


@dataclass(frozen=True, kw_only=True)  # no slots: two bases have them
class ImageTableConfig(ColumnsConfig, PictureConfig):
    """Fields of a table of pictures."""

    image: str = param("image", doc="column of the pictures")

    def check(self) -> None:
        super().check()
        if self.image in (self.label, self.owner, self.id, self.split):
            raise ConfigError(f"ImageTableConfig: column {self.image!r} has two roles")


def _detects(path: Path) -> bool:
    return picture_column(path) is not None


def _from_path(path: Path, asked: Asked) -> Reading:
    data, config, notes = named_columns(path, asked)
    image = str(picture_column(path))
    used = {image, *(config.get(role) for role in ("label", "owner", "id", "split"))}
    unused = [n for n in data.schema if n not in used]
    notes += (
        [f"columns left out, as the pictures in {image!r} are what a model sees: {', '.join(unused)}"] if unused else []
    )
    contents, names = _contents(data, image)
    headers, _ = read_headers(names, lambda row: io.BytesIO(contents[row] or b""), PictureConfig(root="."))
    size, read = as_they_are(headers)
    return Reading(config | size | ({"image": image} if image != "image" else {}), (*notes, *read))


@source(
    SourceSpec(
        name="image_table",
        doc="Parquet with a column of encoded pictures (Hugging Face's image columns), or a folder of such shards.",
        source="Hugging Face datasets, the Image feature",
        config=ImageTableConfig,
        detects=_detects,
        from_path=_from_path,
    )
)
def image_table(*, config: ImageTableConfig, seed: int) -> ExampleSet:
    """The pictures of one table.

    Raises:
        UnsafeFile: outside the root, images above ``max_pixels``, arrays above ``max_bytes``.
        DataError: columns that are missing, labels that are missing, pictures that cannot be read (all named at once).
    """
    root = root_folder(config.root)
    data, split, notes = given_split(read_table(root, config.file, max_bytes=config.max_bytes), config)
    origin = data.origin()
    ids = column_ids(data, config.id) if config.id else None
    task, y, class_names, mapped = column_labels(data, config, origin)
    contents, names = _contents(data, config.image)
    absent = [name for name, content in zip(names, contents, strict=True) if content is None]
    if absent:
        raise DataError(
            f"{data.name}: column {config.image!r} holds no bytes in {len(absent)} rows (a path alone is not opened)",
            where=absent,
        )
    x = read_pictures(
        names,
        peek=lambda row: io.BytesIO(contents[row] or b""),
        content=lambda row: contents[row] or b"",
        config=config,
        what=data.name,
    )
    return assemble(
        x,
        y,
        name=config.name or Path(data.name).stem,
        task=task,
        class_names=class_names,
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=ids,
        split=split,
        owner=column_texts(data, config.owner, max_bytes=config.max_bytes) if config.owner else None,
        origin=origin,
        standardise=config.standardise,
        columns=beside_columns(data, config),
        provenance={
            "source": "image_table",
            "files": manifest(root, data.paths),
            "licence": config.licence,
            "notes": [*notes, *mapped],
        },
    )


def _contents(data: Table, image: str) -> tuple[list[bytes | None], list[str]]:
    """The encoded picture of each row, None where there is none, and where it lies."""
    series = data.column(image)
    if isinstance(series.dtype, pl.Struct):
        series = series.struct.field("bytes")
    if series.dtype != pl.Binary:
        raise DataError(f"{data.name}: column {image!r} is {series.dtype}; pictures are encoded bytes")
    return series.to_list(), data.origin().tolist()
