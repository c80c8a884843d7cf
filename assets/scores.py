"""Stage 3, scores: one asset a registered score; the declaration alone decides inputs, table, checks and gates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from assets import imported, needs
from assets.stage import Output, Run, Stage, top_rows
from contracts import schema
from contracts.digests import derive_seed
from contracts.errors import NotApplicable, NotTrusted
from contracts.methods import Gate, ScoreSpec, score
from contracts.subject import Choice, Subject
from reports import plots
from warehouse import empty


def scores(subject: Subject, upstream: Mapping[str, Stage]) -> dict[str, Stage]:
    """``[subject, scores, <name>]`` for every score the subject lists.

    Args:
        upstream: the stages ``examples``, ``target``, ``early`` and ``ensemble``.
    """
    made: dict[str, Stage] = {}
    for choice in subject.scores:  # a score may read those listed before it
        made[choice.name] = _stage(subject, choice, upstream, made)
    return made


def _stage(subject: Subject, choice: Choice, upstream: Mapping[str, Stage], before: Mapping[str, Stage]) -> Stage:
    spec = score.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    return Stage(
        subject=subject,
        path=("scores", spec.name),
        doc=f"{spec.doc} Higher means {spec.higher_means}. {spec.source}",
        config={"score": config, "seed": subject.seed, **needs.plan_of(subject, spec)},
        version=spec.version,
        deps=needs.stages_of(spec, config, upstream, scores=before, curated={}),
        tables=(spec.table, schema.SCORE_RUNS),
        warnings=("gates",),
        kinds=frozenset({"torch", "duckdb"}),
        trains=bool(needs.TRAINING & set(spec.needs)),
        work=lambda run: _score(run, spec, config, upstream),
    )


def _score(run: Run, spec: ScoreSpec, config: Any, upstream: Mapping[str, Stage]) -> Output:
    started = time.perf_counter()
    try:
        needs.refuse(run, spec, "score")
        frame = score.get(spec.name)(
            run.train,
            config=config,
            seed=derive_seed(run.subject.seed, "score", spec.name) % 2**31,
            **needs.provided(run, spec, upstream),
        ).sort("example_id")
        reasons = [reason for gate in spec.gates if (reason := _refusal(frame, gate))]
    except (NotApplicable, NotTrusted) as error:
        frame, reasons = empty(spec.table), [str(error)]
    row = {
        "score": spec.name,
        "num_examples": frame.height,
        "passed": not reasons,
        "reason": " ".join(reasons),
        "higher_means": spec.higher_means,
        "wall_s": time.perf_counter() - started,
    }
    values = frame[spec.value].drop_nulls()
    return Output(
        tables=[(spec, frame, {}), (schema.SCORE_RUNS, pl.DataFrame([row]), {"score": spec.name})],
        artifacts=imported.kept(run) if "imported" in spec.needs else (),
        members=frame["example_id"].to_numpy(),
        metadata={
            "examples": frame.height,
            "mean": float(values.mean()) if len(values) else 0.0,  # type: ignore[arg-type]
            "highest": top_rows(run, frame, spec.value),
        },
        pictures={"histogram": plots.histogram_png(values.to_numpy(), title=spec.name, xlabel=_xlabel(spec))}
        if len(values)
        else {},
        warnings={"gates": " ".join(reasons)},
    )


def _xlabel(spec: ScoreSpec) -> str:
    column = spec.table.column(spec.value)
    return f"{spec.value}{f' ({column.unit})' if column.unit else ''}, higher = {spec.higher_means}"


def _refusal(frame: pl.DataFrame, gate: Gate) -> str:
    """The sentence that says why a run does not count, or nothing. A statistic of no rows refuses too."""
    values = frame[gate.column].drop_nulls().to_numpy()
    if not len(values):
        return f"{gate.column} has no values: {gate.why}"
    return gate.refusal(float(np.mean(values) if gate.statistic == "mean" else np.min(values)))
