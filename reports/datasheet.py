"""What a data set is, for whoever gets it: a data sheet in Markdown and HTML, and Croissant metadata.

Source: Gebru et al., "Datasheets for Datasets" (CACM 2021): motivation aside, what can be told from records: where it
is from, how it was made, what is in it, what was left out and why. Croissant: Akhtar et al., "Croissant: A Metadata
Format for ML-Ready Datasets" (NeurIPS 2024), format 1.0, JSON-LD.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.errors import ConfigError

_CROISSANT = "http://mlcommons.org/croissant/"
_TYPES = {"parquet": "application/x-parquet", "jsonl": "application/jsonlines", "png": "image/png", "csv": "text/csv"}


@dataclass(frozen=True, kw_only=True)
class Datasheet:
    """Attributes:
    name, description: of the set, one line each.
    facts: what it is and where it is from, label -> text: number of examples, shape, source, licence, digest.
    steps: how it was made, one sentence each, in order.
    classes: (class, examples); none where there are no classes.
    rates: what is known of its quality, label -> text.
    scores: rows (score, mean, 5%, median, 95%, what a high value means).
    excluded: (reason, examples) of the examples of the original set that are not in it.
    columns: (column, what it is) of the files.
    """

    name: str
    description: str
    facts: Mapping[str, str]
    steps: Sequence[str] = ()
    classes: Sequence[tuple[str, int]] = ()
    rates: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[tuple[str, str, str, str, str, str]] = ()
    excluded: Sequence[tuple[str, int]] = ()
    columns: Sequence[tuple[str, str]] = ()

    def sections(self) -> list[tuple[str, Sequence[str], Sequence[Sequence[Any]]]]:
        """(title, head of the table, rows) of those that have something to say."""
        every: list[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = [
            ("What it is", ("", ""), list(self.facts.items())),
            ("How it was made", ("step", ""), [(n, step) for n, step in enumerate(self.steps, 1)]),
            ("Examples of each class", ("class", "examples"), self.classes),
            ("Quality", ("", ""), list(self.rates.items())),
            ("Scores", ("score", "mean", "5%", "median", "95%", "higher means"), self.scores),
            ("Left out, and why", ("reason", "examples"), self.excluded),
            ("Columns", ("column", "what it is"), self.columns),
        ]
        return [section for section in every if section[2]]


def to_markdown(sheet: Datasheet) -> str:
    """The data sheet; what comes from data cannot end a cell or start a tag."""

    def cell(value: Any) -> str:
        text = f"{value:,}" if isinstance(value, int) else str(value)
        return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")

    out = [f"# {cell(sheet.name)}", "", cell(sheet.description), ""]
    for title, head, rows in sheet.sections():
        out += [f"## {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        out += [f"| {' | '.join(map(cell, row))} |" for row in rows] + [""]
    return "\n".join(out)


def to_html(sheet: Datasheet) -> str:
    """The data sheet as one page that needs no network."""
    from reports.page import template

    return template("datasheet.html.j2").render(sheet=sheet, sections=sheet.sections())


def to_croissant(sheet: Datasheet, files: Mapping[str, Mapping[str, Any]], *, licence: str, version: str) -> str:
    """Croissant metadata (JSON-LD) of an exported folder.

    Args:
        files: path -> {"sha256", "bytes"}, of the format's own files.
        licence: a URL or an SPDX name; "" leaves it out.
        version: major.minor.patch.

    Raises:
        ConfigError: no files.
    """
    if not files:
        raise ConfigError("Croissant metadata are of at least one file")
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "contentSize": f"{facts['bytes']} B",
            "encodingFormat": _TYPES.get(path.rpartition(".")[2], "application/octet-stream"),
            "sha256": facts["sha256"],
        }
        for path, facts in files.items()
    ]
    tables = [path for path in files if path.endswith((".parquet", ".jsonl"))]
    records = [
        {
            "@type": "cr:RecordSet",
            "@id": path.rpartition("/")[2].partition("-")[0].partition(".")[0],
            "field": [
                {
                    "@type": "cr:Field",
                    "@id": f"{path}#{name}",
                    "name": name,
                    "description": what,
                    "dataType": "sc:Integer" if name in ("example_id", "label") else "sc:Text",
                    "source": {"fileObject": {"@id": path}, "extract": {"column": name}},
                }
                for name, what in sheet.columns
            ],
        }
        for path in tables
    ]
    about = {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "sc": "https://schema.org/",
            "cr": _CROISSANT,
            "column": "cr:column",
            "conformsTo": "dct:conformsTo",
            "dct": "http://purl.org/dc/terms/",
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "extract": "cr:extract",
            "field": "cr:field",
            "fileObject": "cr:fileObject",
            "recordSet": "cr:recordSet",
            "source": "cr:source",
        },
        "@type": "sc:Dataset",
        "conformsTo": f"{_CROISSANT}1.0",
        "name": sheet.name,
        "description": sheet.description,
        "version": version,
        **({"license": licence} if licence else {}),
        "distribution": objects,
        **({"recordSet": records} if records else {}),
    }
    return json.dumps(about, indent=2) + "\n"
