"""Stage 4, curation: forget/retain splits of the training examples, each with the reason for every example's role."""

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
from contracts.errors import NotTrusted
from contracts.methods import curator
from contracts.subject import Split, Subject
from warehouse import empty


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
        deps=needs.stages_of(spec, config, upstream, scores=scores, splits=before),
        tables=(schema.MEMBERS, schema.DATASETS),
        warnings=(APPLIES,),
        trains=bool(needs.TRAINING & set(spec.needs)),
        work=lambda run: curate(run, split.name, split.method, config, upstream),
    )


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
            tables=[(table, empty(table), partition) for table in (schema.MEMBERS, schema.DATASETS)],
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
    ids = {role: members.filter(pl.col("role") == role)["example_id"].to_numpy() for role in spec.roles}
    stored = run.save(ids, {"dataset_id": dataset_id, "method": method})
    row = {
        "dataset_id": dataset_id,
        "method": method,
        "num_examples": members.height,
        "digest": digest({role: v.tolist() for role, v in ids.items()}),
        "config": canonical_json(config),
    }
    partition = {"dataset_id": dataset_id}
    return Output(
        tables=[
            (schema.MEMBERS, members.with_columns(dataset_id=pl.lit(dataset_id)), partition),
            (schema.DATASETS, pl.DataFrame([row]), partition),
        ],
        artifacts=[stored],
        members=np.concatenate(list(ids.values())),
        metadata={
            **{role: len(v) for role, v in ids.items()},
            "per_class": members.join(_labels(run), on="example_id")
            .group_by("label_name", "role")
            .len()
            .pivot("role", index="label_name", values="len")
            .fill_null(0)
            .sort("label_name")
            .to_dicts(),
        },
    )


def _labels(run: Run) -> pl.DataFrame:
    return run.read(schema.EXAMPLES).select("example_id", "label_name")
