"""Stage 5, unlearning: one job a method, in a process of its own; then every method against retraining.

``Scope`` says on whose behalf: the subject's own split (audited on schedule) or a forget request (a partition).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from assets import models
from assets.stage import Output, Run, Stage
from contracts import schema
from contracts.digests import derive_seed, plain
from contracts.jobs import UnlearnJob, times_of
from contracts.methods import unlearner
from contracts.requests import RequestState
from contracts.subject import Choice, Subject, Thresholds
from reports import plots
from warehouse import Artifact

CONTROLS = ("none", "retrain")


@dataclass(frozen=True)
class Scope:
    """The split whose forget role is removed, and where the results belong."""

    split: Stage
    per_request: bool

    @property
    def prefix(self) -> str:
        return "request_" if self.per_request else ""

    def name(self, run: Run) -> str:
        """Value of the ``split`` columns: the split's name, or the request's id."""
        return run.request if self.per_request and run.request else self.split.path[1]


def methods_of(subject: Subject) -> list[Choice]:
    """The controls first, then the methods of the plan."""
    assert subject.unlearning is not None
    listed = {m.name: m for m in subject.unlearning.methods}
    return [listed.pop(name, Choice(name=name)) for name in CONTROLS] + list(listed.values())


def jobs(subject: Subject, upstream: Mapping[str, Stage], scope: Scope) -> dict[str, Stage]:
    """``[subject, unlearning, <method>]``: the unlearned models, their metrics and their logits, one set a seed."""
    return {choice.name: _job(subject, choice, upstream, scope) for choice in methods_of(subject)}


def _job(subject: Subject, choice: Choice, upstream: Mapping[str, Stage], scope: Scope) -> Stage:
    assert subject.unlearning is not None
    spec = unlearner.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}unlearning", choice.name),
        doc=f"{spec.doc} Runs as a job of its own over {subject.unlearning.seeds} seeds. {spec.source}",
        config={**models.training(subject), "method": choice.name, "config": config, "seeds": subject.unlearning.seeds},
        version=spec.version,
        deps=(upstream["examples"], upstream["target"], scope.split),
        kinds=frozenset({"torch", "safetensors"}),
        per_request=scope.per_request,
        trains=True,
        work=lambda run: _run_job(run, choice, upstream["target"], scope),
    )


def job_seeds(subject: Subject) -> tuple[int, ...]:
    assert subject.unlearning is not None
    return tuple(derive_seed(subject.seed, "unlearn", r) % 2**31 for r in range(subject.unlearning.seeds))


def _training_part(subject: Subject) -> Subject:
    """The plan without what has no part in a job, so that a new threshold or score does not make a new job."""
    return dataclasses.replace(
        subject, title="", scores=(), analyses=(), splits=(), unlearning=None, attacks=(), thresholds=Thresholds(),
        schedule=None, owners=(),
    )  # fmt: skip


def _run_job(run: Run, choice: Choice, target: Stage, scope: Scope) -> Output:
    store = run.warehouse.artifacts
    members, weights = scope.split.asset(run.request) + "/result", target.asset(run.request) + "/weights"
    job = UnlearnJob(
        subject=plain(_training_part(run.subject)),
        data_version=run.data.digest,
        method=choice,
        seeds=job_seeds(run.subject),
        target=weights,
        target_sha256=store.sha256(weights),
        members=members,
        members_sha256=store.sha256(members),
        output=f"{run.asset}/result",
    )
    run.workspace.launcher.run(job, home=run.workspace.home, context=run.context, progress=run.progress)
    artifact: Artifact = store.describe(job.output)
    _, meta = store.load(job.output)
    ids, _ = store.load(members)
    return Output(
        artifacts=[artifact],
        volatile=[store.describe(times_of(job.output))],
        members=ids["retain"] if choice.name == "retrain" else np.concatenate([ids["retain"], ids["forget"]]),
        metadata={"job": job.job_id, "runs": meta["runs"]},
    )


def comparison(subject: Subject, scope: Scope, jobs: Mapping[str, Stage]) -> Stage:
    """``[subject, unlearning, comparison]``: UA, RA, TA, MIA-efficacy, time and gap to retraining (card 06)."""
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}unlearning", "comparison"),
        doc="Every removal method against retraining from scratch: unlearning, retain and test accuracy, efficacy of a "
        "membership attack, time, and the average gap to retraining of the same seed. Closer to retraining is better.",
        deps=(scope.split, *jobs.values()),
        tables=(schema.UNLEARNING_RUNS,),
        per_request=scope.per_request,
        work=lambda run: _compare(run, scope, jobs),
    )


def _compare(run: Run, scope: Scope, jobs: Mapping[str, Stage]) -> Output:
    from unlearning.metrics import add_gaps

    split = scope.name(run)
    rows: list[dict[str, Any]] = []
    for method, stage in jobs.items():
        _, meta = run.load(stage)
        times = run.warehouse.artifacts.load_json(times_of(f"{stage.asset(run.request)}/result"))
        rows += [
            {"split": split, "method": method, **row, **took} for row, took in zip(meta["runs"], times, strict=True)
        ]
    frame = add_gaps(pl.DataFrame(rows, infer_schema_length=None))
    if scope.per_request and run.request:
        run.warehouse.requests.reach(run.request, RequestState.EXECUTED, note=f"{len(jobs)} methods run")
    tables = [
        (schema.UNLEARNING_RUNS, frame.filter(pl.col("method") == method), {"split": split, "method": method})
        for method in jobs
    ]
    return Output(
        tables=tables,
        metadata={"methods": len(jobs), "table": _short(frame)},
        pictures={
            "gap": plots.dots_png(
                {method: frame.filter(pl.col("method") == method)["avg_gap"].to_numpy() for method in jobs},
                title=f"Distance to retraining: {split}",
                xlabel="average gap to retraining (points)",
                threshold=run.subject.thresholds.max_gap,
                threshold_label="largest tolerated",
            )
        },
    )


def _short(frame: pl.DataFrame) -> list[dict[str, Any]]:
    columns = ["ua", "ra", "ta", "mia_efficacy", "avg_gap", "wall_s"]
    return frame.group_by("method", maintain_order=True).agg(pl.col(c).mean().round(2) for c in columns).to_dicts()
