"""Stage 4, curation: splits of the training examples, each with the reason for every example's role, and data sets of
new examples that were made out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from assets import needs
from assets.stage import APPLIES, Output, Run, Stage
from contracts import schema
from contracts.digests import canonical_json, derive_seed, digest
from contracts.errors import NotApplicable, NotTrusted
from contracts.methods import AFTER_ERASURE, CuratorSpec, MakerSpec, curator, maker
from contracts.subject import Dataset, Split, Subject
from contracts.tables import TableSpec
from reports import plots
from sources.made import Made
from warehouse import empty

_SHOWN = 10  # made examples in the picture of a data set


def splits(subject: Subject, upstream: Mapping[str, Stage], scores: Mapping[str, Stage]) -> dict[str, Stage]:
    """``[subject, curation, <split>]`` for every split the subject lists."""
    made: dict[str, Stage] = {}
    for split in subject.splits:  # a split may read those listed before it
        made[split.name] = _stage(subject, split, upstream, scores, made)
    return made


def _stage(
    subject: Subject,
    split: Split,
    upstream: Mapping[str, Stage],
    scores: Mapping[str, Stage],
    before: Mapping[str, Stage],
) -> Stage:
    spec = curator.get(split.method).spec
    config = spec.config.from_mapping(split.config)
    return Stage(
        subject=subject,
        path=("curation", split.name),
        doc=f"{spec.doc} Roles: {', '.join(spec.roles)}.",
        config={"method": split.method, "config": config, "seed": subject.seed, **needs.plan_of(subject, spec)},
        version=spec.version,
        deps=needs.stages_of(spec, config, upstream, scores=scores, curated=before),
        tables=_tables(spec),
        warnings=(APPLIES,),
        trains=bool(needs.TRAINING & set(spec.needs)),
        work=lambda run: curate(run, split.name, split.method, config, upstream),
    )


def _tables(spec: CuratorSpec) -> tuple[TableSpec, ...]:
    """Where a curator's members are stored."""
    return (schema.MEMBERS, schema.DATASETS, *((schema.WEIGHTS,) if spec.weighs else ()))


def datasets(
    subject: Subject, upstream: Mapping[str, Stage], scores: Mapping[str, Stage], splits: Mapping[str, Stage]
) -> dict[str, Stage]:
    """``[subject, curation, <data set>]`` for every data set the subject makes."""
    made: dict[str, Stage] = {}
    for plan in subject.datasets:
        spec = maker.get(plan.method).spec
        config = spec.config.from_mapping(plan.config)
        made[plan.name] = Stage(
            subject=subject,
            path=("curation", plan.name),
            doc=spec.doc,
            config={"method": plan.method, "config": config, "seed": subject.seed, **needs.plan_of(subject, spec)},
            version=spec.version,
            deps=needs.stages_of(spec, config, upstream, scores=scores, curated=splits),
            tables=(schema.MEMBERS, schema.DATASETS, schema.DRAWN_FROM, *spec.tables),
            warnings=(APPLIES,),
            kinds=frozenset({"torch", "duckdb"}),
            trains=bool(needs.TRAINING & set(spec.needs)),
            work=lambda run, plan=plan, config=config: _make(run, plan, config, upstream),
        )
    return made


# what a maker did with an example of each role
_DID = {
    "source": "drew on it",
    "learnt_from": "learnt from it",
    "judged_on": "was judged on it",
    "unused": "made nothing from it",
}


def _make(run: Run, plan: Dataset, config: Any, upstream: Mapping[str, Stage]) -> Output:
    """Run a maker and store what it made: examples as an artifact, what they were drawn from and the rest as tables."""
    method, partition = maker.get(plan.method), {"dataset_id": plan.name}
    tables = (schema.MEMBERS, schema.DATASETS, schema.DRAWN_FROM, *method.spec.tables)
    try:
        needs.refuse(run, method.spec, "maker")
        made: Made = method(
            run.train,
            config=config,
            seed=derive_seed(run.subject.seed, "dataset", plan.name) % 2**31,
            progress=run.progress,
            **needs.provided(run, method.spec, upstream),
        ).validate(run.train)
    except (NotApplicable, NotTrusted) as error:
        return Output(
            tables=[(table, empty(table), partition) for table in tables],
            warnings={APPLIES: f"data set {plan.name} was not made: {error}"},
        )
    arrays, meta = made.kept()
    stored = run.save(arrays, meta | {"dataset_id": plan.name, "method": plan.method})
    train = np.sort(run.train.example_id)
    roles = made.roles(train)
    why = [f"{plan.method} {_DID[role]}" for role in roles.tolist()]
    members = pl.DataFrame({"example_id": train, "role": roles, "reason": why})
    row = {
        "dataset_id": plan.name,
        "method": plan.method,
        "num_examples": len(made.examples),
        "digest": made.examples.digest,
        "config": canonical_json(config),
    }
    frames = [members, pl.DataFrame([row]), made.drawn_from]
    frames += [made.tables[table.name] for table in method.spec.tables]
    named = [frame.with_columns(dataset_id=pl.lit(plan.name)) for frame in frames]
    return Output(
        tables=[(table, frame, partition) for table, frame in zip(tables, named, strict=True)],
        artifacts=[stored],
        members=np.union1d(made.sources, made.judged_on),
        metadata={
            "made examples": len(made.examples),
            "drawn from": f"{len(made.sources):,} of {len(train):,} training examples",
            "after an erasure": AFTER_ERASURE[method.spec.after_erasure],
        },
        pictures=charts(method.spec, made) | (_pictures(run, made) if run.subject.previews else {}),
        warnings={APPLIES: ""},
    )


def charts(spec: MakerSpec, made: Made) -> dict[str, bytes]:
    """The pictures that a maker declares of its tables, by title; none of an empty table."""
    return {
        picture.title: plots.table_png(picture, frame)
        for picture in spec.pictures
        if plots.rows_of(picture, frame := made.tables[picture.table]).height
    }


def _pictures(run: Run, made: Made) -> dict[str, bytes]:
    """Some made examples, each above one that it was drawn from, where they are pictures."""
    data = made.examples
    if not plots.is_picture(data.input_shape):
        return {}
    rows, first = made.some(_SHOWN)
    originals = run.train.subset(np.unique(first))
    lower = originals.x[originals.positions(first)]
    single = data.class_names and data.y.ndim == 1
    return {
        "made examples": plots.grid_png(
            np.concatenate([data.x[rows], lower]),
            [*(f"{data.class_names[c]} (made)" if single else "made" for c in data.y[rows])] + ["original"] * len(rows),
            lengths=[len(rows)] * 2,
        )
    }


def curate(run: Run, dataset_id: str, method: str, config: Any, upstream: Mapping[str, Stage]) -> Output:
    """Run a curator and store its members: none, and why, where a score that it reads missed its gates.

    Raises:
        NotTrusted: that, of the split that the plan unlearns: without it there is nothing to audit the removal of.
    """
    try:
        members = choose(run, dataset_id, method, config, upstream)
    except NotTrusted as error:
        if run.subject.unlearning is not None and run.subject.unlearning.split == dataset_id:
            raise
        partition = {"dataset_id": dataset_id}
        return Output(
            tables=[(table, empty(table), partition) for table in _tables(curator.get(method).spec)],
            warnings={APPLIES: f"split {dataset_id} was not made: {error}"},
        )
    return dataclasses.replace(store(run, dataset_id, method, config, members), warnings={APPLIES: ""})


def choose(run: Run, dataset_id: str, method: str, config: Any, upstream: Mapping[str, Stage]) -> pl.DataFrame:
    """What a curator says of every training example: (example_id, role, reason), by id."""
    frame = curator.get(method)(
        run.train,
        config=config,
        seed=derive_seed(run.subject.seed, "split", dataset_id) % 2**31,
        **needs.provided(run, curator.get(method).spec, upstream),
    )
    return frame.sort("example_id")  # type: ignore[no-any-return]


def store(run: Run, dataset_id: str, method: str, config: Any, members: pl.DataFrame) -> Output:
    """Members as a table and, for the jobs, as an artifact of ids by role."""
    spec = curator.get(method).spec
    roles = (*spec.roles, *sorted(set(members["role"].unique()) - set(spec.roles)))
    ids = {role: members.filter(pl.col("role") == role)["example_id"].to_numpy() for role in roles}
    stored = run.save(ids, {"dataset_id": dataset_id, "method": method})
    row = {
        "dataset_id": dataset_id,
        "method": method,
        "num_examples": members.height,
        "digest": digest({role: v.tolist() for role, v in ids.items()}),
        "config": canonical_json(config),
    }
    named = members.with_columns(dataset_id=pl.lit(dataset_id))
    frames = [named.select("dataset_id", "example_id", "role", "reason"), pl.DataFrame([row])]
    if spec.weighs:
        frames.append(named.select("dataset_id", "example_id", "weight").drop_nulls("weight"))
    partition = {"dataset_id": dataset_id}
    label = "label_name" if run.subject.previews else "label"
    return Output(
        tables=[(table, frame, partition) for table, frame in zip(_tables(spec), frames, strict=True)],
        artifacts=[stored],
        members=np.concatenate(list(ids.values())),
        metadata={
            **{role: len(v) for role, v in ids.items()},
            "after an erasure": AFTER_ERASURE[spec.after_erasure],
            "per_class": members.join(_labels(run), on="example_id")
            .group_by(label, "role")
            .len()
            .pivot("role", index=label, values="len")
            .fill_null(0)
            .sort(label)
            .to_dicts(),
        },
    )


def _labels(run: Run) -> pl.DataFrame:
    return run.read(schema.EXAMPLES).select("example_id", "label", "label_name")
