"""Stage 3, scores: one asset a registered score; the declaration alone decides inputs, table, checks and gates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from assets import models
from assets.stage import Output, Run, Stage, labels_of, top_rows
from assets.workspace import device_of, model_builder
from contracts import schema
from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.methods import Gate, ScoreSpec, recipe, score
from contracts.subject import Choice, Subject
from reports import plots


def scores(subject: Subject, upstream: Mapping[str, Stage]) -> dict[str, Stage]:
    """``[subject, scores, <name>]`` for every score the subject lists.

    Args:
        upstream: the stages ``examples``, ``target``, ``early`` and ``ensemble``.
    """
    return {choice.name: _stage(subject, choice, upstream) for choice in subject.scores}


def _stage(subject: Subject, choice: Choice, upstream: Mapping[str, Stage]) -> Stage:
    spec = score.get(choice.name).spec
    config = spec.config.from_mapping(choice.config)
    return Stage(
        subject=subject,
        path=("scores", spec.name),
        doc=f"{spec.doc} Higher means {spec.higher_means}. {spec.source}",
        config={"score": config, "seed": subject.seed},
        version=spec.version,
        deps=(upstream["examples"], *(upstream[NEEDS[need]] for need in spec.needs if need in NEEDS)),
        tables=(spec.table, schema.SCORE_RUNS),
        warnings=("gates",) if spec.gates else (),
        kinds=frozenset({"torch", "duckdb"}),
        work=lambda run: _score(run, spec, config, upstream),
    )


NEEDS = {"model": "target", "early_models": "early", "ensemble": "ensemble"}
_LOAD: dict[str, Callable[[Run, Mapping[str, Stage]], Any]] = {
    "model": lambda run, up: models.load_model(run, up["target"]),
    "early_models": lambda run, up: models.load_early(run, up["early"]),
    "ensemble": lambda run, up: models.load_ensemble(run, up["ensemble"]),
    "train": lambda run, up: trainer(run),
}


def trainer(run: Run) -> Callable[..., Any]:
    """``(data, seed) -> model``: the subject's own recipe from a fresh initialisation."""
    method, config = recipe.get(run.subject.recipe.name), models.recipe_config(run.subject)
    build, device = model_builder(run.subject, run.data), device_of(run.subject)
    return lambda data, seed: method(build, data, config=config, seed=seed, device=device, progress=run.progress)


def _score(run: Run, spec: ScoreSpec, config: Any, upstream: Mapping[str, Stage]) -> Output:
    if run.data.task not in spec.tasks:
        raise NotApplicable(f"score {spec.name} is defined for {', '.join(spec.tasks)}, not for {run.data.task}")
    started = time.perf_counter()
    frame = score.get(spec.name)(
        run.train,
        config=config,
        seed=derive_seed(run.subject.seed, "score", spec.name) % 2**31,
        **{need: _LOAD[need](run, upstream) for need in spec.needs},
    ).sort("example_id")
    reasons = [reason for gate in spec.gates if (reason := _refusal(frame, gate))]
    row = {
        "score": spec.name, "num_examples": frame.height, "passed": not reasons, "reason": " ".join(reasons),
        "higher_means": spec.higher_means, "wall_s": time.perf_counter() - started,
    }  # fmt: skip
    values = frame[spec.value].drop_nulls()
    return Output(
        tables=[(spec.table, frame, {}), (schema.SCORE_RUNS, pl.DataFrame([row]), {"score": spec.name})],
        members=frame["example_id"].to_numpy(),
        metadata={
            "examples": frame.height,
            "mean": float(values.mean()) if len(values) else 0.0,  # type: ignore[arg-type]
            "highest": top_rows(frame, spec.value, labels_of(run.data)),
        },
        pictures={"histogram": plots.histogram_png(values.to_numpy(), title=spec.name, xlabel=_xlabel(spec))}
        if len(values)
        else {},
        warnings={"gates": " ".join(reasons)} if spec.gates else {},
    )


def _xlabel(spec: ScoreSpec) -> str:
    column = spec.table.column(spec.value)
    return f"{spec.value}{f' ({column.unit})' if column.unit else ''}, higher = {spec.higher_means}"


def _refusal(frame: pl.DataFrame, gate: Gate) -> str:
    """The sentence that says why a run does not count, or nothing. A statistic of no rows refuses too."""
    values = frame[gate.column].drop_nulls().to_numpy()
    if not len(values):
        return f"{gate.column} has no values: {gate.why}"
    found = float(np.mean(values) if gate.statistic == "mean" else np.min(values))
    return (
        ""
        if found >= gate.at_least
        else f"{gate.statistic} {gate.column} is {found:.3f}, below {gate.at_least:g}: {gate.why}"
    )
