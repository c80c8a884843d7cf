"""Analyses of the data and audits of the model beyond membership: the declaration alone decides inputs, tables, checks,
pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from assets import needs
from assets.examples import examples_in
from assets.stage import APPLIES, Output, Run, Stage
from contracts.digests import derive_seed
from contracts.errors import NotApplicable, NotTrusted
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.subject import Choice, Subject
from contracts.tables import TableSpec
from reports import plots
from reports.plots import is_picture
from warehouse import empty

HEAD = 10


def analyses(
    subject: Subject, upstream: Mapping[str, Stage], scores: Mapping[str, Stage], curated: Mapping[str, Stage]
) -> dict[str, Stage]:
    """``[subject, analyses | audits, <name>]`` for every analysis the subject lists."""
    made: dict[str, Stage] = {}
    for choice in subject.analyses:  # an analysis may read those listed before it
        made[choice.name] = _stage(subject, choice, upstream, scores, curated, made)
    return made


def _stage(
    subject: Subject,
    choice: Choice,
    upstream: Mapping[str, Stage],
    scores: Mapping[str, Stage],
    curated: Mapping[str, Stage],
    before: Mapping[str, Stage],
) -> Stage:
    spec = analysis.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    return Stage(
        subject=subject,
        path=(spec.stage, spec.name),
        doc=f"{spec.doc} {spec.source}",
        config={"analysis": config, "seed": subject.seed, **needs.plan_of(subject, spec)},
        version=spec.version,
        deps=needs.stages_of(spec, config, upstream, scores=scores, curated=curated, analyses=before),
        tables=spec.tables,
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "duckdb"}),
        trains=bool(needs.TRAINING & set(spec.needs)),
        work=lambda run: _analyse(run, spec, config, upstream),
    )


def _analyse(run: Run, spec: AnalysisSpec, config: Any, upstream: Mapping[str, Stage]) -> Output:
    try:
        needs.refuse(run, spec, "analysis")
        frames = analysis.get(spec.name)(
            run.data,
            config=config,
            seed=derive_seed(run.subject.seed, "analysis", spec.name) % 2**31,
            progress=run.progress,
            **needs.provided(run, spec, upstream),
        )
    except (NotApplicable, NotTrusted) as error:
        return Output(tables=[(t, empty(t), {}) for t in spec.tables], warnings={APPLIES: str(error)})
    first = frames[spec.tables[0].name]
    return Output(
        tables=[(table, frames[table.name], {}) for table in spec.tables],
        members=run.train.example_id,
        metadata={
            "rows": {t.name: frames[t.name].height for t in spec.tables},
            "head": first.select(_shown(run, spec.tables[0])).head(HEAD).to_dicts(),
        },
        pictures={p.title: png for p in spec.pictures if (png := _png(run, p, frames[p.table]))},
        of_data=frozenset(p.title for p in spec.pictures if {p.series, p.x} & _OF_THE_DATA),
        warnings={APPLIES: ""},
    )


# Columns of text that name what the data call so: a class, a step, a group, a concept.
_OF_THE_DATA = frozenset({"about", "class_name", "concept", "concept_set", "label_name", "step_name"})


def _shown(run: Run, table: TableSpec) -> list[str]:
    """Columns that Dagster may show: figures, and text that the method itself has named; what the data say as well
    where the plan has previews."""
    return [
        c.name
        for c in table.columns
        if c.dtype in ("int64", "float64", "bool")
        or (c.dtype == "str" and (run.subject.previews or c.choices))
        or (c.dtype == "str" and c.name in table.key and c.name not in _OF_THE_DATA)
    ]


def _png(run: Run, picture: Picture, frame: pl.DataFrame) -> bytes | None:
    """A chart; or a sheet of examples where they are pictures and the plan has previews."""
    if picture.is_chart:
        return plots.table_png(picture, frame) if plots.rows_of(picture, frame).height else None
    if not (run.subject.previews and is_picture(run.data.input_shape)):
        return None
    groups = examples_in(run.data, picture, frame)
    images = [image for e in groups if e.images is not None for image in e.images]
    if not images:
        return None
    captions = [e.heading.split(" ", 1)[-1][:22] for e in groups for _ in e.example_id]
    lengths = [len(e.example_id) for e in groups]  # a row of the sheet is a group, unless each has one example
    return plots.grid_png(images, captions, lengths=lengths if max(lengths) > 1 else (), title=picture.title)  # type: ignore[arg-type]
