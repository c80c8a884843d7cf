"""Stage 1, data: the examples of a subject, by stable id, with their owners, content hashes and columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from assets.stage import Output, Run, Stage
from contracts import schema
from contracts.identity import owner_token
from contracts.methods import source
from contracts.subject import Subject
from reports import plots
from sources.example_set import ExampleSet
from warehouse import empty


def examples(subject: Subject) -> Stage:
    """``[subject, data, examples]``: one row an example; the values themselves stay in their source."""
    return Stage(
        subject=subject,
        path=("data", "examples"),
        version=3,
        doc=f"Examples of {subject.title or subject.subject}: stable id, split, label, owner token, content hash; "
        "data.columns has their step, domain, client or group where the source keeps any. The values stay in their "
        "source and are re-read and compared by digest.",
        config={
            "source": subject.source,
            "version": source.get(subject.source.name).spec.version,
            "seed": subject.seed,
        },
        reads="data",
        tables=(schema.EXAMPLES, schema.COLUMNS),
        kinds=frozenset({"duckdb", "polars"}),
        work=_examples,
    )


def _examples(run: Run) -> Output:
    data = run.data
    shown, num = data.task.shown(data), data.num_examples
    salt = run.warehouse.salt()
    tokens = {owner: owner_token(owner, salt=salt) for owner in np.unique(data.owner).tolist()}
    frame = pl.DataFrame(
        {
            "example_id": data.example_id,
            "split": data.split,
            "label": shown.get("label", pl.Series([None] * num, dtype=pl.Int64)),
            "label_name": shown.get("label_name", np.full(num, "")),
            "target": shown.get("target", pl.Series([None] * num, dtype=pl.Float64)),
            "owner": pl.Series(data.owner).replace_strict(tokens, return_dtype=pl.String),
            "content_hash": data.content_hash,
            "origin": pl.Series(
                [None] * data.num_examples if data.origin is None else _told(data, tokens), dtype=pl.String
            ),
        }
    )
    return Output(
        tables=[(schema.EXAMPLES, frame, {}), (schema.COLUMNS, _columns(data, tokens), {})],
        besides=data.payload.shared,
        members=data.example_id,
        metadata=_facts(run, data, frame),
        pictures={"labels": _labels(data)},
    )


def _labels(data: ExampleSet) -> bytes:
    """How the targets are spread: classes, numbers, or what their task shows of each where one is many numbers."""
    shown = data.task.shown(data)
    if data.y.ndim == 1:
        return plots.histogram_png(data.y, title="Labels", xlabel="class" if "label" in shown else "target")
    name, values = next(iter(shown.items()))
    return plots.histogram_png(values, title="Labels", xlabel=name)


def _told(data: ExampleSet, tokens: Mapping[str, str]) -> list[str]:
    """Where each example lies; a folder or file that is called as the owner is gets the owner's token."""
    assert data.origin is not None
    rows = zip(data.origin.tolist(), data.owner.tolist(), strict=True)
    return ["/".join(tokens[owner] if part and part == owner else part for part in at.split("/")) for at, owner in rows]


def _columns(data: ExampleSet, tokens: Mapping[str, str]) -> pl.DataFrame:
    """The columns that stand beside the examples, one below the other: 40 bytes a row besides long texts."""
    parts = [
        pl.DataFrame(
            {
                "example_id": data.example_id,
                "name": pl.repeat(name, data.num_examples, eager=True),
                "value": _without_names(values, data.owner, tokens),
            }
        )
        for name, values in data.columns.items()
    ]
    return pl.concat(parts) if parts else empty(schema.COLUMNS)


def _without_names(values: np.ndarray, owner: np.ndarray, tokens: Mapping[str, str]) -> pl.Series:
    """A column as text in which no owner is named: a text that is an owner's name becomes the owner's token.

    A whole number may be an owner's name by chance, a step for instance: numbers become tokens only in the column that
    names every row's owner.
    """
    found, place = np.unique(values, return_inverse=True)
    spelled = found.astype(str)
    owned = owner != ""
    names_owner = bool(owned.any()) and bool((spelled[place[owned]] == owner[owned]).all())
    said = [
        tokens[text] if text in tokens and (names_owner or not text.lstrip("-").isdecimal()) else text
        for text in spelled.tolist()
    ]
    return pl.Series(said, dtype=pl.String).gather(place)


def _facts(run: Run, data: ExampleSet, frame: pl.DataFrame) -> dict[str, object]:
    duplicated = frame.height - frame["content_hash"].n_unique()
    shown = ["example_id", "split", *(["label_name"] if run.subject.previews else [])]
    return {
        "examples": data.num_examples,
        "classes": data.num_classes,
        "input_shape": " x ".join(map(str, data.input_shape)),
        "columns": ", ".join(data.columns),
        "owners": int(frame["owner"].n_unique() - (frame["owner"] == "").any()),
        "exact_duplicates": int(duplicated),
        "source_digest": data.digest,
        "first_rows": frame.head(10).select(shown).to_dicts(),
    }
